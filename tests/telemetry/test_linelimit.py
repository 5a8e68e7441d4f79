"""Log lines that a peer causes are limited in number, and every suppressed one is counted."""

from gateway.telemetry.linelimit import LineLimit


def test_one_line_a_second_says_how_many_it_stands_for() -> None:
    """The first event gets a line, those within the next second none, and the next line counts them."""
    now = 10.0
    limit = LineLimit(seconds=1.0, clock=lambda: now)

    assert limit.admit() == 0
    now = 10.5
    assert [limit.admit() for _ in range(3)] == [None] * 3
    now = 11.0
    assert limit.admit() == 3
    now = 12.0
    assert limit.admit() == 0

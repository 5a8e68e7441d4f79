"""gateway/cli/top_view.py: what it shows of two successive samples of a gateway."""

import io
from typing import Any

import pytest
from rich.console import Console

from gateway.cli.scrape import parse
from gateway.cli.top_view import Look, dollars, drawing, duration, rows

METRICS = """\
# TYPE realtime_gateway_sessions gauge
realtime_gateway_sessions{{state="connected"}} 2
realtime_gateway_sessions{{state="recovering"}} 1
# TYPE realtime_gateway_limit gauge
realtime_gateway_limit{{kind="sessions"}} 2000
realtime_gateway_limit{{kind="log_bytes"}} 5
# TYPE realtime_gateway_draining gauge
realtime_gateway_draining {draining}
# TYPE realtime_gateway_streams gauge
realtime_gateway_streams{{format="sse"}} 3
# TYPE realtime_gateway_events counter
realtime_gateway_events_total{{direction="up",type="response.create"}} {up}
realtime_gateway_events_total{{direction="down",type="response.done"}} {down}
# TYPE realtime_gateway_tokens counter
realtime_gateway_tokens_total{{model="m",key="a",direction="input",kind="text"}} {tokens}
# TYPE realtime_gateway_cost_dollars counter
realtime_gateway_cost_dollars_total{{model="m",key="a"}} {cost}
# TYPE realtime_gateway_unpriced_tokens counter
realtime_gateway_unpriced_tokens_total{{model="other"}} {unpriced}
# TYPE realtime_gateway_event_loop_lag_seconds histogram
realtime_gateway_event_loop_lag_seconds_bucket{{le="0.001"}} {lag}
realtime_gateway_event_loop_lag_seconds_bucket{{le="+Inf"}} {lag}
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 104857600
"""


def look(at: float, *sessions: dict[str, Any], more: bool = False, **values: float) -> Look:
    """Return a sample of a gateway, taken at the given time."""
    counts = dict.fromkeys(("draining", "up", "down", "tokens", "cost", "unpriced", "lag"), 0.0) | values
    return Look(at, 1_000_000 + at, parse(METRICS.format(**counts)), sessions, more)


def session(id: str, head: str = "k-1", **changes: Any) -> dict[str, Any]:
    """Return a session as the admin listener describes it."""
    usage = {"input_text": 10, "output_text": 5, "cached_input": 9, "cost_usd": 0.5}
    shown = {"id": id, "principal": "ada", "state": "connected", "model": "m", "created_at": 1_000_000}
    return {**shown, "receivers": 1, "head": head, "usage": usage, **changes}


def printed(before: Look | None, now: Look, height: int = 10) -> str:
    """Return what the terminal shows."""
    console = Console(file=io.StringIO(), width=160)
    console.print(drawing(before, now, height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_sessions_stand_in_the_order_of_their_activity() -> None:
    """Sessions are sorted by events per second, also across a change of epoch; of two equal ones the more expensive
    comes first."""
    before = look(0, session("gws_a", "k-10"), session("gws_b", "k-10"), session("gws_c", "k-5"))
    now = look(
        2,
        session("gws_a", "k-12"),
        session("gws_b", "n-30"),
        session("gws_c", "k-5", usage={"cost_usd": None}),
        session("gws_d", "k-900"),
    )

    found = rows(before, now)
    assert [(row.id, row.events_per_second) for row in found] == [
        ("gws_b", 10),
        ("gws_a", 1),
        ("gws_d", 0),
        ("gws_c", 0),
    ]
    assert (found[0].tokens, found[0].cost_usd, found[0].age_seconds) == (15, 0.5, 2)
    assert (found[3].tokens, found[3].cost_usd) == (0, None)


def test_totals_tell_states_rates_and_cost() -> None:
    """Rates are the increases between two samples."""
    before = look(0, up=10, down=100, tokens=1000, cost=1, lag=5)
    text = printed(before, look(10, up=30, down=300, tokens=1100, cost=1.5, lag=10))

    assert "2 connected · 1 recovering · 0 connecting, of 2000 allowed" in text
    assert "2.0/s up · 20.0/s down · 3 streams open" in text
    assert "600 a minute · 1,100 since start" in text
    assert "$180.00 an hour · $1.50 since start" in text
    assert "100 MiB · loop lag p99 1.0 ms" in text
    assert "DRAINING" not in text


def test_first_look_has_no_rates() -> None:
    """The first look has no rates, but shows a drain and tokens without a price."""
    text = printed(None, look(0, up=30, tokens=5, draining=1, unpriced=7))

    assert "DRAINING" in text
    assert "0.0/s up" in text
    assert "7 tokens have no price" in text
    assert "lag p99 -" in text


def test_a_restart_is_no_negative_rate() -> None:
    """A counter that was reset does not lead to a negative rate."""
    assert "0.0/s up" in printed(look(0, up=50), look(1, up=2))


def test_what_has_no_room_is_counted() -> None:
    """Sessions that do not fit on the screen are counted instead of scrolling out of sight."""
    sessions = [session(f"gws_{number}") for number in range(5)]

    assert "… and 3 more" in printed(None, look(0, *sessions), 2)
    assert "… and 3+ more" in printed(None, look(0, *sessions, more=True), 2)
    assert "more" not in printed(None, look(0, *sessions), 5)


def test_names_are_no_markup() -> None:
    """A model's name is not interpreted as markup, because the provider chooses it."""
    assert "[red]m" in printed(None, look(0, session("gws_a", model="[red]m")))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (0, "$0.00"), (0.00042, "$0.0004"), (0.5, "$0.5000"), (1234.5, "$1,234.50")],
)
def test_dollars_are_written_with_the_digits_that_matter(value: float | None, text: str) -> None:
    """An unknown cost is not shown as 0."""
    assert dollars(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0s"), (59, "59s"), (61, "1m01s"), (3600, "1h00m"), (90_000, "25h00m")]
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    """Ages are precise enough to distinguish new sessions from old ones."""
    assert duration(seconds) == text

"""The figures about events on their way to clients."""

import msgspec

from gateway.downstream.reading.latency import Deliveries
from gateway.relay.events.eventlog import Entry
from tests.facts import Facts


def entries(first: int, last: int) -> list[Entry]:
    """Return events whose arrival time equals their sequence."""
    return [Entry(sequence, "x", b"", 0, 0, float(sequence)) for sequence in range(first, last + 1)]


def make() -> tuple[Deliveries, Facts]:
    """Make an empty counter."""
    facts = Facts()
    return Deliveries(facts.port), facts


def test_the_first_write_of_an_event_is_timed() -> None:
    """Only the first write of an event by any read of its session is timed."""
    deliveries, facts = make()
    one, two = deliveries.open("s", 10), deliveries.open("s", 11)
    one.wrote(entries(11, 12), 20.0)
    two.wrote(entries(12, 13), 30.0)
    one.wrote(entries(13, 13), 40.0)

    assert facts.of("relayed_down") == [(9.0, 1), (8.0, 1), (17.0, 1)]
    assert facts.of("replayed") == []


def test_events_that_came_together_are_timed_together() -> None:
    """Events of one packet have the same time, and those of another page or packet their own."""
    deliveries, facts = make()
    one = deliveries.open("s", 0)
    came = [msgspec.structs.replace(entry, at=3.0 if entry.sequence < 3 else 4.0) for entry in entries(1, 5)]
    one.wrote(came[:1], 5.0)
    one.wrote(came, 6.0)

    assert facts.of("relayed_down") == [(2.0, 1), (3.0, 1), (2.0, 3)]


def test_what_was_there_before_is_counted() -> None:
    """Each write of an older event is counted without a time; a page may hold older and new events."""
    deliveries, facts = make()
    one, two = deliveries.open("s", 2), deliveries.open("s", 2)
    one.wrote(entries(1, 3), 5.0)
    two.wrote(entries(2, 2), 5.0)

    assert facts.of("replayed") == [(2,), (1,)]
    assert facts.of("relayed_down") == [(2.0, 1)]


def test_sessions_are_counted_apart_and_forgotten() -> None:
    """A session without an open read takes no memory."""
    deliveries, facts = make()
    one, other = deliveries.open("s", 0), deliveries.open("t", 0)
    again = deliveries.open("s", 0)
    one.wrote(entries(1, 1), 1.0)
    other.wrote(entries(1, 1), 1.0)
    one.close()
    open_with_one_left = len(deliveries)
    again.close()
    other.close()

    assert (open_with_one_left, len(deliveries)) == (2, 0)
    assert len(facts.of("relayed_down")) == 2

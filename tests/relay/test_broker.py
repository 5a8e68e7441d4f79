"""gateway/relay/broker.py: the logs of a process, and the limit on all of them."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.relay.broker import Broker, LocalLog
from gateway.relay.events.eventlog import Epoch, EventId
from gateway.relay.events.records import ServerEvent
from tests.facts import Facts

MAX_EVENTS, MAX_BYTES = 1000, 1 << 20


def bare_frame(id: str, name: str | None, text: str) -> tuple[bytes, int]:
    """Frame without any addition, so that sizes are those of the texts."""
    return text.encode(), 0


def make(total: int = 1 << 30, max_events: int = MAX_EVENTS) -> tuple[Broker, Facts]:
    """Make a broker with this total limit."""
    facts = Facts()
    return Broker(bare_frame, max_events, MAX_BYTES, total, facts.port), facts


def fill(log: LocalLog, events: int, size: int = 1024) -> None:
    """Append this many events of one size."""
    for _ in range(events):
        log.append("x", "a" * size, 0.0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200_000)), max_size=60))
def test_sizes_add_up_and_the_total_holds(steps: list[tuple[int, int]]) -> None:
    """Whatever four sessions log, the count is the sum of the logs; above the limit only the newest events are left."""
    total = 300_000
    broker, facts = make(total)
    logs = [broker.create(f"e{number}") for number in range(4)]
    appended = 0
    for number, size in steps:
        logs[number].append("x", "a" * size, 0.0)
        appended += 1
        assert broker.size == sum(log.size for log in logs)
        assert broker.size <= total or all(log.spare == 0 for log in logs)

    evicted = sum(count for (count,) in facts.of("log_evicted"))
    assert broker.events == sum(map(len, logs)) == appended - evicted


def test_the_talkative_session_pays() -> None:
    """At the total limit the log that can free most is trimmed, and its readers get a gap."""
    broker, facts = make(total=200 * 1024)
    quiet, loud = broker.create("q"), broker.create("l")
    fill(quiet, 20)
    fill(loud, 181)

    assert quiet.oldest == EventId("q", 1)
    assert loud.read(EventId("l", 0), 1, 1).gap is not None
    assert facts.of("log_evicted") == [(64,)]


def test_a_page_that_was_read_outlives_the_trim() -> None:
    """A page that was read stays complete while its reader writes it, however long that takes."""
    broker, _ = make(total=100 * 1024)
    log = broker.create("e")
    fill(log, 100)
    page = log.read(EventId("e", 0), 100, 1 << 20)
    fill(log, 1)

    assert log.oldest.sequence > 1
    assert [entry.sequence for entry in page.entries] == list(range(1, 101))
    assert log.read(page.cursor, 10, 1 << 20).gap is None


def test_one_huge_event_does_not_shield_the_others() -> None:
    """If the largest log cannot be trimmed, another one is."""
    broker, _ = make(total=500 * 1024)
    huge, other = broker.create("h"), broker.create("o")
    huge.append("x", "a" * 400 * 1024, 0.0)
    fill(other, 300)

    assert len(huge) == 1
    assert broker.size <= 500 * 1024


def test_newest_events_alone_may_exceed_the_bound() -> None:
    """No session is closed because of memory, so each keeps its newest event, even above the limit."""
    broker, _ = make(total=1024)
    logs = [broker.create(str(number)) for number in range(3)]
    for log in logs:
        log.append("x", "a" * 1000, 0.0)

    assert broker.full
    assert [len(log) for log in logs] == [1, 1, 1]


def test_trimming_makes_no_room_for_another_session() -> None:
    """Trimming goes below the limit but makes no room for another session; only a dropped log does."""
    broker, _ = make(total=1 << 20)
    loud, gone = broker.create("l"), broker.create("g")
    fill(gone, 200)
    fill(loud, 823)
    before = broker.full
    fill(loud, 2)
    trimmed = (broker.size < 1 << 20, broker.full)
    broker.drop(gone)

    assert (before, trimmed, broker.full) == (False, (True, True), False)


def test_ended_sessions_make_room_for_new_ones() -> None:
    """Logs of ended sessions are dropped first; running sessions keep everything."""
    broker, _ = make(total=1 << 20)
    ended, live = broker.create("e"), broker.create("l")
    fill(ended, 700)
    fill(live, 400)
    kept = len(live)
    refused = broker.relieve()
    ended.seal()

    assert (refused, broker.relieve()) == (False, True)
    assert (len(ended), len(live)) == (1, kept)


def test_a_dropped_log_counts_no_more() -> None:
    """A dropped log frees its bytes and events, and is never trimmed."""
    broker, _ = make(total=100 * 1024)
    gone, here = broker.create("g"), broker.create("h")
    fill(gone, 80)
    broker.drop(gone)
    fill(here, 90)

    assert (broker.size, broker.events, broker.full) == (here.size, 90, False)


def test_a_logs_own_bound_is_told_too() -> None:
    """Events dropped by a log's own limits are counted as evicted as well."""
    broker, facts = make(max_events=2)
    fill(broker.create("e"), 3)

    assert facts.of("log_evicted") == [(1,)]


def test_appending_and_sealing_wake_whoever_subscribed() -> None:
    """Subscribers are woken until they cancel, which may be repeated."""
    log = make()[0].create("e")
    woken: list[str] = []
    cancel = log.subscribe(lambda: woken.append("a"))
    log.subscribe(lambda: woken.append("b"))
    fill(log, 1)
    cancel()
    cancel()
    fill(log, 1)
    log.seal()

    assert woken == ["a", "b", "b", "b"]
    assert log.sealed


def test_a_wake_may_subscribe_and_cancel() -> None:
    """Subscribing or cancelling within a wake-up changes the next round, not the current one."""
    log = make()[0].create("e")
    woken: list[str] = []
    cancels: list[Callable[[], None]] = []

    def swap() -> None:
        woken.append("first")
        cancels[0]()
        log.subscribe(lambda: woken.append("second"))

    cancels.append(log.subscribe(swap))
    fill(log, 2)

    assert woken == ["first", "second"]


def test_trimming_wakes_nobody() -> None:
    """Trimming wakes no reader, which gets the gap with its next read."""
    log = make()[0].create("e")
    fill(log, 10)
    log.subscribe(lambda: pytest.fail("woken"))
    log.trim(2048)

    assert log.oldest.sequence == 3


# --- with a journal ---------------------------------------------------------------------------------------------------


def test_a_journalled_log_wakes_when_it_settles() -> None:
    """A log with a journal wakes its readers when events settle, not on append and not on a repeated confirmation."""
    log = make()[0].create_journalled("e")
    woken: list[EventId] = []
    log.subscribe(lambda: woken.append(log.head))
    numbers = [log.append("x", text, 0.0) for text in "abc"]
    log.settle(2)
    log.settle(2)
    log.settle(3)

    assert numbers == [1, 2, 3]
    assert woken == [EventId("e", 2), EventId("e", 3)]


def test_a_journalled_seal_is_told_once_all_is_settled() -> None:
    """The seal is reported only when everything has settled, because it would end readers before the last event."""
    log = make()[0].create_journalled("e")
    woken: list[bool] = []
    log.subscribe(lambda: woken.append(log.sealed))
    log.append("x", "a", 0.0)
    log.seal()
    early = list(woken)
    log.settle(1)

    assert (early, woken) == ([], [True])


def test_a_seal_behind_the_last_settled_event_wakes_at_once() -> None:
    """If everything has settled, the seal wakes readers at once."""
    log = make()[0].create_journalled("e")
    log.append("x", "a", 0.0)
    log.settle(1)
    woken: list[bool] = []
    log.subscribe(lambda: woken.append(log.sealed))
    log.seal()

    assert woken == [True]


def test_an_append_returns_its_sequence() -> None:
    """An append returns the sequence, by which the journal's records name events."""
    broker, _ = make()
    logs = [broker.create("l"), broker.create_journalled("j")]

    assert [[log.append("x", "a", 0.0) for _ in range(2)] for log in logs] == [[1, 2], [1, 2]]
    assert [log.appended for log in logs] == [EventId("l", 2), EventId("j", 2)]
    assert [log.head for log in logs] == [EventId("l", 2), EventId("j", 0)]


def test_loaded_and_forgotten_events_are_accounted_for() -> None:
    """After loading and dropping logs, the total is the sum of the logs."""
    broker, facts = make()
    log = broker.create_journalled("e")
    log.load([Epoch("e", 1)], 5, [ServerEvent(5, 0, "x", "abc"), ServerEvent(6, 0, "x", "de")])
    loaded = broker.size
    for number in range(64):
        log.begin(f"e{number}")

    assert (loaded, broker.size, len(log.epochs)) == (5, 0, 64)
    assert facts.of("log_evicted") == [(2,)]


def test_an_append_to_a_journalled_log_keeps_the_bounds() -> None:
    """Unsettled events count like all others."""
    broker, facts = make(max_events=2)
    log = broker.create_journalled("e")
    fill(log, 3)

    assert (len(log), broker.size) == (2, 2048)
    assert facts.of("log_evicted") == [(1,)]

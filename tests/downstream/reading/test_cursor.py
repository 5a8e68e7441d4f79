"""One reader's position in a log, with a real log."""

import asyncio
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.downstream.reading.cursor import Cursor
from gateway.downstream.reading.sse import frame
from gateway.relay.broker import Broker, LocalLog
from gateway.relay.events.eventlog import EventId, GapReason, Page
from gateway.relay.telemetry import NO_TELEMETRY


def make(max_events: int = 100) -> LocalLog:
    """Make a log."""
    return Broker(frame, max_events, 1 << 20, 1 << 30, NO_TELEMETRY).create("k")


def say(log: LocalLog, *texts: str) -> None:
    """Append events whose type is their text."""
    for text in texts:
        log.append(text, f'"{text}"', 0.0)


def types(page: Page) -> str:
    """Return the types of a page's events."""
    return "".join(entry.type for entry in page.entries)


async def soon(cursor: Cursor) -> Page:
    """Return the next page; fail if none comes."""
    async with asyncio.timeout(10):
        return await anext(cursor)


async def test_history_and_live_are_one_iteration() -> None:
    """The events that exist come first, then those that are appended; each turn of the loop yields one page."""
    log = make()
    say(log, *"ab")
    with closing(Cursor(log, EventId("k", 0))) as cursor:
        first = await soon(cursor)
        waiting = asyncio.create_task(soon(cursor))
        await asyncio.sleep(0)
        say(log, *"cde")
        second = await waiting

    assert (types(first), types(second)) == ("ab", "cde")
    assert cursor.position == EventId("k", 5)


@given(
    steps=st.lists(st.integers(0, 5), max_size=20),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
)
def test_every_event_is_read_once_in_order(steps: list[int], sizes: list[int]) -> None:
    """Every event is read once, for any interleaving of appends and reads and any page size."""

    async def scenario() -> str:
        log = make()
        read = ""
        with closing(Cursor(log, EventId("k", 0))) as cursor:
            for index, count in enumerate(steps):
                cursor.max_events = sizes[index % len(sizes)]
                say(log, *"x" * count)
                cursor.wake()
                read += types(await soon(cursor))
            log.seal()
            async for page in cursor:
                read += types(page)
        return read

    assert asyncio.run(scenario()) == "x" * sum(steps)


async def test_a_sealed_log_ends_the_iteration() -> None:
    """After the page with the last event of a sealed log, the iteration ends."""
    log = make()
    say(log, "a")
    log.seal()
    with closing(Cursor(log, EventId("k", 0))) as cursor:
        pages = [types(page) async for page in cursor]
        again = [types(page) async for page in cursor]

    assert (pages, again) == (["a"], [])


async def test_a_read_ends_where_it_is_done() -> None:
    """A read ends at the page whose cursor is given as the last one."""
    log = make()
    say(log, *"abc")
    with closing(Cursor(log, EventId("k", 0), done=lambda position: position.sequence >= 2)) as cursor:
        cursor.max_events = 1
        pages = [types(page) async for page in cursor]

    assert pages == ["a", "b"]


async def test_a_filter_leaves_entries_out_and_moves_the_position() -> None:
    """Entries that the filter excludes still move the position, so they are not read again."""
    log = make()
    say(log, *"abab")
    with closing(Cursor(log, EventId("k", 0), selects=lambda entry: entry.type == "a")) as cursor:
        page = await soon(cursor)

    assert (types(page), page.cursor, cursor.position, cursor.filtered) == (
        "aa",
        EventId("k", 4),
        EventId("k", 4),
        True,
    )


async def test_a_wake_without_news_is_an_empty_page() -> None:
    """A wake-up without new events yields an empty page, so that the reader can check other conditions."""
    log = make()
    with closing(Cursor(log, log.head)) as cursor:
        await soon(cursor)
        waiting = asyncio.create_task(soon(cursor))
        await asyncio.sleep(0)
        cursor.wake()
        cursor.wake()

        assert types(await waiting) == ""


async def test_a_rewound_cursor_reads_again() -> None:
    """Reading removes nothing from the log, so a rewound cursor reads it again, including its end."""
    log = make()
    say(log, "a")
    log.seal()
    with closing(Cursor(log, EventId("k", 0))) as cursor:
        first = [types(page) async for page in cursor]
        cursor.rewind(EventId("k", 0))
        second = [types(page) async for page in cursor]

    assert first == second == ["a"]


async def test_a_gap_comes_with_the_page() -> None:
    """A cursor that is no longer in the log is reported as a gap, and the page continues with the oldest event."""
    log = make(max_events=2)
    say(log, *"abcd")
    with closing(Cursor(log, EventId("k", 0))) as cursor:
        page = await soon(cursor)

    assert page.gap is not None
    assert (page.gap.reason, page.gap.missed, types(page)) == (GapReason.OVERRUN, 2, "cd")


async def test_a_closed_cursor_is_not_woken() -> None:
    """The log no longer knows a closed cursor."""
    log = make()
    with closing(Cursor(log, log.head)):
        pass

    assert log._wakes == {}


async def test_a_cancelled_wait_leaves_the_cursor_usable() -> None:
    """A wait that was cancelled, for example by a deadline, leaves the cursor usable."""
    log = make()
    with closing(Cursor(log, log.head)) as cursor:
        await soon(cursor)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(cursor)
        say(log, "a")

        assert types(await soon(cursor)) == "a"

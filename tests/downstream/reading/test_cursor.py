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


# --- pages that a stream takes directly


async def reading(cursor: Cursor, pages: list[str]) -> None:
    """Append the types of each page that the iteration yields."""
    async for page in cursor:
        pages.append(types(page))  # noqa: PERF401  # the test looks at the list meanwhile


async def settle() -> None:
    """Let everything run that is ready."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_direct_takes_live_pages_while_the_iteration_waits() -> None:
    """History comes from the iteration; what is appended while it waits goes to `direct`, one page for each turn of the loop."""
    log, direct, pages = make(), list[str](), list[str]()
    say(log, *"ab")
    with closing(Cursor(log, EventId("k", 0))) as cursor:

        def take(page: Page) -> bool:
            direct.append(types(page))
            return True

        cursor.direct = take
        task = asyncio.create_task(reading(cursor, pages))
        await settle()
        say(log, *"cd")
        await settle()
        say(log, "e")
        await settle()
        position = cursor.position
        say(log, "f")
        log.seal()
        await task

    assert position == EventId("k", 5)
    assert pages == ["ab", "f"], "the end of the log comes from the iteration"
    assert direct == ["cd", "e"]


@pytest.mark.parametrize("refuse", [True, False])
async def test_page_that_direct_does_not_take_comes_from_the_iteration(refuse: bool) -> None:
    """If a page is refused or too large, nothing is lost or read twice, and later pages are taken directly again."""
    log, direct, pages = make(), list[str](), list[str]()
    with closing(Cursor(log, EventId("k", 0))) as cursor:
        cursor.max_events = 2

        def take(page: Page) -> bool:
            if refuse and "c" in types(page):
                return False
            direct.append(types(page))
            return True

        cursor.direct = take
        task = asyncio.create_task(reading(cursor, pages))
        await settle()
        say(log, *"ab")
        await settle()
        say(log, *("c" if refuse else "cde"))
        await settle()
        say(log, "f")
        await settle()
        task.cancel()

    assert direct == ["ab", "f"]
    assert "".join(pages) == ("c" if refuse else "cde")


async def test_wake_reaches_the_iteration_although_pages_are_taken_directly() -> None:
    """A stream that is told to end, or whose heartbeat is due, sees an empty page."""
    log, pages = make(), list[str]()
    with closing(Cursor(log, EventId("k", 0))) as cursor:
        cursor.direct = lambda page: True
        task = asyncio.create_task(reading(cursor, pages))
        await settle()
        cursor.wake()
        await settle()
        task.cancel()

    assert pages == ["", ""]


async def test_gap_comes_from_the_iteration() -> None:
    """A reader that was overrun while it waited gets the gap from the iteration."""
    log, direct = make(max_events=3), list[str]()
    with closing(Cursor(log, EventId("k", 0))) as cursor:
        cursor.direct = lambda page: not direct.append(types(page))  # type: ignore[func-returns-value]
        task = asyncio.create_task(soon(cursor))
        await settle()
        assert types(await task) == ""
        task = asyncio.create_task(soon(cursor))
        await settle()
        say(log, *"abcdef")
        page = await task

    assert page.gap is not None
    assert (page.gap.reason, types(page), direct) == (GapReason.OVERRUN, "def", [])


async def test_closed_cursor_takes_nothing() -> None:
    """Events appended just before the close are not passed to a stream that has ended."""
    log, direct, pages = make(), list[str](), list[str]()
    cursor = Cursor(log, EventId("k", 0))
    cursor.direct = lambda page: not direct.append(types(page))  # type: ignore[func-returns-value]
    task = asyncio.create_task(reading(cursor, pages))
    await settle()
    say(log, "a")
    cursor.close()
    await settle()
    task.cancel()

    assert direct == []

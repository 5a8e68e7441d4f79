"""One reader's position in a session's log, as an async iterator of pages.

Every read of a log uses a `Cursor`: an event stream, JSON lines, a long-poll, the answer of a turn. First connections,
reconnects and late joiners use the same code: read what follows the position, and wait if nothing follows. Nothing is
queued per client. Events that it has not read yet are in the log, and a reader too slow for the log gets a gap.

All events appended in one iteration of the event loop come as one page, so they are written together.

A stream's iteration runs in a handler's coroutine, ten awaits deep. Resuming it for each event costs more than writing the
event. So a stream may set `direct`, a function that takes the usual pages while the iteration waits.

Knows nothing of HTTP, time, or what the events mean.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.relay.events.eventlog import Entry, EventId, Page
from gateway.relay.ports import Reader

PAGE_EVENTS: Final = 1024
PAGE_BYTES: Final = 256 * 1024
"""Limit of one page: enough to catch up fast, and small enough that one reader does not delay the others."""


class Cursor:
    """Iterates over the pages of a log from a position. Close it after the read, with `contextlib.closing`.

    The iteration ends after the page with the last event: the end of a sealed log, or the position where `done` is true.
    If `wake` is called by anything other than the log, the next page may be empty.
    """

    __slots__ = (
        "_awake",
        "_done",
        "_due",
        "_loop",
        "_over",
        "_reader",
        "_selects",
        "_soon",
        "_unsubscribe",
        "_waiter",
        "direct",
        "max_bytes",
        "max_events",
        "position",
    )

    def __init__(
        self,
        reader: Reader,
        after: EventId,
        *,
        selects: Callable[[Entry], bool] | None = None,
        done: Callable[[EventId], bool] | None = None,
        soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """`selects`: which entries pages contain, None for all; `done`: whether the read ends at a position; `soon`
        schedules a call for the next turn of the event loop, if not the event loop does."""
        self.position = after
        """The cursor after the last page."""
        self.max_events = PAGE_EVENTS
        self.max_bytes = PAGE_BYTES
        self.direct: Callable[[Page], bool] | None = None
        """Takes a page while the iteration waits, and returns whether it did. Otherwise, and for a page with a gap, of a
        log's end, of a filtered read or of one with an end, the iteration yields the page. Must not raise."""
        self._reader = reader
        self._selects = selects
        self._done = done
        # Stored, because before Python 3.12 each call makes a system call.
        self._loop = asyncio.get_running_loop()
        self._soon = soon or self._loop.call_soon
        self._waiter: asyncio.Future[None] | None = None
        self._awake = True
        self._over = False
        self._due = False
        """`_take` is scheduled."""
        self._unsubscribe = reader.subscribe(self._appended)

    @property
    def filtered(self) -> bool:
        """Whether pages may omit entries, so that the position moves without anything to write."""
        return self._selects is not None

    def wake(self) -> None:
        """Read the log again, in the iteration."""
        self._awake = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _appended(self) -> None:
        if self.direct is None or self._waiter is None or self._selects is not None or self._done is not None:
            self.wake()
        elif not self._due:
            self._due = True
            self._soon(self._take)

    def _take(self) -> None:
        """Pass the events appended in this turn of the event loop to `direct`. Leave them to the iteration if it is about to
        continue, or if `direct` does not take them."""
        self._due = False
        waiter, direct = self._waiter, self.direct
        if waiter is None or waiter.done() or direct is None:
            self.wake()
            return
        page = self._reader.read(self.position, self.max_events, self.max_bytes)
        if page.gap is None and not page.sealed and not page.more and page.entries and direct(page):
            self.position = page.cursor
        else:
            self.wake()

    def rewind(self, position: EventId) -> None:
        """Read again from an earlier position of this cursor."""
        self.position = position
        self._over = False
        self._awake = True

    def close(self) -> None:
        self._unsubscribe()
        self.direct = None

    def __aiter__(self) -> "Cursor":
        return self

    async def __anext__(self) -> Page:
        if self._over:
            raise StopAsyncIteration
        if not self._awake:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        page = self._reader.read(self.position, self.max_events, self.max_bytes)
        self._awake = page.more
        self.position = page.cursor
        self._over = page.sealed or (self._done is not None and self._done(page.cursor))
        if self._selects is not None:
            return page._replace(entries=[entry for entry in page.entries if self._selects(entry)])
        return page

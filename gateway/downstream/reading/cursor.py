"""One reader's position in a session's log, as an async iterator of pages.

Every read of a log uses a `Cursor`: an event stream, JSON lines, a long-poll, the answer of a turn. First connections,
reconnects and late joiners use the same code: read what follows the position, and wait if nothing follows. Nothing is
queued per client. Events that it has not read yet are in the log, and a reader too slow for the log gets a gap.

All events appended in one iteration of the event loop come as one page, so they are written together.

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
        "_loop",
        "_over",
        "_reader",
        "_selects",
        "_unsubscribe",
        "_waiter",
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
    ) -> None:
        """`selects`: which entries pages contain, None for all; `done`: whether the read ends at a position."""
        self.position = after
        """The cursor after the last page."""
        self.max_events = PAGE_EVENTS
        self.max_bytes = PAGE_BYTES
        self._reader = reader
        self._selects = selects
        self._done = done
        # Stored, because before Python 3.12 each call makes a system call.
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._awake = True
        self._over = False
        self._unsubscribe = reader.subscribe(self.wake)

    @property
    def filtered(self) -> bool:
        """Whether pages may omit entries, so that the position moves without anything to write."""
        return self._selects is not None

    def wake(self) -> None:
        """Read the log again."""
        self._awake = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def rewind(self, position: EventId) -> None:
        """Read again from an earlier position of this cursor."""
        self.position = position
        self._over = False
        self._awake = True

    def close(self) -> None:
        self._unsubscribe()

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

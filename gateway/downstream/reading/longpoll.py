"""One long-poll: the events that arrive within a wait, answered as one JSON page.

It answers when there is an event, or when the wait is over. With `linger` it collects more events for that long after the
first one, so that a polling client needs fewer requests.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from gateway.downstream.http.app_keys import PEER_REQUEST
from gateway.downstream.http.steps import one_at_a_time
from gateway.downstream.http.wire import watch_loss
from gateway.downstream.reading.cursor import Cursor
from gateway.downstream.reading.parameters import ReadRequest
from gateway.downstream.reading.rendering import JsonPage
from gateway.downstream.reading.stream import OpenReads, gap_members
from gateway.downstream.reading.writer import PIECE_BYTES, Writer
from gateway.errors import CallerError
from gateway.relay.events.eventlog import Entry, Page
from gateway.relay.ports import Handle

SUPERSEDED_SECONDS: Final = 1.0
"""Least age at which a superseded poll is answered. Its client polls again at once and supersedes another, so with one client
too many all of them would poll in a circle, hundreds of times a second."""

_JSON: Final = JsonPage.media_type


class LongPoll:
    """One waiting long-poll. Implements `Receiver` for its session and `Ticking` for the server."""

    def __init__(
        self, request: web.Request, handle: Handle, cursor: Cursor, wanted: ReadRequest, reads: OpenReads
    ) -> None:
        self._request = request
        self._handle = handle
        self._cursor = cursor
        self._wanted = wanted
        self._reads = reads
        self._parts: list[tuple[str, Sequence[Entry]]] = []
        self._over = False
        self._lost = False
        self.silent_since = reads.monotonic()

    # --- what others call ---------------------------------------------------------------------------------------------

    @property
    def peer_request(self) -> str | None:
        return self._request.get(PEER_REQUEST)

    def supersede(self) -> None:
        """Answer with the events collected so far, soon."""
        age = self._reads.monotonic() - self.silent_since
        asyncio.get_running_loop().call_later(max(0.0, SUPERSEDED_SECONDS - age), self._stop)

    def rotate(self) -> None:
        """Answer with the events collected so far: another node has the session now."""
        self._stop()

    def shut(self) -> None:
        self._stop()

    def tick(self, now: float) -> None:
        """Do nothing: the wait has its own timer, because the ticker is not precise enough."""

    def _stop(self) -> None:
        self._over = True
        self._cursor.wake()

    def _lose(self) -> None:
        self._lost = True
        self._stop()

    # --- the read -----------------------------------------------------------------------------------------------------

    async def run(self) -> web.StreamResponse:
        """Collect events and answer. Raises `cursor-expired` if the log has dropped the events after the cursor."""
        reads, handle = self._reads, self._handle
        ignore_loss = watch_loss(self._request, self._lose)
        reads.telemetry.stream_opened("json", self._cursor.position != handle.reader.head)
        reads.ticker.add(self)
        handle.attach(self)
        try:
            await self._gather()
            handle.detach(self)
            return await self._answer()
        finally:
            ignore_loss()
            reads.ticker.remove(self)
            handle.detach(self)
            reads.telemetry.stream_closed("json", "client" if self._lost else "closed")

    async def _gather(self) -> None:
        loop, cursor, wanted = asyncio.get_running_loop(), self._cursor, self._wanted
        cursor.max_events, cursor.max_bytes = wanted.limit, wanted.max_bytes
        delivery = self._reads.deliveries.open(self._handle.id, self._handle.reader.head.sequence)
        timer = loop.call_later(wanted.wait, self._stop)
        before = cursor.position
        try:
            async for page in cursor:
                if self._parts and (page.gap is not None or _size(page) > cursor.max_bytes):
                    cursor.rewind(before)  # The next poll reports the gap or returns the event.
                    break
                if page.gap is not None:
                    raise expired(page)
                before = page.cursor
                if page.entries:
                    delivery.wrote(page.entries, self._reads.monotonic())
                    if not self._parts:
                        timer.cancel()
                        timer = loop.call_later(wanted.linger, self._stop)
                    self._parts.append((page.cursor.epoch, page.entries))
                    cursor.max_events -= len(page.entries)
                    cursor.max_bytes -= _size(page)
                if self._over or (self._parts and not wanted.linger):
                    break
                if cursor.max_events <= 0 or cursor.max_bytes <= 0:
                    break
        finally:
            timer.cancel()
            delivery.close()

    async def _answer(self) -> web.StreamResponse:
        page = JsonPage(self._parts, str(self._cursor.position))
        if self._wanted.max_bytes - self._cursor.max_bytes <= PIECE_BYTES:
            size = page.size
        else:
            # Measuring megabytes takes milliseconds, and hundreds of polls may end at once.
            async with one_at_a_time(self._request):
                size = page.size
        if size <= PIECE_BYTES:
            return web.Response(body=b"".join(page.pieces()), content_type=_JSON)
        response = web.StreamResponse(headers={"Content-Type": _JSON})
        response.content_length = size
        await response.prepare(self._request)
        await Writer(self._request, response, self._reads.monotonic).write_all(page.pieces())
        return response


def expired(page: Page) -> CallerError:
    """Return the 410 for a cursor whose events are gone, with the numbers of a stream's `gateway.gap`."""
    return CallerError(
        "cursor-expired", "Events after this cursor are no longer kept.", members=gap_members(page)
    )


def _size(page: Page) -> int:
    return sum(len(entry.block) for entry in page.entries)

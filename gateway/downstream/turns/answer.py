"""A turn's answer in the requested format (api.md, 4 Turns).

An answer is a read of the log, limited to the entries with the turn's number. Text contains the deltas; an event stream or
JSON lines contain all entries. JSON is the response at their end.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Final

from aiohttp import web

from gateway.downstream.http.answers import json_answer
from gateway.downstream.http.wire import watch_loss
from gateway.downstream.reading.cursor import Cursor
from gateway.downstream.reading.longpoll import expired
from gateway.downstream.reading.parameters import Format
from gateway.downstream.reading.rendering import Rendering
from gateway.downstream.reading.resource import ERROR, READS, RENDERINGS, error_members
from gateway.downstream.reading.stream import Stream, Terms
from gateway.downstream.turns import result as turnresult
from gateway.downstream.turns.text import DELTA, TextDeltas
from gateway.errors import GatewayError
from gateway.relay.events.eventlog import Entry, EventId, Page
from gateway.relay.ports import Handle
from gateway.relay.state.turn import Turn

RETRY_SECONDS: Final = "1"
"""Retry-After for a turn that is not done. Short, since the `wait` parameter already limits the polling rate."""

FIRST_EVENT_SECONDS: Final = 10.0
"""How long a stream waits for the turn's first event before it answers 200. Until then an error can still have its own
status; afterwards heartbeats keep the connection of a queued turn alive."""


class Answer:
    """Answers one client with one turn, in the requested format."""

    def __init__(
        self,
        request: web.Request,
        handle: Handle,
        turn: Turn,
        *,
        format: Format,
        wait: float | None,
        after: EventId | None,
        headers: Mapping[str, str],
    ) -> None:
        """`wait`: how many seconds a JSON answer may take; `after`: the last event of this turn that the client has;
        `headers` are added to the response."""
        self._request = request
        self._format = format
        self._wait = wait
        self._handle = handle
        self._reader = handle.reader
        self._turn = turn
        self._headers = headers
        # A waiting turn has no position in the log yet. All of its events will follow the head.
        begin = turn.after or handle.reader.head
        self._after = after if after is not None and _beyond(after, begin) else begin

    async def run(self) -> web.StreamResponse:
        """Answer. Raises the turn's error, or ConnectionResetError if the client has left."""
        if self._format == "json":
            return await self._json()
        if self._format == "text":
            return await self._text()
        return await self._events(RENDERINGS[self._format]())

    async def _json(self) -> web.Response:
        try:
            async with asyncio.timeout(self._wait):
                await self._finished()
        except TimeoutError:
            headers = {**self._headers, "Retry-After": RETRY_SECONDS}
            return json_answer({"status": "in_progress"}, status=202, headers=headers)
        turn = self._turn
        document = turnresult.document(turn, self._handle.id, str(turn.last or self._reader.head))
        return json_answer(document, headers=self._headers)

    async def _text(self) -> web.StreamResponse:
        """Stream the deltas. The status is sent with the first one, so that earlier errors have their own status."""
        number = self._turn.number
        with closing(self._cursor(lambda entry: entry.turn == number and entry.type == DELTA)) as cursor:
            first = None if self._turn.finished else await self._first_page(cursor, None)
            if first is None or not first.entries:
                if first is not None and first.gap is not None:
                    raise expired(first)
                return web.Response(text=turnresult.text_of(self._turn), headers=self._headers)
            rendering = TextDeltas()
            stream = self._stream(cursor, rendering)
            response = await self._run(stream)
            if stream.ended == "closed" and turnresult.shortcoming(self._turn) is None:
                await stream.add(rendering.rest())
            else:
                await stream.cut()
            return response

    async def _events(self, rendering: Rendering) -> web.StreamResponse:
        turn = self._turn
        with closing(self._cursor(lambda entry: entry.turn == turn.number)) as cursor:
            await self._first_page(cursor, FIRST_EVENT_SECONDS)
            if turn.failure is not None:
                raise turn.failure
            stream = self._stream(cursor, rendering)
            response = await self._run(stream)
            failure: GatewayError | None = turn.failure  # may be set by now; mypy cannot know
            if failure is not None and stream.ended == "closed" and turnresult.moved(turn):
                await stream.rotated()
            elif failure is not None and stream.ended == "closed":
                await stream.add(rendering.own(ERROR, error_members(failure, self._request.path)))
            return response

    # --- the read -----------------------------------------------------------------------------------------------------

    def _cursor(self, selects: Callable[[Entry], bool]) -> Cursor:
        return Cursor(self._reader, self._after, selects=selects, done=self._done)

    def _done(self, position: EventId) -> bool:
        """Return whether all of the turn's events are before this position. Events of a failed turn may never be shown: if
        another node has taken the session, those that the journal had not confirmed are lost."""
        turn = self._turn
        if not turn.finished:
            return False
        if turn.last is None or position.sequence >= turn.last.sequence:
            return True
        return turn.failure is not None and position == self._reader.head

    def _stream(self, cursor: Cursor, rendering: Rendering) -> Stream:
        reads = self._request.app[READS]
        limits = reads.limits
        # Text cannot represent a gap, so a gap ends the stream.
        terms = Terms(
            heartbeat=limits.heartbeat_seconds,
            max_age=limits.max_age_seconds,
            rotates=False,
            fail_on_gap=self._format == "text",
        )
        return Stream(self._request, self._handle, cursor, rendering, terms, reads, self._format)

    async def _run(self, stream: Stream) -> web.StreamResponse:
        cancel = self._turn.subscribe(stream.wake)
        try:
            return await stream.run(str(self._after), self._headers, receives=False)
        finally:
            cancel()

    async def _first_page(self, cursor: Cursor, seconds: float | None) -> Page | None:
        """Wait at most `seconds` for the turn's first events, and leave the cursor before them. Return their page, or the
        last page if there are none or a gap comes first; None at the time-out."""
        cancels = [self._turn.subscribe(cursor.wake), watch_loss(self._request, cursor.wake)]
        before, page = cursor.position, None
        try:
            async with asyncio.timeout(seconds):
                async for page in cursor:
                    if page.entries or page.gap is not None:
                        break
                    before = page.cursor
                    self._check_connected()
        except TimeoutError:
            return None
        finally:
            for cancel in cancels:
                cancel()
        cursor.rewind(before)
        return page

    async def _finished(self) -> None:
        """Wait until the turn is finished and its last event may be shown."""
        woken = asyncio.Event()
        cancels = [self._turn.subscribe(woken.set), watch_loss(self._request, woken.set)]
        try:
            await woken.wait()
        finally:
            for cancel in cancels:
                cancel()
        self._check_connected()
        last = self._turn.last
        if last is None or self._turn.failure is not None:
            return
        with closing(Cursor(self._reader, last.before, done=self._done)) as cursor:
            async for _ in cursor:
                self._check_connected()

    def _check_connected(self) -> None:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client left")


def _beyond(after: EventId, begin: EventId) -> bool:
    """Return whether a client's cursor is after a turn's beginning. If it names no event of this log, return True: the
    read then reports a gap."""
    return after.sequence < 0 or after.sequence > begin.sequence

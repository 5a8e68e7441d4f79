"""A turn's answer in the form its client asked for (api.md, 4 Turns).

A turn is one more read of the log: of the entries that carry its number. As text they are the deltas, as an event
stream their blocks, as JSON the response they end with.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from aiohttp import web

from gateway.downstream.http.answers import json_answer
from gateway.downstream.http.wire import UNBUFFERED, watch_loss
from gateway.downstream.reading.parameters import Reading
from gateway.downstream.reading.rendering import EventStream
from gateway.downstream.reading.resource import ERROR, error_members, expired, surroundings
from gateway.downstream.reading.sse import unframe
from gateway.downstream.reading.stream import STREAM, Stream
from gateway.downstream.turns import result as turnresult
from gateway.downstream.turns.body import Form
from gateway.errors import GatewayError
from gateway.relay.eventlog import Entry, EventId
from gateway.relay.ports import Handle
from gateway.relay.turn import Turn

PAGE_EVENTS: Final = 1000
PAGE_BYTES: Final = 128 * 1024

RETRY_SECONDS: Final = "1"
"""When to ask again for a turn that is not done: `wait` does the waiting."""

FIRST_EVENT_SECONDS: Final = 10.0
"""How long an event stream waits for the turn's first event, and with it for the chance of a real error status, before
it answers 200: while a turn is queued nothing else would keep the connection alive."""

_DELTA: Final = "response.output_text.delta"


class Answer:
    """Gives one client one turn in the form it asked for."""

    def __init__(
        self,
        request: web.Request,
        handle: Handle,
        turn: Turn,
        *,
        form: Form,
        wait: float | None,
        headers: Mapping[str, str],
    ) -> None:
        """`wait` is how long a JSON answer may be waited for, in seconds; `headers` go with whatever is answered."""
        self._request = request
        self._form = form
        self._wait = wait
        self._handle = handle
        self._reader = handle.reader
        self._turn = turn
        self._headers = headers
        # A turn that waits has no place in the log yet, but all of it will stand behind this one.
        self._after = turn.after or handle.reader.head
        self._waiter: asyncio.Future[None] | None = None

    async def run(self) -> web.StreamResponse:
        """Answer. Raises what the turn failed with, and ConnectionResetError when the client left."""
        cancels = [
            self._turn.subscribe(self._wake),
            self._reader.subscribe(self._wake),
            watch_loss(self._request, self._wake),
        ]
        try:
            match self._form:
                case "json":
                    return await self._json()
                case "text":
                    return await self._text()
                case "sse":
                    return await self._stream()
        finally:
            for cancel in cancels:
                cancel()

    async def _json(self) -> web.Response:
        turn = self._turn
        if not await self._until(lambda: turn.finished, self._wait):
            headers = {**self._headers, "Retry-After": RETRY_SECONDS}
            return json_answer({"status": "in_progress"}, status=202, headers=headers)
        document = turnresult.document(turn, self._handle.id, str(turn.last or self._reader.head))
        return json_answer(document, headers=self._headers)

    async def _text(self) -> web.StreamResponse:
        """Stream the deltas. The status waits for the first of them, so that until then any error can be told."""
        if self._turn.finished:
            return web.Response(text=turnresult.text_of(self._turn), headers=self._headers)
        response: web.StreamResponse | None = None
        async with aclosing(self._pages()) as pages:
            async for entries in pages:
                text = "".join([_delta(entry) for entry in entries if entry.type == _DELTA])
                if not text:
                    continue
                if response is None:
                    response = await self._prepared("text/plain; charset=utf-8")
                await self._write(response, text.encode())
        failure = turnresult.failure_of(self._turn)
        if response is None:
            if failure is not None:
                raise failure
            return web.Response(text=turnresult.text_of(self._turn), headers=self._headers)
        if failure is not None and failure.code != "no-text-output":
            self._cut()
        return response

    async def _stream(self) -> web.StreamResponse:
        turn = self._turn
        await self._until(lambda: turn.finished or self._has_begun(), FIRST_EVENT_SECONDS)
        if turn.failure is not None:
            raise turn.failure
        reading = Reading(format="sse", cursor=str(self._after))
        stream = Stream(
            self._request, self._handle, EventStream(), reading, surroundings(self._request), turn
        )
        response = await stream.run(self._after, str(self._after), self._headers)
        failure: GatewayError | None = turn.failure  # it may have come meanwhile, which mypy cannot know
        if failure is not None and self._connected():
            told = error_members(failure, self._request.path)
            await self._write(response, EventStream().own(ERROR, told))
        return response

    def _has_begun(self) -> bool:
        page = self._reader.read(self._after, PAGE_EVENTS, PAGE_BYTES)
        return any(entry.turn == self._turn.number for entry in page.entries)

    async def _pages(self) -> AsyncGenerator[Sequence[Entry], None]:
        """Yield the turn's entries as they come, up to its last. What the log dropped before it was read ends it, as a
        failure of the turn would."""
        cursor = self._after
        while True:
            finished, last = self._turn.finished, self._turn.last
            page = self._reader.read(cursor, PAGE_EVENTS, PAGE_BYTES)
            if page.gap is not None:
                raise expired(page)
            cursor = page.cursor
            mine = [entry for entry in page.entries if entry.turn == self._turn.number]
            if mine:
                yield mine
            if finished and _reached(cursor, last):
                return
            if not page.entries:
                await self._sleep(None)

    async def _until(self, holds: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until it holds, at most so long. Raises ConnectionResetError when the client leaves."""
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        while not holds():
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                return False
            await self._sleep(left)
        return True

    async def _sleep(self, seconds: float | None) -> None:
        if not self._connected():
            raise ConnectionResetError("the client left")
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
        if not self._connected():
            raise ConnectionResetError("the client left")

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _connected(self) -> bool:
        transport = self._request.transport
        return transport is not None and not transport.is_closing()

    async def _prepared(self, content_type: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": content_type, **UNBUFFERED, **self._headers})
        await response.prepare(self._request)
        return response

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        """Write some of the body; a client that takes nothing for the deadline loses its connection."""
        try:
            async with asyncio.timeout(self._request.app[STREAM].write_seconds):
                await response.write(data)
                await self._request.writer.drain()
        except TimeoutError:
            transport = self._request.transport
            if transport is not None:
                transport.abort()
            raise ConnectionResetError("the client takes nothing") from None

    def _cut(self) -> None:
        """End the connection short of the body's end, after what was written: no client takes that for the whole."""
        transport = self._request.transport
        if transport is not None:
            transport.close()


def _delta(entry: Entry) -> str:
    delta = json.loads(unframe(entry.block, entry.start)).get("delta")
    return delta if isinstance(delta, str) else ""


def _reached(cursor: EventId, last: EventId | None) -> bool:
    return last is None or cursor.sequence >= last.sequence

"""`POST /v1/sessions/{id}/turns` and `POST /v1/turns`: one text turn in one request (contract.md section 1.4).

A turn is one more read of the log: of the entries that carry its number. As text they are the deltas, as an event
stream their blocks, as JSON the response they end with.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import hdrs, web

from gateway.downstream import turnbody, turnresult
from gateway.downstream.access import Grant, grant, session_grant
from gateway.downstream.answers import json_answer
from gateway.downstream.body import FORM, JSON, TEXT, media_type, read_body
from gateway.downstream.errand import ERRANDS, Errand, Errands
from gateway.downstream.idempotency import REPLAYED, fingerprint, scoped_key
from gateway.downstream.keys import ACCESS, HUB, SESSION, STREAM, TELEMETRY
from gateway.downstream.reading import Reading
from gateway.downstream.reads import ERROR, error_members, expired, surroundings
from gateway.downstream.rendering import EventStream
from gateway.downstream.sessions import open_wanted, parse_wanted, required_upstream_bearer
from gateway.downstream.sse import unframe
from gateway.downstream.stream import UNBUFFERED, Stream, tune, watch_loss
from gateway.errors import GatewayError
from gateway.relay.eventlog import Entry, EventId
from gateway.relay.idempotency import IdempotencyKeys
from gateway.relay.ports import Handle
from gateway.relay.turn import Turn, check_text

PAGE_EVENTS: Final = 1000
PAGE_BYTES: Final = 128 * 1024

RETRY_SECONDS: Final = "1"
"""When to ask again for a turn that is not done: `wait` does the waiting."""

FIRST_EVENT_SECONDS: Final = 10.0
"""How long an event stream waits for the turn's first event, and with it for the chance of a real error status, before
it answers 200: while a turn is queued nothing else would keep the connection alive."""

_DELTA: Final = "response.output_text.delta"


@dataclass(frozen=True, slots=True)
class _Done:
    """A finished turn as its Idempotency-Key keeps it: without the session, whose log would be kept with it."""

    session_id: str
    turn: Turn


def add_routes(app: web.Application) -> None:
    """Put this file's handlers in place, and who owns what they start."""
    errands = app[ERRANDS] = Errands()
    app.router.add_post("/v1/sessions/{id}/turns", session_turn)
    app.router.add_post("/v1/turns", own_turn)

    async def close(app: web.Application) -> None:
        await errands.close()

    app.on_cleanup.append(close)


async def session_turn(request: web.Request) -> web.StreamResponse:
    """Take a turn in a session that there is. It goes on in the log when the client leaves."""
    caller, handle = session_grant(request, "send")
    asked = await _ask(request, caller, own_session=False)

    async def take(errand: Errand) -> None:
        _spend(request, caller, handle.id, asked)
        errand.begun.set_result((handle, await handle.turn(asked.wanted.request)))

    return await _answer(request, asked, handle.idempotency, take)


async def own_turn(request: web.Request) -> web.StreamResponse:
    """Take a turn in a session made for it. When the client leaves, it is cancelled; with an Idempotency-Key it is kept,
    since the client may come back for it."""
    caller = grant(request, "manage")
    bearer = required_upstream_bearer(request)
    asked = await _ask(request, caller, own_session=True)
    session = parse_wanted(request, {} if asked.wanted.session is None else {"session": asked.wanted.session})
    hub = request.app[HUB]

    async def open_session() -> Handle:
        handle = hub.find((await open_wanted(request, caller, session, bearer)).id, None)
        _spend(request, caller, handle.id, asked)
        return handle

    async def take(errand: Errand) -> None:
        request.app[ERRANDS].own(errand.start(open_session, asked.wanted.request))

    return await _answer(request, asked, hub.idempotency, take)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request as understood."""

    wanted: turnbody.TurnWanted
    form: turnbody.Form
    wait: float | None
    key: str | None
    body: bytes


async def _ask(request: web.Request, caller: Grant, *, own_session: bool) -> _Asked:
    named = media_type(request, (JSON, TEXT, FORM)) if hdrs.CONTENT_TYPE in request.headers else None
    body = await read_body(request)
    wanted = turnbody.parse(body, named, own_session=own_session)
    form = turnbody.choose(request.query.get("format"), request.headers.get(hdrs.ACCEPT), plain=wanted.plain)
    key = scoped_key(request, caller)
    wait = turnbody.wait(request.query.get("wait"), form=form, keyed=key is not None)
    if form == "text":
        check_text(wanted.request)
    return _Asked(wanted, form, wait, key, body)


def _spend(request: web.Request, caller: Grant, session_id: str, asked: _Asked) -> None:
    events = len(asked.wanted.request.items) + 1
    request.app[ACCESS].spend_events(caller, session_id, events, len(asked.body))


# --- once, and for whom -----------------------------------------------------------------------------------------------


async def _answer(
    request: web.Request, asked: _Asked, table: IdempotencyKeys, take: Callable[[Errand], Awaitable[None]]
) -> web.StreamResponse:
    """Take the turn, or attach to it, or give what it gave, and answer in the form asked for."""
    if asked.key is None:
        errand = Errand()
        try:
            await take(errand)
            return await _attend(request, asked, errand)
        finally:
            errand.abandon()
    before = _claim(request, table, asked.key, asked.body)
    if before is None:
        errand = _begin(table, asked.key, fingerprint(request, asked.body))
        await _take(errand, take)
        return await _attend(request, asked, errand)
    request.app[TELEMETRY].idempotent_replay()
    if isinstance(before, Errand):
        return await _attend(request, asked, before, REPLAYED)
    handle = request.app[HUB].find(before.session_id, None)
    request[SESSION] = handle.id
    return await _Answerer(request, asked, handle, before.turn, REPLAYED).run()


def _claim(request: web.Request, table: IdempotencyKeys, key: str, body: bytes) -> Errand | _Done | None:
    """Give what a key stands for already, None where this is the first try. Raises `idempotency-key-reused`."""
    slot, new = table.claim(key, fingerprint(request, body))
    if new:
        return None
    if isinstance(slot.answer, _Done):
        if _still_known(request, slot.answer.session_id):
            return slot.answer
        table.release(key)  # A key lives as long as its session.
        table.claim(key, fingerprint(request, body))
        return None
    assert isinstance(slot.running, Errand)  # set before anything waits, see `_begin`
    return slot.running


async def _attend(
    request: web.Request, asked: _Asked, errand: Errand, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    handle, turn = await _unless_left(request, errand)
    request[SESSION] = handle.id
    return await _Answerer(request, asked, handle, turn, headers or {}).run()


def _begin(table: IdempotencyKeys, key: str, request_fingerprint: bytes) -> Errand:
    """Make the errand to which repeats of the request attach."""
    errand = Errand()
    slot, _ = table.claim(key, request_fingerprint)
    slot.running = errand
    errand.begun.add_done_callback(_settle(table, key))
    return errand


async def _take(errand: Errand, take: Callable[[Errand], Awaitable[None]]) -> None:
    """Take a turn that others may be waiting for, too."""
    try:
        await take(errand)
    except BaseException as error:
        if not errand.begun.done():
            errand.begun.set_exception(error if isinstance(error, Exception) else ConnectionResetError())
            errand.begun.exception()  # It is raised here; others who wait for it read it themselves.
        raise


async def _unless_left(request: web.Request, errand: Errand) -> tuple[Handle, Turn]:
    """Wait until the turn has begun. Raises ConnectionResetError when the client leaves before."""
    left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def leave() -> None:
        if not left.done():
            left.set_result(None)

    forget = watch_loss(request, leave)
    try:
        either: set[asyncio.Future[Any]] = {
            errand.begun,
            left,
        }  # of two kinds, and neither's value is read here
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        forget()
    if not errand.begun.done():
        raise ConnectionResetError("the client left")
    return errand.begun.result()


def _settle(table: IdempotencyKeys, key: str) -> Callable[["asyncio.Future[tuple[Handle, Turn]]"], None]:
    """Give what keeps a turn's answer under its key, or forgets the key where a repeat should try anew."""

    def begun(future: "asyncio.Future[tuple[Handle, Turn]]") -> None:
        if future.cancelled() or future.exception() is not None:
            table.release(key)
            return
        handle, turn = future.result()

        def finished() -> None:
            if turnresult.retryable(turn):
                table.release(key)
            else:
                table.keep(key, _Done(handle.id, turn))

        turn.subscribe(finished)

    return begun


def _still_known(request: web.Request, session_id: str) -> bool:
    try:
        request.app[HUB].find(session_id, None)
    except GatewayError:
        return False
    return True


# --- the answer -------------------------------------------------------------------------------------------------------


class _Answerer:
    """Gives one client one turn in the form it asked for."""

    def __init__(
        self, request: web.Request, asked: _Asked, handle: Handle, turn: Turn, headers: Mapping[str, str]
    ) -> None:
        self._request = request
        self._asked = asked
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
            match self._asked.form:
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
        if not await self._until(lambda: turn.finished, self._asked.wait):
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
        tune(self._request.transport, self._request.app[STREAM].write_seconds)
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

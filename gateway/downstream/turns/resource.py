"""`POST /v1/sessions/{id}/turns` and `POST /v1/turns`: one text turn in one request (api.md, 4 Turns).

This file runs a turn once, even if the request is repeated; `answer` sends its result.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from aiohttp import web

from gateway.downstream.auth.access import ACCESS, Grant, grant, session_grant
from gateway.downstream.http.answers import compact
from gateway.downstream.http.app_keys import BODY_SHA256, CLOCK, LIMITS, SESSION, SESSIONS, TELEMETRY
from gateway.downstream.http.body import FORM, JSON, TEXT, media_type, names_media_type, read_body
from gateway.downstream.http.negotiation import negotiate
from gateway.downstream.http.steps import in_steps
from gateway.downstream.http.wire import accepted, watch_loss
from gateway.downstream.idempotency import (
    REPLAYED,
    fingerprint,
    promise_of,
    require_unguessable,
    scoped_key,
    still_known,
)
from gateway.downstream.opening import open_wanted, parse_wanted, required_upstream_bearer
from gateway.downstream.peers.elsewhere import ELSEWHERE, MOVED
from gateway.downstream.reading import parameters
from gateway.downstream.reading.parameters import Format, last_event_id
from gateway.downstream.reading.stream import NO_HEADERS
from gateway.downstream.turns import body as turnbody
from gateway.downstream.turns import result as turnresult
from gateway.downstream.turns.answer import Answer
from gateway.downstream.turns.once import ElsewhereError, Once
from gateway.downstream.turns.own import OWN_TURNS, OwnTurn
from gateway.errors import CallerError
from gateway.relay.events.eventlog import EventId
from gateway.relay.idempotency import IdempotencyKeys
from gateway.relay.ports import Handle
from gateway.relay.state.turn import Turn, check_text
from gateway.relay.tasks import Tasks

PARSED_FACTOR: Final = 4
"""Memory of a parsed JSON value, as a multiple of its text."""


@dataclass(frozen=True, slots=True)
class _Done:
    """A finished turn as stored with its Idempotency-Key: without the session, which would keep its log in memory."""

    session_id: str
    turn: Turn


def add_routes(app: web.Application) -> None:
    """Add the routes, and the owner of the tasks they start."""
    own_turns = app[OWN_TURNS] = Tasks(lambda error: app[TELEMETRY].http_failed("", error))
    app.router.add_post("/v1/sessions/{id}/turns", session_turn)
    app.router.add_post("/v1/turns", own_turn)

    async def close(app: web.Application) -> None:
        await own_turns.end()

    app.on_cleanup.append(close)


async def session_turn(request: web.Request) -> web.StreamResponse:
    """Run a turn in an existing session. It continues if the client leaves."""
    caller, handle = session_grant(request, "send")
    asked = await _ask(request, caller, own_session=False)

    promise = promise_of(request, caller, asked.body)
    replayed = handle.promised(promise) is not None
    if replayed:
        request.app[TELEMETRY].idempotent_replay()
    else:
        await _spend(request, caller, asked)
    turn = await handle.turn(asked.wanted.request, promise)
    return await _give(request, asked, handle, turn, replayed=replayed)


async def own_turn(request: web.Request) -> web.StreamResponse:
    """Run a turn in a session opened for it. If the client leaves, the turn is cancelled. With an Idempotency-Key it is
    kept, since the client may request it again."""
    caller = grant(request)
    bearer = required_upstream_bearer(request)
    asked = await _ask(request, caller, own_session=True)
    require_unguessable(request, caller)
    session = parse_wanted(request, {} if asked.wanted.session is None else {"session": asked.wanted.session})
    sessions = request.app[SESSIONS]

    nodes, promise = request.app.get(ELSEWHERE), promise_of(request, caller, asked.body)

    async def open_as(session_id: str | None) -> Handle:
        # Before opening: a refusal afterwards would leave an unused session open.
        await _spend(request, caller, asked)
        view = await open_wanted(request, caller, session, bearer, session_id, single_turn=True)
        return sessions.find(view.id, None)

    async def take(own: OwnTurn) -> None:
        tasks, wanted = request.app[OWN_TURNS], asked.wanted.request
        if nodes is None or asked.key is None:
            own.start(tasks, partial(open_as, None), wanted)
            return
        once = Once(nodes.directory, sessions, caller.principal.name, promise)
        open_session, own.repeated, session_id = await once.begin(open_as)
        own.start(tasks, open_session, wanted, promise, partial(once.forget, session_id))

    try:
        return await _answer(request, asked, sessions.idempotency(caller.principal), take)
    except ElsewhereError as found:
        assert nodes is not None  # only other nodes raise it
        if BODY_SHA256 in request:
            return web.Response(status=MOVED)
        return await nodes.pass_on(request, found.session_id, own_turn)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, parsed and checked."""

    wanted: turnbody.TurnWanted
    format: Format
    wait: float | None
    key: str | None
    body: bytes


async def _ask(request: web.Request, caller: Grant, *, own_session: bool) -> _Asked:
    named = media_type(request, (JSON, TEXT, FORM)) if names_media_type(request) else None
    body = await read_body(request)
    await request.app[ACCESS].spend_bytes(caller, len(body))
    wanted = await in_steps(request, turnbody.read(body, named, own_session=own_session))
    limit = request.app[LIMITS].max_batch_events
    if len(wanted.request.items) + 1 > limit:
        detail = f"'input' has {len(wanted.request.items)} items; including its response.create a turn may have {limit} events."
        raise CallerError("too-large", detail, members={"limit": limit})
    format_ = negotiate(request.query.get("format"), accepted(request), wanted.formats)
    key = scoped_key(request, caller)
    wait = turnbody.wait(request.query.get("wait"), format=format_, keyed=key is not None)
    if format_ == "text":
        check_text(wanted.request)
    return _Asked(wanted, format_, wait, key, body)


async def _spend(request: web.Request, caller: Grant, asked: _Asked) -> None:
    await request.app[ACCESS].spend_events(caller, len(asked.wanted.request.items) + 1)


# --- once, and for whom -----------------------------------------------------------------------------------------------


async def _answer(
    request: web.Request, asked: _Asked, table: IdempotencyKeys, take: Callable[[OwnTurn], Awaitable[None]]
) -> web.StreamResponse:
    """Run the turn, attach to it, or use its stored answer; then answer in the requested format."""
    if asked.key is None:
        own = OwnTurn()
        try:
            await take(own)
            return await _attend(request, asked, own)
        finally:
            own.abandon()
    before = _claim(request, table, asked.key, asked.body)
    if before is None:
        own = _begin(table, asked.key)
        await _take(own, take)
        return await _attend(request, asked, own, replayed=own.repeated)
    request.app[TELEMETRY].idempotent_replay()
    if isinstance(before, OwnTurn):
        return await _attend(request, asked, before, replayed=True)
    handle = request.app[SESSIONS].find(before.session_id, None)
    return await _give(request, asked, handle, before.turn, replayed=True)


def _claim(request: web.Request, table: IdempotencyKeys, key: str, body: bytes) -> OwnTurn | _Done | None:
    """Return the turn that is stored under a key, None for the first request. Raises `idempotency-key-reused`."""
    now = request.app[CLOCK].monotonic()
    slot, new = table.claim(key, fingerprint(request, body), now)
    if new:
        return None
    if isinstance(slot.answer, _Done):
        if still_known(request, slot.answer.session_id):
            return slot.answer
        table.release(key)  # A key is kept only as long as its session.
        table.claim(key, fingerprint(request, body), now)
        return None
    assert isinstance(slot.running, OwnTurn)  # set before anything waits, see `_begin`
    return slot.running


async def _attend(
    request: web.Request, asked: _Asked, own: OwnTurn, *, replayed: bool = False
) -> web.StreamResponse:
    handle, turn = await _unless_left(request, own)
    return await _give(request, asked, handle, turn, replayed=replayed)


async def _give(
    request: web.Request, asked: _Asked, handle: Handle, turn: Turn, *, replayed: bool
) -> web.StreamResponse:
    request[SESSION] = handle.id
    # Only a repeat can have read events of this turn. A first request may carry a stale cursor of another turn.
    after = _cursor(request, handle) if replayed else None
    headers = REPLAYED if replayed else NO_HEADERS
    answer = Answer(request, handle, turn, format=asked.format, wait=asked.wait, after=after, headers=headers)
    return await answer.run()


def _cursor(request: web.Request, handle: Handle) -> EventId | None:
    """Return the position of the request's cursor. Raises `invalid-cursor`."""
    cursor = last_event_id(request.headers.get("Last-Event-ID"), request.query)
    return None if cursor is None else parameters.start(cursor, handle.reader)


def _begin(table: IdempotencyKeys, key: str) -> OwnTurn:
    """Create the turn to which repeats of the request attach."""
    own = OwnTurn()
    table.attach(key, own)
    own.begun.add_done_callback(_settle(table, key))
    return own


async def _take(own: OwnTurn, take: Callable[[OwnTurn], Awaitable[None]]) -> None:
    """Run a turn for which other requests may also be waiting."""
    try:
        await take(own)
    except BaseException as error:
        if not own.begun.done():
            own.begun.set_exception(error if isinstance(error, Exception) else ConnectionResetError())
            own.begun.exception()  # Mark it as retrieved: it is raised here, and other waiters read it themselves.
        raise


async def _unless_left(request: web.Request, own: OwnTurn) -> tuple[Handle, Turn]:
    """Wait until the turn has begun. Raises ConnectionResetError if the client leaves before."""
    left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def leave() -> None:
        if not left.done():
            left.set_result(None)

    forget = watch_loss(request, leave)
    try:
        either: set[asyncio.Future[Any]] = {
            own.begun,
            left,
        }  # of two types, and neither's value is read here
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        forget()
    if not own.begun.done():
        raise ConnectionResetError("the client left")
    return own.begun.result()


def _settle(table: IdempotencyKeys, key: str) -> Callable[["asyncio.Future[tuple[Handle, Turn]]"], None]:
    """Return a callback that stores a turn's answer under its key, or releases the key if a repeat should try again."""

    def begun(future: "asyncio.Future[tuple[Handle, Turn]]") -> None:
        if future.cancelled() or future.exception() is not None:
            table.release(key)
            return
        handle, turn = future.result()

        def finished() -> None:
            if turnresult.retryable(turn):
                table.release(key)
            else:
                size = PARSED_FACTOR * len(compact(turn.result or {}))
                table.keep(key, _Done(handle.id, turn), size)

        turn.subscribe(finished)

    return begun

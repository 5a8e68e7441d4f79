"""Sessions as a resource: create, list, get, close, tickets (api.md, 1 Sessions)."""

import json
from collections.abc import Awaitable, Callable
from typing import Final, cast

from aiohttp import web

from gateway.downstream.auth.access import ACCESS, grant, session_grant
from gateway.downstream.auth.credentials import looks_signed
from gateway.downstream.http.answers import compact, json_answer, plain
from gateway.downstream.http.app_keys import CLOCK, LIMITS, SESSION, SESSIONS, TELEMETRY
from gateway.downstream.http.body import FORM, JSON, TEXT, media_type, read_body
from gateway.downstream.http.steps import in_steps
from gateway.downstream.http.wire import undo_unless_taken
from gateway.downstream.idempotency import REPLAYED, fingerprint, require_unguessable, scoped_key, still_known
from gateway.downstream.opening import open_wanted, parse_wanted, required_upstream_bearer
from gateway.downstream.peers.elsewhere import ELSEWHERE
from gateway.downstream.peers.listings import answer_page
from gateway.downstream.peers.promises import once_of_all, still_opening
from gateway.downstream.reading.stream import STREAM
from gateway.errors import CallerError, invalid_parameter
from gateway.relay.events.envelope import read_object
from gateway.relay.idempotency import IdempotencyKeys
from gateway.relay.ports import View
from gateway.relay.states import CloseReason

_SECRET_BODY_BYTES: Final = 4096
"""Limit of a body that contains only a client secret."""

MAX_LISTED_NODE: Final = 2000
"""Sessions of one caller that a node lists for another node."""


def add_routes(app: web.Application) -> None:
    """Add the routes of this file."""
    app.router.add_post("/v1/sessions", create)
    app.router.add_get("/v1/sessions", list_own)
    app.router.add_get("/v1/sessions/{id}", look)
    app.router.add_delete("/v1/sessions/{id}", delete)
    app.router.add_post("/v1/sessions/{id}/close", close)
    app.router.add_post("/v1/sessions/{id}/tickets", make_ticket)


async def create(request: web.Request) -> web.Response:
    """Open a session. Answer 201 when its data channel is open."""
    caller = grant(request)
    bearer = required_upstream_bearer(request)
    require_unguessable(request, caller)
    body = await read_body(request)
    await request.app[ACCESS].spend_bytes(caller, len(body))
    if body:
        # Not checked for an empty body: some libraries send a Content-Type with it.
        media_type(request, (JSON, TEXT, FORM))
    wanted = parse_wanted(request, await in_steps(request, read_object(body)) if body.strip() else {})

    async def open_as(session_id: str | None) -> dict[str, object]:
        return session_object(request, await open_wanted(request, caller, wanted, bearer, session_id))

    key, nodes = scoped_key(request, caller), request.app.get(ELSEWHERE)
    replayed = False
    if key is None:
        opened = await open_as(None)
        await _close_unless_taken(request, str(opened["id"]))
    elif nodes is None:
        table = request.app[SESSIONS].idempotency(caller.principal)
        opened, replayed = await _once(request, table, key, fingerprint(request, body), open_as)
    else:
        promise = (caller.principal.name, key, fingerprint(request, body).hex())
        opened, replayed = await once_of_all(request, nodes.directory, promise, open_as)
    request[SESSION] = session_id = str(opened["id"])
    path = f"/v1/sessions/{session_id}"
    headers = {"Location": path, "Link": f'<{path}/events>; rel="events"'} | (REPLAYED if replayed else {})
    return json_answer(
        opened | _credentials(request, session_id, opened["expires_at"]), status=201, headers=headers
    )


async def _close_unless_taken(request: web.Request, session_id: str) -> None:
    """Close a new session if the client has left: only the answer tells it the ID."""

    async def undo() -> None:
        await request.app[SESSIONS].find(session_id, None).close(CloseReason.CLIENT)

    if request.transport is None or request.transport.is_closing():
        await undo()
    else:
        undo_unless_taken(request, undo)


async def _once(
    request: web.Request,
    table: IdempotencyKeys,
    key: str,
    fingerprint: bytes,
    open_as: Callable[[str | None], Awaitable[dict[str, object]]],
) -> tuple[dict[str, object], bool]:
    """Open a session, or return the object of the first request's and True.

    Raises `idempotency-in-progress` while the first is still opening, `idempotency-key-reused` for another body.
    """
    while True:
        slot, new = table.claim(key, fingerprint, request.app[CLOCK].monotonic())
        if new:
            break
        if slot.answer is None:
            raise still_opening()
        first: dict[str, object] = json.loads(cast(bytes, slot.answer))
        if still_known(request, str(first["id"])):
            request.app[TELEMETRY].idempotent_replay()
            return first, True
        table.release(key)  # A key is kept only as long as its session, so this counts as a first request.
    try:
        opened = await open_as(None)
    except BaseException:
        table.release(key)
        raise
    answer = compact(opened)
    table.keep(key, answer, len(answer))
    return opened, False


async def list_own(request: web.Request) -> web.Response:
    """List the caller's sessions, newest first. Not for anonymous callers: for them the id is the credential."""
    caller = grant(request)
    if caller.credential == "anonymous":
        raise CallerError(
            "forbidden",
            "Sessions are listed only for callers with an API key. Keep the ids of your sessions.",
        )

    def show(view: View) -> dict[str, object]:
        return session_object(request, view)

    return await answer_page(request, "/v1/sessions", show, MAX_LISTED_NODE, caller.principal)


async def look(request: web.Request) -> web.Response:
    """Answer with the session object."""
    _, handle = session_grant(request, "read")
    return json_answer(session_object(request, handle.view()))


async def delete(request: web.Request) -> web.Response:
    """Close the session. Answer 204 also if it is closed already."""
    _, handle = session_grant(request, "send")
    await handle.close(CloseReason.CLIENT, hang_up=_hang_up(request))
    return web.Response(status=204)


async def close(request: web.Request) -> web.Response:
    """Close the session, for clients that can only POST: `navigator.sendBeacon` sends the client secret as the body."""
    body = await read_body(request, _SECRET_BODY_BYTES)
    word = body.decode("ascii", "replace").strip() if request.content_type == TEXT else ""
    # API keys are not accepted here, because bodies may be logged. A client secret is valid for one session only.
    _, handle = session_grant(request, "send", word=word if looks_signed(word) else None)
    await handle.close(CloseReason.CLIENT, hang_up=_hang_up(request))
    return web.Response(status=204)


def _hang_up(request: web.Request) -> bool | None:
    """Return True if the call shall end with the session, None for the default: attached sessions leave their call open.

    Raises `invalid-parameter`.
    """
    match request.query.get("hang_up"):
        case None | "false":
            return None
        case "true":
            return True
    raise invalid_parameter("hang_up", "must be true or false")


async def make_ticket(request: web.Request) -> web.Response:
    """Create a read-only credential for use in a URL."""
    _, handle = session_grant(request, "send")
    view = handle.view()
    ticket = request.app[ACCESS].signatures.sign("ticket", view.id)
    answer = {"ticket": ticket, "url": _stream_url(view.id, ticket), "expires_at": view.expires_at}
    return json_answer(answer, status=201)


def session_object(request: web.Request, view: View) -> dict[str, object]:
    """Return a session as its owner sees it."""
    relay, server, stream = request.app[SESSIONS].limits, request.app[LIMITS], request.app[STREAM]
    return {
        "id": view.id,
        "object": "gateway.session",
        "state": view.state,
        "created_at": view.created_at,
        "expires_at": view.expires_at,
        "call_expires_at": view.call_expires_at,
        "model": view.model,
        "call_id": view.call_id,
        "attached": view.attached,
        "metadata": view.metadata,
        "head": str(view.head),
        "oldest": str(view.oldest),
        "receivers": view.receivers,
        "close_reason": view.close_reason,
        "usage": view.usage.shown(),
        "events_url": f"/v1/sessions/{view.id}/events",
        "limits": {
            "max_event_bytes": min(relay.max_event_bytes, view.max_event_bytes or relay.max_event_bytes),
            "max_body_bytes": server.max_body_bytes,
            "max_batch_events": server.max_batch_events,
            "log_max_events": relay.log_max_events,
            "log_max_bytes": relay.log_max_bytes,
            "detach_grace_seconds": view.detach_grace_seconds,
            "heartbeat_seconds": plain(stream.heartbeat_seconds),
            "stream_max_age_seconds": plain(stream.max_age_seconds),
        },
    }


def _credentials(request: web.Request, session_id: str, expires_at: object) -> dict[str, object]:
    """Return the credentials of a new session. Signing is deterministic, so a repeated create gets the same ones."""
    signatures = request.app[ACCESS].signatures
    secret = {"value": signatures.sign("secret", session_id), "expires_at": expires_at}
    return {
        "client_secret": secret,
        "stream_url": _stream_url(session_id, signatures.sign("ticket", session_id)),
    }


def _stream_url(session_id: str, ticket: str) -> str:
    return f"/v1/sessions/{session_id}/events?ticket={ticket}"

"""Sessions as a resource: create, list, get, close, tickets (api.md, 1 Sessions)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.downstream.auth.access import ACCESS, Grant, grant, session_grant, upstream_bearer
from gateway.downstream.auth.credentials import looks_signed
from gateway.downstream.http.answers import compact, json_answer, plain
from gateway.downstream.http.app_keys import BODY_SHA256, LIMITS, SESSION, SESSIONS
from gateway.downstream.http.body import FORM, JSON, TEXT, media_type, read_body
from gateway.downstream.http.steps import in_steps, one_at_a_time
from gateway.downstream.http.wire import undo_unless_taken
from gateway.downstream.idempotency import REPLAYED, fingerprint, once, require_unguessable, scoped_key
from gateway.downstream.peers.elsewhere import ELSEWHERE
from gateway.downstream.peers.listings import gather
from gateway.downstream.peers.promises import once_of_all
from gateway.downstream.reading.stream import STREAM
from gateway.errors import CallerError, Flaw, GatewayError
from gateway.relay.events.envelope import read_object
from gateway.relay.ports import OpenRequest, View
from gateway.relay.states import CloseReason

_SECRET_BODY_BYTES: Final = 4096
"""Limit of a body that contains only a client secret."""

DEFAULT_LISTED: Final = 20
MAX_LISTED: Final = 100
"""Sessions per page: 1.6 MiB with 16 KiB of metadata each."""
MAX_LISTED_NODE: Final = 2000
"""Sessions of one caller that a node lists for another node."""

Object = dict[str, Any]  # Any JSON object: its content belongs to OpenAI or the caller.


_MAX_MEMBERS: Final = 32
"""Limit for objects whose members are all known. Each unknown member is reported with its pointer: for a megabyte of them
this would block the event loop for two seconds and produce a response of five megabytes (measured)."""


class ClientSecretWanted(BaseModel):
    """What the session's client secret may send in addition to the default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    allow: list[str] = Field(default_factory=list, max_length=64)


class SessionWanted(BaseModel):
    """The body of a create. Everything is optional."""

    model_config = ConfigDict(extra="forbid", strict=True)

    session: Object = Field(default_factory=dict)
    call_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,200}$")
    """An existing call to attach to."""
    metadata: Object = Field(default_factory=dict)
    detach_grace_seconds: int | None = None
    client_secret: ClientSecretWanted = Field(default_factory=ClientSecretWanted)
    on_interrupted: Literal["report", "retry"] = "report"
    """Whether a response interrupted by the loss of a call is reported or requested again, which is billed again."""


@dataclass(frozen=True, slots=True)
class _Created:
    """The response to a create, stored for repeats."""

    session_id: str
    body: bytes = field(repr=False)  # holds the client secret


def _size(created: _Created) -> int:
    return len(created.body)


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
    value = await in_steps(request, read_object(body)) if body.strip() else {}
    wanted = parse_wanted(request, value)

    async def open_session() -> _Created:
        view = await open_wanted(request, caller, wanted, bearer)
        return _Created(view.id, compact(created_object(request, view)))

    sessions = request.app[SESSIONS]
    table = sessions.idempotency(caller.principal)
    key = scoped_key(request, caller)
    nodes = request.app.get(ELSEWHERE)
    if key is not None and nodes is not None:
        promise = (caller.principal.name, key, fingerprint(request, body).hex())

        async def open_as(session_id: str) -> Mapping[str, object]:
            return session_object(request, await open_wanted(request, caller, wanted, bearer, session_id))

        opened, replayed = await once_of_all(request, nodes.directory, promise, open_as)
        request[SESSION] = session_id = str(opened["id"])
        with_secrets = opened | credentials(request, session_id, opened["expires_at"])
        return _created(session_id, compact(with_secrets), replayed=replayed)
    created, replayed = await once(request, table, key, body, open_session, _Created, _size)
    if replayed and not still_known(request, created.session_id):
        # A key is kept as long as its session; this counts as a first request again.
        table.release(str(key))
        created, replayed = await once(request, table, key, body, open_session, _Created, _size)
    request[SESSION] = created.session_id
    if key is None:  # Only the response tells the client the id.

        async def undo() -> None:
            await sessions.find(created.session_id, None).close(CloseReason.CLIENT)

        if _client_left(request):
            await undo()
        else:
            undo_unless_taken(request, undo)
    return _created(created.session_id, created.body, replayed=replayed)


def _created(session_id: str, body: bytes, *, replayed: bool) -> web.Response:
    path = f"/v1/sessions/{session_id}"
    headers = {"Location": path, "Link": f'<{path}/events>; rel="events"'} | (REPLAYED if replayed else {})
    return web.Response(status=201, body=body, content_type=JSON, headers=headers)


async def list_own(request: web.Request) -> web.Response:
    """List the caller's sessions, newest first. Not for anonymous callers: for them the id is the credential."""
    caller = grant(request)
    if caller.credential == "anonymous":
        raise CallerError(
            "forbidden",
            "Sessions are listed only for callers with an API key. Keep the ids of your sessions.",
        )
    page = requested_page(request)
    sessions, nodes = request.app[SESSIONS], request.app.get(ELSEWHERE)
    async with one_at_a_time(request):
        if nodes is None:
            views, more = sessions.page(caller.principal, *page)
            return listing([session_object(request, view) for view in views], more)
        own = [session_object(request, view) for view in sessions.page(caller.principal, MAX_LISTED_NODE)[0]]
    if BODY_SHA256 in request:  # Another node asks, for the same caller.
        return listing(own, more=False)

    def show(view: View) -> dict[str, object]:
        return session_object(request, view)

    name = caller.principal.name
    return listing(*await gather(request, nodes, "/v1/sessions", own, show, *page, name))


def requested_page(request: web.Request) -> tuple[int, str | None]:
    """Return the parameters `limit` and `after` of a list. Raises `invalid-parameter`."""
    text = request.query.get("limit", str(DEFAULT_LISTED))
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0
    if not 1 <= limit <= MAX_LISTED:
        what = f"must be a whole number from 1 to {MAX_LISTED}"
        raise CallerError("invalid-parameter", f"'limit' {what}.", flaws=(Flaw(what, pointer="/limit"),))
    return limit, request.query.get("after") or None


def listing(objects: list[dict[str, object]], more: bool) -> web.Response:
    """Answer with a page of a list."""
    return json_answer({"object": "list", "data": objects, "has_more": more})


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
    what = "must be true or false"
    raise CallerError("invalid-parameter", f"'hang_up' {what}.", flaws=(Flaw(what, pointer="/hang_up"),))


async def make_ticket(request: web.Request) -> web.Response:
    """Create a read-only credential for use in a URL."""
    _, handle = session_grant(request, "send")
    view = handle.view()
    ticket = request.app[ACCESS].signatures.sign("ticket", view.id)
    answer = {"ticket": ticket, "url": _stream_url(view.id, ticket), "expires_at": view.expires_at}
    return json_answer(answer, status=201)


def required_upstream_bearer(request: web.Request) -> str | None:
    """Return the caller's upstream credential. Raises `unauthorized` if callers must bring one and it is missing."""
    bearer = upstream_bearer(request)
    if bearer is None and request.app[ACCESS].rules.client_upstream:
        raise CallerError(
            "unauthorized", "Send your upstream credential as 'X-Upstream-Authorization: Bearer'."
        )
    return bearer


def parse_wanted(request: web.Request, body: Mapping[str, object]) -> SessionWanted:
    """Check a create's body. Raises `invalid-parameter`, naming the members by JSON pointer."""
    if "call_id" in body and (body["call_id"] is None or body.get("session") is not None):
        named = "/call_id" if body["call_id"] is None else "/session"
        detail = (
            "A call that you attach to already has a session: omit 'session' and send session.update instead."
        )
        if named == "/call_id":
            detail = "'call_id' must be the ID of a call, such as rtc_…; omit it to make a new call."
        flaw = Flaw(
            "not together with 'call_id'" if named == "/session" else "must be a string", pointer=named
        )
        raise CallerError("invalid-parameter", detail, flaws=(flaw,))
    _require_few(body, "")
    _require_few(body.get("client_secret"), "/client_secret")
    try:
        # Clients that build a body from optional values send null for those that are not set.
        wanted = SessionWanted.model_validate(
            {name: value for name, value in body.items() if value is not None}
        )
    except ValidationError as error:
        flaws = tuple(
            Flaw(_said(found["msg"]), pointer=_pointer(found["loc"]))
            for found in error.errors(include_url=False, include_input=False)
        )
        named = ", ".join(f"'{flaw.pointer}'" for flaw in flaws)
        raise CallerError(
            "invalid-parameter", f"The body is not valid for creating a session: see {named}.", flaws=flaws
        ) from None
    limit = request.app[LIMITS].max_metadata_bytes
    if len(compact(wanted.metadata)) > limit:
        raise CallerError("too-large", f"'metadata' is larger than {limit} bytes.", members={"limit": limit})
    return wanted


def _require_few(value: object, pointer: str) -> None:
    if isinstance(value, Mapping) and len(value) > _MAX_MEMBERS:
        flaw = Flaw(f"has {len(value)} members", pointer=pointer)
        raise CallerError("invalid-parameter", "The body is not valid for creating a session.", flaws=(flaw,))


async def open_wanted(
    request: web.Request,
    caller: Grant,
    wanted: SessionWanted,
    bearer: str | None,
    session_id: str | None = None,
    *,
    single_turn: bool = False,
) -> View:
    """Open the requested session. The hub owns this work, so a client that leaves cannot leave it half done."""
    await request.app[ACCESS].spend_opening(caller)
    handle = await request.app[SESSIONS].open(
        OpenRequest(
            principal=caller.principal,
            session=wanted.session,
            metadata=wanted.metadata,
            detach_grace_seconds=wanted.detach_grace_seconds,
            bearer=bearer,
            secret_allows=tuple(wanted.client_secret.allow),
            retry_interrupted=wanted.on_interrupted == "retry",
            call_id=wanted.call_id,
            session_id=session_id,
            single_turn=single_turn,
        )
    )
    return handle.view()


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


def created_object(request: web.Request, view: View) -> dict[str, object]:
    """Return a session with the credentials that only its creator gets."""
    return session_object(request, view) | credentials(request, view.id, view.expires_at)


def credentials(request: web.Request, session_id: str, expires_at: object) -> dict[str, object]:
    """Return the credentials of a new session. Signing is deterministic, so a repeated create gets the same ones."""
    signatures = request.app[ACCESS].signatures
    secret = {"value": signatures.sign("secret", session_id), "expires_at": expires_at}
    return {
        "client_secret": secret,
        "stream_url": _stream_url(session_id, signatures.sign("ticket", session_id)),
    }


def _stream_url(session_id: str, ticket: str) -> str:
    return f"/v1/sessions/{session_id}/events?ticket={ticket}"


def still_known(request: web.Request, session_id: str) -> bool:
    """Return whether a session still exists. A stored answer is kept no longer than its session."""
    try:
        request.app[SESSIONS].find(session_id, None)
    except GatewayError:
        return False
    return True


def _client_left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _pointer(location: tuple[int | str, ...]) -> str:
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in location)


def _said(message: str) -> str:
    """Return pydantic's message in the terms of this API."""
    return "unknown member" if message.startswith("Extra inputs") else message[0].lower() + message[1:]

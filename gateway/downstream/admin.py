"""The operator's listener (api.md, 7).

Probes and metrics need no credential. The other routes need the admin token; if none is configured, only connections from
this machine can use them. Answers contain no text of conversations, no SDP, no address and no key.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aiohttp import hdrs, web

from gateway.downstream import probes
from gateway.downstream.auth.access import bearer_word
from gateway.downstream.auth.origins import host_name, is_loopback_name
from gateway.downstream.auth.peer import loopback_peer
from gateway.downstream.http.answers import json_answer
from gateway.downstream.http.app_keys import BODY_SHA256, SESSION, SESSIONS
from gateway.downstream.http.negotiation import preferred
from gateway.downstream.http.wire import accepted
from gateway.downstream.peers.elsewhere import ELSEWHERE
from gateway.downstream.peers.listings import answer_page
from gateway.errors import CallerError
from gateway.relay.ports import View
from gateway.relay.states import CloseReason


@dataclass(frozen=True, slots=True)
class Operator:
    """The functions and values that the operator's listener needs in addition to the hub."""

    metrics: Callable[[str], tuple[bytes, str]]
    """Return the metrics and their content type for an `Accept` header."""
    drain: Callable[[], None]
    """Start the shutdown, as SIGTERM does. Returns at once."""
    token_sha256: tuple[bytes, ...] = field(default=(), repr=False)
    """Digests of the admin tokens. Without any, only loopback is served."""
    nodes: Callable[[], Sequence[Mapping[str, object]]] = tuple
    """The nodes as this one sees them; empty without a cluster."""


_EXPOSITIONS: Final = ("text/plain", "application/openmetrics-text")

INTERNAL: Final = "/internal/admin"
"""Prefix of these routes on the listener for other nodes."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

OPERATOR: Final = web.AppKey("operator", Operator)


def add_routes(app: web.Application) -> None:
    """Add the routes of this file."""
    probes.add_routes(app)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/sessions", list_all)
    app.router.add_get("/sessions/{id}", look)
    app.router.add_delete("/sessions/{id}", delete)
    app.router.add_post("/sessions/{id}/restart", restart)
    app.router.add_post("/drain", drain)
    app.router.add_get("/nodes", list_nodes)


def add_internal_routes(app: web.Application) -> None:
    """Add the routes that other nodes use on behalf of their operators."""
    app.router.add_get(f"{INTERNAL}/sessions", list_all)
    app.router.add_get(f"{INTERNAL}/sessions/{{id}}", look)
    app.router.add_delete(f"{INTERNAL}/sessions/{{id}}", delete)
    app.router.add_post(f"{INTERNAL}/sessions/{{id}}/restart", restart)


@web.middleware
async def of_any_node(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Forward a request for a session of another node."""
    session_id = request.match_info.get("id")
    if session_id is None or request.app[SESSIONS].has(session_id):
        return await handler(request)
    _require_operator(request)
    return await request.app[ELSEWHERE].pass_on(request, session_id, handler, INTERNAL)


async def list_nodes(request: web.Request) -> web.Response:
    """List the nodes of the cluster; empty without a cluster."""
    _require_operator(request)
    return json_answer({"object": "list", "data": list(request.app[OPERATOR].nodes())})


async def metrics(request: web.Request) -> web.Response:
    """Answer with the metrics, as Prometheus text or, by `Accept`, as OpenMetrics."""
    accept = accepted(request) or ""
    best = preferred(accept, _EXPOSITIONS)
    if best is None:
        raise CallerError("not-acceptable", f"Metrics are available as {' or '.join(_EXPOSITIONS)}.")
    # The library uses the first range that it knows and ignores weights. So pass only the ranges of the best type,
    # which name the version and the escaping that the client can read.
    ranges = ",".join(part for part in accept.split(",") if part.partition(";")[0].strip().lower() == best)
    body, content_type = request.app[OPERATOR].metrics(ranges.lower() or best)
    return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})


async def list_all(request: web.Request) -> web.Response:
    """List all sessions, newest first."""
    _require_operator(request)
    most = 2 * request.app[SESSIONS].limits.max_sessions  # closed ones included
    return await answer_page(request, f"{INTERNAL}/sessions", _shown, most)


async def look(request: web.Request) -> web.Response:
    """Answer with one session and its diagnostics."""
    _require_operator(request)
    session_id = request[SESSION] = request.match_info["id"]
    sessions = request.app[SESSIONS]
    view = sessions.find(session_id, None).view()
    return json_answer(_shown(view) | {"diagnostics": sessions.diagnostics(session_id)})


async def delete(request: web.Request) -> web.Response:
    """Close a session."""
    _require_operator(request)
    session_id = request[SESSION] = request.match_info["id"]
    await request.app[SESSIONS].find(session_id, None).close(CloseReason.CLIENT)
    return web.Response(status=204)


async def restart(request: web.Request) -> web.Response:
    """Start to replace a session's call, keeping its history. The session's log reports the result."""
    _require_operator(request)
    session_id = request[SESSION] = request.match_info["id"]
    sessions = request.app[SESSIONS]
    sessions.restart(session_id)
    return json_answer(_shown(sessions.find(session_id, None).view()), status=202)


async def drain(request: web.Request) -> web.Response:
    """Start the shutdown."""
    _require_operator(request)
    request.app[OPERATOR].drain()
    return json_answer({"draining": True}, status=202)


def _require_operator(request: web.Request) -> None:
    if BODY_SHA256 in request:
        return  # Another node signed it after checking its operator's credential.
    known = request.app[OPERATOR].token_sha256
    if known:
        digest = hashlib.sha256((bearer_word(request) or "").encode()).digest()
        if not any([hmac.compare_digest(digest, one) for one in known]):  # noqa: C419  # every one, in constant time
            raise CallerError("unauthorized", "Send the admin token as 'Authorization: Bearer'.")
        return
    name = host_name(request.headers.get(hdrs.HOST, ""))
    if not loopback_peer(request) or name is None or not is_loopback_name(name):
        raise CallerError("not-found", "Without an admin token this path exists only on loopback.")


def _shown(view: View) -> dict[str, object]:
    """Return a session without members that its owner wrote, such as metadata."""
    return {
        "id": view.id,
        "principal": view.principal,
        "state": view.state,
        "created_at": view.created_at,
        "expires_at": view.expires_at,
        "call_expires_at": view.call_expires_at,
        "model": view.model,
        "call_id": view.call_id,
        "head": str(view.head),
        "oldest": str(view.oldest),
        "receivers": view.receivers,
        "close_reason": view.close_reason,
        "usage": view.usage.shown(),
    }

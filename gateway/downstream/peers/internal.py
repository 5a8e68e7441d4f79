"""The listener for other nodes: the client's API, protected by a signature instead of the rules for web pages.

A node answers only for sessions that it owns. For others it answers 421 (RFC 9110 15.5.20), and the requesting node looks
up the owner again. A forwarded request is never forwarded again, so there are no loops.
"""

import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from aiohttp import web

from gateway.downstream.http.app_keys import BODY_SHA256, CLOCK, PEER_REQUEST, REQUEST_ID, SESSIONS
from gateway.downstream.http.body import read_body
from gateway.downstream.peers import signatures
from gateway.downstream.peers.elsewhere import ELSEWHERE, MAY_HAVE_MOVED, MOVED
from gateway.downstream.peers.reach import HELLO
from gateway.downstream.peers.signatures import PeerSignatures
from gateway.errors import CallerError, GatewayError
from gateway.relay.events.envelope import parse_object

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HandOver(Protocol):
    """Takes over sessions that another node hands over."""

    async def prepare(self, session_id: str, bearer: str | None) -> None:
        """Dial a second call beside the current one. Raises GatewayError."""

    async def take(self, session_id: str, owner: str) -> None:
        """Claim the session. Raises GatewayError."""


PEERS: Final = web.AppKey("peers", PeerSignatures)
HAND_OVER: Final[web.AppKey[HandOver]] = web.AppKey("hand_over")

PREPARE: Final = "/internal/prepare"
TAKE: Final = "/internal/take"

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")


def add_routes(app: web.Application) -> None:
    """Add the routes that only nodes call."""
    app.router.add_post(PREPARE, prepare)
    app.router.add_post(TAKE, take)
    app.router.add_get(HELLO, hello)
    app.router.add_get(HELLO + "/{id}", hello)


async def prepare(request: web.Request) -> web.Response:
    """Prepare for a session that another node is about to hand over."""
    body = parse_object(await read_body(request))
    bearer = body.get("bearer")
    await request.app[HAND_OVER].prepare(str(body.get("id")), str(bearer) if bearer is not None else None)
    return web.Response(status=204)


async def take(request: web.Request) -> web.Response:
    """Take over a session that another node has paused for this."""
    body = parse_object(await read_body(request))
    await request.app[HAND_OVER].take(str(body.get("id")), str(body.get("owner")))
    return web.Response(status=204)


async def hello(_: web.Request) -> web.Response:
    """Answer a node that checks whether it can reach this one, or whether a session is here: `admit` refuses it for others."""
    return web.Response(status=204)


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Use the id of the forwarded request. The node that the client called writes the metrics and the access log."""
    wanted = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = wanted if _SANE_ID.match(wanted) else secrets.token_hex(12)
    return await handler(request)


@web.middleware
async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Admit only requests of nodes, and only for sessions of this node."""
    app, headers = request.app, request.headers
    request_id = headers.get(signatures.REQUEST, "")
    digest = app[PEERS].body_digest(
        headers.get(signatures.HEADER, ""), request.method, request.raw_path, request_id, app[CLOCK].unix()
    )
    if digest is None:
        raise CallerError("forbidden", "This listener is for the other nodes of the cluster.")
    request[BODY_SHA256], request[PEER_REQUEST] = digest, request_id
    session_id = request.match_info.get("id")
    if session_id is not None and not app[SESSIONS].has(session_id):
        return web.Response(status=MOVED)
    if request.method not in ("GET", "HEAD"):
        await app[ELSEWHERE].steady()
    try:
        return await handler(request)
    except GatewayError as error:
        if session_id is None or error.code not in MAY_HAVE_MOVED or app[SESSIONS].has(session_id):
            raise
        return web.Response(status=MOVED)

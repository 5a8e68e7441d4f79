"""The listener for the other nodes: the client's side behind a signature instead of the guard against web pages.

A node answers only for sessions that it owns. For others it says 421 (RFC 9110 15.5.20), and the one that asked looks
again where the session lives; it never passes a request on itself, so no request goes round in circles.
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
from gateway.downstream.peers.signatures import PeerSignatures
from gateway.errors import CallerError, GatewayError
from gateway.relay.envelope import parse_object

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HandOver(Protocol):
    """Takes sessions that another node gives up."""

    async def prepare(self, session_id: str, bearer: str | None) -> None:
        """Dial a call beside the present one. Raises GatewayError."""

    async def take(self, session_id: str, owner: str) -> None:
        """Claim the session. Raises GatewayError."""


PEERS: Final = web.AppKey("peers", PeerSignatures)
HAND_OVER: Final[web.AppKey[HandOver]] = web.AppKey("hand_over")

PREPARE: Final = "/internal/prepare"
TAKE: Final = "/internal/take"

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")


def add_routes(app: web.Application) -> None:
    """Put the routes that only nodes call in place."""
    app.router.add_post(PREPARE, prepare)
    app.router.add_post(TAKE, take)


async def prepare(request: web.Request) -> web.Response:
    """Make ready for a session that another node is about to hand over."""
    body = parse_object(await read_body(request))
    bearer = body.get("bearer")
    await request.app[HAND_OVER].prepare(str(body.get("id")), str(bearer) if bearer is not None else None)
    return web.Response(status=204)


async def take(request: web.Request) -> web.Response:
    """Take a session that another node holds still for this."""
    body = parse_object(await read_body(request))
    await request.app[HAND_OVER].take(str(body.get("id")), str(body.get("owner")))
    return web.Response(status=204)


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Take over the request's id. Metrics and the access log are the business of the node that the client asked."""
    wanted = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = wanted if _SANE_ID.match(wanted) else secrets.token_hex(12)
    return await handler(request)


@web.middleware
async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let nodes in and nobody else, for sessions of this node."""
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

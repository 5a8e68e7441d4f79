"""Forwards requests for sessions of other nodes, and passes their responses on.

This middleware is installed only if there are several nodes. Handlers run on the node that owns the session, so they know
nothing of other nodes. While a session moves from one node to another, its requests wait, up to the patience: the client
then gets a slow response instead of an error.
"""

import asyncio
import hashlib
import json
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Literal, Protocol
from urllib.parse import quote

from aiohttp import hdrs, web

from gateway.downstream.auth.access import require_credential
from gateway.downstream.http.app_keys import BODY, PEER_REQUEST, REQUEST_ID, SESSION, SESSIONS
from gateway.downstream.http.body import read_body
from gateway.downstream.peers import signatures
from gateway.downstream.peers.lines import Lines, Reply
from gateway.downstream.peers.moves import Moves
from gateway.downstream.peers.reach import HELLO
from gateway.downstream.peers.signatures import PeerSignatures
from gateway.downstream.peers.splice import (
    HEAD_SECONDS,
    BrokenError,
    Outgoing,
    UnreachableError,
    splice,
    whole_body,
)
from gateway.errors import GatewayError, OverloadError
from gateway.relay.journal import Directory, Location, Peer

Outcome = Literal["answered", "local", "recovering", "broken"]

MOVED: Final = 421
"""Status for a session that the node does not own (RFC 9110 15.5.20)."""

MAY_HAVE_MOVED: Final = frozenset({"recovering", "session-unknown"})
"""Errors that a handler raises if the session moves during the request."""

ROTATE: Final = "/internal/rotate"
ROTATE_SECONDS: Final = 0.25
"""Time between requests to end the streams that pass through a node that ends: more may arrive until it stops listening."""
ROTATED_SECONDS: Final = 1.0
"""How long a node may take to answer such a request."""

HOLDS_SECONDS: Final = 1.0
"""How long a node may take to say whether it has a session."""
UNKNOWN_AT_ONCE: Final = 16
"""Unknown sessions of which the other nodes are asked at once, so that guessed IDs keep them from nothing else."""

TURNS: Final = "/v1/turns"
OPENING: Final = frozenset({"/v1/sessions", TURNS})

STEADY_POLL_SECONDS: Final = 0.025
MOVING_SECONDS: Final = 0.1
"""Time between requests to a node that is about to own the session."""
LOST_SECONDS: Final = 3.0
"""Time between requests to a node that is considered lost. They are answered as soon as another node has the session."""
UNSTEADY_SECONDS: Final = 1.0
_HOP_BY_HOP: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("content-length", "expect", "date", "server"),
    }
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PeerTelemetry(Protocol):
    """Receives the metrics of forwarding. Methods return at once and never raise."""

    def forwarded(self, kind: str, outcome: Outcome, seconds: float) -> None:
        """Report a forwarded request; `kind` is `stream` or `request`, `seconds` the time to the head of the response."""

    def http_failed(self, request_id: str, error: BaseException) -> None:
        """Report an exception that nobody expected."""


class Elsewhere:
    """Forwards requests over persistent connections."""

    def __init__(
        self,
        directory: Directory,
        signatures: PeerSignatures,
        telemetry: PeerTelemetry,
        patience_seconds: float,
        tls: ssl.SSLContext | None = None,
        *,
        turn_seconds: float = 300.0,
    ) -> None:
        """`turn_seconds`: how long a turn may take, whose answer may come only at its end."""
        self.directory = directory
        self.signatures = signatures
        self._telemetry = telemetry
        self._patience = patience_seconds
        self._turn_seconds = turn_seconds
        self._moves = Moves(directory, lambda error: telemetry.http_failed("", error))
        self._lines = Lines(tls)
        self._asking = asyncio.Semaphore(UNKNOWN_AT_ONCE)
        self._passing: dict[str, str] = {}
        """The requests under way by their ids, and the URLs of the nodes that have them."""

    def lost(self, url: str) -> None:
        """Handle the loss of a node: requests waiting for its response look up the session again, and streams from it
        end. The node may only be paused, and then it would not end them itself."""
        self._lines.lost(url)

    def arrived(self, session_id: str) -> None:
        """Let the requests that wait for a session go on: this node has it now."""
        self._moves.arrived(session_id)

    async def close(self) -> None:
        """Close the idle connections, and stop looking up sessions."""
        await self._moves.close()
        self._lines.close()

    async def finish(self, seconds: float) -> None:
        """Let the forwarded requests end, within so many seconds: reads are ended by their owners as at a rotation."""
        deadline = time.monotonic() + seconds
        while self._passing and time.monotonic() < deadline:
            by_url: dict[str, list[str]] = {}
            for request_id, url in self._passing.items():
                by_url.setdefault(url, []).append(request_id)
            await asyncio.gather(*(self._rotate(url, requests) for url, requests in by_url.items()))
            await asyncio.sleep(ROTATE_SECONDS)

    async def _rotate(self, url: str, requests: Sequence[str]) -> None:
        """Ask a node to end these reads; if it does not answer soon, others must not wait for it."""
        body = json.dumps({"requests": requests}).encode()
        with suppress(UnreachableError, BrokenError, TimeoutError):
            async with asyncio.timeout(ROTATED_SECONDS):
                await self._fetch(url, hdrs.METH_POST, ROTATE, body)

    async def steady(self) -> None:
        """Wait briefly if this node may not answer for its sessions now, such as while it reconnects to Redis."""
        deadline = time.monotonic() + UNSTEADY_SECONDS
        while not self.directory.sure and time.monotonic() < deadline:
            await asyncio.sleep(STEADY_POLL_SECONDS)

    # --- passing on ---------------------------------------------------------------------------------------------------

    async def pass_on(
        self, request: web.Request, session_id: str, handler: Handler, prefix: str = ""
    ) -> web.StreamResponse:
        """Forward to the session's owner. If the session is unknown or is now on this node, call the local handler.

        The caller has already checked the credential.
        """
        sessions = request.app[SESSIONS]
        if PEER_REQUEST not in request:
            request[PEER_REQUEST] = secrets.token_hex(12)
        began, gap_since = time.monotonic(), 0.0
        location = await self.directory.locate(session_id)
        if location is None:
            location = await self.directory.locate(session_id, fresh=True)
        if location is None or not location.node:
            location = await self._held_by_peer(session_id) or location
        if location is None or sessions.has(session_id):
            return await handler(request)
        request[SESSION] = session_id
        body = request[BODY] if BODY in request else await read_body(request)
        outgoing = self._outgoing(request, body, prefix)
        while True:
            answer = await self._try(location, outgoing, request[PEER_REQUEST])
            if isinstance(answer, Reply):
                break
            # From the first failure on: the owner may have been lost after a long wait for its answer.
            gap_since = gap_since or time.monotonic()
            left = self._patience - (time.monotonic() - gap_since)
            if left <= 0:
                self._telemetry.forwarded("request", "recovering", time.monotonic() - began)
                detail = "The node that holds the session is being replaced, or cannot be reached from here."
                raise OverloadError("recovering", detail, retry_after=1)
            location = await self._moves.next(session_id, location, min(left, answer))
            if location is not None and location.url is None:
                # The owner has just joined, and this node had not seen its heartbeat yet.
                location = await self.directory.locate(session_id) or location
            if location is None or sessions.has(session_id):
                # The session is here now, or gone: the handler refuses a gone one before it reads a body.
                return await handler(request)
        kind = "request" if hdrs.CONTENT_LENGTH in answer.head.headers else "stream"
        self._telemetry.forwarded(kind, "answered", time.monotonic() - began)
        return await self._answer(request, answer)

    async def pass_to(self, request: web.Request, peer: Peer, body: bytes) -> web.StreamResponse | None:
        """Forward a request that concerns no session yet to one node. Return None if it cannot be reached."""
        request[PEER_REQUEST] = secrets.token_hex(12)
        outgoing = self._outgoing(request, body)
        answer = await self._try(Location(peer.node, peer.url, live=True), outgoing, request[PEER_REQUEST])
        return await self._answer(request, answer) if isinstance(answer, Reply) else None

    async def fetch(
        self, peer: Peer, method: str, path: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()
    ) -> tuple[int, bytes]:
        """Send a request that this node makes itself. Raises UnreachableError or BrokenError."""
        return await self._fetch(peer.url, method, path, body, headers)

    async def _fetch(
        self, url: str, method: str, path: str, body: bytes, headers: Sequence[tuple[str, str]] = ()
    ) -> tuple[int, bytes]:
        request_id = secrets.token_hex(12)
        head = (("Host", "node"), *headers, *self._signed(method, path, request_id, body))
        answer = await self._lines.send(url, Outgoing(method, path, "1.1", head, body))
        found = await whole_body(answer.line, answer.head)
        self._lines.keep(answer)
        return answer.head.status, found

    async def _held_by_peer(self, session_id: str) -> Location | None:
        """Ask the other nodes for a session that Redis does not have. A failover may have lost it, and its owner writes it again
        a moment later."""
        peers = self.directory.peers
        async with self._asking:
            held = await asyncio.gather(*(self._holds(peer, session_id) for peer in peers))
        return next(
            (Location(peer.node, peer.url, live=True) for peer, yes in zip(peers, held, strict=True) if yes),
            None,
        )

    async def _holds(self, peer: Peer, session_id: str) -> bool:
        with suppress(UnreachableError, BrokenError, TimeoutError):
            async with asyncio.timeout(HOLDS_SECONDS):
                status, _ = await self.fetch(peer, hdrs.METH_GET, f"{HELLO}/{quote(session_id, safe='')}")
                return status == 204
        return False

    async def _try(self, location: Location, outgoing: Outgoing, request_id: str) -> Reply | float:
        """Ask one node. If it cannot answer or does not own the session, return after how many seconds to ask it again,
        unless the session has moved."""
        if location.node == self.directory.node:
            return MOVING_SECONDS
        if location.url is None:
            return MOVING_SECONDS
        self._passing[request_id] = location.url
        answer = None
        try:
            answer = await self._lines.send(location.url, outgoing)
        except (UnreachableError, BrokenError):
            live = any(peer.node == location.node for peer in self.directory.peers)
            return self._lines.pause(location.url) if live else LOST_SECONDS
        finally:
            if answer is None or answer.head.status == MOVED:
                del self._passing[request_id]
        if answer.head.status != MOVED:
            return answer
        try:
            await whole_body(answer.line, answer.head)
            self._lines.keep(answer)
        except BrokenError:
            pass  # The connection is closed.
        return MOVING_SECONDS

    async def _answer(self, request: web.Request, answer: Reply) -> web.StreamResponse:
        try:
            return await self._passed_on(request, answer)
        finally:
            del self._passing[request[PEER_REQUEST]]

    async def _passed_on(self, request: web.Request, answer: Reply) -> web.StreamResponse:
        head = answer.head
        headers = {name: value for name, value in head.headers.items() if name.lower() not in _HOP_BY_HOP}
        if request.method == hdrs.METH_HEAD or head.status == 204:
            self._lines.keep(answer)
            return web.StreamResponse(status=head.status, headers=headers)
        if hdrs.CONTENT_LENGTH not in head.headers:
            return await splice(request, answer.line, head, headers, answer.seconds)
        try:
            body = await whole_body(answer.line, head)
        except BrokenError as error:
            detail = "The node that holds the session stopped in the middle of its answer."
            raise OverloadError("recovering", detail, retry_after=1) from error
        self._lines.keep(answer)
        return web.Response(status=head.status, body=body, headers=headers)

    # --- what is sent -------------------------------------------------------------------------------------------------

    def _outgoing(self, request: web.Request, body: bytes, prefix: str = "") -> Outgoing:
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name.lower() not in _HOP_BY_HOP and not name.lower().startswith("x-gateway-")
        ]
        headers = [(name, value) for name, value in headers if name.lower() != "x-request-id"]
        path = prefix + request.raw_path
        headers += [
            ("X-Request-Id", request[REQUEST_ID]),
            *self._signed(request.method, path, request[PEER_REQUEST], body),
        ]
        version = f"{request.version.major}.{request.version.minor}"
        turn_seconds = self._turn_seconds if request.path.endswith("/turns") else 0.0
        return Outgoing(request.method, path, version, headers, body, HEAD_SECONDS + turn_seconds)

    def _signed(self, method: str, path: str, request_id: str, body: bytes) -> Sequence[tuple[str, str]]:
        word = self.signatures.sign(method, path, request_id, body, time.time())
        return ((signatures.HEADER, word), (signatures.REQUEST, request_id))


ELSEWHERE: Final = web.AppKey("elsewhere", Elsewhere)
REFUSED_READ: Final[web.AppKey[Callable[[web.Request, GatewayError], web.Response | None]]] = web.AppKey(
    "refused_read"
)
"""Answers a read that could not be forwarded, if it must not get a status; see `reading.resource`."""


@web.middleware
async def elsewhere(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Forward a request for a session that is not on this node."""
    session_id, sessions = request.match_info.get("id"), request.app[SESSIONS]
    if session_id is None:
        return await _answered_elsewhere(request) or await handler(request)
    request[PEER_REQUEST] = secrets.token_hex(12)
    if sessions.has(session_id):
        if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
            await request.app[ELSEWHERE].steady()
        try:
            return await handler(request)
        except GatewayError as error:
            if error.code not in MAY_HAVE_MOVED or sessions.has(session_id):
                raise
            # The session moved to another node during the request, which had no effect here.
    require_credential(request)
    try:
        return await request.app[ELSEWHERE].pass_on(request, session_id, handler)
    except OverloadError as error:
        told = request.app[REFUSED_READ](request, error)
        if told is None:
            raise
        return told


async def _answered_elsewhere(request: web.Request) -> web.StreamResponse | None:
    """Have another node open a session. Return None if this node is to open it.

    Another node opens sessions while this one accepts none. And a turn in its own session with an Idempotency-Key goes to
    the node that its key selects, so that a repeat reaches the node of the first request.
    """
    if request.method != hdrs.METH_POST or request.path not in OPENING:
        return None
    nodes, draining = request.app[ELSEWHERE], request.app[SESSIONS].draining
    peers = [peer for peer in nodes.directory.peers if peer.serving and peer.room > 0]
    key = request.headers.get("Idempotency-Key")
    if request.path == TURNS and key is not None:
        named = _named(key, [*([] if draining else [nodes.directory.node]), *(peer.node for peer in peers)])
        peers = [peer for peer in peers if peer.node == named]
    elif not draining:
        return None
    if not peers:
        return None
    require_credential(request)
    body = await read_body(request)
    for peer in sorted(peers, key=lambda one: -one.room):
        answer = await nodes.pass_to(request, peer, body)
        if answer is not None:
            return answer
    return None


def _named(key: str, nodes: Sequence[str]) -> str:
    """Return the node that a key selects. All nodes select the same one (rendezvous hashing)."""
    return min(nodes, key=lambda node: hashlib.blake2b(f"{key}\n{node}".encode()).digest(), default="")

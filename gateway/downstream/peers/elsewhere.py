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
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from aiohttp import hdrs, web

from gateway.downstream.auth.access import require_credential
from gateway.downstream.http.app_keys import BODY, PEER_REQUEST, REQUEST_ID, SESSION, SESSIONS
from gateway.downstream.http.body import read_body
from gateway.downstream.peers import signatures
from gateway.downstream.peers.signatures import PeerSignatures
from gateway.downstream.peers.splice import (
    BrokenError,
    Head,
    Line,
    Outgoing,
    UnreachableError,
    ask,
    connect,
    splice,
    whole_body,
)
from gateway.errors import CallerError, GatewayError, OverloadError
from gateway.relay.journal import Directory, Location, Peer

Outcome = Literal["answered", "local", "recovering", "broken"]

MOVED: Final = 421
"""Status for a session that the node does not own (RFC 9110 15.5.20)."""

MAY_HAVE_MOVED: Final = frozenset({"recovering", "session-unknown"})
"""Errors that a handler raises if the session moves during the request."""

TURNS: Final = "/v1/turns"
OPENING: Final = frozenset({"/v1/sessions", TURNS})

POLL_SECONDS: Final = 0.1
"""Time between look-ups while a session has no live owner."""
GATHER_SECONDS: Final = 2.0
UNSTEADY_SECONDS: Final = 1.0
KEPT_LINES: Final = 32
"""Maximum number of idle connections to one node."""
IDLE_SECONDS: Final = 30.0
"""Shorter than a listener keeps an idle connection."""

_HOP_BY_HOP: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("content-length", "expect", "date", "server"),
    }
)

Object = dict[str, object]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PeerTelemetry(Protocol):
    """Receives the metrics of forwarding. Methods return at once and never raise."""

    def forwarded(self, kind: str, outcome: Outcome, seconds: float) -> None:
        """Report a forwarded request; `kind` is `stream` or `request`, `seconds` the time to the head of the response."""


@dataclass(frozen=True, slots=True)
class _Answer:
    url: str
    line: Line
    head: Head


class Elsewhere:
    """Forwards requests over persistent connections."""

    def __init__(
        self,
        directory: Directory,
        signatures: PeerSignatures,
        telemetry: PeerTelemetry,
        patience_seconds: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.directory = directory
        self.signatures = signatures
        self._telemetry = telemetry
        self._patience = patience_seconds
        self._tls = tls
        self._kept: dict[str, list[tuple[float, Line]]] = {}
        self._busy: dict[str, set[Line]] = {}

    def lost(self, url: str) -> None:
        """Handle the loss of a node: requests waiting for its response look up the session again, and streams from it
        end. The node may only be paused, and then it would not end them itself."""
        for line in list(self._busy.get(url, ())):
            line.close()

    def close(self) -> None:
        """Close the idle connections."""
        for lines in self._kept.values():
            for _, line in lines:
                line.close()
        self._kept.clear()

    async def steady(self) -> None:
        """Wait briefly if this node may not answer for its sessions now, such as while it reconnects to Redis."""
        deadline = time.monotonic() + UNSTEADY_SECONDS
        while not self.directory.sure and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS / 4)

    # --- passing on ---------------------------------------------------------------------------------------------------

    async def pass_on(
        self, request: web.Request, session_id: str, handler: Handler, prefix: str = ""
    ) -> web.StreamResponse:
        """Forward to the session's owner. If the session is unknown or is now on this node, call the local handler.

        The caller has already checked the credential.
        """
        sessions = request.app[SESSIONS]
        began = time.monotonic()
        location = await self.directory.locate(session_id)
        if location is None:
            location = await self.directory.locate(session_id, fresh=True)
        if location is None or sessions.has(session_id):
            return await handler(request)
        request[SESSION] = session_id
        body = request[BODY] if BODY in request else await read_body(request)
        outgoing = self._outgoing(request, body, prefix)
        while True:
            answer = await self._try(location, outgoing)
            if answer is not None:
                break
            if time.monotonic() - began >= self._patience:
                self._telemetry.forwarded("request", "recovering", time.monotonic() - began)
                detail = "The node that holds the session is being replaced, or cannot be reached from here."
                raise OverloadError("recovering", detail, retry_after=1)
            location = await self._next(session_id, location)
            if location is None:
                return await handler(request)  # It is gone; the handler refuses it before it reads a body.
        kind = "request" if hdrs.CONTENT_LENGTH in answer.head.headers else "stream"
        self._telemetry.forwarded(kind, "answered", time.monotonic() - began)
        return await self._answer(request, answer)

    async def pass_to(self, request: web.Request, peer: Peer, body: bytes) -> web.StreamResponse | None:
        """Forward a request that concerns no session yet to one node. Return None if it cannot be reached."""
        answer = await self._try(Location(peer.node, peer.url, live=True), self._outgoing(request, body))
        return None if answer is None else await self._answer(request, answer)

    async def gather(
        self,
        request: web.Request,
        path: str,
        own: Sequence[Object],
        limit: int,
        after: str | None,
        principal: str | None = None,
    ) -> tuple[list[Object], bool]:
        """Return a page of the lists of all nodes, newest first, and whether more follow. A node that does not answer is
        omitted. `principal` is the owner if all sessions have one; sessions of the same second are then ordered, too.
        Raises `session-unknown` if `after` is on no list."""
        word = request.headers.get(hdrs.AUTHORIZATION)
        headers = () if word is None else ((hdrs.AUTHORIZATION, word),)

        async def ask_one(peer: Peer) -> list[Object]:
            try:
                async with asyncio.timeout(GATHER_SECONDS):
                    status, body = await self.fetch(peer, hdrs.METH_GET, path, headers=headers)
            except (UnreachableError, BrokenError, TimeoutError):
                return []
            found: list[Object] = json.loads(body)["data"] if status == 200 else []
            return found

        lists = await asyncio.gather(*map(ask_one, self.directory.peers))
        every = {str(one["id"]): one for listed in (own, *lists) for one in listed}
        ids = [] if principal is None else await self.directory.sessions_of(principal)
        places = {session_id: place for place, session_id in enumerate(ids)}
        listed = sorted(
            every.values(), key=lambda one: (-int(str(one["created_at"])), places.get(str(one["id"]), 0))
        )
        if after is not None:
            if after not in every:
                raise CallerError("session-unknown", "The session in 'after' is not in this list.")
            listed = listed[listed.index(every[after]) + 1 :]
        return listed[:limit], len(listed) > limit

    async def fetch(
        self, peer: Peer, method: str, path: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()
    ) -> tuple[int, bytes]:
        """Send a request that this node makes itself. Raises UnreachableError or BrokenError."""
        request_id = secrets.token_hex(12)
        head = (("Host", "node"), *headers, *self._signed(method, path, request_id, body))
        answer = await self._send(peer.url, Outgoing(method, path, "1.1", head, body))
        found = await whole_body(answer.line, answer.head)
        self._keep(answer)
        return answer.head.status, found

    async def _next(self, session_id: str, location: Location) -> Location | None:
        """Look up the session's node again. Wait briefly if it is unchanged."""
        found = await self.directory.locate(session_id, fresh=True)
        if found is not None and found.node == location.node:
            await asyncio.sleep(POLL_SECONDS)
            found = await self.directory.locate(session_id, fresh=True)
        return found

    async def _try(self, location: Location, outgoing: Outgoing) -> _Answer | None:
        """Ask one node. Return None if it cannot answer or does not own the session."""
        if location.url is None:
            return None
        try:
            answer = await self._send(location.url, outgoing)
        except (UnreachableError, BrokenError):
            return None
        if answer.head.status != MOVED:
            return answer
        try:
            await whole_body(answer.line, answer.head)
            self._keep(answer)
        except BrokenError:
            answer.line.close()
        return None

    async def _send(self, url: str, outgoing: Outgoing) -> _Answer:
        """Send over an idle connection or, if that has broken, a new one. A request may arrive twice without harm: it
        carries an id that the owner stores with the effect."""
        while (line := self._take(url)) is not None:
            try:
                return _Answer(url, line, await ask(line, outgoing))
            except BrokenError:
                line.close()
        line = await connect(url, self._tls)
        busy = self._busy.setdefault(url, set())
        busy.add(line)
        line.on_end = lambda: busy.discard(line)
        try:
            return _Answer(url, line, await ask(line, outgoing))
        except BaseException:
            line.close()
            raise

    async def _answer(self, request: web.Request, answer: _Answer) -> web.StreamResponse:
        head = answer.head
        headers = {name: value for name, value in head.headers.items() if name.lower() not in _HOP_BY_HOP}
        if request.method == hdrs.METH_HEAD or head.status == 204:
            self._keep(answer)
            return web.StreamResponse(status=head.status, headers=headers)
        if hdrs.CONTENT_LENGTH not in head.headers:
            return await splice(request, answer.line, head, headers)
        try:
            body = await whole_body(answer.line, head)
        except BrokenError as error:
            detail = "The node that holds the session stopped in the middle of its answer."
            raise OverloadError("recovering", detail, retry_after=1) from error
        self._keep(answer)
        return web.Response(status=head.status, body=body, headers=headers)

    # --- connections --------------------------------------------------------------------------------------------------

    def _take(self, url: str) -> Line | None:
        lines = self._kept.get(url)
        while lines:
            since, line = lines.pop()
            if line.fresh and time.monotonic() - since < IDLE_SECONDS:
                return line
            line.close()
        return None

    def _keep(self, answer: _Answer) -> None:
        lines = self._kept.setdefault(answer.url, [])
        if answer.head.keeps and answer.line.fresh and len(lines) < KEPT_LINES:
            lines.append((time.monotonic(), answer.line))
        else:
            answer.line.close()

    def _outgoing(self, request: web.Request, body: bytes, prefix: str = "") -> Outgoing:
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name.lower() not in _HOP_BY_HOP and not name.lower().startswith("x-gateway-")
        ]
        headers = [(name, value) for name, value in headers if name.lower() != "x-request-id"]
        path = prefix + request.raw_path
        request_id = request.get(PEER_REQUEST) or secrets.token_hex(12)
        headers += [
            ("X-Request-Id", request[REQUEST_ID]),
            *self._signed(request.method, path, request_id, body),
        ]
        version = f"{request.version.major}.{request.version.minor}"
        return Outgoing(request.method, path, version, headers, body)

    def _signed(self, method: str, path: str, request_id: str, body: bytes) -> Sequence[tuple[str, str]]:
        word = self.signatures.sign(method, path, request_id, body, time.time())
        return ((signatures.HEADER, word), (signatures.REQUEST, request_id))


ELSEWHERE: Final = web.AppKey("elsewhere", Elsewhere)


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
    return await request.app[ELSEWHERE].pass_on(request, session_id, handler)


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

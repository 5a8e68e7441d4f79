"""WebSockets: sidebands of running calls, and sessions without a call (Realtime: server controls, WebSocket).

It does not know the events. `?call_id=` joins a call: from then on both connections may send events for it and receive the
same events, without `session.created` and without audio. `?model=` or `?intent=transcription` begins a session, and so does a
URL without a query if its ephemeral key has a session configuration. The key is sent as Bearer, or as a sub-protocol from
browsers, whose WebSocket cannot set headers. An unknown call, or a call of another project, is 404 before the upgrade.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from aiohttp import WSMsgType, web

from gateway.emulator.faults import Faults, SocketsEnd
from gateway.emulator.http import signalling
from gateway.emulator.protocol.client_secrets import Identity
from gateway.emulator.protocol.errors import HttpRefusal, Refusal, http_refusal
from gateway.emulator.service import Service

# Bytes that a sideband's client has not read yet. Above this the sideband is closed, but not the call.
_MAX_WAITING_BYTES = 32 * 1024 * 1024
# Above this much unsent, a session's next delta waits, as on a data channel.
_HIGH_WATER = 256 * 1024
# An audio event may have 15 MB; the rest is its envelope.
_MAX_MESSAGE = 16 * 1024 * 1024
# How long a stopping emulator waits for a client to answer its close frame.
_CLOSE_SECONDS = 1.0
_KEY_PROTOCOL = "openai-insecure-api-key."
_BETA_PROTOCOL = "openai-beta.realtime-v1"


class WebSockets:
    """The endpoint; `identify` returns the key's identity, or raises."""

    def __init__(self, service: Service, identify: Callable[[str], Identity]) -> None:
        self._service = service
        self._identify = identify

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """Join a call or begin a session, and serve until either side ends."""
        protocols = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        key = next((p.removeprefix(_KEY_PROTOCOL) for p in protocols if p.startswith(_KEY_PROTOCOL)), None)
        if _BETA_PROTOCOL in protocols or signalling.asks_for_beta(request):
            return await _refuse(request, "beta_api_shape_disabled")
        identity = self._identify(key or signalling.bearer(request))
        call_id = request.query.get("call_id")
        if call_id is not None:
            return await self._join(request, call_id, identity)
        given: dict[str, Any] = dict(identity.session or {})
        intent, model = request.query.get("intent"), request.query.get("model")
        if intent is not None:
            if intent != "transcription":
                return await _refuse(request, "invalid_intent")
            given["type"] = "transcription"
        elif model is not None:
            # A key that carries a session configuration has named the model.
            given = {"type": "realtime", "model": model} | given
        elif identity.session is None:
            return await _refuse(request, "missing_model")
        return await self._begin(request, given, identity)

    async def _join(self, request: web.Request, call_id: str, identity: Identity) -> web.StreamResponse:
        call = self._service.calls.get(call_id)
        if call is None or call.project != identity.project or not call.can_be_joined:
            raise HttpRefusal(404, signalling.NO_SUCH_CALL)
        socket = await _accept(request)
        outlet = Outlet(request, socket, _MAX_WAITING_BYTES)
        call.sidebands.add(outlet)
        try:
            await _serve(socket, outlet, call.hear)
        finally:
            call.sidebands.discard(outlet)
        return socket

    async def _begin(
        self, request: web.Request, given: dict[str, Any], identity: Identity
    ) -> web.StreamResponse:
        socket = await _accept(request)
        peer = SocketPeer(Outlet(request, socket, None))
        call = self._service.open_socket(given, peer)
        call.owner, call.project = identity.key, identity.project
        peer.on_open()
        try:
            await _serve(socket, peer.outlet, peer.heard)
        finally:
            call.end("peer closed")
        return socket


class Outlet:
    """The send queue of one WebSocket, and `run`, which sends it until the end.

    With a bound, exceeding it ends the socket. Without one, `writable` makes the writer wait.
    """

    def __init__(self, request: web.Request, socket: web.WebSocketResponse, bound: int | None) -> None:
        self._request = request
        self._socket = socket
        self._bound = bound
        self._waiting: deque[str] = deque()
        self.ended: tuple[int, str] | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.buffered = 0

    def send(self, text: str) -> None:
        """Put a text in the queue."""
        if self.ended is not None:
            return
        if not text.isascii():
            # A lone surrogate cannot be encoded as UTF-8, but its JSON escape can.
            text = text.encode("utf-8", "backslashreplace").decode()
        self._waiting.append(text)
        self.buffered += len(text)
        self._wake.set()
        if self.buffered > _HIGH_WATER:
            self._room.clear()
        if self._bound is not None and self.buffered > self._bound:
            self._waiting.clear()
            self.buffered = 0
            self.close(1013, "The client reads too slowly.")

    def close(self, code: int, reason: str) -> None:
        """Close with a code when the queue is empty; later calls are ignored."""
        if self.ended is None:
            self.ended = (code, reason)
            self._wake.set()

    def finish(self, code: int, reason: str, how: SocketsEnd | None) -> None:
        """End with the call: by a close frame, or in one of the ways of the fault `sockets_end`."""
        if how is None:
            self.close(code, reason)
        elif how == "eof" and self._request.transport is not None:
            self._request.transport.abort()

    async def writable(self) -> None:
        """Wait until less than the high-water mark is unsent."""
        await asyncio.sleep(0)
        await self._room.wait()

    async def run(self) -> None:
        """Send until closed and empty, or until the client is gone."""
        try:
            while self._waiting or self.ended is None:
                if not self._waiting:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                text = self._waiting.popleft()
                await self._socket.send_str(text)
                self.buffered -= len(text)
                if self.buffered <= _HIGH_WATER:
                    self._room.set()
        except ConnectionError:
            return
        finally:
            self._room.set()


class SocketPeer:
    """A WebSocket as the connection of a session (`call.Connection`)."""

    def __init__(self, outlet: Outlet) -> None:
        self.on_open: Callable[[], None] = lambda: None
        self.on_message: Callable[[str | bytes], None] = lambda _: None
        self.on_lost: Callable[[str], None] = lambda _: None
        self.outlet = outlet
        self.sent = 0
        self._vanished = False

    def describe(self) -> dict[str, Any]:
        return {"transport": "websocket", "sent": self.sent, "buffered": self.outlet.buffered}

    def apply(self, faults: Faults) -> None:
        """Ignore: there is no peer connection to fail."""

    def heard(self, frame: str | bytes) -> None:
        if not self._vanished:
            self.on_message(frame)

    def send(self, text: str) -> None:
        if not self._vanished:
            self.sent += 1
            self.outlet.send(text)

    def send_frame(self, frame: bytes) -> None:
        """Send bytes as a text message if they are valid UTF-8; aiohttp cannot send others as text."""
        self.send(frame.decode("utf-8", "replace"))

    async def writable(self) -> None:
        await self.outlet.writable()

    def vanish(self) -> None:
        self._vanished = True

    def stop_consent(self) -> None:
        """A WebSocket has no consent checks."""

    def close_channel(self) -> None:
        self.outlet.close(1000, "")

    def finish(self, code: int, reason: str, how: SocketsEnd | None) -> None:
        self.outlet.finish(code, reason, how)

    async def close(self) -> None:
        """Ignore: the handler that owns the socket closes it."""


async def _serve(socket: web.WebSocketResponse, outlet: Outlet, hear: Callable[[str | bytes], None]) -> None:
    """Read and write until either side ends, then close.

    aiohttp's `close` waits for the client's close frame only if no other task is reading, so reading stops first.
    """

    async def read() -> None:
        async for message in socket:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                hear(message.data)

    tasks = {asyncio.create_task(read()), asyncio.create_task(outlet.run())}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    if outlet.ended is not None:
        code, reason = outlet.ended
        await socket.close(code=code, message=reason.encode())


async def _accept(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(
        protocols=("realtime",), max_msg_size=_MAX_MESSAGE, timeout=_CLOSE_SECONDS, compress=False
    )
    if not socket.can_prepare(request):  # aiohttp would answer this in text.
        raise http_refusal(400, Refusal("invalid_request", "This URL is opened as a WebSocket."))
    await socket.prepare(request)
    return socket


async def _refuse(request: web.Request, code: str) -> web.StreamResponse:
    """Accept, then close with 4000 and the code as the reason, as the service does."""
    socket = await _accept(request)
    await socket.close(code=4000, message=f"invalid_request_error.{code}".encode())
    return socket

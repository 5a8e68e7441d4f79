"""The sideband: a second, server-side connection to a running call, over a WebSocket (Realtime: server controls).

Refuses to begin a session of its own: `?call_id=` names a call, and both connections then speak for it and hear the same
events. As reported of the service, the first event a sideband hears is the answer to its own, never `session.created`; it
works before the call's ICE does; an unknown call is 404 before the upgrade.
"""

import asyncio
from collections.abc import Callable

from aiohttp import WSMsgType, web

from gateway.emulator.call import Call
from gateway.emulator.http import signalling
from gateway.emulator.protocol.errors import HttpRefusal, Refusal, http_refusal
from gateway.emulator.service import Service

# What a reader has not taken yet. At the bound the sideband is closed, not the call.
_MAX_WAITING = 4096
_MAX_MESSAGE = 16 * 1024 * 1024
# Browsers' WebSocket can set no header; the key then comes as a sub-protocol.
_KEY_PROTOCOL = "openai-insecure-api-key."
_BETA_PROTOCOL = "openai-beta.realtime-v1"


class Sideband:
    """The endpoint; `authorize` refuses keys that are not accepted."""

    def __init__(self, service: Service, authorize: Callable[[str], object]) -> None:
        self._service = service
        self._authorize = authorize

    async def attach(self, request: web.Request) -> web.StreamResponse:
        """Connect to the call of `?call_id=` until one of the two ends."""
        protocols = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        key = next((p.removeprefix(_KEY_PROTOCOL) for p in protocols if p.startswith(_KEY_PROTOCOL)), None)
        if _BETA_PROTOCOL in protocols or signalling.asks_for_beta(request):
            return await _refuse_beta(request)
        self._authorize(key or signalling.bearer(request))
        call_id = request.query.get("call_id")
        if call_id is None:
            message = "Missing required parameter: 'call_id'. Sessions begin over WebRTC here; a WebSocket joins one."
            raise http_refusal(400, Refusal("missing_required_parameter", message, param="call_id"))
        call = self._service.calls.get(call_id)
        if call is None:
            raise HttpRefusal(404, signalling.NO_SUCH_CALL)
        socket = web.WebSocketResponse(protocols=("realtime",), max_msg_size=_MAX_MESSAGE)
        await socket.prepare(request)
        await _serve(call, socket)
        return socket


async def _serve(call: Call, socket: web.WebSocketResponse) -> None:
    waiting: asyncio.Queue[str | None] = asyncio.Queue()

    def listen(text: str | None) -> None:
        if waiting.qsize() >= _MAX_WAITING:
            call.listeners.discard(listen)
            text = None
        waiting.put_nowait(text)

    async def speak() -> None:
        while (text := await waiting.get()) is not None:
            await socket.send_str(text)
        await socket.close()

    call.listeners.add(listen)
    speaker = asyncio.create_task(speak())
    try:
        async for message in socket:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                call.hear(message.data)
    finally:
        call.listeners.discard(listen)
        speaker.cancel()
        await asyncio.wait({speaker})


async def _refuse_beta(request: web.Request) -> web.StreamResponse:
    """Accept, then close with 4000, as the service does with the beta's header and sub-protocol."""
    socket = web.WebSocketResponse(protocols=("realtime",))
    await socket.prepare(request)
    await socket.close(code=4000, message=b"invalid_request_error.beta_api_shape_disabled")
    return socket

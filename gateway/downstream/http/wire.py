"""What streamed answers share: headers against buffering, and notice of a lost connection."""

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import hdrs, web

from gateway.downstream.http.protocol import Connection

UNBUFFERED: Final = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
"""Ask proxies to pass every byte on as it comes; nginx listens to the second."""


def accepted(request: web.BaseRequest) -> str | None:
    """Return the client's Accept header. Several lines are one list (RFC 9110 5.3)."""
    lines = request.headers.getall(hdrs.ACCEPT, ())
    return ",".join(lines) if lines else None


def watch_loss(request: web.BaseRequest, call: Callable[[], None]) -> Callable[[], None]:
    """Call when the client's connection is lost, until the returned function is called."""
    protocol = request.protocol
    if isinstance(protocol, Connection):
        return protocol.on_lost(call)
    return lambda: None


def undo_unless_taken(request: web.BaseRequest, undo: Callable[[], Awaitable[None]]) -> None:
    """Call `undo` when the answer to this request finds that a half-closed client has left."""
    protocol = request.protocol
    if isinstance(protocol, Connection):
        protocol.undo_unless_taken(undo)


def cut_off(request: web.BaseRequest) -> bool:
    """Return whether the client lost its connection because it took nothing for the write deadline."""
    protocol = request.protocol
    return isinstance(protocol, Connection) and protocol.cut_off

"""Shared parts of streamed responses: headers that disable buffering, and callbacks for a lost connection."""

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import hdrs, web

from gateway.downstream.http.protocol import Connection

UNBUFFERED: Final = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
"""Ask proxies not to buffer. nginx uses the second header."""


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


def write_soon(request: web.BaseRequest) -> Callable[[Callable[[], None]], None] | None:
    """Return the function that schedules a write to the client (intake.Intake), if there is one."""
    protocol = request.protocol
    if not isinstance(protocol, Connection):
        return None
    return protocol._connections.intake.write_soon  # noqa: SLF001  # of the same package


def undo_unless_taken(request: web.BaseRequest, undo: Callable[[], Awaitable[None]]) -> None:
    """Call `undo` if a half-closed client has left before it got the response to this request."""
    protocol = request.protocol
    if isinstance(protocol, Connection):
        protocol.undo_unless_taken(undo)


def cut_off(request: web.BaseRequest) -> bool:
    """Return whether the connection was aborted because the client read nothing for the write deadline."""
    protocol = request.protocol
    return isinstance(protocol, Connection) and protocol.cut_off


def half_closed(request: web.BaseRequest) -> bool:
    """Return whether the client has closed its sending side, and perhaps has left."""
    protocol = request.protocol
    return isinstance(protocol, Connection) and protocol.half_closed

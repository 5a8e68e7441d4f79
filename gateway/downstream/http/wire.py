"""A streamed answer's socket: little between the log and the client, and word of its loss at once."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from aiohttp import web

from gateway.downstream.http.protocol import Connection

SEND_BUFFER_BYTES: Final = 16 * 1024
WRITE_BUFFER_BYTES: Final = 8 * 1024
"""With the kernel's and asyncio's defaults a reader that never reads takes 4 MB before a write waits; so the page
that is being written and some 40 KB."""


UNBUFFERED: Final = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
"""Ask proxies to pass every byte on as it comes; nginx listens to the second."""


def tune(transport: asyncio.BaseTransport | None, write_seconds: float) -> None:
    """Keep little between the log and the client, so that a write waits soon after the client stops to read."""
    if not isinstance(transport, asyncio.WriteTransport):
        return
    transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Bytes that nobody acknowledges end the connection, where keepalive would wait for hours (RFC 5482).
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(write_seconds * 2000))


def watch_loss(request: web.BaseRequest, call: Callable[[], None]) -> Callable[[], None]:
    """Call when the client's connection is lost, until the returned function is called."""
    protocol = request.protocol
    if isinstance(protocol, Connection):
        return protocol.on_lost(call)
    return lambda: None

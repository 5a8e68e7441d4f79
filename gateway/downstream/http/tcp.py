"""What asyncio does not offer for a client's TCP connection: its state in the kernel, and a reset. Other sockets have none."""

import asyncio
import fcntl
import socket
import struct
import termios
from contextlib import suppress
from typing import Final

_INT: Final = struct.Struct("i")
_LINGER: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with a time of 0: closing resets the connection."""
_RESET_SECONDS: Final = 5.0
_RESET_POLL_SECONDS: Final = 0.01
_TCP_CLOSE: Final = 7
"""The state of a connection that was reset, the first byte of Linux' `struct tcp_info`."""


def was_reset(wire: asyncio.Transport) -> bool:
    """Return whether a connection was reset. asyncio reports no reset after it has stopped reading."""
    connection = wire.get_extra_info("socket")
    if connection is None or not hasattr(socket, "TCP_INFO"):
        return False
    try:
        return bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE)
    except OSError:
        return False  # Not a TCP socket.


def unsent(wire: asyncio.Transport) -> int:
    """Return the number of unacknowledged bytes: those in asyncio's buffer and those in the kernel's."""
    connection = wire.get_extra_info("socket")
    try:
        (kernel,) = _INT.unpack(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(_INT.size)))
    except OSError:
        kernel = 0  # Not a TCP socket.
    return int(wire.get_write_buffer_size() + kernel)


def set_user_timeout(wire: asyncio.Transport, seconds: float) -> None:
    """Set how long the kernel waits for an acknowledgement before it ends the connection; 0 is its own default."""
    connection = wire.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        with suppress(OSError):  # Not a TCP socket, or lost already.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


async def reset(wire: asyncio.Transport) -> None:
    """Reset a connection when the client has got what was written, or after a few seconds. Without a chunked body the end of
    the connection is the end of the body, so only a reset shows the client that the body was cut short."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _RESET_SECONDS
    while not wire.is_closing() and unsent(wire) and loop.time() < deadline:
        await asyncio.sleep(_RESET_POLL_SECONDS)
    if not wire.is_closing():
        abort(wire)


def abort(wire: asyncio.Transport) -> None:
    """Reset a connection at once, and drop what was written. asyncio's own abort sends what the kernel has and then an
    ordinary end, which without a chunked body is the end of the body."""
    connection = wire.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):  # Not a TCP socket, or lost already.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
    wire.abort()

"""Copies another node's response, byte for byte, from the owner's connection to the client's.

The owner frames the response for the client's HTTP version, so the body is copied unchanged. Nothing is queued: while a
client reads nothing, reading from the owner pauses, and the owner's rule for slow readers then ends both connections.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from multidict import CIMultiDict

from gateway.downstream.http import tcp
from gateway.downstream.http.wire import watch_loss

CONNECT_SECONDS: Final = 2.0
HEAD_SECONDS: Final = 90.0
"""Deadline for the head of the response. A long-poll takes up to 55 s. A turn may take longer, see `Outgoing`."""
BODY_SECONDS: Final = 30.0
"""Deadline for the body of a response with a length, which its node sends at once."""
PATH_SECONDS: Final = 5.0
"""A connection is considered lost when what was sent over it is not acknowledged for so long."""
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_WAITING_BYTES: Final = 64 * 1024
"""Limit of bytes read from the owner and not yet sent to the client. Reading pauses above it."""

_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})")
_LAST_CHUNK: Final = b"0\r\n\r\n"


class UnreachableError(Exception):
    """The node could not be reached. Nothing was sent."""


class BrokenError(Exception):
    """The connection broke after the request was sent and before the response was complete."""


class SilentError(BrokenError):
    """The node did not answer in time. It may still act on the request."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request to another node."""

    method: str
    path: str
    version: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    seconds: float = HEAD_SECONDS
    """Deadline for the head of the response."""

    def encoded(self) -> bytes:
        """Return the encoded request."""
        lines = [f"{self.method} {self.path} HTTP/{self.version}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + self.body


class Line(asyncio.Protocol):
    """One connection to another node, for one request at a time. It buffers received bytes up to a limit."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._time = asyncio.get_running_loop().time
        self._heard_at = self._time()
        self._watching: asyncio.Handle | None = None
        self.ended = False
        """No more bytes will arrive."""
        self.broken = False
        """The connection was reset."""
        self.on_end: Callable[[], None] = lambda: None
        """Called once the connection is gone."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not instances of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._heard_at = self._time()
        if self._transport is not None and not self._paused and len(self._buffer) > MAX_WAITING_BYTES:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self.ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.broken = self.broken or exc is not None
        self.ended = True
        self.on_end()
        self._wake()

    @property
    def fresh(self) -> bool:
        """Whether the connection is open and has received no unexpected bytes."""
        return not (self.ended or self._buffer)

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        """Abort the connection. May be called more than once."""
        if self._transport is not None:
            self._transport.abort()
        if self._watching is not None:
            self._watching.cancel()
        self.ended = True
        self._wake()

    def give_up(self) -> None:
        """Abort the connection as one that broke: what came over it is not whole."""
        self.broken = True
        self.close()

    def watch(self, seconds: float) -> None:
        """Give up when the other node sends nothing for `seconds`. Time in which this node does not read does not count."""
        left = self._heard_at + seconds - self._time()
        if left <= 0 and not self._paused:
            self.give_up()
        elif not self.ended:
            later = left if left > 0 else seconds
            self._watching = asyncio.get_running_loop().call_later(later, self.watch, seconds)

    async def more(self) -> bytes:
        """Wait for bytes and return them; empty at the end."""
        while not self._buffer and not self.ended:
            if self._paused and self._transport is not None:
                self._paused, self._heard_at = False, self._time()
                self._transport.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def connect(url: str, tls: ssl.SSLContext | None) -> Line:
    """Connect to a node: `http://`, `https://`, or `unix:` and a path. Raises UnreachableError."""
    loop = asyncio.get_running_loop()
    line = Line()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            if url.startswith("unix:"):
                await loop.create_unix_connection(lambda: line, url.removeprefix("unix:"))
            else:
                parts = urlsplit(url)
                secure, port = (tls, 443) if parts.scheme == "https" else (None, 80)
                at = parts.hostname or "", parts.port or port
                wire, _ = await loop.create_connection(lambda: line, *at, ssl=secure)
                tcp.set_user_timeout(wire, PATH_SECONDS)
    except (OSError, TimeoutError) as error:
        raise UnreachableError(str(error) or "time-out") from error
    return line


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a response, and the part of its body that came with it."""

    status: int
    headers: CIMultiDict[str]
    rest: bytes

    @property
    def keeps(self) -> bool:
        """Whether the connection can be used for another request."""
        return self.headers.get(hdrs.CONNECTION, "").lower() != "close"


async def ask(line: Line, outgoing: Outgoing) -> Head:
    """Send a request and wait for the head of its response. Raises BrokenError; the connection is closed then."""
    line.write(outgoing.encoded())
    data = b""
    async with _reading(line, outgoing.seconds):
        while (end := data.find(b"\r\n\r\n")) < 0:
            more = await line.more()
            if not more or len(data) > MAX_HEAD_BYTES:
                raise BrokenError("no answer")
            data += more
        first, _, lines = data[:end].partition(b"\r\n")
        found = _STATUS.match(first)
        if found is None:
            raise BrokenError("not HTTP")
    headers: CIMultiDict[str] = CIMultiDict()
    for one in lines.decode("utf-8", "surrogateescape").split("\r\n"):
        name, _, value = one.partition(":")
        headers.add(name, value.strip())
    return Head(int(found[1]), headers, data[end + 4 :])


async def whole_body(line: Line, head: Head) -> bytes:
    """Read the body of a response that has a Content-Length. Raises BrokenError; the connection is closed then."""
    length, data = int(head.headers.get(hdrs.CONTENT_LENGTH, "0")), head.rest
    async with _reading(line, BODY_SECONDS):
        while len(data) < length:
            more = await line.more()
            if not more:
                raise BrokenError("the answer was cut short")
            data += more
    return data[:length]


@asynccontextmanager
async def _reading(line: Line, seconds: float) -> AsyncIterator[None]:
    """Read from a node within a time, and close the connection unless everything was read. Raises SilentError."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except BaseException as error:
        line.close()
        if isinstance(error, TimeoutError):
            raise SilentError("time-out") from error
        raise


class Spliced(web.StreamResponse):
    """A response whose body, including its framing, comes from another node."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing: the copied bytes include the end."""
        self._eof_sent = True


async def splice(
    request: web.Request, line: Line, head: Head, headers: Mapping[str, str], seconds: float
) -> web.StreamResponse:
    """Copy a response until it ends. If its body is cut short, or nothing comes for so many seconds, abort the client's
    connection."""
    response = Spliced(status=head.status, headers=headers)
    response.force_close()
    await response.prepare(request)
    await request.writer.drain()
    transport = request.transport
    chunked = hdrs.TRANSFER_ENCODING in head.headers
    ignore_loss: Callable[[], None] = watch_loss(request, line.close)
    line.watch(seconds)
    tail, left = b"", transport is None
    try:
        data = head.rest
        while not left:
            if data:
                if transport is None or transport.is_closing():
                    left = True
                    break
                transport.write(data)
                tail = (tail + data)[-len(_LAST_CHUNK) :]
                if request.protocol.writing_paused:
                    await request.writer.drain()
            elif line.ended:
                break
            data = await line.more()
    except ConnectionError:
        left = True
    finally:
        ignore_loss()
        line.close()
    whole = tail == _LAST_CHUNK if chunked else not line.broken
    if not left and not whole and transport is not None:
        if chunked:
            transport.abort()
        else:
            await tcp.reset(transport)
    return response

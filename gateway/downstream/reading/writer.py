"""Writes a streamed response to one client.

aiohttp's own write runs one or two coroutines per piece, which takes 5 µs. So bytes are written to the transport directly,
in HTTP/1.1 chunks. The connection enforces the write deadline, see `http.protocol`.
"""

from collections.abc import Callable, Iterable
from typing import Final

from aiohttp import hdrs, web

from gateway.downstream.http import tcp

PIECE_BYTES: Final = 64 * 1024
"""Size of the pieces in which `write_all` passes a response to the transport."""


class Writer:
    """The body of one streamed response that is prepared."""

    __slots__ = (
        "_begun",
        "_chunked",
        "_monotonic",
        "_protocol",
        "_writer",
        "taken_at",
        "waiting",
        "wrote_at",
    )

    def __init__(
        self,
        request: web.Request,
        response: web.StreamResponse,
        monotonic: Callable[[], float],
        *,
        begun: bool = True,
    ) -> None:
        """`begun`: the headers have been sent. Otherwise `write` must be called first, which sends them."""
        self._protocol = request.protocol
        self._writer = request.writer
        self._chunked = response.headers.get(hdrs.TRANSFER_ENCODING) == "chunked"
        self._monotonic = monotonic
        self._begun = begun
        self.waiting = False
        """The client has not yet read what was written."""
        self.wrote_at = self.taken_at = monotonic()
        """`taken_at`: when the client last read from a full socket; at first, when its response began."""

    @property
    def full(self) -> bool:
        """Whether the buffer is full: call `drain` before the next `put`."""
        # `writing_paused` would be one more call, twice for each event.
        return self._protocol._paused  # noqa: SLF001

    def put(self, data: bytes) -> None:
        """Pass bytes to the transport. Raises ConnectionResetError if the connection is lost."""
        if not data:
            return  # An empty chunk would end the body.
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        self.wrote_at = self._monotonic()

    async def write(self, data: bytes) -> None:
        """Pass bytes to the transport and wait until the client has read most of them."""
        if self._begun:
            self.put(data)
        else:
            self._begun = True
            await self._writer.write(data)  # together with the headers
            self.wrote_at = self._monotonic()
        if self._protocol.writing_paused:
            await self.drain()

    async def write_all(self, pieces: Iterable[bytes]) -> None:
        """Write small pieces joined into larger ones. Each is built when the client has read the one before."""
        gathered: list[bytes] = []
        size = 0
        for piece in pieces:
            gathered.append(piece)
            size += len(piece)
            if size >= PIECE_BYTES:
                await self.write(b"".join(gathered))
                gathered, size = [], 0
        await self.write(b"".join(gathered))

    async def drain(self) -> None:
        """Wait until the client has read most of the buffer. Raises ConnectionError if the connection is lost."""
        self.waiting = True
        try:
            await self._writer.drain()
            self.taken_at = self._monotonic()
        finally:
            self.waiting = False

    async def cut(self) -> None:
        """Close the connection after the written data, without the body's end, so that the client notices the cut."""
        transport = self._protocol.transport
        if transport is None:
            return
        if self._chunked:
            transport.close()
        else:
            await tcp.reset(transport)

    def abort(self) -> None:
        """Reset the connection at once, and drop what the client has not read."""
        transport = self._protocol.transport
        if transport is not None:
            tcp.abort(transport)

"""What is written to one client as it comes.

aiohttp's own write costs a coroutine or two for each piece, 5 µs. So bytes go to the transport directly, in the chunks
that HTTP/1.1 wants. How long a client may take for them is the connection's business, see `http.protocol`.
"""

from collections.abc import Callable, Iterable
from typing import Final

from aiohttp import hdrs, web

PIECE_BYTES: Final = 64 * 1024
"""Most that is handed to the transport at once of an answer whose parts are all there already."""


class Writer:
    """The body of one streamed answer, whose headers have been sent."""

    __slots__ = ("_chunked", "_monotonic", "_protocol", "_writer", "taken_at", "waiting", "wrote_at")

    def __init__(
        self, request: web.Request, response: web.StreamResponse, monotonic: Callable[[], float]
    ) -> None:
        self._protocol = request.protocol
        self._writer = request.writer
        self._chunked = response.headers.get(hdrs.TRANSFER_ENCODING) == "chunked"
        self._monotonic = monotonic
        self.waiting = False
        """The client has not yet taken what was written."""
        self.wrote_at = self.taken_at = monotonic()
        """`taken_at`: when the client last took bytes from a full socket; at first, when its answer began."""

    @property
    def full(self) -> bool:
        """Enough is buffered: `drain` before more is put."""
        return self._protocol.writing_paused

    def put(self, data: bytes) -> None:
        """Hand bytes to the transport. Raises ConnectionResetError when the connection is lost."""
        if not data:
            return  # An empty chunk would end the body.
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        self.wrote_at = self._monotonic()

    async def write(self, data: bytes) -> None:
        """Hand bytes to the transport and wait until the client has taken most of them."""
        self.put(data)
        if self._protocol.writing_paused:
            await self.drain()

    async def write_all(self, pieces: Iterable[bytes]) -> None:
        """Write small pieces gathered into larger ones, each made when the client has taken the one before."""
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
        """Wait until the client has taken most of what was put. Raises ConnectionError when the connection is lost."""
        self.waiting = True
        try:
            await self._writer.drain()
            self.taken_at = self._monotonic()
        finally:
            self.waiting = False

    def cut(self) -> None:
        """End the connection short of the body's end, after what was written: no client takes that for the whole."""
        transport = self._protocol.transport
        if transport is not None:
            transport.close()

    def abort(self) -> None:
        """End the connection at once, without what the client has not taken."""
        transport = self._protocol.transport
        if transport is not None:
            transport.abort()

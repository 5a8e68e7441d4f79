"""Requests as bytes, and the answers on their connection."""

import asyncio
import json
import socket
import struct
from dataclasses import dataclass
from typing import Any

SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """Everything received on a connection until its end, with the first answer parsed."""

    status: int
    headers: dict[str, str]
    body: bytes
    all: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Return everything received until the connection is closed or reset."""
    read = bytearray()
    try:
        while chunk := await reader.read(65536):
            read += chunk
    except ConnectionResetError:
        read += reader._buffer  # type: ignore[attr-defined]  # what came before the reset; a read drops it
    return bytes(read)


def parsed(said: bytes) -> RawAnswer:
    """Parse the first answer."""
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(first.split(" ")[1]) if first.startswith("HTTP/1.") else 0
    return RawAnswer(status, headers, body, said)


async def ask(url: str, sent: bytes, *, half_close: bool = False) -> RawAnswer:
    """Send bytes on a separate connection, close the sending side if requested, and read to the end."""
    reader, writer = await connect(url)
    writer.write(sent)
    if half_close:
        writer.write_eof()
    try:
        async with asyncio.timeout(SECONDS):
            return parsed(await read_all(reader))
    finally:
        writer.close()


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection to a server on loopback."""
    return await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))


def reset(writer: asyncio.StreamWriter) -> None:
    """Reset a connection, as happens when a program dies with unread data."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

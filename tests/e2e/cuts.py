"""A TCP proxy on loopback that cuts connections where a test says so.

Every request reaches the gateway whole. Of its answer only as many bytes are returned as the test allows, none for
an answer that is lost. It knows of HTTP only how a request begins.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

Allow = Callable[[str], int | None]
"""Given a request's first line, how many bytes may come back for it; None is all."""

_REQUEST = re.compile(rb"[A-Z]+ /\S* HTTP/1\.[01]\r\n")
_CHUNK = 65536


class _Connection:
    """One client's connection and its counterpart at the gateway."""

    def __init__(self, allow: Allow) -> None:
        self._allow = allow
        self._left: int | None = None

    async def up(self, client: asyncio.StreamReader, gateway: asyncio.StreamWriter) -> None:
        while data := await client.read(_CHUNK):
            if found := _REQUEST.match(data):
                self._left = self._allow(found[0].decode().strip())
            gateway.write(data)
            await gateway.drain()

    async def down(self, gateway: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await gateway.read(_CHUNK):
            allowed = data if self._left is None else data[: self._left]
            client.write(allowed)
            await client.drain()
            if self._left is not None:
                self._left -= len(allowed)
                if self._left <= 0:
                    return


@asynccontextmanager
async def cutting(url: str, allow: Allow) -> AsyncIterator[str]:
    """Run the proxy in front of a gateway and return its URL; its connections end with it."""
    address = urlsplit(url)
    running: set[asyncio.Task[None]] = set()

    async def serve(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            gateway, to_gateway = await asyncio.open_connection(address.hostname, address.port)
            try:
                connection = _Connection(allow)
                ways = {
                    asyncio.create_task(connection.up(client, to_gateway)),
                    asyncio.create_task(connection.down(gateway, to_client)),
                }
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
            finally:
                to_gateway.close()
        finally:
            with suppress(ConnectionError):
                # The allowed bytes are flushed first, so that the client sees a cut and not a reset that discards them.
                to_client.close()
            running.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=5)
        await server.wait_closed()

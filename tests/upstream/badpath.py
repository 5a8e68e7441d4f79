"""A bad path between the gateway and a far end: every UDP datagram may be dropped, delayed and overtaken, in both
directions.

An HTTP server stands in front of the far end's. It forwards calls and puts the address of its own relay into the
answer's candidates, so that everything the gateway sends goes through the relay. The far end must be an ICE-lite
agent, or one that cannot reach the gateway by another path.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
from aiohttp import web

from tests.serving import serving

APPLICATION_DATA = 23  # RFC 6347 4.1, the first byte of a DTLS record
# A record with an acknowledgement has 65 bytes, and 4 more for each gap. One with an event has more.
LARGEST_ACK = 96
CANDIDATE = re.compile(r"(a=candidate:\S+ 1 udp \d+ )(\S+) (\d+)( typ host)")
Address = tuple[str, int]


@dataclass
class Path:
    """The current behaviour of the path; a test changes it while datagrams pass. Times are in seconds."""

    loss: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    """The most that is added to `delay`, drawn for each datagram, so that later ones may arrive earlier."""
    down: bool = False
    """Nothing passes."""
    mute: bool = False
    """No event passes up. Checks and acknowledgements do, so the far end goes on sending."""
    seed: int = 5
    passed: int = 0
    dropped: int = 0

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    def carry(
        self, transport: asyncio.DatagramTransport, data: bytes, address: Address, *, up: bool = False
    ) -> None:
        """Deliver a datagram after its delay, or drop it."""
        muted = self.mute and up and data[0] == APPLICATION_DATA and len(data) > LARGEST_ACK
        if self.down or muted or self._dice.random() < self.loss:
            self.dropped += 1
            return
        self.passed += 1
        late = self.delay + self._dice.random() * self.jitter
        asyncio.get_running_loop().call_later(late, _deliver, transport, data, address)


def _deliver(transport: asyncio.DatagramTransport, data: bytes, address: Address) -> None:
    if not transport.is_closing():
        transport.sendto(data, address)


class _Near(asyncio.DatagramProtocol):
    """The relay's socket towards the gateway. It has one socket towards the far end for each of the gateway's."""

    transport: asyncio.DatagramTransport

    def __init__(self, path: Path, far: Address) -> None:
        self._path = path
        self._far = far
        self._ways: dict[Address, asyncio.Future[_Far]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        way = self._ways.get(addr)
        if way is None:
            way = self._ways[addr] = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(self._open(addr, way, data))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif way.done():
            self._path.carry(way.result().transport, data, self._far, up=True)

    async def _open(self, addr: Address, way: "asyncio.Future[_Far]", first: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, far = await loop.create_datagram_endpoint(
            lambda: _Far(self._path, self, addr), local_addr=("127.0.0.1", 0)
        )
        way.set_result(far)
        self._path.carry(far.transport, first, self._far, up=True)

    def close(self) -> None:
        """Close all sockets."""
        self.transport.close()
        for way in self._ways.values():
            if way.done():
                way.result().transport.close()


class _Far(asyncio.DatagramProtocol):
    transport: asyncio.DatagramTransport

    def __init__(self, path: Path, near: _Near, gateway: Address) -> None:
        self._path, self._near, self._gateway = path, near, gateway

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._path.carry(self._near.transport, data, self._gateway)


@asynccontextmanager
async def bad_path(base_url: str, path: Path) -> AsyncIterator[str]:
    """Put a path in front of a far end and return the base URL to use instead of the far end's."""
    relays: list[_Near] = []
    loop = asyncio.get_running_loop()

    async def relayed(found: "re.Match[str]") -> str:
        far = (found[2], int(found[3]))
        _, near = await loop.create_datagram_endpoint(lambda: _Near(path, far), local_addr=("127.0.0.1", 0))
        relays.append(near)
        return f"{found[1]}127.0.0.1 {near.transport.get_extra_info('sockname')[1]}{found[4]}"

    async with aiohttp.ClientSession() as session:

        async def pass_on(request: web.Request) -> web.Response:
            headers = {
                name: value
                for name, value in request.headers.items()
                if name.lower() in ("authorization", "content-type")
            }
            body = await request.read()
            url = base_url.removesuffix("/v1") + request.path_qs
            try:
                async with session.request(request.method, url, data=body, headers=headers) as answer:
                    text = await answer.text()
                    for found in {match[0]: match for match in CANDIDATE.finditer(text)}.values():
                        text = text.replace(found[0], await relayed(found))
                    kept = {"Location": answer.headers["Location"]} if "Location" in answer.headers else {}
                    return web.Response(status=answer.status, text=text, headers=kept)
            except aiohttp.ClientError as error:  # the far end may be down
                return web.Response(status=502, text=repr(error))

        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", pass_on)
        async with serving(app) as url:
            try:
                yield f"{url}/v1"
            finally:
                for near in relays:
                    near.close()


def numbers(texts: list[Any]) -> list[int]:
    """Return the numbers in the events of a test, in the order of arrival."""
    return [int(found[1]) for text in texts if (found := re.search(r'"number":\s*(\d+)', str(text)))]

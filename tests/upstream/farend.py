"""A far end for the tests of upstream: stock aiortc behind one HTTP route, in its own process.

It has its own process, so that only the gateway's side is measured or changed. The test controls it by text over the
data channel, one JSON object per message:

`{"do": "stream", "count": n, "size": s, "burst": b, "pause": p}` sends n texts of s characters, b at a time.

`{"do": "text", "size": s}` sends one text of s characters; with "close" the far end closes the channel behind it.

`{"do": "cross", "count": n, "size": s}` sends n texts whose SSNs and TSNs cross in pairs, as with two writers.

`{"do": "garbled"}` sends a text frame that is not UTF-8, `{"do": "binary"}` a binary one, `{"do": "binary-flood",
"count": n, "size": s}` n binary ones.

`{"do": "close-channel"}`, `{"do": "close"}`, `{"do": "abort"}` and `{"do": "vanish"}` end it in different ways.

Any other text is returned unchanged.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSctpTransport,
    RTCSessionDescription,
)

from tests.serving import serving

TEXT = 51  # RFC 8831 8


class Farend:
    """Answers offers and executes the test's commands."""

    def __init__(self) -> None:
        self.peers: set[RTCPeerConnection] = set()
        self.hung_up: list[str] = []
        self.offers: list[str] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def call(self, request: web.Request) -> web.Response:
        """Answer an offer."""
        form = await request.post()
        part = form["sdp"]
        assert isinstance(part, bytes | bytearray)  # aiohttp's representation of any type but text/plain
        return await self.answer(part.decode())

    async def answer(self, offer: str) -> web.Response:
        """Make a connection for an offer."""
        self.offers.append(offer)
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.peers.add(pc)
        pc.on("datachannel", lambda channel: self.adopt(pc, channel))
        await pc.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        self.prepare(pc)
        await pc.setLocalDescription(await pc.createAnswer())
        answer = pc.localDescription.sdp.replace("a=max-message-size:262144", "a=max-message-size:1073741823")
        number = len(self.offers)
        headers = {"Location": f"/v1/realtime/calls/rtc_test_{number}"}
        return web.Response(status=201, text=self.rewrite(answer), headers=headers)

    def prepare(self, pc: RTCPeerConnection) -> None:
        """Prepare a connection before it answers; a test that wants a fault overrides this."""

    def rewrite(self, answer: str) -> str:
        """Return the answer that is sent; a test that wants a fault overrides this."""
        return answer

    async def hang_up(self, request: web.Request) -> web.Response:
        """Record that a call was hung up."""
        self.hung_up.append(request.match_info["call"])
        return web.Response(status=200)

    async def stats(self, _: web.Request) -> web.Response:
        """Return the states of the calls."""
        for pc in [pc for pc in self.peers if pc.connectionState in ("closed", "failed")]:
            await pc.close()
            self.peers.discard(pc)
        return web.json_response(
            {"peers": len(self.peers), "hung_up": self.hung_up, "offer": (self.offers or [""])[-1]}
        )

    def adopt(self, pc: RTCPeerConnection, channel: RTCDataChannel) -> None:
        """Listen on a channel."""

        @channel.on("message")
        def told(message: str) -> None:
            task = asyncio.create_task(self.obey(pc, channel, message))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

        channel.send(json.dumps({"type": "session.created"}))

    async def obey(self, pc: RTCPeerConnection, channel: RTCDataChannel, message: str) -> None:
        """Execute the command in a message."""
        order: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            order = json.loads(message)
        sctp = pc.sctp
        assert sctp is not None
        match order.get("do"):
            case "stream":
                await self.stream(channel, order)
            case "text":
                channel.send("x" * order["size"])
                if order.get("close"):
                    channel.close()
            case "cross":
                await self.cross(sctp, channel.id or 0, order)
            case "skip":
                stream = channel.id or 0
                sctp._outbound_stream_seq[stream] = (sctp._outbound_stream_seq.get(stream, 0) + 1) % 2**16
            case "garbled":
                sctp._data_channel_queue.append((channel, TEXT, b'{"type":"\xff\xfe"}'))
                await sctp._data_channel_flush()
            case "binary-flood":
                for _ in range(order["count"]):
                    channel.send(b"\x00" * order["size"])
            case "binary":
                channel.send(b"\x00\x01\x02")
            case "close-channel":
                channel.close()
            case "close":
                await pc.close()
            case "abort":
                await sctp._abort()
            case "vanish":
                os._exit(0)
            case _:
                channel.send(message)

    async def cross(self, sctp: RTCSctpTransport, stream_id: int, order: dict[str, Any]) -> None:
        """Send texts whose SSNs and TSNs cross: of each pair of SSNs the later one is sent first."""
        base = sctp._outbound_stream_seq.get(stream_id, 0)
        for pair in range(order["count"] // 2):
            for number in (2 * pair + 1, 2 * pair):
                sctp._outbound_stream_seq[stream_id] = (base + number) % 2**16
                await sctp._send(stream_id, TEXT, (f"{number} " + "x" * order["size"]).encode())
            sctp._outbound_stream_seq[stream_id] = (base + 2 * pair + 2) % 2**16
            await asyncio.sleep(0)

    async def stream(self, channel: RTCDataChannel, order: dict[str, Any]) -> None:
        """Send many texts, each with a number and the time in front."""
        size, burst, pause = order["size"], order["burst"], order["pause"]
        for number in range(order["count"]):
            head = f"{number} {time.monotonic()} "
            channel.send(head + "x" * max(0, size - len(head)))
            if (number + 1) % burst == 0:
                await asyncio.sleep(pause)
                while channel.bufferedAmount > 256 * 1024:
                    await asyncio.sleep(0.001)


@asynccontextmanager
async def answering(farend: Farend) -> AsyncIterator[str]:
    """Serve a far end in this process and return its base URL."""
    app = web.Application()
    app.router.add_post("/v1/realtime/calls", farend.call)
    app.router.add_post("/v1/realtime/calls/{call}/hangup", farend.hang_up)
    app.router.add_get("/stats", farend.stats)
    async with serving(app) as url:
        try:
            yield f"{url}/v1"
        finally:
            await asyncio.gather(*(pc.close() for pc in farend.peers))


async def serve() -> None:
    """Serve until standard input ends."""
    async with answering(Farend()) as url:
        sys.stdout.write(f"listening on {url}\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@asynccontextmanager
async def farend() -> AsyncIterator[str]:
    """Run a far end in its own process and return its base URL."""
    async with program("-m", "tests.upstream.farend") as url:
        yield url


@asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[str]:
    """Run a Python program that prints its address, and end it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = (await process.stdout.readline()).decode()
        yield line.rpartition("listening on ")[2].strip()
    finally:
        process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


if __name__ == "__main__":
    asyncio.run(serve())

"""An HTTP proxy on loopback that treats some requests as bad proxies do: it holds streams back, cuts them, or loses
answers.

Requests always reach the gateway. The test's rule decides what is returned of their answers.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import web


@dataclass(frozen=True, slots=True)
class Pass:
    """Return the answer; with `bytes`, return only this many bytes of its body, and then cut the connection, or send
    nothing more if `silent` is true."""

    bytes: int | None = None
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Lose:
    """Let the gateway answer, and end the client's connection without any of it."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Return nothing and keep the connection open."""


Rule = Callable[[web.BaseRequest], Pass | Lose | Hold]
PASS = Pass()
_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding"})


@asynccontextmanager
async def meddling(gateway: str, rule: Rule) -> AsyncIterator[str]:
    """Run the proxy in front of a gateway and return its URL."""
    over = asyncio.Event()
    async with aiohttp.ClientSession(
        auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None, sock_connect=5)
    ) as http:

        async def forward(request: web.BaseRequest) -> web.StreamResponse:
            # `Host` is passed on unchanged: a page's origin is compared with it.
            headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
            body = await request.read()
            action = rule(request)
            url = gateway + request.path_qs
            async with http.request(request.method, url, headers=headers, data=body or None) as answer:
                if isinstance(action, Hold):
                    await over.wait()
                    return _hang_up(request)
                if isinstance(action, Lose):
                    await answer.read()
                    return _hang_up(request)
                return await _give_back(request, answer, action, over)

        # A client that leaves cancels its request to the gateway, and the end of the proxy cancels all.
        runner = web.ServerRunner(web.Server(forward, handler_cancellation=True), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            over.set()
            await runner.cleanup()


async def _give_back(
    request: web.BaseRequest, answer: aiohttp.ClientResponse, action: Pass, over: asyncio.Event
) -> web.StreamResponse:
    back = web.StreamResponse(status=answer.status)
    for name, value in answer.headers.items():
        if name.lower() not in _HOP:
            back.headers.add(name, value)
    await back.prepare(request)
    left = action.bytes
    async for chunk in answer.content.iter_any():
        await back.write(chunk if left is None else chunk[:left])
        if left is not None and (left := left - len(chunk)) <= 0:
            if action.silent:
                await over.wait()
            return _hang_up(request)
    return back


def _hang_up(request: web.BaseRequest) -> web.Response:
    if isinstance(request.transport, asyncio.Transport):
        request.transport.abort()
    return web.Response()

"""Finds the highest paced load at which one gateway process still relays promptly: `python -m tests.load.capacity`.

Not collected by pytest. Each level adds sessions that receive a stream at a fixed pace, one after the other. The
delay that the gateway adds has two parts, both from its own histograms: `relay_seconds` (channel to socket) and
`event_loop_lag_seconds` (how long a packet may have waited for the loop). Their 99th percentiles are added, which
overstates the sum. The search ends at the first level above 5 ms. The gateway has a core of its own; far end and readers
share the others. A far end that runs already should be kept off the first core: `taskset -c 1 …`.
"""

# ruff: noqa: T201  # a command speaks to the person who called it

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from gateway.cli.scrape import Buckets, histogram, quantile, since
from tests.e2e.caller import say
from tests.farend import FarEnd
from tests.load import cores
from tests.load.churn import Process
from tests.load.sessions import open_all, send
from tests.programs import Served

LIMIT_SECONDS = 0.005
SPREAD_SECONDS = 2.0
SHARE = 0.99
DONE = b'"response.done"'
WORDS = 1000


class Reader:
    """One session that receives streams for as long as the run lasts. Counts events without parsing them."""

    def __init__(self, http: aiohttp.ClientSession, url: str, session: dict[str, Any]) -> None:
        self.events = 0
        self._http, self._url, self._session = http, url, session
        self._question = say(f"Write {WORDS} words about rivers")

    async def run(self, delay: float) -> None:
        await asyncio.sleep(delay)
        async with self._http.get(f"{self._url}{self._session['stream_url']}&max_age=3600") as answer:
            assert answer.status == 200, await answer.text()
            await send(self._http, self._url, self._session, self._question)
            tail = b""
            async for chunk in answer.content.iter_any():
                self.events += chunk.count(b"\ndata: ")
                if DONE in tail + chunk:
                    await send(self._http, self._url, self._session, self._question)
                    tail = b""
                else:
                    tail = chunk[-len(DONE) :]


async def delays(admin_url: str) -> tuple[Buckets, Buckets]:
    """Return both histograms with their current values."""
    return (
        await histogram(admin_url, "relay_seconds", direction="down"),
        await histogram(admin_url, "event_loop_lag_seconds"),
    )


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """Return an HTTP client without limits."""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        yield http


async def search(program: Served, step: int, most: int, seconds: float) -> int:
    """Raise the load level by level; print each level, and the highest one within the limit."""
    url, admin_url = program.url, program.admin_url
    best: tuple[int, float] | None = None
    readers: list[Reader] = []
    running: list[asyncio.Task[None]] = []
    async with client() as http:
        try:
            while len(readers) < most:
                for session in await open_all(http, url, step):
                    reader = Reader(http, url, session)
                    readers.append(reader)
                    running.append(
                        asyncio.create_task(reader.run(len(running) % step * SPREAD_SECONDS / step))
                    )
                await asyncio.sleep(SPREAD_SECONDS + 1)
                before, cpu = await delays(admin_url), Process.of(program.process.pid).cpu_seconds
                events, began = sum(reader.events for reader in readers), time.monotonic()
                await asyncio.sleep(seconds)
                took = time.monotonic() - began
                rate = (sum(reader.events for reader in readers) - events) / took
                cpu = (Process.of(program.process.pid).cpu_seconds - cpu) / took
                after = await delays(admin_url)
                relay, lag = (
                    quantile(since(*pair), SHARE) or 0.0 for pair in zip(before, after, strict=True)
                )
                for task in running:
                    if task.done():
                        task.result()
                within = relay + lag <= LIMIT_SECONDS
                print(
                    f"{len(readers)} sessions, {rate:.0f} events a second, CPU {cpu:.0%} of a core, {cpu / rate * 1e6:.0f} µs "
                    f"an event; p99: channel to socket {relay * 1e3:.1f} ms, loop lag {lag * 1e3:.1f} ms",
                    flush=True,
                )
                if not within:
                    break
                best = len(readers), rate
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    if best is None:
        print("not even the first level was within the limit")
        return 1
    print(
        f"highest load within {LIMIT_SECONDS * 1e3:g} ms: {best[0]} sessions, {best[1]:.0f} events a second"
    )
    return 0


def main() -> int:
    """Run it and print the result."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.capacity", description=__doc__)
    parser.add_argument("--step", type=int, default=25, help="sessions that each level adds")
    parser.add_argument("--most", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--tokens-per-second", type=float, default=50, help="pace of the emulator")
    parser.add_argument("--upstream", help="base URL of a far end that runs already, with its own pace")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        upstream, others = given.upstream, list[int]()
        if upstream is None:
            pace = ("--tokens-per-second", f"{given.tokens_per_second:g}")
            far_end = stack.enter_context(FarEnd(Path(folder) / "far-end", *pace))
            upstream = far_end.base_url
            others.append(far_end.program.process.pid)
        environ = {"GATEWAY_LOG__ACCESS": "false"}
        gateway = stack.enter_context(Served(Path(folder) / "gateway", upstream, environ=environ))
        assert gateway.admin_url
        cores.reserve(gateway.process.pid, *others)
        return asyncio.run(search(gateway, given.step, given.most, given.seconds))


if __name__ == "__main__":
    sys.exit(main())

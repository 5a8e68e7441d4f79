"""Measure how long a single event takes through each proxy and by each way of reading, and print it as a table.

python -m tests.load.proxies [--rounds N]

An event that is followed by silence is the hard case, because later data would push held bytes on. So a round is one
single event, or the last of a burst of 20 KB, and then silence for longer than any heartbeat used here. All readers
read the same session at once, through their proxies. deploy/proxies/README.md has the table of one run.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from gateway.app import Gateway
from tests.conftest import find_part
from tests.e2e import proxies
from tests.e2e.caller import Caller, Json, configured
from tests.farend import FarEnd

ROUND_SECONDS = 7.0
BURST = [json.dumps({"type": "filler", "text": "x" * 480})] * 40
PADDED = "pad=4096&heartbeat=5"
WAYS: Mapping[str, tuple[str, str]] = {
    "SSE": ("GET", "format=sse"),
    "SSE by POST": ("POST", "format=sse"),
    "SSE, padded": ("GET", f"format=sse&{PADDED}"),
    "NDJSON": ("GET", "format=ndjson"),
    "long-poll": ("GET", "format=json&wait=25"),
}


class Delays:
    """When each event was sent, and how much later each reader received it."""

    def __init__(self) -> None:
        self.said: dict[int, float] = {}
        self.had: dict[int, float] = {}

    def note(self, text: str) -> None:
        """Find the numbers in a piece of any rendering."""
        for number, at in self.said.items():
            if number not in self.had and f'"mark":"{number}."' in text:
                self.had[number] = time.monotonic() - at


async def read(http: aiohttp.ClientSession, url: str, session: Json, way: str, delays: Delays) -> None:
    """Read without end in one way, and record what arrives."""
    method, query = WAYS[way]
    path = f"{url}{session['events_url']}" + ("/stream" if method == "POST" else "")
    cursor = session["head"]
    while True:
        async with http.request(method, f"{path}?after={cursor}&{query}") as answer:
            assert answer.status == 200, await answer.text()
            if way == "long-poll":
                page = await answer.json()
                cursor = page["cursor"]
                delays.note(json.dumps(page, separators=(",", ":")))
                continue
            kept = ""
            async for chunk in answer.content.iter_any():
                kept = kept[-200:] + chunk.decode("utf-8", "replace")
                delays.note(kept)


@asynccontextmanager
async def standing(gateway: str, home: Path) -> AsyncIterator[dict[str, str]]:
    """Start every proxy whose program is installed and return their URLs by name."""

    def part(name: str) -> str:
        path = find_part(name)
        assert path is not None, name
        return path

    def shown(file: str) -> str:
        return (proxies.PROXIES / file).read_text()

    async with AsyncExitStack() as stack:
        urls = {"none": gateway}
        servers = {
            "nginx, default configuration": (proxies.nginx, proxies.NGINX_DEFAULT),
            "nginx, HTTP/1.0 to the gateway": (proxies.nginx, proxies.NGINX_HTTP_1_0),
            "nginx, `X-Accel-Buffering` ignored": (proxies.nginx, proxies.NGINX_BUFFERING),
            "nginx with `gzip` for streams": (proxies.nginx, proxies.NGINX_GZIP),
            "nginx with nginx.conf": (proxies.nginx, shown("nginx.conf")),
            "HAProxy, 30 s time-outs": (proxies.haproxy, proxies.HAPROXY_30_SECONDS),
            "HAProxy with haproxy.cfg": (proxies.haproxy, shown("haproxy.cfg")),
            "Caddy with Caddyfile": (proxies.caddy, shown("Caddyfile")),
        }
        for number, (name, (start, text)) in enumerate(servers.items()):
            if find_part(start.__name__):
                urls[name] = await stack.enter_async_context(start(part, text, home / str(number), gateway))
        urls["a proxy that buffers 4 KiB"] = await stack.enter_async_context(proxies.holding(gateway))
        urls["a proxy that buffers whole responses"] = await stack.enter_async_context(
            proxies.holding(gateway, None)
        )
        yield urls


async def measure(far_end: FarEnd, home: Path, rounds: int) -> dict[str, dict[str, Delays]]:
    """Run all readers at once and return their delays by proxy and way."""
    gateway = Gateway(configured(far_end.base_url, stream={"max_receivers": 100}))
    await gateway.start()
    try:
        async with AsyncExitStack() as stack:
            caller = await stack.enter_async_context(Caller(gateway.url))
            urls = await stack.enter_async_context(standing(gateway.url, home))
            http = await stack.enter_async_context(
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
                )
            )
            session = await caller.open()
            table = {name: {way: Delays() for way in WAYS} for name in urls}
            readers = [
                asyncio.create_task(read(http, urls[name], session, way, delays))
                for name, ways in table.items()
                for way, delays in ways.items()
            ]
            try:
                await asyncio.sleep(1.0)  # the cost of opening a read is not part of an event's delay
                for number in range(rounds):
                    for ways in table.values():
                        for delays in ways.values():
                            delays.said[number] = time.monotonic()
                    await far_end.send(
                        session["call_id"],
                        json.dumps({"type": "mark", "mark": f"{number}."}, separators=(",", ":")),
                    )
                    await asyncio.sleep(ROUND_SECONDS)
                for reader in readers:
                    assert not reader.done(), reader.result()
            finally:
                for reader in readers:
                    reader.cancel()
                await asyncio.wait(readers)
            return table
    finally:
        await gateway.close()


def cell(delays: Delays, rounds: int) -> str:
    """Return the highest delay of single events, and of the last events of bursts."""
    return " · ".join(_worst(delays, range(first, rounds, 2)) for first in (0, 1))


def _worst(delays: Delays, numbers: range) -> str:
    times = [delays.had[number] for number in numbers if number in delays.had]
    if len(times) == len(numbers):
        return _seconds(max(times))
    return "**held**" if not times else f"**held** {len(numbers) - len(times)} of {len(numbers)}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def show(table: dict[str, dict[str, Delays]], rounds: int) -> str:
    """Return the table as Markdown."""
    lines = [f"| proxy | {' | '.join(WAYS)} |", "|---" * (len(WAYS) + 1) + "|"]
    for name, ways in table.items():
        lines.append(f"| {name} | {' | '.join(cell(ways[way], rounds) for way in WAYS)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Delays of a lone event through proxies, as a table.")
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args(arguments).rounds
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o755)
        with FarEnd(home / "far-end.log") as far_end:
            print(show(asyncio.run(measure(far_end, home, rounds)), rounds))  # noqa: T201  # a command speaks


if __name__ == "__main__":
    main()

"""Holds thousands of sessions while some of them converse, and reports how late the gateway's loop ran: `python -m
tests.load.sessions`.

Not collected by pytest. Gateway and emulator run in their own processes; the lag is the gateway's own histogram
while the sessions conversed. The exit status is 1 if its 99th percentile is above 50 ms.
"""

# ruff: noqa: T201  # a command prints its result

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from gateway.client import BlockParser
from tests.e2e.caller import say
from tests.farend import FarEnd
from tests.load.churn import Process
from tests.programs import Served

OPEN_AT_ONCE = 8
# Without new sessions and conversations, so that only holding and streaming is measured.
CALM_SECONDS = 5
LAG_SECONDS = 0.05
# The time over which sessions begin to converse: people do not press return in the same millisecond.
SPREAD_SECONDS = 5.0
WORDS = 200

Histogram = dict[float, float]


async def talk(http: aiohttp.ClientSession, url: str, session: dict[str, Any], until: float) -> int:
    """Ask repeatedly while reading, and return the number of events."""
    await asyncio.sleep(random.uniform(0, SPREAD_SECONDS))
    events = 0
    parser = BlockParser()
    question = say(f"Write {WORDS} words about rivers")
    async with http.get(f"{url}{session['stream_url']}&max_age=3600") as answer:
        assert answer.status == 200, await answer.text()
        await send(http, url, session, question)
        async for chunk in answer.content.iter_any():
            for block in parser.feed(chunk):
                if block.data is None:
                    continue
                events += 1
                if '"response.done"' in block.data[:200]:
                    if time.monotonic() >= until:
                        return events
                    await send(http, url, session, question)
    raise AssertionError("the stream ended")


async def send(http: aiohttp.ClientSession, url: str, session: dict[str, Any], events: list[Any]) -> None:
    """Send client events."""
    async with http.post(f"{url}/v1/sessions/{session['id']}/events", json=events) as answer:
        assert answer.status == 202, await answer.text()


async def lag(http: aiohttp.ClientSession, admin_url: str, name: str = "event_loop_lag") -> Histogram:
    """Return one of the gateway's histograms of delays: upper bounds in seconds to cumulative counts."""
    async with http.get(f"{admin_url}/metrics") as answer:
        body = await answer.text()
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.name == f"realtime_gateway_{name}_seconds_bucket"
    }


def quantile(share: float, before: Histogram, after: Histogram) -> tuple[float, int]:
    """Return the upper bound of the bucket that a quantile falls into, and the number of observations."""
    grown = {bound: after[bound] - before[bound] for bound in sorted(after)}
    count = grown[float("inf")]
    return next(bound for bound, below in grown.items() if below >= share * count), int(count)


async def hold(program: Served, sessions: int, talking: int, seconds: float) -> int:
    """Open, converse, measure."""
    url, admin_url = program.url, program.admin_url
    pid = program.process.pid
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None, sock_read=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=2**18) as http:
        empty, began, start = Process.of(pid), time.monotonic(), await lag(http, admin_url)
        opened = await open_all(http, url, sessions)
        full, took, filled = Process.of(pid), time.monotonic() - began, await lag(http, admin_url)
        print(f"{sessions} sessions open after {took:.1f} s ({sessions / took:.0f} a second)")
        print(f"memory {empty.memory_kib} -> {full.memory_kib} KiB", end="; ")
        print(f"{(full.memory_kib - empty.memory_kib) / sessions:.0f} KiB a session")
        await asyncio.sleep(CALM_SECONDS)
        idle, calm = Process.of(pid), await lag(http, admin_url)
        collected = await lag(http, admin_url, "gc_pause")
        print(f"CPU while none talked: {(idle.cpu_seconds - full.cpu_seconds) / CALM_SECONDS:.1%} of a core")
        until, began = time.monotonic() + seconds, time.monotonic()
        counts = await asyncio.gather(*(talk(http, url, one, until) for one in opened[:talking]))
        took, busy, after = time.monotonic() - began, Process.of(pid), await lag(http, admin_url)
        pauses = await lag(http, admin_url, "gc_pause")
    print(f"{talking} of them talking: {sum(counts) / took:.0f} events a second for {took:.0f} s", end="; ")
    print(f"CPU of the gateway {(busy.cpu_seconds - idle.cpu_seconds) / took:.0%} of a core")
    for name, one, other in (
        ("opening", start, filled),
        ("none talked", filled, calm),
        ("talking", calm, after),
    ):
        parts = [
            f"p{share * 100:g} ≤ {quantile(share, one, other)[0] * 1000:g} ms" for share in (0.5, 0.99, 1)
        ]
        print(f"loop lag while {name}: {', '.join(parts)} ({quantile(1, one, other)[1]} looks)")
    longest, count = quantile(1, collected, pauses)
    print(f"garbage collections while talking: {count}, the longest ≤ {longest * 1000:g} ms")
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    return 0 if quantile(0.99, calm, after)[0] <= LAG_SECONDS else 1


async def open_all(http: aiohttp.ClientSession, url: str, count: int) -> list[dict[str, Any]]:
    """Open this many sessions, a number of them at once."""
    opened: list[dict[str, Any]] = []
    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            async with http.post(f"{url}/v1/sessions") as answer:
                body = await answer.text()
                assert answer.status == 201, body
            opened.append(json.loads(body))

    await asyncio.gather(*(worker() for _ in range(OPEN_AT_ONCE)))
    return opened


def main() -> int:
    """Run it and print the result."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.sessions", description=__doc__)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--talking", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--tokens-per-second", type=float, default=30)
    given = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores before")
    with tempfile.TemporaryDirectory() as folder:
        pace = ("--tokens-per-second", f"{given.tokens_per_second:g}")
        environ = {"GATEWAY_LOG__ACCESS": "false"}
        with (
            FarEnd(Path(folder) / "far-end", *pace) as far_end,
            Served(Path(folder) / "gateway", far_end.base_url, environ=environ) as gateway,
        ):
            return asyncio.run(hold(gateway, given.sessions, given.talking, given.seconds))


if __name__ == "__main__":
    sys.exit(main())

"""A node with many sessions is killed: `python -m tests.load.cluster_crowd --sessions 2000`.

Each session's log holds 100 events, and each has one client that comes back with a request to a surviving node after
up to 2 s, as streams do. Prints when the first and the last session was readable and had a call again, how late the
surviving nodes' loops were meanwhile, and how many calls per second and at once were dialled. The exit status is 1
if a limit is exceeded.
"""

# ruff: noqa: T201  # a command speaks to the person who called it

import argparse
import asyncio
import os
import random
import re
import resource
import sys
import time
from contextlib import suppress

import aiohttp

from gateway.cli.procfs import cpu_seconds
from gateway.cluster.gate import AT_ONCE, PER_SECOND
from tests.e2e.nodes import Node
from tests.load.cluster_bed import Bed, bed, spread

SETUPS_AT_ONCE = 8
RETURN_SECONDS = 2.0
LOOK_SECONDS = 0.5
GIVE_UP_SECONDS = 240.0


async def open_all(http: aiohttp.ClientSession, url: str, many: int, events: int) -> list[str]:
    """Open sessions on a node, and give each a log of so many events."""
    gate = asyncio.Semaphore(SETUPS_AT_ONCE)
    item = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "x" * 200}]}
    batch = [{"type": "conversation.item.create", "item": item}] * (events // 2)  # two events answer each

    async def one() -> str:
        async with gate:
            async with http.post(f"{url}/v1/sessions") as answer:
                assert answer.status == 201, await answer.text()
                session_id = str((await answer.json())["id"])
            if batch:
                async with http.post(f"{url}/v1/sessions/{session_id}/events", json=batch) as answer:
                    assert answer.status == 202, await answer.text()
        return session_id

    return await asyncio.gather(*(one() for _ in range(many)))


async def readable(http: aiohttp.ClientSession, url: str, session_id: str, since: float) -> float | None:
    """Return the seconds until a session could be read through a node as its client reads it; None if never."""
    while time.monotonic() - since < GIVE_UP_SECONDS:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with http.get(f"{url}/v1/sessions/{session_id}") as answer:
                if answer.status == 200 and (await answer.json())["state"] != "closed":
                    return time.monotonic() - since
                if answer.status != 503:
                    return None
        await asyncio.sleep(LOOK_SECONDS)
    return None


async def metric(http: aiohttp.ClientSession, node: Node, pattern: str) -> list[tuple[str, float]]:
    """Return label and value of a node's samples that match a pattern with two groups."""
    async with http.get(f"{node.admin_url}/metrics") as answer:
        text = await answer.text()
    return [(label, float(value)) for label, value in re.findall(pattern, text)]


async def lags(http: aiohttp.ClientSession, node: Node) -> dict[float, float]:
    """Return the histogram of a node's loop lag: upper bounds in seconds and cumulative counts."""
    name = r'event_loop_lag_seconds_bucket\{le="([\d.e+-]+|\+Inf)"\} ([\d.e+]+)'
    return {float(bound): count for bound, count in await metric(http, node, name)}


def p99(before: dict[float, float], after: dict[float, float]) -> float:
    """Return the bucket with the 99th percentile of the lag between two times, in ms."""
    grown = {bound: count - before.get(bound, 0) for bound, count in after.items()}
    return (
        next((bound for bound, count in sorted(grown.items()) if count >= 0.99 * max(grown.values())), 0.0)
        * 1000
    )


async def called(
    http: aiohttp.ClientSession, nodes: list[Node], many: int, since: float
) -> tuple[float, float]:
    """Wait until the nodes have calls for this many sessions. Return the seconds until half of them had one, and
    until the last one had. This is read from the nodes' own gauges, because a request per session would be
    additional load."""
    name = r'gateway_sessions\{state="(connected)"\} ([\d.e+]+)'
    half = 0.0
    while (now := time.monotonic() - since) < GIVE_UP_SECONDS:
        found = sum([value for node in nodes for _, value in await metric(http, node, name)])
        if found >= many / 2:
            half = half or now
        if found >= many:
            return half, now
        await asyncio.sleep(LOOK_SECONDS)
    return half, float("inf")


async def count_dials(bench: Bed, rates: list[float]) -> None:
    """Record how many calls per second the far end was asked for."""
    opened, at = (await bench.far_end.about())["opened"], time.monotonic()
    while True:
        await asyncio.sleep(2)
        now, then = (await bench.far_end.about())["opened"], time.monotonic()
        rates.append((now - opened) / (then - at))
        opened, at = now, then


async def run(many: int, events: int, readable_seconds: float, lag_ms: float) -> int:
    """Run it and print the figures."""
    timeout, connector = aiohttp.ClientTimeout(total=90), aiohttp.TCPConnector(limit=0)
    async with (
        bed(3, tokens_per_second=0, GATEWAY_RELAY__MAX_SESSIONS=2 * many) as bench,
        aiohttp.ClientSession(timeout=timeout, connector=connector) as http,
    ):
        victim, *others = bench.running
        assert bench.redis is not None
        pids = {
            "client": os.getpid(),
            "far end": bench.far_end.program.process.pid,
            "Redis": bench.redis.pid,
            "killed node": victim.program.process.pid,
            **{f"survivor {at}": node.program.process.pid for at, node in enumerate(others, 1)},
        }
        began, before_opening = time.monotonic(), spent(pids)
        ids = await open_all(http, victim.url, many, events)
        took, opening = time.monotonic() - began, spent(pids)
        print(
            f"{many} sessions opened in {took:.0f} s; CPU seconds: {told(before_opening, opening)}",
            flush=True,
        )
        await asyncio.sleep(3)
        before = [await lags(http, node) for node in others]
        rates: list[float] = []
        counting = asyncio.create_task(count_dials(bench, rates))
        del pids["killed node"]
        before_takeover, since = spent(pids), time.monotonic()
        victim.program.kill()

        async def client(session_id: str) -> float | None:
            await asyncio.sleep(random.uniform(0, RETURN_SECONDS))
            return await readable(http, random.choice(others).url, session_id, since)

        found = await asyncio.gather(*map(client, ids))
        times = [one for one in found if one is not None]
        settled, takeover = [await lags(http, node) for node in others], spent(pids)
        half, last = await called(http, others, many, since)
        counting.cancel()
        await asyncio.wait({counting})
        at_takeover = [p99(one, other) for one, other in zip(before, settled, strict=True)]
        lag = [p99(one, await lags(http, node)) for one, node in zip(before, others, strict=True)]
        tracebacks = bench.tracebacks()
    bound = len(others) * PER_SECOND
    print("| | |\n|---|---|")
    print(f"| sessions of the killed node, events in each log | {many}, {events} |")
    print(f"| readable again | first {min(times):.2f} s, {spread(times)} |")
    print(f"| CPU seconds until then | {told(before_takeover, takeover)} |")
    print(f"| a call again | half after {half:.1f} s, all after {last:.1f} s |")
    print(
        f"| survivors' loop lag p99: until all were readable; until all had calls | {shown(at_takeover)}; {shown(lag)} |"
    )
    print(
        f"| calls dialled a second, most in 2 s | {max(rates):.1f} (two gates: {bound:g}, {AT_ONCE} at once each) |"
    )
    print(f"| missing; tracebacks | {many - len(times)}; {len(tracebacks)} |")
    for line in tracebacks[:3]:
        print(f"  {line}")
    well = len(times) == many and max(times) <= readable_seconds and max(lag) <= lag_ms
    return 0 if well and max(rates) <= 1.1 * bound and not tracebacks and last < GIVE_UP_SECONDS else 1


def spent(pids: dict[str, int]) -> dict[str, float]:
    """Return the CPU seconds that processes have used so far."""
    return {name: cpu_seconds(pid) for name, pid in pids.items()}


def told(before: dict[str, float], after: dict[str, float]) -> str:
    """Return what processes have spent between two times, as text."""
    return ", ".join(f"{name} {seconds - before[name]:.1f}" for name, seconds in after.items())


def shown(lags: list[float]) -> str:
    """Return the lag of each node as text."""
    return ", ".join(f"{one:g} ms" for one in lags)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.cluster_crowd", description=__doc__)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--readable-seconds", type=float, default=7.0)
    parser.add_argument("--lag-ms", type=float, default=50.0)
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return asyncio.run(run(given.sessions, given.events, given.readable_seconds, given.lag_ms))


if __name__ == "__main__":
    sys.exit(main())

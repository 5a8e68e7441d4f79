"""A node with many sessions is killed: `python -m tests.load.cluster_crowd --sessions 2000`.

Each session's log holds 100 events, and each has one client that comes back with a request to a surviving node after
up to 2 s, as streams do. Prints when the first and the last session was readable and had a call again, how late the
surviving nodes' loops were meanwhile, and how many calls per second and at once were dialled. The exit status is 1
if a limit is exceeded.
"""

# ruff: noqa: T201  # a command speaks to the person who called it

import argparse
import asyncio
import random
import re
import resource
import sys
import time

import aiohttp

from gateway.cluster.gate import AT_ONCE, PER_SECOND
from tests.e2e.nodes import Node
from tests.load.cluster_bed import Bed, back, bed, spread

SETUPS_AT_ONCE = 8
RETURN_SECONDS = 2.0
LOOK_SECONDS = 0.5


async def open_all(http: aiohttp.ClientSession, url: str, many: int, events: int) -> list[str]:
    """Open sessions on a node, and give each a log of this many events."""
    gate = asyncio.Semaphore(SETUPS_AT_ONCE)
    item = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "x" * 200}]}
    batch = [{"type": "conversation.item.create", "item": item}] * (events // 2)  # two events answer each one

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


async def lags(http: aiohttp.ClientSession, node: Node) -> dict[float, float]:
    """Return the histogram of a node's loop lag: upper bounds in seconds and cumulative counts."""
    async with http.get(f"{node.admin_url}/metrics") as answer:
        text = await answer.text()
    name = r'event_loop_lag_seconds_bucket\{le="([\d.e+-]+|\+Inf)"\} ([\d.e+]+)'
    return {float(bound): float(count) for bound, count in re.findall(name, text)}


def p99(before: dict[float, float], after: dict[float, float]) -> float:
    """Return the bucket with the 99th percentile of the lag between two times, in ms."""
    grown = {bound: count - before.get(bound, 0) for bound, count in after.items()}
    return (
        next((bound for bound, count in sorted(grown.items()) if count >= 0.99 * max(grown.values())), 0.0)
        * 1000
    )


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
        began = time.monotonic()
        ids = await open_all(http, victim.url, many, events)
        print(f"{many} sessions opened in {time.monotonic() - began:.0f} s", flush=True)
        await asyncio.sleep(3)
        before = [await lags(http, node) for node in others]
        rates: list[float] = []
        counting = asyncio.create_task(count_dials(bench, rates))
        since = time.monotonic()
        victim.program.kill()

        async def client(session_id: str) -> tuple[float, float] | None:
            await asyncio.sleep(random.uniform(0, RETURN_SECONDS))
            return await back(http, random.choice(others).url, session_id, since, LOOK_SECONDS, 180)

        times = [one for one in await asyncio.gather(*map(client, ids)) if one is not None]
        counting.cancel()
        await asyncio.wait({counting})
        lag = [p99(one, await lags(http, node)) for one, node in zip(before, others, strict=True)]
        tracebacks = bench.tracebacks()
    readable, called = [one for one, _ in times], [one for _, one in times]
    bound = len(others) * PER_SECOND
    print("| | |\n|---|---|")
    print(f"| sessions of the killed node, events in each log | {many}, {events} |")
    print(f"| readable again | first {min(readable):.2f} s, {spread(readable)} |")
    print(f"| a call again | first {min(called):.2f} s, {spread(called)} |")
    print(f"| survivors' loop lag p99 | {', '.join(f'{one:g} ms' for one in lag)} |")
    print(
        f"| calls dialled a second, most in 2 s | {max(rates):.1f} (two gates: {bound:g}, {AT_ONCE} at once each) |"
    )
    print(f"| missing; tracebacks | {many - len(times)}; {len(tracebacks)} |")
    well = len(times) == many and max(readable) <= readable_seconds and max(lag) <= lag_ms
    return 0 if well and max(rates) <= 1.1 * bound and not tracebacks else 1


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

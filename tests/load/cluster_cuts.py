"""A node that is paused, blocked, or cut off from Redis, under load: `python -m tests.load.cluster_cuts`.

One of three nodes after another is stopped for three leases (SIGSTOP) and continued, has its loop blocked for as
long, and is cut off from Redis for 2, 10 and 60 s by a TCP proxy. Meanwhile each session is read through two nodes:
its model client draws one for each request, and a second reader stays with the node that is cut off. The exit status
is 1 for two texts under one ID, for an event accepted by one owner that the log does not report, and for a call of a
former owner that stays.
"""

# ruff: noqa: T201  # a command speaks to the person who called it

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress

from tests.cluster.redis_server import Proxy, RedisServer
from tests.e2e.nodes import Node
from tests.load.chaos_client import NETWORK
from tests.load.cluster_bed import Bed, Sessions, bed
from tests.load.cluster_client import AnyNode, Voices

LEASES = 3
LEASE_SECONDS = 4.0
SETTLE_SECONDS = 40.0
REST_SECONDS = 8.0

Deed = Callable[[Node, Proxy], Awaitable[None]]


async def stopped(node: Node, _: Proxy) -> None:
    """Stop the process for three leases."""
    node.pause()
    await asyncio.sleep(LEASES * LEASE_SECONDS)
    node.go_on()


async def blocked(node: Node, _: Proxy) -> None:
    """Block the loop for three leases."""
    os.kill(node.program.process.pid, signal.SIGUSR2)
    await asyncio.sleep(LEASES * LEASE_SECONDS)


def cut(seconds: float, *, silent: bool) -> Deed:
    """Return a function that cuts a node off from Redis: by silence, or with its connections reset and refused."""

    async def deed(_: Node, proxy: Proxy) -> None:
        if silent:
            proxy.stop()
        else:
            proxy.refusing = True
            proxy.cut()
        await asyncio.sleep(seconds)
        proxy.refusing = False
        proxy.go_on()

    return deed


DEEDS: dict[str, Deed] = {
    "stopped for three leases": stopped,
    "loop blocked for three leases": blocked,
    "cut from Redis for 2 s": cut(2, silent=False),
    "cut from Redis for 10 s": cut(10, silent=False),
    "cut from Redis for 60 s": cut(60, silent=False),
    "no answer from Redis for 2 s": cut(2, silent=True),
    "no answer from Redis for 10 s": cut(10, silent=True),
    "no answer from Redis for 60 s": cut(60, silent=True),
}


async def listen(session_id: str, url: str, voices: Voices) -> None:
    """Read a session through one node repeatedly."""
    async with AnyNode([url]) as caller:
        while True:
            with suppress(*NETWORK):
                async with aclosing(caller.blocks(session_id, "earliest", "sse")) as blocks:
                    async for block in blocks:
                        voices.hear(session_id, block)
            await asyncio.sleep(0.5)


async def calls_left(bench: Bed, many: int) -> float | None:
    """Wait until the far end has one call for each session, and return how long that took; None if that does not
    happen."""
    since = time.monotonic()
    while time.monotonic() - since < SETTLE_SECONDS:
        if (await bench.far_end.about())["calls"] == many:
            return time.monotonic() - since
        await asyncio.sleep(0.1)
    return None


async def suffer(bench: Bed, sessions: Sessions, name: str, number: int, proxy: Proxy) -> bool:
    """Apply one fault to one node; return whether each session has only one call afterwards."""
    node = bench.running[number]
    affected = [life for life in sessions.living.values() if life.session_id in set(bench.owned(node))]
    beside = [asyncio.create_task(listen(life.session_id, node.url, sessions.voices)) for life in affected]
    # A load balancer notices a node that does not answer; a node that is cut off from Redis still answers.
    unheard = name.startswith(("stopped", "loop"))
    if unheard:
        bench.caller.urls.remove(node.url)
    fenced = node.program.output.count("session_fenced")
    await DEEDS[name](node, proxy)
    left = await calls_left(bench, len(sessions.living))
    if unheard:
        bench.caller.urls.append(node.url)
    await asyncio.sleep(REST_SECONDS)
    for task in beside:
        task.cancel()
    await asyncio.gather(*beside, return_exceptions=True)
    fenced = node.program.output.count("session_fenced") - fenced
    closed = "never" if left is None else f"{left:.1f} s"
    print(
        f"| {name} | {len(affected)} sessions, {fenced} fenced; one call for each after {closed}; "
        f"faults so far {len(sessions.count.faults)} |",
        flush=True,
    )
    return left is not None


async def run(many: int, pause: float, rounds: int, only: str) -> int:
    """Run it and print the counts."""
    well = True
    async with AsyncExitStack() as stack:
        redis = RedisServer().start()
        stack.callback(redis.close)
        proxies = [await stack.enter_async_context(Proxy(redis.port)) for _ in range(3)]
        bench = await stack.enter_async_context(
            bed(
                redis=redis,
                redis_urls=[proxy.url for proxy in proxies],
                module="tests.load.blocking_gateway",
                BLOCK_SECONDS=LEASES * LEASE_SECONDS,
            )
        )
        sessions = Sessions(bench.caller, pause, shortest=1e6, longest=1e6)
        living = asyncio.create_task(sessions.run(many))
        await asyncio.sleep(8)
        print("| | |\n|---|---|", flush=True)
        for _ in range(rounds):
            for name in DEEDS:
                if only in name:
                    number = max(
                        range(3), key=lambda one: (len(bench.owned(bench.running[one])), random.random())
                    )
                    well &= await suffer(bench, sessions, name, number, proxies[number])
        sessions.end()
        await living
        tracebacks = bench.tracebacks()
    print(f"| IDs heard; with two texts | {len(sessions.voices.said)}; {len(sessions.voices.twice)} |")
    print(f"| tracebacks logged | {len(tracebacks)} |")
    well &= sessions.report() and not sessions.voices.twice and not tracebacks
    return 0 if well else 1


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.cluster_cuts", description=__doc__)
    parser.add_argument("--sessions", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pause", type=float, default=3.0, help="longest pause between a session's requests")
    parser.add_argument("--only", default="", help="do only what has this in its name")
    given = parser.parse_args()
    return asyncio.run(run(given.sessions, given.pause, given.rounds, given.only))


if __name__ == "__main__":
    sys.exit(main())

"""SIGKILL of one of three nodes, repeatedly, under load: `python -m tests.load.cluster_kills --kills 200`.

Sessions of the model client send events, take text turns, and read in all renderings through nodes drawn at random.
A random node is killed at a random moment, and another one is started in its place. The exit status is 1 if an ID is
missing or doubled, if an accepted event is lost without a report, or if a session is readable, or has a call, later
than the limit.
"""

# ruff: noqa: T201  # a command speaks to the person who called it

import argparse
import asyncio
import random
import sys
import time

import aiohttp

from tests.load.cluster_bed import Bed, Sessions, back, bed, spread

LEFT_SECONDS = 40
"""Longer than the retention of closed sessions here, and a lease."""


async def kill_one(
    bench: Bed, sessions: Sessions, http: aiohttp.ClientSession
) -> tuple[str, list[tuple[float, float]]]:
    """Kill a node, return when each of its sessions was back, and start another node."""
    await asyncio.sleep(random.uniform(0.5, 4))
    victim = random.choice(bench.running)
    affected = sessions.of(bench.owned(victim))
    since = time.monotonic()
    victim.program.kill()
    bench.running.remove(victim)
    others = [node.url for node in bench.running]
    times = await asyncio.gather(
        *(back(http, random.choice(others), life.session_id, since) for life in affected)
    )
    # Only now: a start takes seconds of CPU, which in a real cluster would be another machine's.
    bench.running.append(await bench.ready(bench.nodes.begin()))
    bench.urls()
    return f"{len(affected)} sessions", [one for one in times if one is not None]


async def left_in_redis(bench: Bed) -> int:
    """Return how many sessions Redis still has after their retention: none, or takeovers would leave some behind."""
    assert bench.redis is not None
    left: list[str] = []
    for _ in range(LEFT_SECONDS):
        left = bench.redis.cli("KEYS", "rg:{gws_*:m").split()
        if not left:
            break
        await asyncio.sleep(1)
    return len(left)


async def run(kills: int, many: int, pause: float, readable_seconds: float, call_seconds: float) -> int:
    """Run it and print the counts."""
    readable: list[float] = []
    called: list[float] = []
    told = 0
    timeout = aiohttp.ClientTimeout(total=30)
    async with bed(3) as bench, aiohttp.ClientSession(timeout=timeout) as http:
        sessions = Sessions(bench.caller, pause)
        living = asyncio.create_task(sessions.run(many))
        await asyncio.sleep(5)
        for number in range(1, kills + 1):
            about, times = await kill_one(bench, sessions, http)
            readable += [one for one, _ in times]
            called += [one for _, one in times]
            worst = max(times, key=lambda pair: pair[1], default=(0.0, 0.0))
            print(
                f"kill {number}: {about}, readable {max((r for r, _ in times), default=0):.1f} s, "
                f"call {worst[1]:.1f} s, faults {len(sessions.count.faults)}",
                *sessions.count.faults[told:],
                sep="\n  ",
                flush=True,
            )
            told = len(sessions.count.faults)
        sessions.end()
        await living
        left = await left_in_redis(bench)
        tracebacks = bench.tracebacks()
    print("| | |\n|---|---|")
    print(f"| kills | {kills} |\n| sessions at once | {many} |")
    print(f"| readable again, {len(readable)} sessions | {spread(readable)} |")
    print(f"| a call again | {spread(called)} |")
    print(f"| tracebacks logged; sessions left in Redis | {len(tracebacks)}; {left} |")
    well = sessions.report() and not tracebacks and not left
    late = sum(one > readable_seconds for one in readable), sum(one > call_seconds for one in called)
    print(
        f"| readable later than {readable_seconds:g} s; call later than {call_seconds:g} s | {late[0]}; {late[1]} |"
    )
    return 0 if well and not any(late) else 1


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.cluster_kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--sessions", type=int, default=24)
    parser.add_argument("--pause", type=float, default=3.0, help="longest pause between a session's requests")
    parser.add_argument("--readable-seconds", type=float, default=6.0)
    parser.add_argument("--call-seconds", type=float, default=10.0)
    given = parser.parse_args()
    return asyncio.run(
        run(given.kills, given.sessions, given.pause, given.readable_seconds, given.call_seconds)
    )


if __name__ == "__main__":
    sys.exit(main())

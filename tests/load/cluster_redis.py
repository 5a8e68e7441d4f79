"""Redis fails under load: `python -m tests.load.cluster_redis`.

One server: stopped for 10 s, killed and restarted empty, restarted from an AOF of a second ago. Three Sentinels, and
a Cluster of three primaries and three replicas: failed over with the writes of half a second lost; a primary that only
hung goes on for seconds beside its successor; the Cluster is also resharded. Each is done with all nodes alive, when nothing may be lost, no session may end and none may be taken
over; and with an owner killed at the same moment, when each loss must be reported (`gateway.gap`, `accepted`). The
exit status is 1 if that does not hold.
"""

# ruff: noqa: T201  # a command speaks to the person who called it

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack

from tests.load.cluster_bed import Bed, Sessions, bed
from tests.load.redis_kinds import ClusterOfSix, Sentinels, Single

LOST_SECONDS = 0.5
REST_SECONDS = 15.0
RESHARDED_SLOTS = 3000

Kind = Single | Sentinels | ClusterOfSix
Deed = Callable[[Kind], Coroutine[None, None, None]]


async def away(kind: Kind) -> None:
    """Stop Redis for 10 s."""
    assert isinstance(kind, Single)
    kind.server.pause()
    await asyncio.sleep(10)
    kind.server.go_on()


async def emptied(kind: Kind) -> None:
    """Kill Redis and start it empty."""
    assert isinstance(kind, Single)
    kind.restart(old=False)


async def older(kind: Kind) -> None:
    """Kill Redis and start it from an AOF of a second ago."""
    assert isinstance(kind, Single)
    kind.keep()
    await asyncio.sleep(1)
    kind.restart(old=True)


async def failed_over(kind: Kind) -> None:
    """Lose half a second of writes in a failover."""
    assert not isinstance(kind, Single)
    await kind.fail_over(LOST_SECONDS)


async def hung(kind: Kind) -> None:
    """Have a primary replaced that then goes on as if nothing had happened."""
    assert isinstance(kind, Sentinels)
    await kind.hang()


async def resharded(kind: Kind) -> None:
    """Move slots to another primary."""
    assert isinstance(kind, ClusterOfSix)
    await kind.reshard(RESHARDED_SLOTS)


DEEDS: dict[str, tuple[Callable[[], Kind], Deed, bool]] = {
    "stopped for 10 s": (Single, away, False),
    "restarted empty": (Single, emptied, False),
    "restarted from an older AOF": (Single, older, False),
    "restarted from an older AOF, owner killed": (Single, older, True),
    "Sentinel failover": (Sentinels, failed_over, False),
    "Sentinel failover, owner killed": (Sentinels, failed_over, True),
    "Sentinel failover, primary only hung": (Sentinels, hung, False),
    "Sentinel failover, primary only hung, owner killed": (Sentinels, hung, True),
    "Cluster failover": (ClusterOfSix, failed_over, False),
    "Cluster failover, owner killed": (ClusterOfSix, failed_over, True),
    "Cluster resharded": (ClusterOfSix, resharded, False),
}


async def suffer(bench: Bed, kind: Kind, name: str) -> str:
    """Apply one fault, and wait until everything is as before."""
    _, deed, kill = DEEDS[name]
    began = time.monotonic()
    task = asyncio.create_task(deed(kind))
    if kill:
        # The owner dies before Redis is back: both copies of the last writes are gone.
        await asyncio.sleep(LOST_SECONDS + 0.3)
        victim = random.choice(bench.running)
        victim.program.kill()
        bench.running.remove(victim)
        bench.urls()
    await task
    took = time.monotonic() - began
    if kill:
        bench.running.append(await bench.ready(bench.nodes.begin()))
        bench.urls()
    await asyncio.sleep(REST_SECONDS)
    return f"{took:.1f} s"


async def one_deed(name: str, many: int, pause: float) -> bool:
    """Apply one fault to its own sessions; return whether there was no violation."""
    make, _, kill = DEEDS[name]
    async with AsyncExitStack() as stack:
        kind = make()
        await asyncio.to_thread(kind.start)
        stack.callback(kind.close)
        bench = await stack.enter_async_context(bed(redis_urls=[kind.url] * 3))
        sessions = Sessions(bench.caller, pause, told=kill, shortest=1e6, longest=1e6)
        living = asyncio.create_task(sessions.run(many))
        await asyncio.sleep(8)
        took = await suffer(bench, kind, name)
        sessions.end()
        await living
        said, tracebacks = bench.nodes.said(), bench.tracebacks()
    taken, repaired = said.count("session_taken_over"), said.count("journal_repaired")
    print(
        f"\n### {name} ({took})\n\n| | |\n|---|---|\n| sessions taken over; journals repaired | {taken}; {repaired} |"
    )
    well = sessions.report() and not sessions.voices.twice and not tracebacks
    for line in [*sessions.voices.twice, *tracebacks][:5]:
        print(f"  {line}")
    sys.stdout.flush()
    return well and (kill or not taken)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.cluster_redis", description=__doc__)
    parser.add_argument("--sessions", type=int, default=24)
    parser.add_argument("--pause", type=float, default=2.0, help="longest pause between a session's requests")
    parser.add_argument("--only", default="", help="do only what has this in its name")
    given = parser.parse_args()
    results = {
        name: asyncio.run(one_deed(name, given.sessions, given.pause)) for name in DEEDS if given.only in name
    }
    print("\n" + "; ".join(f"{name}: {'well' if well else 'NOT WELL'}" for name, well in results.items()))
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

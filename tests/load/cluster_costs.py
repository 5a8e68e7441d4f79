"""What several nodes cost compared with one process, in one run: `python -m tests.load.cluster_costs`.

Sessions answer at a pace, and each is read by one stream: from one process without a cluster, from its owner, and
through another node. The three alternate, so that the machine is the same for all. Prints the CPU of each process,
Redis included, per event that was read, in µs; the duration of a POST in the three ways; the time until Redis has a
record; and what an idle session costs Redis.
"""

# ruff: noqa: T201  # a command speaks to the person who called it

import argparse
import asyncio
import os
import re
import statistics
import sys
from collections import defaultdict
from contextlib import aclosing, suppress
from pathlib import Path

import aiohttp

from tests.e2e.house import Caller, say
from tests.e2e.programs import Program
from tests.load.cluster import measure_posts
from tests.load.cluster_bed import Bed, bed
from tests.load.cluster_client import AnyNode

TICK = os.sysconf("SC_CLK_TCK")
IDLE_SESSIONS = 100
IDLE_SECONDS = 10
ANSWER = "Count to 400."


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


class Way:
    """Sessions of one process that are read through the same or another process."""

    def __init__(self, home: str, through: str, processes: dict[str, int]) -> None:
        self.home, self.through, self.processes = home, through, processes
        self.ids: list[str] = []
        self.events = 0
        self.spent: dict[str, list[float]] = defaultdict(list)

    async def open(self, many: int) -> None:
        """Open the sessions."""
        async with Caller(self.home) as caller:
            self.ids = [str((await caller.open())["id"]) for _ in range(many)]

    async def measure(self, seconds: float) -> None:
        """Let all sessions answer and read them; record the CPU of each process per event."""
        async with AnyNode([self.through]) as reader, Caller(self.home) as caller:
            reading = [asyncio.create_task(self._read(reader, one)) for one in self.ids]
            await asyncio.sleep(1)
            for one in self.ids:
                await caller.send(one, *say(ANSWER))
            await asyncio.sleep(1)
            before, events = {name: cpu(pid) for name, pid in self.processes.items()}, self.events
            await asyncio.sleep(seconds)
            many = self.events - events
            for name, pid in self.processes.items():
                self.spent[name].append((cpu(pid) - before[name]) / many * 1e6)
            self.spent["events a second"].append(many / seconds)
            for one in self.ids:
                await caller.send(one, {"type": "response.cancel"})
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)

    async def _read(self, reader: AnyNode, session_id: str) -> None:
        while True:
            with suppress(aiohttp.ClientError):
                async with aclosing(reader.blocks(session_id, "now", "sse")) as blocks:
                    async for _ in blocks:
                        self.events += 1


async def settled_ms(admin_url: str) -> str:
    """Return the buckets with the 50th and 99th percentile of the time until an append was answered."""
    async with Caller(admin_url) as operator:
        _, text = await operator.ask("GET", "/metrics")
    name = r'journal_seconds_bucket\{le="([\d.e+-]+|\+Inf)"\} ([\d.e+]+)'
    buckets = [(float(bound), float(many)) for bound, many in re.findall(name, text.decode())]
    every = buckets[-1][1]
    marks = [next(bound for bound, many in buckets if many >= share * every) for share in (0.5, 0.99)]
    return f"half within {marks[0] * 1000:g} ms, 99 of 100 within {marks[1] * 1000:g} ms, of {every:g}"


async def idle(bench: Bed) -> str:
    """Return the memory and the commands that idle sessions cost Redis."""
    assert bench.redis is not None

    def info(section: str, name: str) -> int:
        assert bench.redis is not None
        found = re.search(rf"{name}:(\d+)", bench.redis.cli("INFO", section))
        assert found is not None
        return int(found[1])

    before = info("memory", "used_memory")
    async with Caller(bench.running[0].url) as caller:
        for _ in range(IDLE_SESSIONS):
            await caller.open()
    await asyncio.sleep(2)
    grown = (info("memory", "used_memory") - before) / IDLE_SESSIONS
    commands = info("stats", "total_commands_processed")
    await asyncio.sleep(IDLE_SECONDS)
    rate = (info("stats", "total_commands_processed") - commands) / IDLE_SECONDS
    return f"{grown / 1024:.1f} KiB each; {rate:.1f} commands a second in all, by {len(bench.running)} nodes and {IDLE_SESSIONS} sessions"


async def run(many: int, rounds: int, seconds: float, pace: float) -> int:
    """Measure and print."""
    async with bed(2, tokens_per_second=pace) as bench:
        flags = ("--port", "0", "--admin-port", "0", "--upstream-url", bench.far_end.base_url)
        single = Program(
            bench.nodes.home / "single",
            "gateway",
            "serve",
            *flags,
            environ={
                "GATEWAY_LOG__ACCESS": "false",
                "GATEWAY_RELAY__MAX_LOOP_LAG_SECONDS": "0",
                "GATEWAY_DRAIN__TIMEOUT_SECONDS": "0",
            },
        )
        try:
            url = await asyncio.to_thread(single.said, r"(?<!admin )listening on (http://[\w.:]+)")
            owner, edge = bench.running
            assert bench.redis is not None
            pids = {"owner": owner.program.process.pid, "redis": bench.redis.pid}
            ways = {
                "one process": Way(url, url, {"owner": single.process.pid}),
                "at the owner": Way(owner.url, owner.url, pids),
                "through another node": Way(owner.url, edge.url, {**pids, "edge": edge.program.process.pid}),
            }
            for way in ways.values():
                await way.open(many)
            for _ in range(rounds):
                for way in ways.values():
                    await way.measure(seconds)
            print(f"{many} sessions; medians of {rounds} rounds of {seconds:g} s; µs of CPU an event\n")
            print("| | owner | edge | Redis | events a second |\n|---|---|---|---|---|")
            for name, way in ways.items():
                cells = [way.spent.get(one) for one in ("owner", "edge", "redis", "events a second")]
                print(
                    f"| {name} | {' | '.join(f'{statistics.median(one):.0f}' if one else '–' for one in cells)} |"
                )
            print(f"\nuntil Redis has a record: {await settled_ms(owner.admin_url)}")
            timeout = aiohttp.ClientTimeout(total=30)
            async with aiohttp.ClientSession(timeout=timeout) as http:
                await measure_posts(http, url, owner.url, edge.url, 500)
            print(f"idle sessions: {await idle(bench)}")
        finally:
            single.kill()
    return 0


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.cluster_costs", description=__doc__)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--tokens-per-second", type=float, default=50)
    given = parser.parse_args()
    return asyncio.run(run(given.sessions, given.rounds, given.seconds, given.tokens_per_second))


if __name__ == "__main__":
    sys.exit(main())

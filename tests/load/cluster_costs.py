"""What several nodes cost compared with one process, in one run: `python -m tests.load.cluster_costs`.

Sessions answer at a pace, and each is read by one stream: from one process without a cluster, from its owner, through
another node, and from two workers of `gateway serve --workers 2`, whichever accepts a connection. Then batches of one event are
posted in these ways. The ways alternate, so that the machine is the same for all. Prints the CPU of each process,
Redis included, per event that was read and per POST, in µs; the duration of a POST; the time until Redis has a record; and
what sessions take in Redis.
"""

# ruff: noqa: T201  # a command speaks to the person who called it

import argparse
import asyncio
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from gateway.cli.procfs import cpu_seconds
from tests.e2e.caller import Caller, say
from tests.e2e.nodes import SIGNING_KEY
from tests.load.cluster import ITEM, quantiles
from tests.load.cluster_bed import Bed, bed
from tests.load.cluster_client import AnyNode
from tests.programs import Program

IDLE_SESSIONS = 100
IDLE_SECONDS = 10
ANSWER = "Count to 400."
POSTS = 300
BATCH = 25
"""Events of one POST to a session whose size in Redis is measured; each is answered by two events."""


@dataclass
class Way:
    """Sessions of one process that are read and written through the same or another process."""

    home: str
    through: str
    processes: Mapping[str, Sequence[int]]
    """The processes that take part, by their role."""
    ids: list[str] = field(default_factory=list)
    events: int = 0
    spent: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    took: list[float] = field(default_factory=list)

    async def open(self, many: int) -> None:
        """Open the sessions."""
        async with Caller(self.home) as caller:
            self.ids = [str((await caller.open())["id"]) for _ in range(many)]

    async def read(self, seconds: float) -> None:
        """Let all sessions answer and read them; record the CPU of each process per event."""
        async with AnyNode([self.through]) as reader, Caller(self.home) as caller:
            reading = [asyncio.create_task(self._read(reader, one)) for one in self.ids]
            await asyncio.sleep(1)
            for one in self.ids:
                await caller.send(one, *say(ANSWER))
            await asyncio.sleep(1)
            before, events = self._cpu(), self.events
            await asyncio.sleep(seconds)
            many = self.events - events
            self._record("event", before, many)
            self.spent["events a second"].append(many / seconds)
            for one in self.ids:
                await caller.send(one, {"type": "response.cancel"})
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)

    async def write(self, count: int) -> None:
        """Post one event after the other; record the duration, and the CPU of each process per POST."""
        timeout = aiohttp.ClientTimeout(total=30)
        # Each connection goes to the worker that the kernel chooses, so a few are used in turn.
        async with (
            aiohttp.ClientSession(timeout=timeout) as one,
            aiohttp.ClientSession(timeout=timeout) as two,
        ):
            before = self._cpu()
            for number in range(count):
                http, session_id = (one, two)[number % 2], self.ids[number % len(self.ids)]
                began = time.perf_counter()
                path = f"{self.through}/v1/sessions/{session_id}/events"
                async with http.post(path, json=ITEM) as answer:
                    assert answer.status == 202, await answer.text()
                    await answer.read()
                self.took.append(time.perf_counter() - began)
            self._record("POST", before, count)

    def cell(self, name: str) -> str:
        """Return the median of what was recorded under a name."""
        values = self.spent.get(name)
        return f"{statistics.median(values):.0f}" if values else "–"

    def _cpu(self) -> dict[str, float]:
        return {role: sum(map(cpu_seconds, pids)) for role, pids in self.processes.items()}

    def _record(self, what: str, before: Mapping[str, float], many: int) -> None:
        for role, seconds in self._cpu().items():
            self.spent[f"{role} {what}"].append((seconds - before[role]) / many * 1e6)

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


async def in_redis(bench: Bed) -> str:
    """Return the memory and the commands that idle sessions cost Redis, and the memory of sessions with events."""
    assert bench.redis is not None

    def info(section: str, name: str) -> int:
        assert bench.redis is not None
        found = re.search(rf"{name}:(\d+)", bench.redis.cli("INFO", section))
        assert found is not None
        return int(found[1])

    before = info("memory", "used_memory")
    async with Caller(bench.running[0].url) as caller:
        ids = [str((await caller.open())["id"]) for _ in range(IDLE_SESSIONS)]
        await asyncio.sleep(2)
        idle = (info("memory", "used_memory") - before) / IDLE_SESSIONS
        commands = info("stats", "total_commands_processed")
        await asyncio.sleep(IDLE_SECONDS)
        rate = (info("stats", "total_commands_processed") - commands) / IDLE_SECONDS
        content = [{"type": "input_text", "text": "x" * 200}]
        item = {"type": "message", "role": "system", "content": content}
        for one in ids:
            await caller.send(one, *[{"type": "conversation.item.create", "item": item}] * BATCH)
        await asyncio.sleep(2)
        full = (info("memory", "used_memory") - before) / IDLE_SESSIONS
    return (
        f"{idle / 1024:.1f} KiB each while idle, {full / 1024:.1f} KiB after {BATCH} client events of 300 bytes and "
        f"{2 * BATCH} server events; {rate:.1f} commands a second in all, by 4 nodes and {IDLE_SESSIONS} idle sessions"
    )


async def run(many: int, rounds: int, seconds: float, pace: float) -> int:
    """Measure and print."""
    with ExitStack() as stack:
        async with bed(2, tokens_per_second=pace) as bench:
            assert bench.redis is not None
            single, workers = _served(stack, bench, "single"), _served(stack, bench, "workers", workers=2)
            url = await asyncio.to_thread(single.said, r"(?<!admin )listening on (http://[\w.:]+)")
            shared = await asyncio.to_thread(workers.said, r"(?<!admin )listening on (http://[\w.:]+)")
            async with asyncio.timeout(60):
                while workers.output.count("admin listening") < 2:
                    await asyncio.sleep(0.1)
            children = Path(f"/proc/{workers.process.pid}/task/{workers.process.pid}/children").read_text()  # noqa: ASYNC240  # procfs
            owner, edge, redis = *(node.program.process.pid for node in bench.running), bench.redis.pid
            urls = [node.url for node in bench.running]
            ways = {
                "one process": Way(url, url, {"owner": [single.process.pid]}),
                "at the owner": Way(urls[0], urls[0], {"owner": [owner], "Redis": [redis]}),
                "through another node": Way(
                    urls[0], urls[1], {"owner": [owner], "edge": [edge], "Redis": [redis]}
                ),
                "two workers, together": Way(
                    shared, shared, {"owner": [*map(int, children.split())], "Redis": [redis]}
                ),
            }
            for way in ways.values():
                await way.open(many)
            for _ in range(rounds):
                for way in ways.values():
                    await way.read(seconds)
            for _ in range(rounds):
                for way in ways.values():
                    await way.write(POSTS)
            for what in ("event", "POST"):
                print(f"\n| µs of CPU per {what} | owner | other node | Redis | |\n|---|---|---|---|---|")
                for name, way in ways.items():
                    last = (
                        f"{way.cell('events a second')} a second" if what == "event" else quantiles(way.took)
                    )
                    cells = [way.cell(f"{role} {what}") for role in ("owner", "edge", "Redis")]
                    print(f"| {name} | {' | '.join(cells)} | {last} |")
            print(f"\nuntil Redis has a record: {await settled_ms(bench.running[0].admin_url)}")
            print(f"sessions in Redis: {await in_redis(bench)}")
    return 0


def _served(stack: ExitStack, bench: Bed, name: str, workers: int = 0) -> Program:
    """Start a gateway beside the nodes: one process without a cluster, or workers on the nodes' Redis."""
    assert bench.redis is not None
    flags = ["--port", "0", "--admin-port", "0", "--upstream-url", bench.far_end.base_url]
    environ = {
        "GATEWAY_LOG__ACCESS": "false",
        "GATEWAY_RELAY__MAX_LOOP_LAG_SECONDS": "0",
        "GATEWAY_DRAIN__TIMEOUT_SECONDS": "0",
    }
    if workers:
        flags += ["--workers", str(workers)]
        environ |= {
            "GATEWAY_CLUSTER__URL": bench.redis.url,
            "GATEWAY_CLUSTER__LEASE_SECONDS": "4",
            "GATEWAY_ACCESS__SIGNING_KEY": SIGNING_KEY,
        }
    program = Program(bench.nodes.home / name, "gateway", "serve", *flags, environ=environ)
    stack.callback(program.kill)
    return program


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

"""Common parts of the cluster's load programs: far end, Redis and nodes as processes, and the sessions of the model
client."""

# ruff: noqa: T201  # commands speak to the person who called them

import asyncio
import itertools
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import aiohttp

from tests import programs
from tests.cluster.redis_server import RedisServer
from tests.e2e.nodes import Node, Nodes
from tests.farend import FarEnd
from tests.load.chaos_client import Count
from tests.load.cluster_client import WAYS, AnyNode, NodesLife, TurnsLife, Voices, lives

programs.START_SECONDS = 120.0
"""These programs keep the machine busy while nodes start."""
SHORTEST_LIFE_SECONDS, LONGEST_LIFE_SECONDS = 20.0, 90.0
LOOK_SECONDS = 0.1
GIVE_UP_SECONDS = 60.0
TRACEBACK_LINES = 40


def node_id(node: Node) -> str:
    """Return the id under which a node is in Redis."""
    return re.sub(r"\x1b\[\d*m", "", node.program.said(r"(cluster_joined .*\n)")).split("node=")[1].split()[0]


@dataclass(slots=True)
class Sessions:
    """Sessions of the model client, one after another, until told to stop."""

    caller: AnyNode
    pause: float
    told: bool = False
    voices: Voices = field(default_factory=Voices)
    count: Count = field(default_factory=Count)
    living: dict[str, NodesLife] = field(default_factory=dict)
    past: list[NodesLife] = field(default_factory=list)
    ending: bool = False
    shortest: float = SHORTEST_LIFE_SECONDS
    longest: float = LONGEST_LIFE_SECONDS

    def end(self) -> None:
        """Let each session end now."""
        self.ending = True
        for life in self.living.values():
            life.until = 0.0

    async def run(self, many: int) -> None:
        """Keep this many sessions running in all ways."""
        await asyncio.gather(*(self._one(number, WAYS[number % len(WAYS)]) for number in range(many)))

    async def _one(self, number: int, way: str) -> None:
        for generation in itertools.count():
            if self.ending:
                return
            label = f"s{number}l{generation}"
            life = lives(way)(self.caller, label, self.count, self.pause)
            life.told, life.voices = self.told, self.voices
            if way != "turns":
                life.way = way
            self.living[label] = life
            until = time.monotonic() + random.uniform(self.shortest, self.longest)
            try:
                await life.run(until)
            except Exception as error:  # noqa: BLE001  # the others go on, and the count says it
                life.fault(f"{type(error).__name__}: {error}")
                await asyncio.sleep(1)
            del self.living[label]
            self.past.append(life)

    def of(self, ids: Iterable[str]) -> list[NodesLife]:
        """Return the open sessions among these ids."""
        wanted = set(ids)
        return [life for life in self.living.values() if life.session_id in wanted and not life.closed]

    def report(self) -> bool:
        """Print the counts; return whether there was no violation."""
        count, every = self.count, [*self.past, *self.living.values()]
        turns = [life for life in every if isinstance(life, TurnsLife)]
        failed: Counter[str] = sum((life.failed for life in turns), Counter())
        rows = {
            "sessions opened": count.opened,
            "events accepted; confirmed; named as unknown or refused": f"{count.accepted}; {count.delivered}; {count.named}",
            "events read": count.read,
            "turns; of these told as failed": f"{sum(life.turns for life in turns)}; {dict(failed)}",
            "requests repeated": count.retried,
            "connections of streams": self.caller.connections,
            "answers": dict(self.caller.statuses.most_common()),
            "gaps told; accepted events told as lost": f"{sum(one.gaps for one in every)}; {sum(one.undone for one in every)}",
            "lost, doubled or broken without being told": len(count.faults),
            "sessions that ended by themselves; standing still": f"{len(count.ended)}; {len(count.still)}",
        }
        for name, value in rows.items():
            print(f"| {name} | {value} |")
        for line in [*count.faults, *count.ended, *count.still][:40]:
            print(f"  {line}")
        return not (count.faults or count.ended or count.still)


@dataclass(slots=True)
class Bed:
    """The processes of one run."""

    far_end: FarEnd
    redis: RedisServer | None
    nodes: Nodes
    running: list[Node]
    caller: AnyNode

    def urls(self) -> None:
        """The list of running nodes, from which callers draw one."""
        self.caller.urls[:] = [node.url for node in self.running]

    def owned(self, node: Node) -> list[str]:
        """Return the ids of the sessions on a node's list."""
        assert self.redis is not None, "one server"
        return self.redis.cli("SMEMBERS", f"rg:n:{node_id(node)}").split()

    async def ready(self, node: Node) -> Node:
        """Wait until a node listens, without blocking the loop."""
        return await asyncio.to_thread(node.ready)

    def tracebacks(self) -> list[str]:
        """Return the tracebacks in the nodes' logs, with the lines that follow."""
        said = [line for node in self.nodes.all for line in node.program.output.splitlines()]
        return [
            "\n".join(said[at : at + TRACEBACK_LINES])
            for at, line in enumerate(said)
            if "Traceback" in line or "never retrieved" in line
        ]


@asynccontextmanager
async def bed(
    count: int = 3,
    *,
    redis: RedisServer | None = None,
    redis_urls: Sequence[str] = (),
    tokens_per_second: float = 100,
    module: str = "gateway",
    environ: Mapping[str, object] = MappingProxyType({}),
    **settings: object,
) -> AsyncIterator[Bed]:
    """Run a far end, a Redis, and nodes. `redis_urls` has the URL of each node, the last one also for later nodes;
    without it they use the Redis itself."""
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        far_end = FarEnd(home / "far-end", "--tokens-per-second", str(tokens_per_second))
        stack.callback(far_end.program.stop)
        if redis is None and not redis_urls:
            redis = RedisServer().start()
            stack.callback(redis.close)
        await asyncio.to_thread(far_end.ready)
        given = {
            "GATEWAY_CLUSTER__LEASE_SECONDS": "4",
            "GATEWAY_LOG__ACCESS": "false",
            "GATEWAY_RELAY__LOG_RETENTION_SECONDS": "5",
            **environ,
            **settings,
        }
        urls = redis_urls or [redis.url if redis is not None else ""] * count
        nodes = Nodes(home, far_end, urls[-1], **given)
        nodes.module = module
        stack.callback(nodes.close)
        running = [nodes.begin(GATEWAY_CLUSTER__URL=url) for url in urls]
        for node in running:
            await asyncio.to_thread(node.ready)
        caller = await stack.enter_async_context(AnyNode([]))
        made = Bed(far_end, redis, nodes, running, caller)
        made.urls()
        yield made


async def back(
    http: aiohttp.ClientSession,
    url: str,
    session_id: str,
    since: float,
    look_seconds: float = LOOK_SECONDS,
    patience: float = GIVE_UP_SECONDS,
) -> tuple[float, float] | None:
    """Return the seconds until a session could be read through a node and had a call; None if it was closed."""
    readable = 0.0
    while time.monotonic() - since < patience:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with http.get(f"{url}/v1/sessions/{session_id}") as answer:
                if answer.status in (404, 410):
                    return None
                if answer.status == 200:
                    readable = readable or time.monotonic() - since
                    state = (await answer.json())["state"]
                    if state == "closed":
                        return None
                    if state == "connected":
                        return readable, time.monotonic() - since
        await asyncio.sleep(look_seconds)
    return readable or patience, patience


def spread(values: Sequence[float]) -> str:
    """Return the median, the 99th percentile and the maximum of some durations, as text."""
    if not values:
        return "none"
    values = sorted(values)
    return f"p50 {statistics.median(values):.2f} s, p99 {values[int(len(values) * 0.99)]:.2f} s, longest {values[-1]:.2f} s"

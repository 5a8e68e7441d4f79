"""A rolling restart of three nodes behind a real load balancer: `python -m tests.load.cluster_rolling --sessions
600`.

Each session has one reader of its stream, and ten events per second are sent to sessions drawn at random. Each node
in turn gets SIGTERM, and another one starts at its address once it has ended. The exit status is 1 if an answer is
500 or above, a response is cut, an ID is missing or doubled, or a stream is silent for longer than the limit:
between the end of one connection and the beginning of the next, or from a 202 to the event.
"""

# ruff: noqa: T201  # a command speaks to the person who called it

import argparse
import asyncio
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.conftest import require_part
from tests.e2e import proxies
from tests.e2e.caller import Read, number
from tests.e2e.proxies import ROOT
from tests.load.cluster_bed import Bed, bed, spread
from tests.load.cluster_client import ASIDES, STREAM_ONLY, AnyNode

CONFIGURATIONS = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}
SETUPS_AT_ONCE = 8
REST_SECONDS = 5.0


def configured(kind: str, addresses: Sequence[str]) -> str:
    """Return the example's configuration for these nodes instead of two containers."""
    text = (ROOT / "deploy" / "cluster" / CONFIGURATIONS[kind]).read_text()
    lines = []
    for line in text.splitlines():
        if "gateway-1:8080" in line:
            lines += [
                line.replace("gateway-1:8080", one).replace("gateway-1", f"gateway-{at}")
                for at, one in enumerate(addresses)
            ]
        elif "gateway-2:8080" not in line:
            lines.append(line)
    return (
        "\n".join(lines)
        .replace("listen 8000", "listen 127.0.0.1:8000")
        .replace("bind :8000", "bind 127.0.0.1:8000")
        + "\n"
    )


@asynccontextmanager
async def balanced(kind: str, bench: Bed) -> AsyncIterator[str]:
    """Run the load balancer in front of the nodes and yield its URL."""
    text = configured(kind, [node.url.removeprefix("http://") for node in bench.running])
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)  # noqa: ASYNC240  # once, before anything runs
        start = proxies.nginx if kind == "nginx" else proxies.haproxy
        async with start(require_part, text, home / kind, "http://127.0.0.1:1") as url:
            yield url


@dataclass(slots=True)
class Watch:
    """What all readers and senders observed."""

    caller: AnyNode
    faults: list[str] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    types: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    sent: dict[str, float] = field(default_factory=dict)

    async def follow(self, session_id: str, opened: asyncio.Event) -> None:
        """Read a session's stream repeatedly."""
        last, ended = "earliest", 0.0
        while True:
            try:
                async with aclosing(self.caller.blocks(session_id, last, "sse")) as blocks:
                    async for block in blocks:
                        if block.type == "gateway.open":
                            opened.set()
                            if ended:
                                self.between.append(time.monotonic() - ended)
                        last = self._take(session_id, block, last)
            except aiohttp.ClientPayloadError:
                pass  # the caller records it
            except (aiohttp.ClientError, TimeoutError) as error:
                self.broken[f"stream: {type(error).__name__}"] += 1
            ended = time.monotonic()
            # A browser waits for as long as `retry:` says: 50 to 500 ms after gateway.rotating.
            await asyncio.sleep(random.uniform(0.05, 0.5))

    def _take(self, session_id: str, block: Read, last: str) -> str:
        kind = block.type
        if kind == "gateway.gap":
            self.faults.append(f"{session_id}: a gap {block.text}")
        if block.id is None or kind in ASIDES | STREAM_ONLY:
            return last
        self.types[kind] += 1
        if number(block.id) != (0 if last == "earliest" else number(last)) + 1:
            self.faults.append(f"{session_id}: {block.id} after {last}")
        if kind == "conversation.item.added":
            sent_at = self.sent.pop(block.value["item"]["id"], None)
            if sent_at is not None:
                self.delays.append(time.monotonic() - sent_at)
        return block.id

    async def send(self, session_id: str, name: str) -> None:
        """Send one event."""
        content = [{"type": "input_text", "text": "x" * 200}]
        item = {"id": name, "type": "message", "role": "system", "content": content}
        self.sent[name] = time.monotonic()
        path = f"/v1/sessions/{session_id}/events"
        try:
            await self.caller.ask("POST", path, {"type": "conversation.item.create", "item": item})
        except aiohttp.ClientError as error:
            self.broken[f"POST: {type(error).__name__}"] += 1
        else:
            if name in self.sent:
                self.sent[name] = time.monotonic()
            else:
                self.delays.append(0.0)  # read before the 202


async def talk(watch: Watch, ids: Sequence[str], rate: float) -> None:
    """Send events at a rate to sessions drawn at random."""
    async with asyncio.TaskGroup() as group:
        count = 0
        while True:
            count += 1
            group.create_task(watch.send(random.choice(ids), f"item_{count}"))
            await asyncio.sleep(1 / rate)


async def replaced(bench: Bed, at: int) -> float:
    """Restart one node at its address; return how long it took to end."""
    old = bench.running[at]
    began = time.monotonic()
    old.terminate()
    await old.ended(120)
    took = time.monotonic() - began
    port = int(old.url.rsplit(":", 1)[1])
    bench.running[at] = await bench.ready(bench.nodes.begin(port=port))
    return took


async def run(kind: str, many: int, rate: float, silence: float) -> int:
    """Run it and print the counts."""
    settings = {"GATEWAY_DRAIN__TIMEOUT_SECONDS": "60", "GATEWAY_STREAM__MAX_AGE_SECONDS": "3600"}
    async with bed(3, tokens_per_second=0, environ=settings) as bench, balanced(kind, bench) as url:
        bench.caller.urls[:] = [url]
        watch, gate = Watch(bench.caller), asyncio.Semaphore(SETUPS_AT_ONCE)

        async def opened() -> str:
            async with gate:
                return str((await bench.caller.open())["id"])

        ids = await asyncio.gather(*(opened() for _ in range(many)))
        reading = [asyncio.Event() for _ in ids]
        tasks = [
            asyncio.create_task(watch.follow(one, event)) for one, event in zip(ids, reading, strict=True)
        ]
        await asyncio.gather(*(event.wait() for event in reading))
        tasks.append(asyncio.create_task(talk(watch, ids, rate)))
        print(f"{many} sessions, each with a reader, behind {kind}", flush=True)
        await asyncio.sleep(REST_SECONDS)
        for at in range(3):
            print(f"node {at} ended after {await replaced(bench, at):.1f} s", flush=True)
            await asyncio.sleep(REST_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        tracebacks = bench.tracebacks()
    return report(watch, tracebacks, silence)


def report(watch: Watch, tracebacks: list[str], silence: float) -> int:
    """Print the counts; return the exit status."""
    refused = {status: count for status, count in watch.caller.statuses.items() if status >= "500"}
    # Events of the last moment are not waited for.
    unheard = [name for name, at in watch.sent.items() if time.monotonic() - at > REST_SECONDS]
    print("| | |\n|---|---|")
    print(f"| answers | {dict(watch.caller.statuses.most_common())} |")
    print(
        f"| answers of 500 or above; connections that broke without one | {refused}; {dict(watch.broken)} |"
    )
    print(f"| responses cut | {dict(Counter(watch.caller.cut))} |")
    print(f"| between two connections of a stream, {len(watch.between)} times | {spread(watch.between)} |")
    print(f"| from a 202 to the event, {len(watch.delays)} times | {spread(watch.delays)} |")
    print(f"| events sent and never read | {len(unheard)} |")
    print(
        f"| gateway's own events | { {k: v for k, v in watch.types.items() if k.startswith('gateway.')} } |"
    )
    print(f"| IDs missing or doubled, gaps | {len(watch.faults)} |\n| tracebacks | {len(tracebacks)} |")
    for line in [*watch.faults[:10], *tracebacks[:5]]:
        print(f"  {line}")
    longest = max([*watch.between, *watch.delays, 0.0])
    bad = refused or watch.broken or watch.caller.cut or watch.faults or unheard or tracebacks
    return 1 if bad or longest > silence else 0


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.cluster_rolling", description=__doc__)
    parser.add_argument("--behind", choices=sorted(CONFIGURATIONS), default="nginx")
    parser.add_argument("--sessions", type=int, default=600)
    parser.add_argument("--rate", type=float, default=10.0, help="events a second")
    parser.add_argument("--silence", type=float, default=2.0)
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return asyncio.run(run(given.behind, given.sessions, given.rate, given.silence))


if __name__ == "__main__":
    sys.exit(main())

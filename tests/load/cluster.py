"""What several nodes cost, and how long a killed node's sessions are unavailable: `python -m tests.load.cluster`.

Prints, from one run on one machine, the duration of a POST of one event in one process, at its owner, and through
another node. With `--sessions N` on one of three nodes that is killed, it also prints when the first and the last of
them was readable again, and when the last had a call again.
"""

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp

from tests.cluster.redis_server import RedisServer
from tests.e2e.nodes import Nodes
from tests.farend import FarEnd
from tests.programs import Program

ITEM = {
    "type": "conversation.item.create",
    "item": {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "x"}]},
}


def quantiles(values: list[float]) -> str:
    """Return p50 and p99 in milliseconds, as text."""
    values = sorted(values)
    return (
        f"p50 {statistics.median(values) * 1000:.2f} ms, p99 {values[int(len(values) * 0.99)] * 1000:.2f} ms"
    )


async def opened(http: aiohttp.ClientSession, url: str) -> str:
    """Open a session."""
    async with http.post(f"{url}/v1/sessions") as answer:
        assert answer.status == 201, await answer.text()
        return str((await answer.json())["id"])


async def posts(http: aiohttp.ClientSession, url: str, session_id: str, count: int) -> list[float]:
    """Send one event after the other and return the duration of each."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        async with http.post(f"{url}/v1/sessions/{session_id}/events", json=ITEM) as answer:
            assert answer.status == 202, await answer.text()
            await answer.read()
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.005)
    return took


async def measure_posts(http: aiohttp.ClientSession, single: str, owner: str, other: str, count: int) -> None:
    """Measure the three kinds in turns, so that changes of the machine's load affect all alike."""
    sessions = {
        "one process": (single, await opened(http, single)),
        "at the owner": (owner, await opened(http, owner)),
    }
    sessions["through another node"] = (other, sessions["at the owner"][1])
    took: dict[str, list[float]] = {kind: [] for kind in sessions}
    for _ in range(10):
        for kind, (url, session_id) in sessions.items():
            took[kind] += await posts(http, url, session_id, count // 10)
    for kind, values in took.items():
        print(f"POST of one event, {kind}: {quantiles(values)}")  # noqa: T201  # a command


async def measure_kill(http: aiohttp.ClientSession, nodes: Nodes, sessions: int) -> None:
    """Kill a node with many sessions and wait until they are back."""
    victim, *others = nodes.all
    gate = asyncio.Semaphore(8)

    async def one() -> str:
        async with gate:
            return await opened(http, victim.url)

    ids = await asyncio.gather(*(one() for _ in range(sessions)))
    killed = time.monotonic()
    victim.program.kill()

    async def back(number: int, session_id: str) -> tuple[float, float]:
        url, readable = others[number % len(others)].url, 0.0
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with http.get(f"{url}/v1/sessions/{session_id}") as answer:
                    if answer.status == 200:
                        readable = readable or time.monotonic() - killed
                        if (await answer.json())["state"] == "connected":
                            return readable, time.monotonic() - killed
            await asyncio.sleep(0.5)

    times = await asyncio.gather(*(back(number, one) for number, one in enumerate(ids)))
    readable, connected = zip(*times, strict=True)
    print(  # noqa: T201  # a command
        f"{sessions} sessions of a killed node: readable after {min(readable):.1f} to {max(readable):.1f} s, "
        f"with a call after {min(connected):.1f} to {max(connected):.1f} s"
    )


async def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--posts", type=int, default=500)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        far_end = FarEnd(home / "far-end", "--tokens-per-second", "0")
        stack.callback(far_end.program.stop)
        redis = RedisServer().start()
        stack.callback(redis.close)
        far_end.ready()
        nodes = Nodes(home, far_end, redis.url, GATEWAY_CLUSTER__LEASE_SECONDS="4")
        stack.callback(nodes.close)
        nodes.start(3)
        flags = ("--port", "0", "--admin-port", "0", "--upstream-url", far_end.base_url)
        single = Program(
            home / "single", "gateway", "serve", *flags, environ={"GATEWAY_DRAIN__TIMEOUT_SECONDS": "0"}
        )
        stack.callback(single.kill)
        url = single.said(r"(?<!admin )listening on (http://[\w.:]+)")
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
            await measure_posts(http, url, nodes.all[0].url, nodes.all[1].url, given.posts)
            await measure_kill(http, nodes, given.sessions)


if __name__ == "__main__":
    asyncio.run(main())

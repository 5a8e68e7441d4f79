"""What reading costs: `python -m tests.load.reading [--against COMMIT]`.

Not collected by pytest. Events are appended to the logs of some sessions, each of which has one reader of a
rendering over a real socket, in its own process. The cost of an event is what the server's process spends beyond the
same appends without readers: waking, rendering and writing, not receiving. The kernel's part varies, so it is also
measured without. With `--against` the same is measured of another commit, alternately, because machines differ and
change.
"""

# ruff: noqa: T201  # a command prints its result

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

ROOT = Path(__file__).resolve().parents[2]
RENDERINGS = ("sse", "ndjson", "json")
EVENT = json.dumps(
    {"type": "response.output_text.delta", "response_id": "resp_" + "x" * 20, "delta": "word " * 40}
)
PACES = {"one by one": 1, "bursts of 16": 16}
"""Events that a session gets at once. Its reader writes them at once, too."""

ROUND_SECONDS = 0.02
"""Time for all readers to be written to and to take it, and for a long-poll to come back."""


# --- the readers ------------------------------------------------------------------------------------------------------


async def read_streams(port: int, paths: list[str]) -> None:
    """Read everything and ignore it."""

    async def read(path: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        while await reader.read(1 << 20):
            pass

    await asyncio.gather(*map(read, paths))


async def read_polls(port: int, paths: list[str]) -> None:
    """Poll again as soon as there is an answer, on one connection each."""

    async def read(path: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        cursor = b"now"
        while True:
            request = f"GET {path}&after={cursor.decode()} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
            writer.write(request.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            assert length is not None, head
            body = await reader.readexactly(int(length[1]))
            cursor = body[body.rindex(b'"cursor":"') + 10 : -2]

    await asyncio.gather(*map(read, paths))


# --- the server -------------------------------------------------------------------------------------------------------


async def measure(sessions: int, turns: int) -> dict[str, float]:
    """Return microseconds per event, by pace and rendering."""
    from prometheus_client import CollectorRegistry

    from gateway.telemetry import Metrics
    from tests.downstream import conftest  # of the measured tree

    def metrics() -> Any:
        made: Any = Metrics(CollectorRegistry(), version="1")
        made.http_answered = lambda *_: None  # Log lines cost more than a read, and are not measured here.
        return made

    made: Any = conftest
    made.Facts = metrics
    fixture = made.build
    function = getattr(fixture, "_get_wrapped_function", lambda: fixture.__wrapped__)()
    harnesses = function()
    harness = await (await anext(harnesses))()
    opened = [await harness.open() for _ in range(sessions)]
    handles = [harness.hub.find(one["id"], None) for one in opened]
    found: dict[str, float] = {}
    for pace in PACES:
        nothing = await spend(handles, pace, turns)
        for rendering in RENDERINGS:
            paths = [f"/v1/sessions/{one['id']}/events?format={rendering}" for one in opened]
            if rendering != "json":
                paths = [f"{path}&after=now" for path in paths]
            port = harness.url.rpartition(":")[2]
            command = [
                sys.executable,
                __file__,
                "--read",
                rendering,
                "--port",
                port,
                "--paths",
                json.dumps(paths),
            ]
            readers = await asyncio.create_subprocess_exec(*command)
            while any(handle.view().receivers == 0 for handle in handles):
                await asyncio.sleep(0.05)
            found[f"{pace} {rendering}"] = await spend(handles, pace, turns) - nothing
            if rendering != "json":
                protocols = [handle._receivers[0]._request.protocol for handle in handles]
                transports = [protocol.transport for protocol in protocols]
                for protocol in protocols:
                    protocol.transport = Nowhere()
                unwritten = await spend(handles, pace, 5 * turns) - nothing
                for protocol, transport in zip(protocols, transports, strict=True):
                    protocol.transport = transport
                found[f"{pace} {rendering}, no socket"] = unwritten
            readers.kill()
            await readers.wait()
            while any(handle.view().receivers for handle in handles):
                await asyncio.sleep(0.05)
    await anext(harnesses, None)
    return found


class Nowhere:
    """A transport that accepts everything, so that only the way to it is measured."""

    def write(self, data: bytes) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


async def spend(handles: list[Any], pace: str, rounds: int) -> float:
    """Append to every session in turn; return what the process spent per event, in microseconds."""
    at_once = PACES[pace]
    spent = time.process_time()
    for _ in range(rounds):
        for handle in handles:
            log, now = handle.log, time.monotonic()
            for _ in range(at_once):
                log.append("response.output_text.delta", EVENT, now)
        await asyncio.sleep(ROUND_SECONDS)
    return (time.process_time() - spent) / (rounds * len(handles) * at_once) * 1e6


# --- the comparison ---------------------------------------------------------------------------------------------------


def run(tree: Path, sessions: int, turns: int) -> dict[str, float]:
    """Measure one tree in its own process."""
    command = [sys.executable, __file__, "--measure", "--sessions", str(sessions), "--turns", str(turns)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    output = subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])  # Log lines precede it.
    return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.reading", description=__doc__)
    parser.add_argument("--against", metavar="COMMIT")
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--paths", type=json.loads, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.read:
        read = read_polls if wanted.read == "json" else read_streams
        uvloop.run(read(wanted.port, wanted.paths))
        return
    if wanted.measure:
        print(json.dumps(uvloop.run(measure(wanted.sessions, wanted.turns))))
        return
    trees = {"here": ROOT}
    with tempfile.TemporaryDirectory() as folder:
        if wanted.against:
            trees[wanted.against] = Path(folder) / "tree"
            git("worktree", "add", "--detach", str(trees[wanted.against]), wanted.against)
        try:
            rounds = [
                {name: run(tree, wanted.sessions, wanted.turns) for name, tree in trees.items()}
                for _ in range(wanted.rounds)
            ]
        finally:
            if wanted.against:
                git("worktree", "remove", "--force", str(trees[wanted.against]))
    print(f"{'µs an event':32}", *(f"{name:>10}" for name in trees))
    for row in rounds[0]["here"]:
        medians = (statistics.median(found[name][row] for found in rounds) for name in trees)
        print(f"{row:32}", *(f"{median:10.1f}" for median in medians))


def git(*arguments: str) -> None:
    """Run git in this repository."""
    subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


if __name__ == "__main__":
    main()

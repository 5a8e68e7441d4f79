"""Compares the cost of an event in an attached session and in one over WebRTC: `python -m tests.load.attached`.

Not collected by pytest, because it takes a minute. The same turns run twice through one gateway, first in its own
sessions, then in sessions that are attached to calls of a second gateway. Emulator and gateways run in their own
processes, so the CPU time in /proc is the gateway's alone; each session has one event stream.
"""

# ruff: noqa: T201  # a command prints its result

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

from tests.farend import FarEnd
from tests.load.churn import Process
from tests.programs import Program, Served

Json = dict[str, Any]


class Side:
    """A gateway in its own process, and a client of it."""

    def __init__(self, folder: Path, name: str, upstream: str, http: aiohttp.ClientSession) -> None:
        self.program = Served(folder / name, upstream)
        self.url = self.program.url
        self.http = http

    @property
    def cpu_seconds(self) -> float:
        return Process.of(self.program.process.pid).cpu_seconds

    async def open(self, count: int, bodies: list[Json] | None = None) -> list[Json]:
        """Open sessions, a few at once."""
        limit = asyncio.Semaphore(4)

        async def one(body: Json) -> Json:
            async with limit, self.http.post(f"{self.url}/v1/sessions", json=body) as answer:
                session: Json = await answer.json()
                assert answer.status == 201, session
                return session

        return list(await asyncio.gather(*(one(body) for body in bodies or [{}] * count)))

    async def close(self, sessions: list[Json]) -> None:
        for session in sessions:
            async with self.http.delete(f"{self.url}/v1/sessions/{session['id']}"):
                pass


async def talk(side: Side, session: Json, turns: int, words: int) -> int:
    """Hold turns in one session and return the number of events on its stream."""
    url = f"{side.url}/v1/sessions/{session['id']}/events"
    content = [{"type": "input_text", "text": f"Write {words} words about rain"}]
    item = {"type": "message", "role": "user", "content": content}
    ask = [{"type": "conversation.item.create", "item": item}, {"type": "response.create"}]
    events = done = 0
    headers = {"Accept": "text/event-stream"}
    async with side.http.get(url, params={"after": "now"}, headers=headers) as stream:
        async with side.http.post(url, json=ask):
            pass
        async for line in stream.content:
            if not line.startswith(b"data: "):
                continue
            events += 1
            if line.startswith(b'data: {"type":"rate_limits.updated"'):
                done += 1
                if done == turns:
                    return events
                async with side.http.post(url, json=ask):
                    pass
    raise RuntimeError("the stream ended")


async def measure(side: Side, sessions: list[Json], turns: int, words: int) -> Json:
    """Run the turns of all sessions at once and return the gateway's CPU time per event."""
    before, started = side.cpu_seconds, asyncio.get_running_loop().time()
    events = sum(await asyncio.gather(*(talk(side, session, turns, words) for session in sessions)))
    spent, seconds = side.cpu_seconds - before, asyncio.get_running_loop().time() - started
    return {
        "events": events,
        "events_per_second": round(events / seconds),
        "cpu_us_per_event": round(spent / events * 1e6, 1),
    }


async def run(sessions: int, turns: int, words: int, pace: float) -> None:
    """Measure both kinds forwards and backwards, and print each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        far_end = FarEnd(folder / "far-end", "--tokens-per-second", str(pace))
        far_end.ready()
        timeout = aiohttp.ClientTimeout(total=None)
        programs: list[Program] = [far_end.program]
        connector = aiohttp.TCPConnector(limit=0)
        try:
            async with aiohttp.ClientSession(
                timeout=timeout, connector=connector, read_bufsize=2**20
            ) as http:
                measured, holder = (
                    Side(folder, side, far_end.base_url, http) for side in ("measured", "holder")
                )
                programs += [measured.program, holder.program]
                for kind in ("webrtc", "attached", "attached", "webrtc"):
                    held: list[Json] = []
                    if kind == "webrtc":
                        opened = await measured.open(sessions)
                    else:
                        held = await holder.open(sessions)
                        opened = await measured.open(0, [{"call_id": one["call_id"]} for one in held])
                    told = await measure(measured, opened, turns, words)
                    print(json.dumps({"kind": kind, "sessions": sessions, "tokens_per_second": pace} | told))
                    await measured.close(opened)
                    await holder.close(held)
        finally:
            for program in reversed(programs):
                program.stop()


def main() -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--tokens-per-second", type=float, default=100.0)
    given = parser.parse_args()
    asyncio.run(run(given.sessions, given.turns, given.words, given.tokens_per_second))


if __name__ == "__main__":
    main()

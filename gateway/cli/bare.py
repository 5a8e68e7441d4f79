"""Receives the same stream as a gateway under test, with nothing behind the data channel but a counter.

`python -m gateway.cli.bare` runs in a separate process and prints one line of JSON. With `--stock` aiortc is as it
comes from its authors, less what it needs to connect here at all; without, it is tuned as the gateway's own.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Iterator, Sequence

from gateway.cli.load import SPREAD_SECONDS, TURN_SECONDS
from gateway.cli.procfs import cpu_seconds, resident_bytes
from gateway.cli.question import writing_task
from gateway.cli.running import run
from gateway.relay.clock import Clock
from gateway.relay.ports import CallRequest, LossCause, Upstream
from gateway.relay.telemetry import NO_TELEMETRY
from gateway.upstream.config import UpstreamConfig
from gateway.upstream.tuning import ALL_HOOKS, Hook
from gateway.upstream.webrtc import WebRTCDialer

TO_CONNECT = frozenset({Hook.CHOSEN_ADDRESSES, Hook.NOMINATED_CONSENT})
"""Without these, aioice omits 127.0.0.1 and a strict ICE-lite peer ends the call after 30 s. Neither affects receiving."""

SESSION = {"type": "realtime", "model": "gpt-realtime-2.1", "output_modalities": ["text"]}


class Counter:
    """A `Sink` that reads frames only to detect the end of a response."""

    def __init__(self) -> None:
        self.events = 0
        self.done = asyncio.Event()

    def received(self, generation: int, text: str) -> None:
        self.events += 1
        if text.startswith('{"type":"response.done"'):
            self.done.set()

    def received_together(self, generation: int, texts: Sequence[str]) -> None:
        for text in texts:
            self.received(generation, text)

    def received_in_steps(self, generation: int, text: str) -> Iterator[None]:
        self.received(generation, text)
        return iter(())

    def unreadable(self, generation: int, size: int) -> None:
        raise AssertionError("the emulator sends text")

    def lost(self, generation: int, cause: LossCause) -> None:
        self.done.set()


async def measure(url: str, sessions: int, turns: int, words: int, *, stock: bool) -> dict[str, float]:
    """Open calls, run the turns, and return their cost for this process."""
    config = UpstreamConfig(base_url=url, api_key="sk-offline", hooks=TO_CONNECT if stock else ALL_HOOKS)
    dialer = WebRTCDialer(config, NO_TELEMETRY, Clock())
    await dialer.start()
    try:
        warm = await dialer.dial(CallRequest(SESSION), Counter())
        before = resident_bytes(os.getpid())
        calls: list[tuple[Upstream, Counter]] = []
        for _ in range(sessions):
            counter = Counter()
            call: Upstream = await dialer.dial(CallRequest(SESSION), counter)
            calls.append((call, counter))
        memory = (resident_bytes(os.getpid()) - before) / sessions
        counted = sum(counter.events for _, counter in calls)
        cpu, began = cpu_seconds(os.getpid()), time.perf_counter()
        talks = [
            _turns(call, counter, turns, words, index * SPREAD_SECONDS / sessions)
            for index, (call, counter) in enumerate(calls)
        ]
        await asyncio.gather(*talks)
        seconds = time.perf_counter() - began
        cpu = cpu_seconds(os.getpid()) - cpu
        events = sum(counter.events for _, counter in calls) - counted
        await asyncio.gather(*(call.close(hang_up=True) for call, _ in calls), warm.close(hang_up=True))
    finally:
        await dialer.close()
    return {"events": events, "seconds": seconds, "cpu_seconds": cpu, "session_bytes": memory}


async def _turns(call: Upstream, counter: Counter, turns: int, words: int, delay: float) -> None:
    await asyncio.sleep(delay)
    asked = [json.dumps(event) for event in writing_task(words)]
    for _ in range(turns):
        counter.done.clear()
        call.send(asked)
        await asyncio.wait_for(counter.done.wait(), TURN_SECONDS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(prog="python -m gateway.cli.bare", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--turns", type=int, required=True)
    parser.add_argument("--words", type=int, required=True)
    parser.add_argument("--stock", action="store_true")
    given = parser.parse_args(arguments)
    print(
        json.dumps(run(measure(given.url, given.sessions, given.turns, given.words, stock=given.stock))),
        flush=True,
    )


if __name__ == "__main__":
    main()

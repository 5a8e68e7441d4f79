"""Common parts of the upstream tests: a sink and a telemetry that record, and a dialer that is closed at the end."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gateway.relay.clock import Clock
from gateway.relay.ports import CallRequest, LossCause
from gateway.upstream.config import UpstreamConfig
from gateway.upstream.webrtc import WebRTCDialer
from tests.facts import Facts

SESSION = {"type": "realtime", "model": "gpt-realtime", "output_modalities": ["text"]}
REQUEST = CallRequest(session=SESSION)


class Remembering:
    """A sink that records its calls."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.sizes: list[int] = []
        self.steps = 0
        self.losses: list[tuple[int, LossCause]] = []
        self._changed = asyncio.Event()

    def received(self, generation: int, text: str) -> None:
        self.texts.append(text)
        self._changed.set()

    def received_together(self, generation: int, texts: Sequence[str]) -> None:
        for text in texts:
            self.received(generation, text)

    def received_in_steps(self, generation: int, text: str) -> Iterator[None]:
        for _ in range(2):
            self.steps += 1
            yield
        self.received(generation, text)

    def unreadable(self, generation: int, size: int) -> None:
        self.sizes.append(size)
        self._changed.set()

    def lost(self, generation: int, cause: LossCause) -> None:
        self.losses.append((generation, cause))
        self._changed.set()

    async def until(self, condition: Callable[["Remembering"], object], seconds: float = 20.0) -> None:
        """Wait until a condition holds for the recorded calls."""
        async with asyncio.timeout(seconds):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def dialling(base_url: str, facts: Facts | None = None, **options: Any) -> AsyncIterator[WebRTCDialer]:
    """Return a started dialer."""
    config = UpstreamConfig(**{"base_url": base_url, "api_key": "sk-test-1234567890"} | options)
    dialer = WebRTCDialer(config, (facts or Facts()).port, Clock())
    await dialer.start()
    try:
        yield dialer
    finally:
        await dialer.close()


def peer_connections_left(facts: Facts) -> int:
    """Return how many peer connections exist, by what the telemetry was told."""
    return sum(delta for (delta,) in facts.of("peer_connections"))


def order(do: str, **details: Any) -> str:
    """Send a command to the far end."""
    return json.dumps({"do": do, **details})

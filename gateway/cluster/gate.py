"""Spreads the calls of sessions that were taken over together (`relay.services.Gate`).

A node that takes a thousand sessions over must neither starve its own sessions nor exceed OpenAI's rate limit. So dialling
is limited in concurrency and rate, urgent sessions first, and the rate is halved after OpenAI refused a call for it.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Final

from gateway.errors import GatewayError

AT_ONCE: Final = 16
PER_SECOND: Final = 20.0
IDLE_SHARE: Final = 0.5
"""Share of the rate for sessions that no client uses: 2,000 set-ups are 12 to 20 s of CPU."""
SLOWEST_PER_SECOND: Final = 1.0
GROWTH_PER_DIAL: Final = 0.05
"""How fast the rate recovers after a refusal, as a share of the full rate."""

_PATIENCE_SECONDS: Final = 0.25
"""How often a waiting session checks whether it has become urgent."""


class DialGate:
    """One for each node."""

    def __init__(self, at_once: int = AT_ONCE, per_second: float = PER_SECOND) -> None:
        self._at_once = at_once
        self._full_rate = self._rate = per_second
        self._dialling = 0
        self._next_at = 0.0
        self._number = 0
        self._waiting: list[tuple[bool, int]] = []
        self._holding = 0

    @property
    def per_second(self) -> float:
        """The current rate."""
        return self._rate

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let sessions that no client uses wait: those that are still to be made readable come first."""
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1

    def dial(self, urgent: Callable[[], bool]) -> AbstractAsyncContextManager[None]:
        """Wait for permission to dial, hold it for as long as the dial takes, and release it."""
        return self._dial(urgent)

    @asynccontextmanager
    async def _dial(self, urgent: Callable[[], bool]) -> AsyncIterator[None]:
        await self._enter(urgent)
        try:
            yield
        except GatewayError as error:
            if error.code == "upstream-rate-limited":
                self._rate = max(SLOWEST_PER_SECOND, self._rate / 2)
            raise
        else:
            self._rate = min(self._full_rate, self._rate + self._full_rate * GROWTH_PER_DIAL)
        finally:
            self._dialling -= 1

    async def _enter(self, urgent: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        self._number += 1
        number = self._number
        while True:
            place = (not urgent(), number)
            heapq.heappush(self._waiting, place)
            try:
                now = loop.time()
                free = self._dialling < self._at_once and not (place[0] and self._holding)
                if free and self._waiting[0] == place and now >= self._next_at:
                    rate = self._rate * (IDLE_SHARE if place[0] else 1.0)
                    self._next_at = now + 1 / rate
                    self._dialling += 1
                    return
                await asyncio.sleep(min(_PATIENCE_SECONDS, max(0.005, self._next_at - now)))
            finally:
                self._waiting.remove(place)
                heapq.heapify(self._waiting)

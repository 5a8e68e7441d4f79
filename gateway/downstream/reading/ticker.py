"""One timer for all open reads of a server: heartbeats and rotations.

A stream's deadlines move with every write. Timers of their own would have to be moved as often; a walk over all of
them costs 0.1 µs a stream and tick.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

TICK_SECONDS: Final = 0.5


class Ticking(Protocol):
    """What the ticker looks after."""

    def tick(self, now: float) -> None: ...

    def shut(self) -> None:
        """The server is closing."""


class Ticker:
    """One timer for all open reads of a server, and the list of them."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._open: set[Ticking] = set()
        self._task: asyncio.Task[None] | None = None
        self.closing = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="stream-ticker")

    async def close(self) -> None:
        """End every open read; no other may begin. Harmless when repeated."""
        self.closing = True
        for ticking in list(self._open):
            ticking.shut()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    def add(self, ticking: Ticking) -> None:
        self._open.add(ticking)

    def remove(self, ticking: Ticking) -> None:
        self._open.discard(ticking)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self._monotonic()
            for ticking in list(self._open):
                ticking.tick(now)

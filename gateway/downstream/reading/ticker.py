"""One timer for all open reads of a server: heartbeats and rotations.

A stream's deadlines change with every write. A timer per stream would have to be reset as often; checking all streams
costs 0.1 µs per stream and tick.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Final, Protocol

TICK_SECONDS: Final = 0.5


class Ticking(Protocol):
    """An open read, as the ticker uses it."""

    @property
    def peer_request(self) -> str | None:
        """The id of the request if another node forwarded it."""

    def tick(self, now: float) -> None: ...

    def rotate(self) -> None:
        """End as at a rotation."""

    def shut(self) -> None:
        """End the read, because the server is closing."""


class Ticker:
    """The timer for all open reads of a server, and their list."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._open: set[Ticking] = set()
        self._task: asyncio.Task[None] | None = None
        self.closing = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="stream-ticker")

    async def close(self) -> None:
        """End every open read and accept no more. May be called more than once."""
        self.closing = True
        for ticking in list(self._open):
            ticking.shut()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    def rotate(self, peer_requests: Collection[str]) -> None:
        """End the reads that were forwarded under these ids, because the node that forwarded them is about to end."""
        for ticking in [one for one in self._open if one.peer_request in peer_requests]:
            ticking.rotate()

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

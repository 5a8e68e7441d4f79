"""One timer for all open reads of a server: heartbeats and rotations.

A stream's deadlines change with every write. A timer per stream would have to be reset as often; checking all streams
costs 0.1 µs per stream and tick.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Final, Protocol

from gateway.relay.tasks import Tasks

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

    def __init__(self, monotonic: Callable[[], float], failed: Callable[[BaseException], None]) -> None:
        """`failed` is called with the first exception of a tick; the other reads are ticked all the same."""
        self._monotonic = monotonic
        self._failed = failed
        self._open: set[Ticking] = set()
        self._tasks = Tasks(failed)
        self.closing = False

    def start(self) -> None:
        _ = self._tasks.repeat(self._run, "stream-ticker")

    async def close(self) -> None:
        """End every open read and accept no more. May be called more than once."""
        self.closing = True
        for ticking in list(self._open):
            ticking.shut()
        await self._tasks.end()

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
            self._tick(self._monotonic())

    def _tick(self, now: float) -> None:
        first: Exception | None = None
        for ticking in list(self._open):
            try:
                ticking.tick(now)
            except Exception as error:  # noqa: BLE001  # one bad stream must not stop the others' heartbeats
                first = first or error
        if first is not None:
            self._failed(first)  # Only one: a bug in every stream would fill the log.

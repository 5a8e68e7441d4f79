"""When garbage is collected, and how long that may block the event loop.

Reference counting frees almost everything, an ended session and its call included. Cycles remain where something failed, and
with several nodes between a session and its journal. Python would collect them after a number of allocations: possibly in
the middle of an answer, and almost never for sessions that lived long. So full collections run after a number of sessions
have ended, when none is being opened or closed. The cost is shared among these sessions, and their garbage stays bounded.
"""

import asyncio
import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from gateway.relay.tasks import Tasks

SWEEP_SECONDS: Final = 5.0
"""Interval between checks whether enough sessions have ended."""

MIN_ENDED: Final = 64
LIVE_SHARE: Final = 1 / 8
"""A full collection visits every live session, 0.1 ms each. It runs after one session has ended for every eight live ones,
so an end costs 0.8 ms, and uncollected sessions are at most an eighth of the live ones."""

MAX_ENDED: Final = 1024
"""After so many ends, and one for each live session, a collection does not wait for a calm moment any more."""

THRESHOLDS: Final = (4000, 250, 100)
"""Python's defaults, (700, 10, 10), cause thousands of collections a minute of events that reference counting soon frees. A
collection of the youngest takes 1 µs for each object, so with 50,000 it held the loop for 50 ms. The older ones are visited
after a million allocations."""


class Collector:
    """Collects from `start` to `close`."""

    def __init__(
        self,
        ended: Callable[[], int],
        live: Callable[[], int],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`ended` returns how many sessions have ended so far, `live` how many are live; `failed` is called with an
        exception of either."""
        self._ended = ended
        self._live = live
        self._swept = 0
        self._seen = (0, 0)
        self._thresholds = gc.get_threshold()
        self._tasks = Tasks(failed)

    def start(self) -> None:
        """Exclude the objects made at start-up from collections, since they live as long as the process."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)
        _ = self._tasks.repeat(self._sweep_for_ever, "collector")

    async def close(self) -> None:
        """Restore Python's own settings. May be called more than once."""
        if self._tasks:
            await self._tasks.end()
            gc.set_threshold(*self._thresholds)
            gc.unfreeze()

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep()

    def sweep(self) -> bool:
        """Collect if enough sessions have ended since the last time, and return the memory to the system."""
        ended, live = self._ended(), self._live()
        calm, self._seen = (ended, live) == self._seen, (ended, live)
        left = ended - self._swept
        if left < max(MIN_ENDED, live * LIVE_SHARE) or not (calm or left >= max(MAX_ENDED, live)):
            return False
        self._swept = ended
        gc.collect()
        _trim()
        return True


def _trim() -> None:
    """Return free pages to the system. glibc keeps them, so that a process after a busy hour would look like a leak."""
    with suppress(OSError, AttributeError):  # Other C libraries do not have this function.
        ctypes.CDLL(None).malloc_trim(0)

"""When garbage is collected, and how long that may block the event loop.

Reference counting frees almost everything, an ended session and its call included. Cycles remain where something failed. Python
would collect them after a number of allocations: possibly in the middle of an answer, and almost never for sessions that lived
long. So full collections run after a number of sessions have ended, when none is being opened or closed. The cost is shared among
these sessions, and their garbage stays bounded.

Python's collections of the youngest objects would visit every object of a new session, and find nothing: 0.2 ms for a session,
50 ms at once while hundreds are opened. So what is young is set aside twice a second (`gc.freeze`), which takes no time,
and full collections look at it again.
"""

import asyncio
import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from gateway.relay.tasks import Tasks

ASIDE_SECONDS: Final = 0.5
"""How often young objects are set aside. A rush of set-ups makes fewer than `THRESHOLDS` in that time."""

SWEEP_SECONDS: Final = 5.0
"""Interval between checks whether enough sessions have ended."""

MIN_ENDED: Final = 256
LIVE_SHARE: Final = 1 / 2
"""A full collection visits what was made at start-up, 50 ms, and every session, 0.1 ms each. It runs after one session has
ended for every two live ones, so an end costs 0.4 ms."""

MAX_ENDED: Final = 2048
"""After so many ends, and one for each live session, a collection does not wait for a calm moment any more."""

MAX_GROWTH: Final = 1_000_000
"""A full collection also runs once there are this many more objects than after the last one."""

THRESHOLDS: Final = (50_000, 20, 100)
"""Python's defaults, (700, 10, 10), cause thousands of collections a minute of events that reference counting soon frees."""


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
        self._grown = 0
        self._thresholds = gc.get_threshold()
        self._tasks = Tasks(failed)

    def start(self) -> None:
        """Exclude the objects made at start-up from collections, since they live as long as the process."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)
        _ = self._tasks.repeat(self._look_for_ever, "collector")

    async def close(self) -> None:
        """Restore Python's own settings. May be called more than once."""
        if self._tasks:
            await self._tasks.end()
            gc.set_threshold(*self._thresholds)
            gc.unfreeze()

    async def _look_for_ever(self) -> None:
        while True:
            for _ in range(round(SWEEP_SECONDS / ASIDE_SECONDS)):
                await asyncio.sleep(ASIDE_SECONDS)
                self.set_aside()
            self.sweep()

    def set_aside(self) -> None:
        """Exclude the objects made so far from Python's own collections."""
        # Allocations less deallocations, of older objects as well, since this was done last.
        self._grown += gc.get_count()[0]
        gc.freeze()

    def sweep(self) -> bool:
        """Collect if enough sessions have ended since the last time, and return the memory to the system."""
        ended, live = self._ended(), self._live()
        calm, self._seen = (ended, live) == self._seen, (ended, live)
        left = ended - self._swept
        due = left >= max(MIN_ENDED, live * LIVE_SHARE) or self._grown >= MAX_GROWTH
        if not due or not (calm or left >= max(MAX_ENDED, live) or self._grown >= 2 * MAX_GROWTH):
            return False
        self._swept, self._grown = ended, 0
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        _trim()
        return True


def _trim() -> None:
    """Return free pages to the system. glibc keeps them, so that a process after a busy hour would look like a leak."""
    with suppress(OSError, AttributeError):  # Other C libraries do not have this function.
        ctypes.CDLL(None).malloc_trim(0)

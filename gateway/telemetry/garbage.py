"""When garbage is collected, and how long that may hold the loop.

Almost everything is freed by reference counts. What is left are cycles: a closed session and its peer connection hold each
other, about 150 objects and the session's log. Python would look for them after so many allocations, whenever that is:
in the middle of an answer, and for a session that lived long almost never. Here full collections are tied to what makes
garbage, the end of sessions, so that their cost is shared among many of them and their garbage stays bounded.
"""

import asyncio
import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Final

SWEEP_SECONDS: Final = 5.0
"""Between two looks whether enough sessions have ended."""

MIN_ENDED: Final = 64
LIVE_SHARE: Final = 1 / 8
"""A full collection looks at every session that lives, 0.1 ms for each. With one for every eighth of them that has ended,
an end costs 0.8 ms, and what is not yet collected is at most an eighth of what lives."""

THRESHOLDS: Final = (50_000, 20, 100)
"""Python's own are (700, 10, 10), which is thousands of looks a minute at what streams and will soon be free by itself."""


class Collector:
    """Collects from `start` to `close`. `ended` gives how many sessions have ended so far, `live` how many live."""

    def __init__(self, ended: Callable[[], int], live: Callable[[], int]) -> None:
        self._ended = ended
        self._live = live
        self._swept = 0
        self._thresholds = gc.get_threshold()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take what start-up made out of sight: it lives as long as the process."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)
        self._task = asyncio.create_task(self._sweep_for_ever(), name="collector")

    async def close(self) -> None:
        """Leave collecting to Python again. Harmless when repeated."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
            gc.set_threshold(*self._thresholds)
            gc.unfreeze()

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep()

    def sweep(self) -> bool:
        """Collect if enough sessions have ended since the last time, and give the memory back to the system."""
        ended = self._ended()
        if ended - self._swept < max(MIN_ENDED, self._live() * LIVE_SHARE):
            return False
        self._swept = ended
        gc.collect()
        _trim()
        return True


def _trim() -> None:
    """Give free pages back: glibc keeps them, and after a busy hour a quiet process would look like a leak."""
    with suppress(OSError, AttributeError):  # Other C libraries have no such call.
        ctypes.CDLL(None).malloc_trim(0)

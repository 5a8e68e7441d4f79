"""How late the event loop runs, and how long garbage collections block it.

Both are the first things to check when everything becomes slow at once.
"""

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Final

from gateway.relay.tasks import Tasks

LAG_SECONDS: Final = 0.2
"""Interval between measurements of the lag: 5 wake-ups a second cost 0.02 % of a core."""


class Probes:
    """Watches the process from `start` to `close`."""

    def __init__(
        self,
        lagged: Callable[[float], None],
        paused: Callable[[float], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`failed` is called with an exception of `lagged`."""
        self._lagged = lagged
        self._paused = paused
        self._tasks = Tasks(failed)
        self._collecting_since = 0.0

    def start(self) -> None:
        _ = self._tasks.repeat(self._watch_loop, "loop-lag")
        gc.callbacks.append(self._on_gc)

    async def close(self) -> None:
        """Stop watching. May be called more than once."""
        if self._on_gc in gc.callbacks:
            gc.callbacks.remove(self._on_gc)
        await self._tasks.end()

    async def _watch_loop(self) -> None:
        while True:
            # Not the loop's own clock: uvloop's does not advance during a callback, and has a resolution of one millisecond.
            due = time.monotonic() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._lagged(max(0.0, time.monotonic() - due))

    def _on_gc(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting_since = time.perf_counter()
        else:
            self._paused(time.perf_counter() - self._collecting_since)

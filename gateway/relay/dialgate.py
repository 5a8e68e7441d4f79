"""How many lost calls are replaced at the same time.

An outage takes the calls of all sessions. If all dialled at once, each set-up would get a small share of the processor, and
on a busy machine none would be done within its time: every session would dial again and none would get a call. So a few
dial at a time. A set-up that waits for the network, not for the processor, gives its place up after `HOLD_SECONDS`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

DIALS_AT_ONCE: Final = 8
"""A set-up takes about 15 ms of CPU here and waits for the far end in between."""

HOLD_SECONDS: Final = 2.0
"""On a good path a set-up takes less than 0.5 s."""


class DialGate:
    """The places of one process."""

    def __init__(self, most: int = DIALS_AT_ONCE) -> None:
        self._places = asyncio.Semaphore(most)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it until the end of the block, at most for `HOLD_SECONDS`."""
        await self._places.acquire()
        held = True

        def leave() -> None:
            nonlocal held
            if held:
                held = False
                self._places.release()

        timer = asyncio.get_running_loop().call_later(HOLD_SECONDS, leave)
        try:
            yield
        finally:
            timer.cancel()
            leave()

"""The pace at which tokens are sent.

Due times are counted from the start of a response. After a late wake-up the next token is sent earlier, so the mean pace is
kept.
"""

import asyncio

from gateway.emulator.faults import Faults


class Pacer:
    """The pace of one response, `rate` tokens a second (0 = no pace), changed by the faults of the pace."""

    __slots__ = ("_burst", "_due", "_left", "_rate")

    def __init__(self, rate: float, faults: Faults) -> None:
        self._rate = rate if faults.tokens_per_second is None else faults.tokens_per_second
        self._burst = faults.burst
        self._left = 0
        self._due = asyncio.get_running_loop().time() + faults.first_delta_seconds

    async def next(self) -> None:
        """Wait until the next token is due."""
        if self._left > 0:
            self._left -= 1
            return
        self._left = self._burst - 1
        if self._rate > 0:
            self._due += self._burst / self._rate
        wait = self._due - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)

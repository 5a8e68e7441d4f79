"""The pace at which tokens are sent.

Due times are counted from the start of a response. After a late wake-up the next token is sent earlier, so the mean pace is
kept.
"""

import asyncio


class Pacer:
    """The pace of one response: `rate` tokens a second (0 = no pace) in groups of `burst`, after `first` seconds."""

    __slots__ = ("_burst", "_due", "_left", "_rate")

    def __init__(self, *, rate: float, burst: int, first: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = 0
        self._due = asyncio.get_running_loop().time() + first

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

"""A limit on log lines that somebody else can cause in any number: one line a second, and how many it stands for."""

import time
from collections.abc import Callable

LINE_SECONDS = 1.0
"""A line costs 0.1 to 1 ms of the loop, and a peer can send ten thousand frames a second."""


class LineLimit:
    """Decide which occurrences get a line. One object for each kind of line."""

    def __init__(self, seconds: float = LINE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._next = 0.0
        self._left_out = 0

    def admit(self) -> int | None:
        """Note an occurrence. Return None if it gets no line, else how many have got none since the last line."""
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return None
        self._next = now + self._seconds
        left_out, self._left_out = self._left_out, 0
        return left_out

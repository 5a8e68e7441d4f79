"""A rate limit for log lines that a peer can cause: one line a second, with the number of lines left out."""

import time
from collections.abc import Callable

LINE_SECONDS = 1.0
"""A line takes 0.1 to 1 ms of the event loop, and a peer can send ten thousand frames a second."""


class LineLimit:
    """Decide which occurrences are logged. Use one object for each kind of line."""

    def __init__(self, seconds: float = LINE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._next = 0.0
        self._left_out = 0

    def admit(self) -> int | None:
        """Count an occurrence. Return None if it is not to be logged, else how many were left out since the last line."""
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return None
        self._next = now + self._seconds
        left_out, self._left_out = self._left_out, 0
        return left_out

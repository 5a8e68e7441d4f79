"""Whether the event loop is overloaded, from how late it runs. No I/O, no clock.

A single delay, such as a large garbage collection or a burst, is not an overload. A second of continuous delay is: every
conversation stutters then, and another session would add to it.
"""

from typing import Final

LASTING_SECONDS: Final = 1.0
"""Shorter than a client's time-out, longer than any single pause that was measured."""

RELIEF: Final = 0.5
"""Share of the limit below which the overload ends. Hysteresis: at the limit itself it would flap."""


class Strain:
    """Judges the loop's lag against a limit in seconds; with limit 0 it is never high."""

    __slots__ = ("_limit", "_since", "high")

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._since: float | None = None
        self.high = False
        """The loop has been late long enough to refuse new sessions."""

    def lagged(self, seconds: float, now: float) -> None:
        """Record one measured delay of the loop."""
        if not self._limit:
            return
        if seconds <= self._limit * (RELIEF if self.high else 1):
            self._since, self.high = None, False
        elif self._since is None:
            self._since = now
        elif now - self._since >= LASTING_SECONDS:
            self.high = True

"""Whether the event loop is overloaded, from how late it runs. No I/O, no clock.

One late moment is no overload: a large garbage collection, a burst. A second of nothing but late moments is, since then
every conversation stutters, and another one would only add to it.
"""

from typing import Final

LASTING_SECONDS: Final = 1.0
"""Shorter than a client's patience, longer than any single pause that was measured."""

RELIEF: Final = 0.5
"""Share of the limit below which the strain is over: at the limit itself it would come and go with every look."""


class Strain:
    """Judges the loop's lag against a limit in seconds; with limit 0 it is never high."""

    __slots__ = ("_limit", "_since", "high")

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._since: float | None = None
        self.high = False
        """The loop has been late for so long that new sessions must wait."""

    def lagged(self, seconds: float, now: float) -> None:
        """Take note of one look at the loop: it was so late."""
        if not self._limit:
            return
        if seconds <= self._limit * (RELIEF if self.high else 1):
            self._since, self.high = None, False
        elif self._since is None:
            self._since = now
        elif now - self._since >= LASTING_SECONDS:
            self.high = True

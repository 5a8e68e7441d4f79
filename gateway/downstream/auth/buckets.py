"""Token buckets: a rate per second, with a burst. Time is an argument."""

from dataclasses import dataclass
from typing import Protocol


class SharedRates(Protocol):
    """The rate limits of all nodes together."""

    async def take(self, principal: str, what: str, amount: float, rate: float, burst: float) -> float:
        """Take an amount from a bucket of that rate per second and burst. Return 0, or the seconds until it may be
        taken. Does not suspend if the node has that much in stock."""


@dataclass(slots=True)
class Bucket:
    """Fills at `rate` per second up to `burst`.

    An amount larger than `burst` is taken when the bucket is full and leaves a debt, so that no amount is always refused.
    """

    rate: float
    burst: float
    level: float
    at: float
    """When `level` was last updated, in monotonic seconds."""

    @classmethod
    def full(cls, rate: float, burst: float, now: float) -> "Bucket":
        return cls(rate, burst, burst, now)

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` may be taken, 0 if it may be taken now."""
        self._fill(now)
        return max(0.0, min(amount, self.burst) - self.level) / self.rate

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, after `wait` returned 0."""
        self._fill(now)
        self.level -= amount

    def _fill(self, now: float) -> None:
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now

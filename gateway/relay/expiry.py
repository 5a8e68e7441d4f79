"""When a call ends by the service's rule, and when it is to be replaced before that. No I/O, no clock.

The service tells a call's end as a Unix time, and this machine's clock may be wrong. So the end is turned into a duration
when it is told, and counted on the monotonic clock. An end that lies in the past, or further away than any call lives, is
ignored; the call then ends when it ends, as a loss.
"""

from dataclasses import dataclass
from typing import Final

LONGEST_LIFE_SECONDS: Final = 24 * 3600.0

MIN_DISTANCE_SECONDS: Final = 3.0
"""Between two calls of a session that are replaced by plan, whatever the service says."""

_LONGEST_LEAD: Final = 0.25
"""Share of a call's life: calls that are short by configuration are not replaced as soon as they begin."""
_LATEST_SHARE: Final = 0.25
"""Share of the lead that is kept for a replacement in the middle of a response."""


@dataclass(frozen=True, slots=True)
class Expiry:
    """The end of one call, in monotonic seconds."""

    at: float
    lead: float
    """Seconds before the end from which on the call is replaced in the next pause."""
    latest: float
    """Seconds before the end at which it is replaced even in the middle of a response."""

    def left(self, now: float) -> float:
        """Return the seconds left."""
        return self.at - now

    def due(self, now: float) -> bool:
        """Whether it is time to replace the call."""
        return self.left(now) <= self.lead

    def late(self, now: float) -> bool:
        """Whether there is no time left to wait for a pause."""
        return self.left(now) <= self.latest


def expiry(expires_at: int, unix: float, now: float, lead: float, latest: float) -> Expiry | None:
    """Return when a call ends that was told to end at `expires_at`; None where that makes no sense."""
    life = expires_at - unix
    if not 0 < life <= LONGEST_LIFE_SECONDS:
        return None
    lead = min(lead, life * _LONGEST_LEAD)
    return Expiry(now + life, lead, min(latest, lead * _LATEST_SHARE))

"""When a call ends by the service's rule, and when it is to be replaced before that. No I/O, no clock.

The service reports a call's end as a Unix time, and this machine's clock may be wrong. So the end is converted to a
duration at once and measured on the monotonic clock. An end in the past, or later than any call can last, is ignored;
the end of the call is then handled as a loss.
"""

from dataclasses import dataclass
from typing import Final

LONGEST_LIFE_SECONDS: Final = 24 * 3600.0

MIN_DISTANCE_SECONDS: Final = 3.0
"""Minimum seconds between two planned replacements, whatever end the service reports."""

_LONGEST_LEAD: Final = 0.25
"""Maximum lead as a share of a call's life, so that short calls are not replaced as soon as they begin."""
_LATEST_SHARE: Final = 0.25
"""Share of the lead that is reserved for a replacement in the middle of a response."""


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
        """Return whether it is time to replace the call."""
        return self.left(now) <= self.lead

    def late(self, now: float) -> bool:
        """Return whether there is no time left to wait for a pause."""
        return self.left(now) <= self.latest


def expiry(expires_at: int, unix: float, now: float, lead: float, latest: float) -> Expiry | None:
    """Return the end of a call whose reported end is `expires_at`; None if that is implausible."""
    life = expires_at - unix
    if not 0 < life <= LONGEST_LIFE_SECONDS:
        return None
    lead = min(lead, life * _LONGEST_LEAD)
    return Expiry(now + life, lead, min(latest, lead * _LATEST_SHARE))

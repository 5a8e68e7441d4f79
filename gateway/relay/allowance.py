"""What each caller has spent of its tokens today. No I/O, no clock.

Days are UTC's. The counts are this process's own and begin anew with it: a limit for a bill, not a ledger.
"""

from typing import Final

from gateway.errors import OverloadError
from gateway.relay.ports import Principal

_DAY_SECONDS: Final = 86_400


class Allowance:
    """Tokens by principal. Bounded by the configured names."""

    def __init__(self) -> None:
        self._day = 0
        self._spent: dict[str, int] = {}

    def spend(self, principal: str, tokens: int, unix: float) -> None:
        """Count tokens that a response has cost."""
        self._turn_over(unix)
        self._spent[principal] = self._spent.get(principal, 0) + tokens

    def check(self, principal: Principal, unix: float) -> None:
        """Raise `rate-limited`, with the seconds to midnight UTC, once today's tokens are spent."""
        self._turn_over(unix)
        limit = principal.tokens_per_day
        if limit is not None and self._spent.get(principal.name, 0) >= limit:
            left = _DAY_SECONDS - unix % _DAY_SECONDS
            detail = f"This key's {limit} tokens of today are spent; the day ends at midnight UTC."
            raise OverloadError("rate-limited", detail, retry_after=left, members={"limit": limit})

    def _turn_over(self, unix: float) -> None:
        day = int(unix // _DAY_SECONDS)
        if day != self._day:
            self._day = day
            self._spent.clear()

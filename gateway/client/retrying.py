"""When to retry, and how long to wait before."""

import random
from collections.abc import Iterator
from typing import Final

from gateway.client.errors import ProblemError

FIRST_BACKOFF_SECONDS: Final = 0.25
LONGEST_BACKOFF_SECONDS: Final = 15.0
TRIES: Final = 5
"""Attempts of a repeatable request. With back-off they take about 8 s, enough for a gateway to restart."""

LONGEST_WAIT_SECONDS: Final = 60.0
"""The longest `retry_after` that is waited for. A key whose tokens of a day are used up is told to wait for hours."""


def passing(error: ProblemError) -> bool:
    """Return whether a retry may succeed soon. If the gateway or key has no free session, one must be closed first."""
    return (
        error.retryable
        and error.code not in ("session-limit", "capacity")
        and (error.retry_after or 0) <= LONGEST_WAIT_SECONDS
    )


def waits() -> Iterator[float | None]:
    """Yield the seconds to wait after each attempt, None after the last."""
    for failures in range(1, TRIES):
        yield backoff(failures)
    yield None


def backoff(failures: int) -> float:
    """Return a delay that doubles with each failure, with jitter, so that clients do not all return at once."""
    if failures == 0:
        return 0.0
    longest = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0**failures)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not secrecy

"""When to try again, and how long to wait before it."""

import random
from collections.abc import Iterator
from typing import Final

from gateway.client.errors import ProblemError

FIRST_BACKOFF_SECONDS: Final = 0.25
LONGEST_BACKOFF_SECONDS: Final = 15.0
TRIES: Final = 5
"""Of a request that may be repeated. With back-off about 8 s: a gateway that restarts is back by then."""


def passing(error: ProblemError) -> bool:
    """Tell whether waiting alone may help. A full gateway or key needs somebody to end a session first."""
    return error.retryable and error.code not in ("session-limit", "capacity")


def waits() -> Iterator[float | None]:
    """Yield the seconds to wait after each try, None after the last."""
    for failures in range(1, TRIES):
        yield backoff(failures)
    yield None


def backoff(failures: int) -> float:
    """Double with each failure, with jitter, so that the clients of a gateway that restarts do not return all at once."""
    if failures == 0:
        return 0.0
    longest = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0**failures)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not secrecy

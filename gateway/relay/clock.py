"""Time and randomness as the relay is given them."""

import secrets
import string
import time
from collections.abc import Callable
from dataclasses import dataclass

_ALPHABET = string.ascii_letters + string.digits
_LOWER = string.ascii_lowercase + string.digits


def _token(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _epoch() -> str:
    return "".join(secrets.choice(_LOWER) for _ in range(4))


@dataclass(frozen=True, slots=True)
class Clock:
    """Clocks and random sources; tests pass their own."""

    monotonic: Callable[[], float] = time.monotonic
    """Monotonic seconds, for deadlines and durations."""
    unix: Callable[[], float] = time.time
    """Unix seconds, for what clients are told."""
    token: Callable[[int], str] = _token
    """Unguessable letters and digits."""
    epoch: Callable[[], str] = _epoch
    """A log's epoch: four characters of [0-9a-z]."""

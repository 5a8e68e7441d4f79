"""Time and randomness as the relay is given them."""

import os
import string
import time
from collections.abc import Callable
from dataclasses import dataclass

_ALPHABET = string.ascii_letters + string.digits
_LOWER = string.ascii_lowercase + string.digits


_SPARE_BYTES = 8
"""Random bytes more than needed, so that no character is more likely than another by more than 2**-64."""


def random_word(length: int, alphabet: str = _ALPHABET) -> str:
    """Return unguessable characters of an alphabet of up to 256: letters and digits by default."""
    # One system call, where `secrets.choice` makes one for each character: 25 of them took 50 µs.
    number, word = int.from_bytes(os.urandom(length + _SPARE_BYTES)), []
    for _ in range(length):
        number, place = divmod(number, len(alphabet))
        word.append(alphabet[place])
    return "".join(word)


def _epoch() -> str:
    return random_word(4, _LOWER)


@dataclass(frozen=True, slots=True)
class Clock:
    """Clocks and random sources; tests pass their own."""

    monotonic: Callable[[], float] = time.monotonic
    """Monotonic seconds, for deadlines and durations."""
    unix: Callable[[], float] = time.time
    """Unix seconds, for what clients are told."""
    token: Callable[[int], str] = random_word
    """Unguessable letters and digits."""
    epoch: Callable[[], str] = _epoch
    """A log's epoch: four characters of [0-9a-z]."""

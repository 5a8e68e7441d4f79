"""Answers stored under the Idempotency-Keys of their requests, so that a retry is not a second action. No I/O.

A table belongs to a session, or to a principal for requests that open sessions. It is bounded in number, bytes and age, and
charged to the memory budget. At a bound the oldest finished answer is forgotten, and with it the promise for that key.
Running requests are never forgotten.
"""

from collections import OrderedDict
from typing import Final

from gateway.errors import CallerError, OverloadError
from gateway.relay.memory import Holding

MAX_KEYS: Final = 1024
MAX_BYTES: Final = 4 * 1024 * 1024
MAX_AGE_SECONDS: Final = 24 * 3600.0
"""Longer than any client's retries; clients are told 24 hours."""

SLOT_BYTES: Final = 512
"""Bytes counted for a key besides its answer."""


class Slot:
    """One key's entry: the request's fingerprint, and its answer once there is one."""

    __slots__ = ("answer", "at", "fingerprint", "running", "size")

    def __init__(self, fingerprint: bytes, at: float) -> None:
        self.fingerprint = fingerprint
        self.at = at
        """When the request came, in monotonic seconds."""
        self.size = SLOT_BYTES
        self.answer: object | None = None
        """What the claimer stored: whatever it needs to answer again."""
        self.running: object | None = None
        """What a repeated request may attach to while there is no answer, such as a turn."""


class IdempotencyKeys:
    """A table of keys (draft-ietf-httpapi-idempotency-key-header)."""

    def __init__(
        self,
        holding: Holding | None = None,
        *,
        max_keys: int = MAX_KEYS,
        max_bytes: int = MAX_BYTES,
        max_age: float = MAX_AGE_SECONDS,
    ) -> None:
        """`holding` is where the table's bytes are charged; the table releases it when it is closed."""
        self._holding = holding
        self._max_keys = max_keys
        self._max_bytes = max_bytes
        self._max_age = max_age
        # In the order in which the requests came.
        self._slots: OrderedDict[str, Slot] = OrderedDict()
        self.size = 0
        """Bytes held."""

    def claim(self, key: str, fingerprint: bytes, now: float) -> tuple[Slot, bool]:
        """Return the key's slot and whether it is new, in which case the caller must `keep` or `release` it.

        Raises `idempotency-key-reused` for another request's key, `capacity` where every key kept is still running or the
        memory budget has no room for one more.
        """
        self._forget_old(now)
        slot = self._slots.get(key)
        if slot is None:
            self._make_room(keys=1)
            if self._holding is not None:
                self._holding.take(SLOT_BYTES)
            slot = self._slots[key] = Slot(fingerprint, now)
            self.size += SLOT_BYTES
            return slot, True
        if slot.fingerprint != fingerprint:
            raise CallerError(
                "idempotency-key-reused",
                "This Idempotency-Key was used with another path or body; use a new one.",
            )
        return slot, False

    def attach(self, key: str, running: object) -> None:
        """Note what a repeat of a running request may attach to."""
        self._slots[key].running = running

    def keep(self, key: str, answer: object, size: int) -> None:
        """Store the answer, which takes `size` bytes, for repeats of the request."""
        slot = self._slots[key]
        slot.answer, slot.running = answer, None
        slot.size += size
        self._grow(size)
        self._make_room()

    def release(self, key: str) -> None:
        """Forget the key: the request had no effect, so a repeat is a first try."""
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._grow(-slot.size)

    def close(self) -> None:
        """Forget everything and release the holding. Harmless when repeated."""
        self._slots.clear()
        self.size = 0
        if self._holding is not None:
            self._holding.release()

    def _grow(self, size: int) -> None:
        self.size += size
        if self._holding is not None:
            self._holding.grow(size)

    def _forget_old(self, now: float) -> None:
        oldest = next(iter(self._slots.values()), None)
        if oldest is None or now - oldest.at < self._max_age:
            return
        for key, slot in list(self._slots.items()):
            if now - slot.at >= self._max_age and slot.answer is not None:
                self.release(key)

    def _make_room(self, keys: int = 0) -> None:
        """Forget the oldest answers until the bounds hold with `keys` more. Raises `capacity` where that many run."""
        while len(self._slots) + keys > self._max_keys or self.size > self._max_bytes:
            finished = (key for key, slot in self._slots.items() if slot.answer is not None)
            oldest = next(finished, None)
            if oldest is not None:
                self.release(oldest)
            elif len(self._slots) + keys > self._max_keys:
                raise OverloadError(
                    "capacity", "Too many requests with an Idempotency-Key are running.", retry_after=1
                )
            else:
                return

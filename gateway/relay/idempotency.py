"""Answers kept under the keys of the requests that they answered, so that a retry is no second action. No I/O.

Bounded in number: at the bound the oldest finished answer is forgotten, and with it the promise for that key. Running
requests are never forgotten.
"""

from collections import OrderedDict
from typing import Final

from gateway.errors import CallerError, OverloadError

MAX_KEYS: Final = 1024
"""Per session, and per caller for creates: at 1 KiB an answer this is a megabyte."""


class Slot:
    """One key's place: the request's fingerprint, and its answer once there is one."""

    __slots__ = ("answer", "fingerprint", "running")

    def __init__(self, fingerprint: bytes) -> None:
        self.fingerprint = fingerprint
        self.answer: object | None = None
        """What the claimer stored: whatever it needs to answer again."""
        self.running: object | None = None
        """What a repeat may attach to while there is no answer, such as a turn."""


class IdempotencyKeys:
    """A table of keys (draft-ietf-httpapi-idempotency-key-header)."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._slots: OrderedDict[str, Slot] = OrderedDict()

    def claim(self, key: str, fingerprint: bytes) -> tuple[Slot, bool]:
        """Give the key's slot and whether it is new, in which case the caller must `keep` or `release` it.

        Raises `idempotency-key-reused` for another request's key, `capacity` where every key kept is still running.
        """
        slot = self._slots.get(key)
        if slot is None:
            self._make_room()
            slot = self._slots[key] = Slot(fingerprint)
            return slot, True
        if slot.fingerprint != fingerprint:
            raise CallerError(
                "idempotency-key-reused",
                "This Idempotency-Key was used with another path or body; use a new one.",
            )
        return slot, False

    def keep(self, key: str, answer: object) -> None:
        """Store the answer for repeats of the request."""
        slot = self._slots[key]
        slot.answer, slot.running = answer, None

    def release(self, key: str) -> None:
        """Forget the key: the request had no effect, so a repeat is a first try."""
        self._slots.pop(key, None)

    def _make_room(self) -> None:
        if len(self._slots) < self._max_keys:
            return
        for key, slot in self._slots.items():
            if slot.answer is not None:
                del self._slots[key]
                return
        raise OverloadError(
            "capacity", "Too many requests with an Idempotency-Key are running.", retry_after=1
        )

"""Answers kept under the keys of the requests that they answered, so that a retry is not a second action. No I/O, no clock.

A session keeps what it answered as values of the relay: the receipt of a batch, or a turn, to which a repeat attaches. A
key stands for an answer from the moment the request takes effect. Bounded in number, bytes and age; at a bound the oldest
finished answer is forgotten, and with it the promise for that key. Running turns are never forgotten.

Requests that another node passed on, and may pass on again, are told apart by their request ID in the same way.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.errors import CallerError
from gateway.relay.events.eventlog import EventId
from gateway.relay.openai_errors import RATE_LIMITS
from gateway.relay.requests import Promise, Receipt
from gateway.relay.state.turn import Turn

Json = Mapping[str, object]
Answer = Receipt | Turn

MAX_KEYS: Final = 1024
MAX_BYTES: Final = 1024 * 1024
MAX_AGE_SECONDS: Final = 24 * 3600
MAX_REQUEST_IDS: Final = 256

_OVERHEAD: Final = 512
"""Bytes that an answer takes beside its texts, a turn's object included."""


@dataclass(slots=True)
class _Slot:
    fingerprint: str
    at: float
    answer: Answer
    size: int
    """Bytes that it is counted with, its key included; a turn's as of the last look."""


class Answers:
    """One session's table of keys (draft-ietf-httpapi-idempotency-key-header)."""

    def __init__(self) -> None:
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._requests: OrderedDict[str, Answer] = OrderedDict()
        # Those of turns that are not finished, whose size changes. All others are counted once.
        self._growing: dict[str, _Slot] = {}
        self.size = 0
        """Bytes kept, as of the last `expire`, which is about once a second, and what came since."""

    @property
    def keyed(self) -> bool:
        """Answers are stored under keys, so that a client can come back for them."""
        return bool(self._slots)

    def find(self, promise: Promise) -> Answer | None:
        """Return the answer to a repeated request, None for a first try. Raises `idempotency-key-reused`.

        A turn that failed for a temporary reason is not a stored answer: the repeat runs it again."""
        if promise.request_id is not None and promise.request_id in self._requests:
            return _repeated(self._requests[promise.request_id])
        slot = self._slots.get(promise.key) if promise.key is not None else None
        if slot is None:
            return None
        if slot.fingerprint != promise.fingerprint:
            raise CallerError(
                "idempotency-key-reused",
                "This Idempotency-Key was used with another path or body; use a new one.",
            )
        if isinstance(slot.answer, Turn):
            return None if worth_another_try(slot.answer) else slot.answer
        return _repeated(slot.answer)

    def keep(self, promise: Promise, answer: Answer, at: float) -> None:
        """Store an answer, given at `at` in Unix seconds."""
        if promise.key is not None:
            self._drop(promise.key)
            self._add(promise.key, _Slot(promise.fingerprint or "", at, answer, 0))
            if len(self._slots) > MAX_KEYS or self.size > MAX_BYTES:
                self._make_room()
        if promise.request_id is not None:
            self._requests[promise.request_id] = answer
            if len(self._requests) > MAX_REQUEST_IDS:
                self._requests.popitem(last=False)

    def expire(self, unix: float) -> None:
        """Drop answers that are too old or exceed the bounds."""
        old = list[str]()
        for key, slot in self._slots.items():  # the oldest first
            if unix - slot.at <= MAX_AGE_SECONDS:
                break
            if _finished(slot.answer):
                old.append(key)
        for key in old:
            self._drop(key)
        self._make_room()

    def dump(self, running: Mapping[int, Turn]) -> Json:
        """Return the table as JSON. Turns in `running` are dumped elsewhere, and named by their number here."""

        def row(answer: Answer) -> object:
            if isinstance(answer, Turn):
                return answer.number if answer.number in running else answer.dump()
            return [answer.accepted, answer.first, answer.last, answer.head]

        return {
            "slots": [
                [key, slot.fingerprint, slot.at, row(slot.answer)] for key, slot in self._slots.items()
            ],
            "requests": [[request_id, row(answer)] for request_id, answer in self._requests.items()],
        }

    @classmethod
    def load(cls, dumped: Json, running: Mapping[int, Turn]) -> "Answers":
        """Rebuild a table from `dump`."""
        answers, turns = cls(), dict(running)

        def answer(row: object) -> Answer:
            if isinstance(row, list):
                return Receipt(row[0], row[1], row[2], EventId(*row[3]))
            if isinstance(row, int):
                return turns[row]
            assert isinstance(row, Mapping)  # a turn that is finished
            return turns.setdefault(int(row["number"]), Turn.load(row))

        slots, requests = dumped.get("slots"), dumped.get("requests")
        for key, fingerprint, at, row in slots if isinstance(slots, list) else ():
            answers._add(key, _Slot(fingerprint, at, answer(row), 0))
        for request_id, row in requests if isinstance(requests, list) else ():
            answers._requests[request_id] = answer(row)
        answers._make_room()
        return answers

    def _add(self, key: str, slot: _Slot) -> None:
        self._slots[key] = slot
        if isinstance(slot.answer, Turn):
            self._growing[key] = slot
        self._weigh(key, slot)

    def _weigh(self, key: str, slot: _Slot) -> None:
        """Correct the size of a slot, for the last time when its turn is finished."""
        size = _OVERHEAD + len(key)
        if isinstance(slot.answer, Turn):
            size += slot.answer.size
            if slot.answer.finished:
                del self._growing[key]
        self.size += size - slot.size
        slot.size = size

    def _drop(self, key: str) -> None:
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._growing.pop(key, None)
            self.size -= slot.size

    def _make_room(self) -> None:
        for key, slot in list(self._growing.items()):
            self._weigh(key, slot)
        if len(self._slots) <= MAX_KEYS and self.size <= MAX_BYTES:
            return
        for key, slot in list(self._slots.items()):
            if len(self._slots) <= MAX_KEYS and self.size <= MAX_BYTES:
                return
            if _finished(slot.answer):
                self._drop(key)


def worth_another_try(turn: Turn) -> bool:
    """Return whether a finished turn failed in a way that a repeated request should try again."""
    if turn.failure is not None:
        return turn.failure.retryable
    result = turn.result or {}
    details = result.get("status_details")
    error = details.get("error") if isinstance(details, Mapping) else None
    return isinstance(error, Mapping) and error.get("code") in RATE_LIMITS


def _repeated(answer: Answer) -> Answer:
    return answer if isinstance(answer, Turn) else answer._replace(replayed=True)


def _finished(answer: Answer) -> bool:
    return not isinstance(answer, Turn) or answer.finished

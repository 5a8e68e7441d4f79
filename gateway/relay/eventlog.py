"""One session's log: append-only, bounded, read by cursors. No I/O, no clock.

Every event has an id `epoch-sequence`. Sequences are dense from 1 within an epoch, so a reader that knows the last id
it saw knows exactly what it missed. The epoch changes when another node takes the session over, so an id is never
reused with another meaning. The log keeps the newest events within two bounds, a number of events and a number of
bytes; at a bound the oldest are dropped and whoever still needed them is told so by a `Gap`. The newest event is
always kept, however large.

An event is encoded once, by the `Framing` that the owner passes in, and the log keeps that one buffer for all readers
and all renderings.
"""

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

_WORD = re.compile(r"[0-9a-z-]{1,64}\Z")


class EventId(NamedTuple):
    """A place in a log: after the event of this sequence, 0 for before the first, -1 for a word that is no place."""

    epoch: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.sequence}" if self.sequence >= 0 else self.epoch

    @classmethod
    def parse(cls, text: str) -> "EventId":
        """Read what a client sent back. Raises ValueError for what no log could ever have given out by its characters;
        a well-formed word that is no id of ours becomes a foreign one, which a read answers with a gap."""
        if not _WORD.match(text):
            raise ValueError("an event id has only the characters 0-9, a-z and -")
        epoch, dash, digits = text.rpartition("-")
        if not (dash and digits.isdigit()):
            return cls(text, -1)
        return cls(epoch, int(digits))


class Entry(NamedTuple):
    """One event as the log keeps it. A tuple, because one is made for every event that passes."""

    sequence: int
    type: str
    block: bytes
    """The event as framed, see `Framing`."""
    start: int
    """Where the JSON begins in `block`."""
    turn: int
    """Number of the turn that the event belongs to, 0 for none."""
    at: float
    """When it came, in monotonic seconds."""


Framing = Callable[[str, str | None, str], tuple[bytes, int]]
"""(id, event name or None for the default, JSON text) to (block, where the JSON begins in it)."""


class GapReason(StrEnum):
    """How a cursor came to point at nothing."""

    OVERRUN = "overrun"
    """The log dropped the events that should have followed."""
    FOREIGN = "foreign"
    """The cursor is of another epoch or no id at all."""
    UNKNOWN = "unknown"
    """The cursor is ahead of the log."""


class Gap(NamedTuple):
    """What a reader did not get. `missed` is exact within the epoch, else None."""

    requested: EventId
    oldest: EventId
    missed: int | None
    reason: GapReason


class Page(NamedTuple):
    """What one read gives: the gap before the entries, if any; the entries; the cursor after them."""

    entries: Sequence[Entry]
    cursor: EventId
    gap: Gap | None
    sealed: bool
    """The log is sealed and this page reaches its end."""


class EventLog:
    """The log itself: `append`, `seal`, `trim` for its owner, `read` for everybody."""

    def __init__(self, epoch: str, framing: Framing, max_events: int, max_bytes: int) -> None:
        self._epoch = epoch
        self._framing = framing
        self._max_events = max_events
        self._max_bytes = max_bytes
        # The entries kept are _entries[_first:]. A list with a moving start reads any slice in constant time, which a
        # deque does not; what was dropped is cut off when it is half of the list.
        self._entries: list[Entry | None] = []
        self._first = 0
        self._head = 0
        self.size = 0
        """Bytes kept, as framed."""
        self.sealed = False

    @property
    def spare(self) -> int:
        """Bytes that `trim` could free: all but the newest event's."""
        newest = self._entries[-1] if self._entries else None
        return self.size - len(newest.block) if newest else 0

    def __len__(self) -> int:
        return len(self._entries) - self._first

    @property
    def head(self) -> EventId:
        return EventId(self._epoch, self._head)

    @property
    def oldest(self) -> EventId:
        return EventId(self._epoch, self._head - len(self) + 1)

    def append(self, type: str, text: str, at: float, *, turn: int = 0, name: str | None = None) -> int:
        """Add an event and give how many old ones were dropped for it. `name` is set for the gateway's own events."""
        if self.sealed:
            raise ValueError("the log is sealed")
        sequence = self._head + 1
        block, start = self._framing(f"{self._epoch}-{sequence}", name, text)
        entries = self._entries
        entries.append(Entry(sequence, type, block, start, turn, at))
        self._head = sequence
        self.size += len(block)
        if self.size > self._max_bytes or len(entries) - self._first > self._max_events:
            return self._drop_over_bounds()
        return 0

    def seal(self) -> None:
        """Say that nothing follows."""
        self.sealed = True

    def trim(self, size: int) -> int:
        """Drop the oldest until at least `size` bytes are freed; the newest event stays. Gives how many were dropped."""
        goal = self.size - size
        dropped = 0
        while self.size > goal and len(self) > 1:
            self._drop_oldest()
            dropped += 1
        return dropped

    def read(self, after: EventId, max_events: int, max_bytes: int) -> Page:
        """Give what follows `after`: at least one event if there is any, else up to the two limits."""
        gap = self._gap(after)
        sequence = gap.oldest.sequence - 1 if gap else after.sequence
        begin = len(self._entries) - (self._head - sequence)
        entries: list[Entry] = self._entries[begin : begin + max_events]  # type: ignore[assignment]  # no None from _first on
        if self.size > max_bytes:
            entries = _within(entries, max_bytes)
        cursor = sequence + len(entries)
        return Page(entries, EventId(self._epoch, cursor), gap, self.sealed and cursor == self._head)

    def _gap(self, after: EventId) -> Gap | None:
        oldest = self.oldest
        if after.epoch != self._epoch or after.sequence < 0:
            return Gap(after, oldest, None, GapReason.FOREIGN)
        if after.sequence > self._head:
            return Gap(after, oldest, None, GapReason.UNKNOWN)
        missed = oldest.sequence - 1 - after.sequence
        return Gap(after, oldest, missed, GapReason.OVERRUN) if missed > 0 else None

    def _drop_over_bounds(self) -> int:
        dropped = 0
        while len(self) > 1 and (len(self) > self._max_events or self.size > self._max_bytes):
            self._drop_oldest()
            dropped += 1
        return dropped

    def _drop_oldest(self) -> None:
        entry = self._entries[self._first]
        assert entry is not None  # entries from _first on are kept
        self.size -= len(entry.block)
        self._entries[self._first] = None
        self._first += 1
        if self._first * 2 > len(self._entries):
            del self._entries[: self._first]
            self._first = 0


def _within(entries: list[Entry], max_bytes: int) -> list[Entry]:
    """Cut a page to `max_bytes` of framed bytes, keeping at least one event."""
    size = 0
    for count, entry in enumerate(entries):
        size += len(entry.block)
        if size > max_bytes and count:
            return entries[:count]
    return entries

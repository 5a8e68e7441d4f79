"""One session's event log: append-only, bounded, read by cursors. No I/O, no clock.

Every event has an ID `epoch-sequence`. Sequences are dense, from 1, and go on across epochs. A new epoch begins when
another node takes the session over, so an ID is never reused for another event, and a cursor of a former epoch is still
a position in the log. The log keeps a table of epochs, each with its first sequence; an epoch ends where the next one
begins. A cursor above its epoch's end names an event that did not survive the takeover: its reader gets a gap of
unknown size.

A position has two names where an epoch begins: "after A-57" and "after B-57" are the same place if B begins at 58. What
the log returns is always named after the event before it, A-57, because that event's ID also survives the loss of B.

The log keeps the newest events within two bounds, a number of events and a number of bytes. At a bound it drops the
oldest, and a reader that had not read them gets a `Gap`. The newest event is always kept, however large.

Readers see the events up to `settled`. In one process that is the newest event. Where a journal must have an event before
anybody sees it, the owner calls `settle`.

An event is encoded once, by the `Framing` the owner passes in. The log keeps that one buffer for all readers and all
renderings.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from gateway.relay.events.records import GatewayEvent, ServerEvent

_WORD = re.compile(r"[0-9a-z-]{1,64}\Z")

MAX_EPOCHS: Final = 64
"""Epochs a log remembers. A session is taken over a few times in its life; one that was taken over more often loses its
oldest epoch, whose cursors become foreign."""


class EventId(NamedTuple):
    """A position in a log: after the event of this sequence. 0: before the first event. -1: an ID this gateway never
    issued."""

    epoch: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.sequence}" if self.sequence >= 0 else self.epoch

    @classmethod
    def parse(cls, text: str) -> "EventId":
        """Read an ID that a client sent. Raises ValueError for characters that no ID has. A malformed ID of valid
        characters gets sequence -1, which a read answers with a gap."""
        if not _WORD.match(text):
            raise ValueError("an event ID has only the characters 0-9, a-z and -")
        epoch, dash, digits = text.rpartition("-")
        if not (dash and digits.isdigit()):
            return cls(text, -1)
        return cls(epoch, int(digits))

    @property
    def before(self) -> "EventId":
        """The position just before this event: a read from it begins with the event."""
        return EventId(self.epoch, self.sequence - 1)


class Epoch(NamedTuple):
    """The part of the log that one owner wrote."""

    name: str
    first: int
    """Sequence of its first event, whether or not there is one yet."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One event as the log keeps it. One is made for every event that passes: a third of the time of a named tuple's, and the
    garbage collector does not look at it."""

    sequence: int
    type: str
    block: bytes
    """The event as framed, see `Framing`."""
    start: int
    """Where the JSON begins in `block`."""
    turn: int
    """Number of the turn that the event belongs to, 0 for none."""
    at: float
    """When it came, in monotonic seconds of this process; 0 for an event that was loaded."""


Logged = ServerEvent | GatewayEvent
"""One event as a journal has it, independent of any rendering."""

# Half the time of calling the class, whose generated constructor is a Python function.
_tuple = tuple.__new__

Framing = Callable[[str, str | None, str], tuple[bytes, int]]
"""(id, event name or None for the default, JSON text) to (block, where the JSON begins in it)."""


Unframing = Callable[[bytes, int], str]
"""(block, where the JSON begins in it) to the JSON text: the reverse of `Framing`."""


class GapReason(StrEnum):
    """Why a cursor is not a position in the log."""

    OVERRUN = "overrun"
    """The log dropped events that should have followed."""
    FOREIGN = "foreign"
    """The cursor's epoch is not in the log's table, or the cursor is not an ID."""
    UNKNOWN = "unknown"
    """The cursor is ahead of the log, or above the end of its epoch."""


class Gap(NamedTuple):
    """The events that a reader did not get. `missed` is exact if the cursor is a position in the log, else None."""

    requested: EventId
    oldest: EventId
    missed: int | None
    reason: GapReason


class Page(NamedTuple):
    """The result of one read: the gap before the entries, if any; the entries; the cursor after them."""

    entries: Sequence[Entry]
    """All of one epoch, which is the cursor's."""
    cursor: EventId
    gap: Gap | None
    sealed: bool
    """The log is sealed and this page reaches its end."""
    more: bool = False
    """Events follow that did not fit this page."""


class EventLog:
    """The log itself: `append`, `begin`, `settle`, `seal`, `trim` for its owner, `read` for everybody."""

    def __init__(
        self, epoch: str, framing: Framing, max_events: int, max_bytes: int, *, settles: bool = False
    ) -> None:
        """`settles`: readers see an event only after `settle`; otherwise as soon as it is appended."""
        self._epochs = [Epoch(epoch, 1)]
        self._prefix = f"{epoch}-"
        self._framing = framing
        self._max_events = max_events
        self._max_bytes = max_bytes
        # The entries kept are _entries[_first:]. A list with a moving start reads any slice in constant time, which a
        # deque does not; what was dropped is cut off when it is half of the list.
        self._entries: list[Entry | None] = []
        self._first = 0
        self.appended = 0
        """Sequence of the newest event, whether readers see it yet or not."""
        # None where readers see everything, so that an append does not have to move a second mark.
        self._settled = 0 if settles else None
        self.size = 0
        """Bytes kept, as framed."""
        self._sealed = False

    def __len__(self) -> int:
        return len(self._entries) - self._first

    # --- for readers --------------------------------------------------------------------------------------------------

    @property
    def settled(self) -> int:
        """Sequence of the newest event that readers see."""
        return self.appended if self._settled is None else self._settled

    @property
    def head(self) -> EventId:
        """The newest event that readers see."""
        sequence = self.appended if self._settled is None else self._settled
        return EventId(_epoch_of(self._epochs, sequence), sequence)

    @property
    def oldest(self) -> EventId:
        """The oldest event that readers can see, or the one after `head` if there is none."""
        sequence = min(self.appended - len(self), self.settled) + 1
        return EventId(_epoch_of(self._epochs, sequence), sequence)

    @property
    def sealed(self) -> bool:
        """The log is complete: no event will follow `head`."""
        return self._sealed and self.settled == self.appended

    @property
    def epochs(self) -> Sequence[Epoch]:
        """The table of epochs, oldest first."""
        return tuple(self._epochs)

    def position(self, sequence: int) -> EventId:
        """Return the ID of an event that was appended, or of the position before the first."""
        return EventId(_epoch_of(self._epochs, sequence), sequence)

    def read(self, after: EventId, max_events: int, max_bytes: int) -> Page:
        """Return what follows `after`, of one epoch: at least one event if there is any, else up to the two limits."""
        settled = self.appended if self._settled is None else self._settled
        epoch, first = self._epochs[-1]
        sequence, gap = after.sequence, None
        begin = len(self._entries) - (self.appended - sequence)
        # A reader in the newest epoch that has missed nothing: the usual case, for which the table is not searched.
        usual = after.epoch == epoch and first <= sequence <= settled and begin >= self._first
        if usual:
            end = begin + min(max_events, settled - sequence)
        else:
            gap = self._gap(after, settled)
            if gap is not None:
                sequence = gap.oldest.sequence - 1
                begin = len(self._entries) - (self.appended - sequence)
            end = begin + min(max_events, _last_of_page(self._epochs, sequence, settled) - sequence)
        entries: list[Entry] = self._entries[begin:end]  # type: ignore[assignment]  # no None from _first on
        if self.size > max_bytes:
            entries = _within(entries, max_bytes)
        cursor = sequence + len(entries)
        position = _tuple(EventId, (epoch if usual else _epoch_of(self._epochs, cursor), cursor))
        sealed = self._sealed and cursor == self.appended
        return _tuple(Page, (entries, position, gap, sealed, cursor < settled))

    # --- for the owner ------------------------------------------------------------------------------------------------

    @property
    def spare(self) -> int:
        """Bytes that `trim` could free: all but the newest event's."""
        newest = self._entries[-1] if self._entries else None
        return self.size - len(newest.block) if newest else 0

    def append(self, type: str, text: str, at: float, *, turn: int = 0, name: str | None = None) -> int:
        """Add an event and return how many old ones were dropped for it. `name` is set for the gateway's own events."""
        return self.append_all(((type, text, turn),), at, name)

    def append_all(self, events: Sequence[tuple[str, str, int]], at: float, name: str | None = None) -> int:
        """Add several events, as type, text and turn; as `append`."""
        if self._sealed:
            raise ValueError("the log is sealed")
        sequence, size, prefix = self.appended, self.size, self._prefix
        framing, add = self._framing, self._entries.append
        for type_, text, turn in events:
            sequence += 1
            block, start = framing(f"{prefix}{sequence}", name, text)
            add(Entry(sequence, type_, block, start, turn, at))
            size += len(block)
        self.appended, self.size = sequence, size
        if size > self._max_bytes or len(self._entries) - self._first > self._max_events:
            return self._drop_over_bounds()
        return 0

    def begin(self, epoch: str) -> int:
        """Start a new epoch: the events to come carry its name. Return how many events were dropped because their epoch
        is forgotten. Raises ValueError for a name in the table, whose IDs would mean two events."""
        if self._sealed:
            raise ValueError("the log is sealed")
        if any(epoch == known.name for known in self._epochs):
            raise ValueError("the epoch is in the log already")
        self._epochs.append(Epoch(epoch, self.appended + 1))
        self._prefix = f"{epoch}-"
        return self._forget_epochs()

    def load(self, epochs: Sequence[Epoch], first: int, events: Sequence[Logged]) -> int:
        """Fill a new log with what a journal kept: the table of epochs, and the events from sequence `first` on. All of
        it is settled. Return how many events were dropped because the bounds are smaller here.

        Raises ValueError for a log that is not empty, and for a table that does not fit the events."""
        if self.appended or len(self._epochs) > 1:
            raise ValueError("the log is not empty")
        starts = [epoch.first for epoch in epochs]
        if (
            not starts
            or starts != sorted(starts)
            or not starts[0] <= first
            or starts[-1] > first + len(events)
        ):
            raise ValueError("the table of epochs does not fit the events")
        # Not by `append`: a node that takes a thousand sessions over loads a hundred thousand events.
        framing, entries = self._framing, self._entries
        ends = [*starts[1:], first + len(events)]
        for epoch, end in zip(epochs, ends, strict=True):
            for sequence in range(first + len(entries), end):
                event = events[len(entries)]
                name, turn = (None, event.turn) if isinstance(event, ServerEvent) else (event.type, 0)
                block, start = framing(f"{epoch.name}-{sequence}", name, event.text)
                entries.append(Entry(sequence, event.type, block, start, turn, 0.0))
                self.size += len(block)
        self.appended = first + len(events) - 1
        self._epochs = list(epochs)
        self._prefix = f"{epochs[-1].name}-"
        if self._settled is not None:
            self._settled = self.appended
        return self._drop_over_bounds() + self._forget_epochs()

    def settle(self, sequence: int) -> bool:
        """Let readers see the events up to `sequence`. Return whether that is more than they saw before."""
        if sequence > self.appended:
            raise ValueError("an event that was not appended cannot settle")
        if self._settled is None or sequence <= self._settled:
            return False
        self._settled = sequence
        return True

    def records(self, after: int, unframing: Unframing) -> Iterator[Logged]:
        """Yield the events kept behind a sequence as a journal has them."""
        begin = max(self._first, len(self._entries) - (self.appended - after))
        for entry in self._entries[begin:]:
            assert entry is not None  # entries from _first on are kept
            text = unframing(entry.block, entry.start)
            if entry.type.startswith("gateway."):
                yield GatewayEvent(entry.sequence, entry.type, text)
            else:
                yield ServerEvent(entry.sequence, entry.turn, entry.type, text)

    def seal(self) -> None:
        """Mark the log as complete."""
        self._sealed = True

    def trim(self, size: int) -> int:
        """Drop the oldest until at least `size` bytes are freed; the newest event stays. Return how many were dropped."""
        goal, before = self.size - size, len(self)
        while self.size > goal and len(self) > 1:
            self._drop_oldest()
        return before - len(self)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _gap(self, after: EventId, settled: int) -> Gap | None:
        sequence = after.sequence
        end = _end_of(self._epochs, after.epoch, settled)
        if end is None or sequence < 0:
            return Gap(after, self.oldest, None, GapReason.FOREIGN)
        if sequence > end:
            return Gap(after, self.oldest, None, GapReason.UNKNOWN)
        if sequence >= self.appended - len(self._entries) + self._first:
            return None  # All that follows is kept.
        oldest = self.oldest
        missed = oldest.sequence - 1 - sequence
        return Gap(after, oldest, missed, GapReason.OVERRUN) if missed > 0 else None

    def _forget_epochs(self) -> int:
        """Keep the table within its bound, dropping the events of an epoch that leaves it."""
        del self._epochs[:-MAX_EPOCHS]
        dropped = 0
        while self._entries and self.appended - len(self) + 1 < self._epochs[0].first:
            self._drop_oldest()
            dropped += 1
        return dropped

    def _drop_over_bounds(self) -> int:
        before = kept = len(self)
        while kept > 1 and (kept > self._max_events or self.size > self._max_bytes):
            self._drop_oldest()
            kept -= 1
        return before - kept

    def _drop_oldest(self) -> None:
        entry = self._entries[self._first]
        assert entry is not None  # entries from _first on are kept
        self.size -= len(entry.block)
        self._entries[self._first] = None
        self._first += 1
        if self._first * 2 > len(self._entries):
            del self._entries[: self._first]
            self._first = 0


# The three questions to the table of epochs look at the newest first, which most cursors are in.


def _epoch_of(epochs: Sequence[Epoch], sequence: int) -> str:
    """Return the epoch in which an event stands; the oldest known for anything before it."""
    for name, first in reversed(epochs):
        if first <= sequence:
            return name
    return epochs[0].name


def _end_of(epochs: Sequence[Epoch], epoch: str, settled: int) -> int | None:
    """Return the last sequence of an epoch that readers see, None for an epoch that is not in the table."""
    end = settled
    for name, first in reversed(epochs):
        if name == epoch:
            return end
        end = min(end, first - 1)
    return None


def _last_of_page(epochs: Sequence[Epoch], sequence: int, settled: int) -> int:
    """Return the last sequence that a page after `sequence` may hold: that of its epoch, or the last settled one."""
    if sequence + 1 >= epochs[-1].first:
        return settled
    return min(settled, *(first - 1 for _, first in epochs if first > sequence + 1))


def _within(entries: list[Entry], max_bytes: int) -> list[Entry]:
    """Cut a page to `max_bytes` of framed bytes, keeping at least one event."""
    size = 0
    for count, entry in enumerate(entries):
        size += len(entry.block)
        if size > max_bytes and count:
            return entries[:count]
    return entries

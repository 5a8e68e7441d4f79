"""Which log event the journal had reached at which entry. No I/O.

Needed twice: for Redis, which entries may be trimmed, and to find how far the journal is right after Redis lost its
last writes. Bounded: when it is full every other mark is dropped. Both answers are then more conservative, but never
wrong.
"""

from bisect import bisect_right
from typing import Final

from gateway.cluster.keys import EntryId

MAX_MARKS: Final = 512


class Marks:
    """Pairs of (entry, last log sequence contained up to it), both growing."""

    def __init__(self, max_marks: int = MAX_MARKS) -> None:
        self._max_marks = max_marks
        self._entries: list[EntryId] = []
        self._sequences: list[int] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: EntryId, sequence: int) -> None:
        """Note that the journal up to `entry` holds the log up to `sequence`."""
        self._entries.append(entry)
        self._sequences.append(sequence)
        if len(self._entries) > self._max_marks:
            del self._entries[-2:0:-2]
            del self._sequences[-2:0:-2]

    def reset(self, entry: EntryId, sequence: int) -> None:
        """Reset to one mark."""
        self._entries, self._sequences = [entry], [sequence]

    def sequence_at(self, entry: EntryId) -> int | None:
        """Return a log sequence that the journal up to `entry` certainly holds, or None if unknown."""
        at = bisect_right(self._entries, entry)
        return self._sequences[at - 1] if at else None

    def entry_before(self, sequence: int) -> EntryId | None:
        """Return an entry that holds no log event from `sequence` on, nor does any before it; None if none is known."""
        at = bisect_right(self._sequences, sequence - 1)
        return self._entries[at - 1] if at else None

    def forget_before(self, sequence: int) -> None:
        """Drop the marks of events before `sequence`, except the last one."""
        at = bisect_right(self._sequences, sequence - 1) - 1
        if at > 0:
            del self._entries[:at]
            del self._sequences[:at]

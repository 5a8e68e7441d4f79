"""One journal as a state machine: what to append next, and what an answer means. No I/O.

Entries have ids `<fence>-<number>`. The owner asks for `<fence>-*` and knows which number it must get, so every answer
shows the journal's status:

* the number expected: the records are kept;
* an error "equal or smaller": a node with a higher fence has taken the session over. Nothing was appended or trimmed;
* a lower number: Redis failed over or was restored and has lost the last entries;
* nil (the key is not made by an append): Redis has lost the session.

One append is under way at a time; what is added meanwhile goes with the next. So a slow Redis makes larger appends and
not longer queues, and an append that fails between two that succeed cannot leave a hole.

A claim needs no WAIT of its own: replicas get all writes in one order, so a replica that has the first append under a
claim has the claim as well. If a failover forgets a claim, nothing was acknowledged under it with `wait_replicas`, and
it yields to a claim of another node that has the same fence.

When the connection breaks, the append under way may or may not have been applied. `checked` compares the stream's last
id with the two ids that are possible.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from gateway.cluster.keys import EntryId
from gateway.cluster.marks import Marks

MAX_APPEND_BYTES: Final = 1024 * 1024
"""Of one append: Redis is busy with it for a millisecond or two, and other sessions wait."""


@dataclass(frozen=True, slots=True)
class Item:
    """One record as the journal appends it: its kind, its bytes, and its place in the log (0 for no log event)."""

    kind: bytes
    body: bytes
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Append:
    """One command: the fence, the oldest entry that must stay, and the records."""

    fence: int
    keep_from: EntryId | None
    items: Sequence[Item]


class Outcome(Enum):
    """The journal's status after an answer or a check."""

    KEPT = auto()
    """The records were appended."""
    AGAIN = auto()
    """The append was not applied; send it again."""
    BEHIND = auto()
    """Redis lost entries that it had confirmed, or all of them; write the state again."""
    FENCED = auto()
    """Another node owns the session."""


class Appends:
    """The owner's view of one session's journal."""

    def __init__(self) -> None:
        self.fence = 0
        self.added = self.kept = 0
        """Records so far: added by the session, and known to be in Redis."""
        self.sequence_kept = 0
        """The last log event that Redis has."""
        self.size = 0
        """Bytes added and not yet kept."""
        self.ready = False
        """Appends may be sent: the session exists in Redis and the connection is up."""
        self.fenced = False
        self._claimed = False
        """The fence is that of a claim under which nothing is kept yet."""
        self._number = 0
        self._certain: EntryId | None = None
        self._pending: list[Item] = []
        self._flying: list[Item] = []
        self._marks = Marks()
        self._log_oldest = 0
        self._snapshot_at: EntryId | None = None

    @property
    def last(self) -> EntryId:
        """The last entry known to be in Redis."""
        return EntryId(self.fence, self._number)

    @property
    def idle(self) -> bool:
        """All records are kept."""
        return not (self._pending or self._flying)

    def add(self, item: Item) -> None:
        """Add a record; it is kept once `kept` has reached the present `added`."""
        self.added += 1
        if self.fenced:
            return
        self._pending.append(item)
        self.size += len(item.body)

    def forget_pending(self) -> None:
        """Drop what was not sent yet; the caller must write the whole state again."""
        self._pending.clear()
        self.size = sum(len(item.body) for item in self._flying)

    def begin(self, fence: int, number: int = 0, sequence: int = 0) -> None:
        """The session exists in Redis under this fence, and its journal holds the log up to `sequence`."""
        self.fence, self._number, self._certain = fence, number, None
        self.sequence_kept = max(self.sequence_kept, sequence)
        self._marks.reset(self.last, sequence)
        self.ready = True

    def claimed(self, fence: int, sequence: int) -> None:
        """The session was claimed under this fence, and its journal holds the log up to `sequence`."""
        self.begin(fence, 0, sequence)
        self._claimed = True

    def next(self) -> Append | None:
        """Return the append to send now, if any."""
        if not self.ready or self._flying or not self._pending:
            return None
        size = count = 0
        for item in self._pending:
            size += len(item.body)
            if count and size > MAX_APPEND_BYTES:
                break
            count += 1
        self._flying = self._pending[:count]
        del self._pending[:count]
        return Append(self.fence, self._keep_from(), self._flying)

    def answered(self, entry: EntryId | None) -> Outcome:
        """Process the id that Redis returned for the append under way, None for nil."""
        if entry is None or entry != EntryId(self.fence, self._number + 1):
            self.ready = False
            self._doubt_from(entry)
            return Outcome.BEHIND
        self._settle()
        return Outcome.KEPT

    def refused(self) -> None:
        """Redis refused the append as one of a former owner."""
        self.ready = False
        self.fenced = True
        self._pending.clear()
        self._flying.clear()
        self.size = 0

    def unsettled(self) -> None:
        """The connection is gone, or Redis answered that it cannot append now; nothing is sent until `checked`."""
        self.ready = False

    def checked(self, mine: bool, fence: int | None, last: EntryId | None) -> Outcome:
        """Compare with the state in Redis: whether this node is the owner there, the fence, and the stream's last id; both
        None where there is no such session."""
        if self.replaced(mine, fence):
            self.refused()
            return Outcome.FENCED
        if fence != self.fence or last is None or not mine:
            # Nothing, an older owner's writes, a repair of ours whose answer was lost, or a node that was given the same
            # fence by a Redis that had forgotten ours.
            return Outcome.BEHIND
        if self._flying and last == EntryId(self.fence, self._number + 1):
            self._settle()
        elif last == self.last:
            self._pending[:0] = self._flying
            self._flying = []
        else:
            return Outcome.BEHIND
        self.ready = True
        return Outcome.KEPT if self.idle else Outcome.AGAIN

    def replaced(self, mine: bool, fence: int | None) -> bool:
        """Return whether a check shows that another node is the owner."""
        return fence is not None and not mine and fence >= self.yields_at

    @property
    def yields_at(self) -> int:
        """The lowest fence of another node to which this one yields."""
        return self.fence if self._claimed else self.fence + 1

    def right_up_to(self, mine: bool, fence: int | None, last: EntryId | None) -> int:
        """Return the last log event that the stream which a check found holds for certain. Only entries under this node's
        present fence can be compared: others are of another owner, or of a repair whose end is not known."""
        if not mine or fence != self.fence or last is None:
            return 0
        certain = min(last, self.last, self._certain or self.last)
        return min(self._marks.sequence_at(certain) or 0, self.sequence_kept)

    def repair(self) -> int:
        """Drop what waits, since the whole state is written again as of now. Return the value of `kept` after that."""
        self.ready = False
        self._pending.clear()
        self._flying.clear()
        self.size = 0
        return self.added

    def repaired(self, fence: int, number: int, added: int, sequence: int) -> None:
        """The state as of `added` records and log event `sequence` stands in Redis, ending with this entry."""
        self.kept = max(self.kept, added)
        self._snapshot_at = EntryId(fence, number)
        self.begin(fence, number, sequence)
        self._claimed = False

    def log_starts_at(self, sequence: int) -> None:
        """The log keeps no event before this one, so Redis need not keep any either."""
        self._log_oldest = sequence
        self._marks.forget_before(sequence)

    def snapshot_kept(self, entry: EntryId) -> None:
        """Redis has a snapshot as of this entry, so records up to it are needed for the log alone."""
        self._snapshot_at = entry

    def _doubt_from(self, entry: EntryId | None) -> None:
        """The append under way was given this id: from there on the stream does not hold what it should."""
        certain = EntryId(0, 0) if entry is None else EntryId(entry.fence, entry.number - 1)
        self._certain = min(certain, self._certain or self.last)

    def _keep_from(self) -> EntryId | None:
        """Return the oldest entry that must stay: the smaller of the log's first and the snapshot's."""
        before = self._marks.entry_before(self._log_oldest)
        if before is None or self._snapshot_at is None:
            return None
        return min(EntryId(before.fence, before.number + 1), self._snapshot_at)

    def _settle(self) -> None:
        self._claimed = False
        self._number += 1
        self.kept += len(self._flying)
        self.size -= sum(len(item.body) for item in self._flying)
        reached = max((item.sequence for item in self._flying), default=0)
        if reached:
            self.sequence_kept = max(self.sequence_kept, reached)
            self._marks.add(self.last, self.sequence_kept)
        self._flying = []

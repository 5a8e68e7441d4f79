"""One session's journal, written by its owner: `relay.journal.Journal` on Redis.

`appends` decides what is sent and what an answer means; `appender` has the connection. This file connects them with the
session: it encodes records, wakes the waiters once they are kept, asks for snapshots, and writes everything again if
Redis has lost it. A session's memory and Redis are copies of each other.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.cluster.appends import MAX_APPEND_BYTES, Appends, Item, Outcome
from gateway.cluster.codec import Codec
from gateway.cluster.keys import EntryId, Keys
from gateway.errors import OverloadError
from gateway.relay.events.records import Border, Record, encode, is_part_of, sequence_of
from gateway.relay.journal import JournalOwner

MAX_UNSETTLED_BYTES: Final = 4 * 1024 * 1024
"""Of one session while Redis is away. Beyond it the records are dropped: the session's state and log
contain them, and are then written again as a whole."""

QUIET_BYTES: Final = 32 * 1024
"""After so much a session gets a snapshot when it pauses. A node that takes it over applies as much in about 1 ms."""
BUSY_BYTES: Final = 512 * 1024
"""After so much it gets one also if it does not pause. A node that takes it over applies as much in about 15 ms."""

FIELD: Final = b"r"
"""The field name of every record in an entry."""


class Writing(Protocol):
    """What a journal needs of its node."""

    def dirty(self, journal: "RedisJournal") -> None:
        """Something waits to be appended; send it at the end of this turn of the loop."""

    def snapshot_worthwhile(self, journal: "RedisJournal") -> None:
        """The journal has grown so much that a new snapshot is worth its cost when the session pauses."""

    def snapshot_due(self, journal: "RedisJournal") -> None:
        """The journal has grown so much that a new snapshot must be taken now."""

    def unsettled(self, delta: int) -> None:
        """The bytes that wait for Redis changed by this much."""

    def sealed(self, journal: "RedisJournal") -> None:
        """The session is closed."""

    @property
    def sure(self) -> bool:
        """Redis answers, and no other node considers this one dead."""

    async def owned(self, journal: "RedisJournal") -> bool:
        """Ask Redis whether this node owns the session. Raises OverloadError `recovering`."""

    @property
    def patience_seconds(self) -> float: ...

    @property
    def version(self) -> int:
        """The highest version of records and snapshots that every live node reads."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What is written about a session besides its records."""

    session_id: str
    principal: str
    created: int
    epoch: str
    opened_at: float | None = None
    """When it was created, more exactly, where it was: for the order of lists."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A session's whole state as of one moment."""

    version: int
    added: int
    head: int
    border: bytes
    blob: bytes
    appends: Sequence[Sequence[Item]]


class RedisJournal:
    """See `relay.journal.Journal`."""

    def __init__(
        self, identity: Identity, node: str, keys: Keys, codec: Codec, writing: Writing, snapshot_bytes: int
    ) -> None:
        self.identity = identity
        self.appends = Appends()
        self.keys = keys.session(identity.session_id)
        self.version = self.stored_version = writing.version
        """The version in which records are written, and the one that Redis names: nodes that do not read the latter do not
        claim the session. Redis learns of a higher version before anything is written in it, and of a lower one once a
        snapshot replaces what the higher one wrote."""
        self.mending = asyncio.Lock()
        """Held while the journal is compared with Redis and written again: two at once would fence each other."""
        self._counted = False
        """The node counts the bytes that wait here."""
        self._dropped = False
        """Records were dropped, so the state has to be written again."""
        self._rewriting = False
        """The state is being written again; records that it replaces are gone."""
        self.expire_at = 0.0
        """When the keys' expiry is to be renewed (loop time)."""
        self.sealed_for: float | None = None
        """Seconds of retention, once the session is closed."""
        self.address: tuple[str, int] | str | None = None
        """The primary that holds the keys, once known."""
        self._node = node
        self._codec = codec
        self._writing = writing
        self._snapshot_bytes = snapshot_bytes
        self._since_snapshot = 0
        self._quiet_at = self._busy_at = 0.0
        self._measure(0)
        self._owner: JournalOwner | None = None
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    # --- relay.journal.Journal ----------------------------------------------------------------------------------------

    @property
    def keeps(self) -> bool:
        return True

    @property
    def sure(self) -> bool:
        return self._writing.sure and not self.appends.fenced

    async def owned(self) -> bool:
        return await self._writing.owned(self)

    @property
    def settled(self) -> int:
        return self.appends.sequence_kept

    def bind(self, owner: JournalOwner) -> None:
        self._owner = owner

    def add(self, record: Record) -> None:
        if not is_part_of(self.version, record):
            return  # A node of an older version does without it.
        body = self._codec.encode(encode(record), self.identity.session_id)
        self.appends.add(Item(FIELD, body, sequence_of(record)))
        if self.appends.fenced:
            return
        self._report(len(body))
        self._since_snapshot += len(body)
        if self._since_snapshot >= self._quiet_at:
            self._quiet_at = float("inf")
            self._writing.snapshot_worthwhile(self)
        if self.appends.size > MAX_UNSETTLED_BYTES:
            self._forget_unsettled()
        self._writing.dirty(self)

    def oldest(self, sequence: int) -> None:
        self.appends.log_starts_at(sequence)

    async def flushed(self) -> None:
        goal = self.appends.added
        if self.appends.fenced:
            raise _moved()
        if self.appends.kept >= goal:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((goal, future))
        try:
            async with asyncio.timeout(self._writing.patience_seconds):
                await future
        except TimeoutError:
            raise OverloadError("recovering", "Redis does not answer.", retry_after=1) from None

    def seal(self, retention_seconds: float) -> None:
        self.sealed_for = retention_seconds
        self.expire_at = 0.0
        self._writing.sealed(self)

    # --- for the node -------------------------------------------------------------------------------------------------

    @property
    def owner(self) -> JournalOwner:
        """The session."""
        assert self._owner is not None, "bound before it is created or adopted"
        return self._owner

    def answered(self, entry: EntryId | None) -> Outcome:
        """Redis answered the append under way with this id, None for nil."""
        before = self.appends.size
        outcome = self.appends.answered(entry)
        self.after(outcome, before)
        return outcome

    def after(self, outcome: Outcome, size_before: int) -> None:
        """Notify the session and the waiters of what an answer or a check has changed."""
        self._report(self.appends.size - size_before)
        if outcome is Outcome.FENCED:
            self._give_up()
            return
        self._wake()
        if self._since_snapshot >= self._busy_at and self.appends.idle and outcome is Outcome.KEPT:
            self._writing.snapshot_due(self)

    def refused(self) -> None:
        """Another node owns the session."""
        before = self.appends.size
        self.appends.refused()
        self.after(Outcome.FENCED, before)

    def count(self, counted: bool) -> None:
        """Let the node count the bytes that wait here, or no longer: it does so for the journals that it appends."""
        if counted is not self._counted:
            self._counted = counted
            self._writing.unsettled(self.appends.size if counted else -self.appends.size)

    @property
    def must_rewrite(self) -> bool:
        """Redis lacks records that are nowhere else than in the session's state."""
        return self._dropped or self._rewriting

    def rewrite(self, right: int) -> Rewrite:
        """Return the whole state as of now, to be written again after a journal that holds the log up to `right`."""
        before = self.appends.size
        self.version = version = self._writing.version
        added = self.appends.repair()
        self._dropped, self._rewriting = False, True
        self._report(-before)
        session_id = self.identity.session_id
        items = [
            Item(FIELD, self._codec.encode(encode(record), session_id), sequence_of(record))
            for record in self.owner.kept(right)
        ]
        border = encode(Border(self._node, self.identity.epoch, right))
        blob = self.dump(version)
        return Rewrite(
            version=version,
            added=added,
            head=items[-1].sequence if items else right,
            border=self._codec.encode(border, session_id),
            blob=blob,
            appends=_cut(items),
        )

    def rewritten(self, fence: int, written: Rewrite) -> None:
        """Redis has all of a rewrite."""
        self._rewriting = False
        self.stored_version = written.version
        self.appends.repaired(fence, len(written.appends), written.added, written.head)
        self._wake()
        self._writing.dirty(self)

    def created(self, written: Rewrite) -> None:
        """Redis has the session, with what the rewrite holds."""
        self._rewriting = False
        self.stored_version = written.version
        self.appends.repaired(1, 1 if written.appends else 0, written.added, written.head)
        self._wake()

    def claimed(self, fence: int, snapshot_at: EntryId, head: int) -> None:
        """The session was taken over: its journal holds the log up to `head`."""
        self.appends.claimed(fence, head)
        self.appends.snapshot_kept(snapshot_at)

    def found(self, snapshot: int, behind: int) -> None:
        """Redis has a snapshot of so many bytes, and so many behind it."""
        self._measure(snapshot)
        self._since_snapshot = behind

    def dump(self, version: int) -> bytes:
        """Return the state as stored in Redis, for a new snapshot."""
        blob = self._codec.encode(self.owner.dump(version), self.identity.session_id)
        self._measure(len(blob))
        return blob

    @property
    def at_rest(self) -> bool:
        """Redis has everything up to now, so that a snapshot can be taken."""
        return self.appends.ready and self.appends.idle and not self.must_rewrite

    def snapshot_kept(self, entry: EntryId, version: int) -> None:
        """Redis has a snapshot in a version, as of an entry."""
        self.appends.snapshot_kept(entry)
        self.stored_version = version
        # Nodes may have joined since the snapshot was taken.
        self.version = min(version, self._writing.version)

    def first_border(self) -> bytes:
        """Return the border of a session that is being created."""
        return self._codec.encode(encode(Border(self._node, self.identity.epoch)), self.identity.session_id)

    def _measure(self, snapshot: int) -> None:
        """Decide at which growth the next snapshot is worth its cost, which grows with the bytes of the last one."""
        self._since_snapshot = 0
        self._quiet_at = max(QUIET_BYTES, snapshot // 2)
        self._busy_at = min(self._snapshot_bytes, max(BUSY_BYTES, snapshot))

    def _wake(self) -> None:
        kept = self.appends.kept
        waiters = self._waiters
        while waiters and waiters[0][0] <= kept:
            _, future = waiters.popleft()
            if not future.done():
                future.set_result(None)
        if self._owner is not None:
            self._owner.settled()

    def _give_up(self) -> None:
        while self._waiters:
            _, future = self._waiters.popleft()
            if not future.done():
                future.set_exception(_moved())
        if self._owner is not None:
            self._owner.fenced()

    def _forget_unsettled(self) -> None:
        self._dropped = True
        before = self.appends.size
        self.appends.forget_pending()
        self._report(self.appends.size - before)

    def _report(self, delta: int) -> None:
        if self._counted:
            self._writing.unsettled(delta)


def _moved() -> OverloadError:
    return OverloadError("recovering", "Another node has taken the session over.", retry_after=1)


def _cut(items: Sequence[Item]) -> list[list[Item]]:
    """Cut records into appends of a bounded size."""
    appends: list[list[Item]] = []
    size = MAX_APPEND_BYTES
    for item in items:
        size += len(item.body)
        if size > MAX_APPEND_BYTES:
            appends.append([])
            size = len(item.body)
        appends[-1].append(item)
    return appends

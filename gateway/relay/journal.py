"""The ports to what several nodes share: each session's journal, and the directory of who owns which session.

A node that owns a session writes what happens to it as records (see `records`). Another node that claims the session
reads them, folds them into its state (see `saved`), and goes on. In one process there is no directory, and
`NullJournal` keeps nothing.

Order of calls, per session:

1. create: `Directory.reserve` → `Directory.journal` → `Journal.bind` → dial → `Journal.add`… → `Directory.create`, which
   asks the session for its first snapshot. Records that are added before `create` wait in the journal.
2. life: `Journal.add` whenever something happens, in order and without waiting; `await Journal.flushed()` before
   anything is acknowledged to a client. The journal calls `JournalOwner.settled` when events are kept, and only then are
   they shown. It asks for a snapshot (`dump`) when it wants one.
3. takeover: the node claims the session's journal → `saved.fold` → `Hub.adopt(saved, journal)`, which binds it, and on
   as in 2.
4. hand-over: `Session.prepare_release` → the other node takes it as in 3 → `Session.released`; or `Session.resume`.
5. end: `Journal.add(Sealed)` → `flushed` → `Journal.seal`; `Directory.release` when the log's retention is over.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gateway.relay.events.records import Record

if TYPE_CHECKING:
    from gateway.relay.requests import Principal


class JournalOwner(Protocol):
    """The session that a journal belongs to, as the journal sees it. Synchronous; must not raise."""

    def settled(self) -> None:
        """`Journal.settled` moved: readers may see more."""

    def fenced(self) -> None:
        """Another node owns the session now. Drop it: its readers end as for a rotation, its call is closed without a
        hang-up, nothing more is written."""

    def dump(self, version: int) -> bytes:
        """Return the state as of now, everything but the events of the log, in a version that `records.READS` has."""

    def kept(self, after: int) -> Iterable[Record]:
        """Return the events of the log behind a sequence, as records. With `dump` of the same moment they replace every
        record that was added and is not kept."""


class Journal(Protocol):
    """The journal of one session, written by its owner alone."""

    @property
    def keeps(self) -> bool:
        """Whether anything is kept; if not, nothing need be added."""

    @property
    def sure(self) -> bool:
        """Whether this node may act for the session now. While unsure it sends, dials and acknowledges nothing, but
        goes on receiving."""

    async def owned(self) -> bool:
        """Ask where the journal is kept whether this node owns the session. Raises OverloadError `recovering`."""

    @property
    def settled(self) -> int:
        """Sequence of the last event of the log that is kept."""

    def bind(self, owner: JournalOwner) -> None:
        """Set the session that the journal belongs to."""

    def add(self, record: Record) -> None:
        """Write a record behind all others. Never waits and never raises."""

    def oldest(self, sequence: int) -> None:
        """The log's oldest event that is kept: what is before may be dropped here as well."""

    async def flushed(self) -> None:
        """Wait until everything added so far is kept. Raises OverloadError `recovering` where that takes too long, or
        where another node owns the session."""

    def seal(self, retention_seconds: float) -> None:
        """The session is closed, and all of it is forgotten after so long."""


class NullJournal:
    """A journal that keeps nothing: one process, one copy."""

    keeps = False
    sure = True
    settled = 0

    async def owned(self) -> bool:
        """There is no other node."""
        return True

    def bind(self, owner: JournalOwner) -> None:
        """Ignore the owner: there is nothing to report."""

    def add(self, record: Record) -> None:
        """Discard the record."""

    def oldest(self, sequence: int) -> None:
        """Nothing is kept."""

    async def flushed(self) -> None:
        """Return at once."""

    def seal(self, retention_seconds: float) -> None:
        """Nothing is kept."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another live node. `room` is how many more sessions it can take."""

    node: str
    url: str
    serving: bool
    room: int


@dataclass(frozen=True, slots=True)
class Promised:
    """What the first request with an Idempotency-Key opens."""

    session_id: str
    answer: bytes | None
    """None while it is still opening."""


@dataclass(frozen=True, slots=True)
class Location:
    """Which node owns a session."""

    node: str
    url: str | None
    """URL on which the node listens for its peers; None for a node that is no longer known. `node` is empty if the
    session is missing in Redis and its owner, which is not known, will soon write it again."""
    live: bool
    """The node is not considered dead."""


class Directory(Protocol):
    """Who owns which session. The directory handles takeover and the promises of creates itself."""

    @property
    def node(self) -> str:
        """This node's ID."""

    @property
    def sure(self) -> bool:
        """Whether this node may act for its sessions now."""

    @property
    def peers(self) -> Sequence[Peer]: ...

    def journal(self, session_id: str, principal: str, epoch: str) -> Journal:
        """Return the journal of a session that is being opened here, and whose log begins with `epoch`. What is added
        waits for `create`."""

    async def reserve(self, session_id: str, principal: "Principal") -> None:
        """Count a session against its principal's limit. Raises OverloadError `session-limit`."""

    async def create(self, session_id: str, journal: Journal) -> None:
        """Register a session, owned by this node. Raises OverloadError `recovering`."""

    async def release(self, session_id: str, principal: str) -> None:
        """Drop all of a session that was never opened, or whose retention is over."""

    async def locate(self, session_id: str, *, fresh: bool = False) -> Location | None:
        """Find the node that owns a session; None if there is no such session. `fresh` ignores cached look-ups.
        Raises OverloadError `recovering`."""

    async def locate_all(self, session_ids: Sequence[str]) -> Sequence[Location | None]:
        """Find the nodes that own several sessions, trusting no earlier look-up. Raises OverloadError `recovering`."""

    async def sessions_of(self, principal: str) -> list[str]:
        """Return the IDs of a principal's sessions on all nodes, newest first; some may be gone. Raises OverloadError
        `recovering`."""

    async def sessions_on(self, nodes: Sequence[str]) -> list[str]:
        """Return the IDs of the sessions of these nodes and of all lost ones; some may be gone. Raises OverloadError
        `recovering`."""

    async def created_at(self, session_ids: Sequence[str]) -> Mapping[str, int]:
        """Return when those of the sessions were created that exist, in Unix seconds. Raises OverloadError `recovering`."""

    async def snapshots(self, session_ids: Sequence[str]) -> Mapping[str, bytes]:
        """Return the last snapshots of those of the sessions that exist, see `SessionState.load`. Raises OverloadError
        `recovering`."""

    async def promise(self, principal: str, key: str, fingerprint: str, session_id: str) -> Promised | None:
        """Claim an Idempotency-Key of a request that opens a session. Return None if it is this request's now, else what
        the first request promised. Raises CallerError `idempotency-key-reused` or OverloadError `recovering`."""

    async def keep_promise(
        self, principal: str, key: str, fingerprint: str, session_id: str, answer: bytes
    ) -> None:
        """Store the answer, without credentials, for repeats. Raises OverloadError `recovering`."""

    async def break_promise(self, principal: str, key: str, session_id: str) -> None:
        """Forget the promise of this session, whose request had no effect or which is gone; not one that was made under the
        key since then. Never raises."""

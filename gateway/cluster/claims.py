"""Claiming sessions of other nodes, and reading them.

Several sessions are claimed together and read together, since a takeover of a thousand sessions one by one would cost
most of its time in single commands. Only so much is read at once as memory should hold.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.cluster import scripts
from gateway.cluster.codec import Codec, UnreadableError
from gateway.cluster.connections import AwayError, Connections
from gateway.cluster.journal import Identity, RedisJournal
from gateway.cluster.keys import EntryId, Keys
from gateway.cluster.resp import ReplyError
from gateway.relay.events.records import READS, Border, encode

READ_BYTES: Final = 1024 * 1024
"""Of journals and snapshots that are read together, unless a single session has more."""

_PAGE: Final = 1000


class TakenError(Exception):
    """The session cannot be claimed: another node owns it, whose id is the message, or this code cannot read it."""


class GoneError(Exception):
    """There is no such session."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A claimed session as it stands in Redis."""

    session_id: str
    principal: str
    created: int
    snapshot: bytes
    before: Sequence[bytes]
    """Encoded records up to the snapshot's: only the log's events among them matter."""
    after: Sequence[bytes]
    """Encoded records behind it; the border of this claim is the last."""
    journal: RedisJournal
    """It takes records once `journal.claimed` was told how far the log goes."""
    fence: int
    snapshot_at: EntryId


Claimed = Stored | TakenError | GoneError


@dataclass(frozen=True, slots=True)
class _Won:
    """A claim that succeeded: the epoch that begins with it, its fence, and about how many bytes are to be read."""

    session_id: str
    epoch: str
    fence: int
    size: int


class Claims:
    """Claims sessions for one node."""

    def __init__(
        self,
        node: str,
        keys: Keys,
        codec: Codec,
        connections: Connections,
        journal: Callable[[Identity], RedisJournal],
        epoch: Callable[[], str],
        expiry_ms: int,
    ) -> None:
        """`journal` makes the journal of a session; `epoch` the epoch of a log that continues here."""
        self._node = node
        self._keys = keys
        self._codec = codec
        self._connections = connections
        self._journal = journal
        self._epoch = epoch
        self._expiry_ms = expiry_ms

    async def owned_by(self, node: str) -> list[str]:
        """Return the ids on a node's list. Raises AwayError."""
        cursor, ids = b"0", []
        while True:
            cursor, some = await self._connections.command(
                "SSCAN", self._keys.owned(node), cursor, "COUNT", _PAGE
            )
            ids += [word.decode() for word in some]
            if int(cursor) == 0:
                return ids

    async def dismiss(self, node: str, session_ids: Sequence[str]) -> None:
        """Remove sessions from a node's list. Raises AwayError."""
        if session_ids:
            await self._connections.command("SREM", self._keys.owned(node), *session_ids)

    async def peek(self, session_id: str) -> bytes:
        """Return a session's last snapshot without claiming it. Raises GoneError, AwayError."""
        found = await self._connections.command("GET", self._keys.snapshot(session_id), bulk=True)
        if found is None:
            raise GoneError(session_id)
        try:
            return self._codec.decode(found, session_id)
        except UnreadableError as error:
            raise GoneError(str(error)) from error

    async def one(self, session_id: str, expected: str, above: int = 0) -> Stored:
        """Take a session over from a node and read it. Raises TakenError, GoneError, AwayError."""
        [claimed] = await self.many([session_id], expected, above)
        if isinstance(claimed, Stored):
            return claimed
        raise claimed

    async def many(self, session_ids: Sequence[str], expected: str, above: int = 0) -> list[Claimed]:
        """Take sessions over as `each` does, and return them in this order."""
        found = dict([pair async for pair in self.each(session_ids, expected, above)])
        return [found[session_id] for session_id in session_ids]

    async def each(
        self, session_ids: Sequence[str], expected: str, above: int = 0
    ) -> AsyncIterator[tuple[str, Claimed]]:
        """Take sessions over from a node and read them; yield for each what was read or why it was not claimed. Raises
        AwayError: some may be claimed all the same, and are on this node's list."""
        # On the list first, so that no session is claimed that another takeover would not find.
        added, *versions = await self._connections.pipeline(
            [
                ("SADD", self._keys.owned(self._node), *session_ids),
                *(("HGET", self._keys.meta(one), "v") for one in session_ids),
            ]
        )
        if isinstance(added, ReplyError):
            raise AwayError(str(added))
        found: dict[str, Claimed | _Won] = {}
        for session_id, version in zip(session_ids, versions, strict=True):
            if isinstance(version, bytes) and int(version) not in READS:
                found[session_id] = TakenError(f"written by another version ({int(version)})")
        todo = [one for one in session_ids if one not in found]
        found |= await self._claim(todo, expected, above)
        won = [one for one in found.values() if isinstance(one, _Won)]
        # One that this node claimed earlier stays on its list.
        lost = [
            session_id
            for session_id, one in found.items()
            if not isinstance(one, _Won) and str(one) != self._node
        ]
        await self.dismiss(self._node, lost)
        for session_id, one in found.items():
            if not isinstance(one, _Won):
                yield session_id, one
        for some in _portions(won):
            for session_id, read in (await self._read(some)).items():
                yield session_id, read

    async def _claim(
        self, session_ids: Sequence[str], expected: str, above: int
    ) -> dict[str, Claimed | _Won]:
        if not session_ids:
            return {}
        epochs = [self._epoch() for _ in session_ids]
        answers = await self._connections.pipeline(
            [
                (
                    *("EVAL", scripts.CLAIM, 3, *self._keys.session(session_id)),
                    *(self._node, expected, above, self._expiry_ms),
                    self._codec.encode(encode(Border(self._node, epoch)), session_id),
                )
                for session_id, epoch in zip(session_ids, epochs, strict=True)
            ]
        )
        found: dict[str, Claimed | _Won] = {}
        for session_id, epoch, answer in zip(session_ids, epochs, answers, strict=True):
            if isinstance(answer, ReplyError):
                raise AwayError(str(answer))
            if answer[0] == 1:
                found[session_id] = _Won(session_id, epoch, int(answer[1]), int(answer[2]))
            else:
                found[session_id] = GoneError(session_id) if answer[0] < 0 else TakenError(answer[1].decode())
        return found

    async def _read(self, won: Sequence[_Won]) -> dict[str, Claimed]:
        names = [self._keys.session(one.session_id) for one in won]
        replies = await self._connections.pipeline(
            [
                command
                for journal, meta, snapshot in names
                for command in (
                    ("HMGET", meta, "principal", "created", "at", "v"),
                    ("GET", snapshot),
                    ("XRANGE", journal, "-", "+", "COUNT", _PAGE),
                )
            ],
            bulk=True,
        )
        found: dict[str, Claimed] = {}
        for number, one in enumerate(won):
            meta, snapshot, page = replies[3 * number : 3 * number + 3]
            try:
                found[one.session_id] = await self._stored(one, meta, snapshot, page)
            except (GoneError, TakenError) as error:
                found[one.session_id] = error
        return found

    async def _stored(
        self, won: _Won, meta: Any, snapshot: Any, page: Any
    ) -> Stored:  # Any: replies, as their commands' pages describe them
        session_id = won.session_id
        if any(isinstance(reply, ReplyError) for reply in (meta, snapshot, page)):
            raise GoneError(session_id)
        at = EntryId.parse(meta[2] or b"0-0")
        before: list[bytes] = []
        after: list[bytes] = []
        try:
            while True:
                for entry, fields in page:
                    entry_id = EntryId.parse(entry)
                    records = before if entry_id <= at else after
                    for value in _values(fields):
                        records.append(self._codec.decode(value, session_id))
                if len(page) < _PAGE:
                    break
                start = f"({page[-1][0].decode()}"
                page = await self._connections.command(
                    "XRANGE", self._keys.journal(session_id), start, "+", "COUNT", _PAGE, bulk=True
                )
            if not after or after[-1] != encode(Border(self._node, won.epoch)):
                # It was read from a server that does not have the claim, a former primary. The log would go on under its former
                # epoch, and IDs that were delivered would get other texts.
                await self._connections.drop()
                raise AwayError("the journal was read from another server than the one that has the claim")
            if snapshot is None or None in meta:
                raise GoneError(session_id)
            plain = self._codec.decode(snapshot, session_id)
        except UnreadableError as error:
            raise TakenError(str(error)) from error
        journal = self._journal(Identity(session_id, meta[0].decode(), int(meta[1]), won.epoch))
        journal.version = journal.stored_version = int(meta[3])
        journal.found(len(snapshot), sum(map(len, after)))
        return Stored(
            session_id=session_id,
            principal=journal.identity.principal,
            created=journal.identity.created,
            snapshot=plain,
            before=before,
            after=after,
            journal=journal,
            fence=won.fence,
            snapshot_at=at,
        )


def _portions(won: Sequence[_Won]) -> Iterator[list[_Won]]:
    """Cut claims into portions that are read together."""
    some: list[_Won] = []
    size = 0
    for one in won:
        if some and size + one.size > READ_BYTES:
            yield some
            some, size = [], 0
        some.append(one)
        size += one.size
    if some:
        yield some


def _values(
    fields: Any,
) -> list[bytes]:  # Any: redis-py gives a flat list or, where it parses streams, a dict
    return list(fields.values()) if isinstance(fields, dict) else fields[1::2]

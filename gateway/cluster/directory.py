"""Who owns which session: creating, claiming and finding sessions, and promises that all nodes share.

Implements `relay.journal.Directory` on Redis, with additions for takeover and forwarding.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.cluster import scripts
from gateway.cluster.beat import Beat
from gateway.cluster.codec import Codec, UnreadableError
from gateway.cluster.connections import AwayError, Connections, DeniedError, Value
from gateway.cluster.journal import Identity, RedisJournal, Writing
from gateway.cluster.keys import EntryId, Keys
from gateway.cluster.resp import ReplyError
from gateway.cluster.settings import ClusterSettings
from gateway.errors import CallerError, OverloadError
from gateway.relay.events.records import VERSION, Border, encode
from gateway.relay.journal import Journal, Location, Peer, Promised
from gateway.relay.requests import Principal

SHORTEST_EXPIRY_SECONDS: Final = 3600.0
"""Of a session's keys; renewed every five minutes. Long enough for an operator to bring a cluster back."""

PROMISE_SECONDS: Final = 24 * 3600
OPENING_SECONDS: Final = 120
"""How long a promise lasts while its request opens the session: the node may have crashed meanwhile."""
MAX_OWNERS: Final = 20_000
OWNER_SECONDS: Final = 30.0
"""How long a look-up is cached. A node that is no longer the owner says so, and it is looked up again."""

_PAGE: Final = 1000
_PRUNE_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 5.0


class TakenError(Exception):
    """The session cannot be claimed: another node owns it, or this code cannot read it."""


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
    size: int


class RedisDirectory:
    """See `relay.journal.Directory`."""

    def __init__(
        self,
        settings: ClusterSettings,
        keys: Keys,
        codec: Codec,
        connections: Connections,
        beat: Beat,
        writing: Writing,
        take: Callable[[RedisJournal], None],
        epoch: Callable[[], str],
    ) -> None:
        """`take` begins to append a journal; `epoch` makes the epoch of a log that begins here."""
        self._settings = settings
        self._keys = keys
        self._codec = codec
        self._connections = connections
        self._beat = beat
        self._writing = writing
        self._take = take
        self._epoch = epoch
        self._owners: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._pruned_at: dict[str, float] = {}
        self.expiry_ms = int(max(SHORTEST_EXPIRY_SECONDS, settings.detach_grace_seconds) * 1000)

    # --- relay.journal.Directory --------------------------------------------------------------------------------------

    @property
    def node(self) -> str:
        return self._beat.node

    @property
    def sure(self) -> bool:
        return self._writing.sure

    @property
    def peers(self) -> Sequence[Peer]:
        return [
            Peer(seen.node, seen.status.url, seen.status.state == "serving", seen.status.room)
            for seen in self._beat.nodes
            if seen.node != self.node and not seen.dead
        ]

    def journal(self, session_id: str, principal: str, epoch: str) -> Journal:
        return self._journal(Identity(session_id, principal, int(time.time()), epoch))

    async def reserve(self, session_id: str, principal: Principal) -> None:
        key = self._keys.principal(principal.name)
        most = principal.max_sessions
        try:
            if most is None:
                await self._connections.command("ZADD", key, repr(time.time()), session_id)
                return
            arguments = (session_id, repr(time.time()), most)
            if await self._connections.script(scripts.RESERVE, [key], arguments):
                return
            await self._prune(principal.name, key)
            if await self._connections.script(scripts.RESERVE, [key], arguments):
                return
        except (AwayError, DeniedError, ReplyError) as error:
            raise away(error) from error
        detail = f"This key may have {most} sessions at once."
        raise OverloadError("session-limit", detail, retry_after=_RETRY_SECONDS)

    async def create(self, session_id: str, journal: Journal) -> None:
        assert isinstance(journal, RedisJournal), "made by `journal`"
        identity = journal.identity
        try:
            await self.index(journal)
            written = journal.rewrite(0)
            arguments: tuple[Value, ...] = (
                *(self.node, VERSION, identity.principal, identity.created, self.expiry_ms),
                *(journal.first_border(), written.blob),
                *(part for items in written.appends for item in items for part in (item.kind, item.body)),
            )
            made = await self._connections.script(scripts.CREATE, journal.keys, arguments, bulk=True)
        except (AwayError, DeniedError, ReplyError) as error:
            raise away(error) from error
        if not made:
            raise OverloadError("recovering", "The session exists already.", retry_after=1)
        journal.created(written)
        self._take(journal)

    async def release(self, session_id: str, principal: str) -> None:
        try:
            await self._connections.script(scripts.REMOVE, self._keys.session(session_id), (self.node,))
            await self._connections.pipeline(
                [
                    ("SREM", self._keys.owned(self.node), session_id),
                    ("ZREM", self._keys.principal(principal), session_id),
                ]
            )
        except (AwayError, DeniedError, ReplyError):
            return  # The keys expire, and the indexes are pruned when they are next read.

    # --- for forwarding -----------------------------------------------------------------------------------------------

    async def locate(self, session_id: str, *, fresh: bool = False) -> Location | None:
        now = time.monotonic()
        known = None if fresh else self._owners.get(session_id)
        if known is None or now - known[0] > OWNER_SECONDS:
            try:
                found = await self._connections.command("HGET", self._keys.meta(session_id), "node")
            except (AwayError, DeniedError, ReplyError) as error:
                raise away(error) from error
            if found is None:
                self._owners.pop(session_id, None)
                return None
            known = (now, found.decode())
            self._owners[session_id] = known
            while len(self._owners) > MAX_OWNERS:
                self._owners.popitem(last=False)
        status = self._beat.status_of(known[1])
        return Location(known[1], None if status is None else status.url, self._beat.lives(known[1]))

    async def sessions_of(self, principal: str) -> list[str]:
        """Return the ids of a principal's sessions, newest first; some may be gone."""
        try:
            found = await self._connections.command("ZREVRANGE", self._keys.principal(principal), 0, -1)
        except (AwayError, DeniedError, ReplyError) as error:
            raise away(error) from error
        return [word.decode() for word in found]

    # --- promises -----------------------------------------------------------------------------------------------------

    async def promise(self, principal: str, key: str, fingerprint: str, session_id: str) -> Promised | None:
        name, mine = self._keys.promise(principal, key), f"{fingerprint} {session_id} "
        try:
            made = await self._connections.command("SET", name, mine, "NX", "PX", OPENING_SECONDS * 1000)
            if made:
                return None
            found = await self._connections.command("GET", name)
        except (AwayError, DeniedError, ReplyError) as error:
            raise away(error) from error
        if found is None:
            return await self.promise(principal, key, fingerprint, session_id)
        kept, first, answer = found.split(b" ", 2)
        if kept.decode() != fingerprint:
            raise CallerError(
                "idempotency-key-reused",
                "This Idempotency-Key was used with another path or body; use a new one.",
            )
        try:
            return Promised(first.decode(), self._codec.decode(answer, first.decode()) if answer else None)
        except UnreadableError:
            return Promised(first.decode(), None)

    async def keep_promise(
        self, principal: str, key: str, fingerprint: str, session_id: str, answer: bytes
    ) -> None:
        name, mine = self._keys.promise(principal, key), f"{fingerprint} {session_id} "
        kept = mine.encode() + self._codec.encode(answer, session_id)
        try:
            await self._connections.script(scripts.EXCHANGE, [name], (mine, kept, PROMISE_SECONDS * 1000))
        except (AwayError, DeniedError, ReplyError) as error:
            raise away(error) from error

    async def break_promise(self, principal: str, key: str) -> None:
        try:
            await self._connections.command("DEL", self._keys.promise(principal, key))
        except (AwayError, DeniedError, ReplyError):
            return  # It expires soon, since it was not made permanent.

    # --- takeover -----------------------------------------------------------------------------------------------------

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

    async def claim(self, session_id: str, expected: str, above: int = 0) -> Stored:
        """Take a session over from a node and read it. Raises TakenError, GoneError, AwayError."""
        names = self._keys.session(session_id)
        version = await self._connections.command("HGET", names[1], "v")
        if version is not None and int(version) > VERSION:
            raise TakenError(f"written by a newer version ({int(version)})")
        epoch = self._epoch()
        border = self._codec.encode(encode(Border(self.node, epoch)), session_id)
        # First, as in `create`.
        await self._connections.command("SADD", self._keys.owned(self.node), session_id)
        arguments = (self.node, expected, above, self.expiry_ms, border)
        answer = await self._connections.script(scripts.CLAIM, names, arguments)
        if answer[0] != 1:
            await self._connections.command("SREM", self._keys.owned(self.node), session_id)
            if answer[0] < 0:
                raise GoneError(session_id)
            raise TakenError(answer[1].decode())
        return await self._read(session_id, epoch, int(answer[1]))

    async def peek(self, session_id: str) -> bytes:
        """Return a session's last snapshot without claiming it. Raises GoneError, AwayError."""
        found = await self._connections.command("GET", self._keys.snapshot(session_id), bulk=True)
        if found is None:
            raise GoneError(session_id)
        try:
            return self._codec.decode(found, session_id)
        except UnreadableError as error:
            raise GoneError(str(error)) from error

    async def dismiss(self, node: str, session_ids: Sequence[str]) -> None:
        """Remove sessions from a node's list. Raises AwayError."""
        if session_ids:
            await self._connections.command("SREM", self._keys.owned(node), *session_ids)

    async def _read(self, session_id: str, epoch: str, fence: int) -> Stored:
        journal_key, meta_key, snapshot_key = self._keys.session(session_id)
        meta, snapshot = await self._connections.pipeline(
            [("HMGET", meta_key, "principal", "created", "at"), ("GET", snapshot_key)], bulk=True
        )
        if (
            isinstance(meta, ReplyError)
            or isinstance(snapshot, ReplyError)
            or snapshot is None
            or None in meta
        ):
            raise GoneError(session_id)
        at = EntryId.parse(meta[2])
        before: list[bytes] = []
        after: list[bytes] = []
        size, start = len(snapshot), "-"
        try:
            while True:
                page = await self._connections.command(
                    "XRANGE", journal_key, start, "+", "COUNT", _PAGE, bulk=True
                )
                for entry, fields in page:
                    entry_id = EntryId.parse(entry)
                    records = before if entry_id <= at else after
                    for value in _values(fields):
                        size += len(value)
                        records.append(self._codec.decode(value, session_id))
                if len(page) < _PAGE:
                    break
                start = f"({page[-1][0].decode()}"
            snapshot = self._codec.decode(snapshot, session_id)
        except UnreadableError as error:
            raise TakenError(str(error)) from error
        identity = Identity(session_id, meta[0].decode(), int(meta[1]), epoch)
        journal = self._journal(identity)
        return Stored(
            session_id,
            identity.principal,
            identity.created,
            snapshot,
            before,
            after,
            journal,
            fence,
            at,
            size,
        )

    # --- the rest -----------------------------------------------------------------------------------------------------

    async def keep_snapshot(self, journal: RedisJournal, entry: EntryId, blob: bytes) -> bool:
        """Store a session's state as of a journal entry; False where another node owns it. Raises AwayError."""
        arguments = (self.node, journal.appends.fence, str(entry), self.expiry_ms, blob)
        return bool(await self._connections.script(scripts.SNAPSHOT, journal.keys, arguments, bulk=True))

    async def index(self, journal: RedisJournal) -> None:
        """Put a session on the lists of its node and its principal. Must come first, so that no session exists that a takeover
        would not find. Raises AwayError."""
        identity = journal.identity
        for reply in await self._connections.pipeline(
            [
                ("SADD", self._keys.owned(self.node), identity.session_id),
                (
                    "ZADD",
                    self._keys.principal(identity.principal),
                    "NX",
                    identity.created,
                    identity.session_id,
                ),
            ]
        ):
            if isinstance(reply, ReplyError):
                raise AwayError(str(reply))

    async def renew_expiry(self, journal: RedisJournal) -> None:
        """Renew the expiry of a session's keys. Raises AwayError."""
        milliseconds = self.expiry_ms if journal.sealed_for is None else int(journal.sealed_for * 1000) + 1
        await self._connections.script(scripts.EXPIRE, journal.keys, (self.node, milliseconds))

    def _journal(self, identity: Identity) -> RedisJournal:
        snapshot_bytes = self._settings.log_max_bytes // 2
        return RedisJournal(identity, self.node, self._keys, self._codec, self._writing, snapshot_bytes)

    async def _prune(self, principal: str, key: str) -> None:
        """Drop sessions that are gone from a principal's list."""
        now = time.monotonic()
        if now - self._pruned_at.get(principal, float("-inf")) < _PRUNE_SECONDS:
            return
        self._pruned_at[principal] = now
        ids = [word.decode() for word in await self._connections.command("ZRANGE", key, 0, -1)]
        there = await self._connections.pipeline([("EXISTS", self._keys.meta(one)) for one in ids])
        gone = [one for one, found in zip(ids, there, strict=True) if found == 0]
        if gone:
            await self._connections.command("ZREM", key, *gone)


def away(error: Exception) -> OverloadError:
    """Return the error for callers while Redis does not answer."""
    return OverloadError("recovering", f"Redis does not answer: {type(error).__name__}.", retry_after=1)


def _values(
    fields: Any,
) -> list[bytes]:  # Any: redis-py returns a flat list or, if it parses streams, a dict
    return list(fields.values()) if isinstance(fields, dict) else fields[1::2]

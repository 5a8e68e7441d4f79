"""Who owns which session: creating and finding sessions, and promises that all nodes share.

Implements `relay.journal.Directory` on Redis. What a takeover needs is in `claims`.
"""

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from gateway.cluster import scripts
from gateway.cluster.beat import Beat, Status
from gateway.cluster.claims import Claims, GoneError
from gateway.cluster.codec import Codec, UnreadableError
from gateway.cluster.connections import AwayError, Connections, DeniedError, Value
from gateway.cluster.journal import Identity, RedisJournal, Writing
from gateway.cluster.keys import EntryId, Keys
from gateway.cluster.resp import ReplyError
from gateway.cluster.settings import ClusterSettings
from gateway.errors import CallerError, OverloadError
from gateway.relay.journal import Journal, Location, Peer, Promised
from gateway.relay.requests import Principal

SHORTEST_EXPIRY_SECONDS: Final = 3600.0
"""Of a session's keys; renewed every five minutes. Long enough for an operator to bring a cluster back."""

PROMISE_SECONDS: Final = 24 * 3600
OPENING_SECONDS: Final = 120
"""How long a promise lasts while its request opens the session."""
NODE: Final = b"n_"
"""How the id of a node begins, which stands in a promise in the place of the answer until there is one."""
JOINING_SECONDS: Final = 2
MAX_OWNERS: Final = 20_000
OWNER_SECONDS: Final = 30.0
"""How long a look-up is cached. A node that is no longer the owner says so, and it is looked up again."""

_PRUNE_SECONDS: Final = 5.0
_PRUNE_LISTED_SECONDS: Final = 60.0
"""Of the list of all sessions, which nothing but a listing needs."""
_RETRY_SECONDS: Final = 5.0


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
        replicated: Callable[[RedisJournal], Awaitable[None]],
        drop: Callable[[str], None],
        epoch: Callable[[], str],
    ) -> None:
        """`take` begins to append a journal, `replicated` waits until the replicas have it, `drop` ends it; `epoch` makes the epoch of a log that begins here."""
        self._settings = settings
        self._keys = keys
        self._codec = codec
        self._connections = connections
        self._beat = beat
        self._writing = writing
        self._take = take
        self._replicated = replicated
        self._drop = drop
        self._owners: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._pruned_at: dict[str, float] = {}
        self.expiry_ms = int(max(SHORTEST_EXPIRY_SECONDS, settings.detach_grace_seconds) * 1000)
        self.claims = Claims(self.node, keys, codec, connections, self._journal, epoch, self.expiry_ms)

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
            Peer(seen.node, self.url_of(seen.status), seen.status.state == "serving", seen.status.room)
            for seen in self._beat.nodes
            if seen.node != self.node and not seen.dead
        ]

    def journal(self, session_id: str, principal: str, epoch: str) -> Journal:
        now = time.time()
        return self._journal(Identity(session_id, principal, int(now), epoch, now))

    async def reserve(self, session_id: str, principal: Principal) -> None:
        key = self._keys.live(principal.name)
        most = principal.max_sessions
        if most is None:
            return
        try:
            arguments = (session_id, repr(time.time()), most)
            if await self._connections.script(scripts.RESERVE, [key], arguments):
                return
            await self._prune(key, _PRUNE_SECONDS)
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
                *(self.node, written.version, identity.principal, identity.created, self.expiry_ms),
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
        try:
            async with asyncio.timeout(self._settings.patience_seconds):
                await self._replicated(journal)
        except (AwayError, TimeoutError) as error:
            raise away(error) from error

    async def closed(self, journal: RedisJournal) -> None:
        """Take a session that was closed off the list that its principal's limit counts."""
        identity = journal.identity
        try:
            await self._connections.command("ZREM", self._keys.live(identity.principal), identity.session_id)
        except (AwayError, DeniedError, ReplyError):
            return  # The list is pruned when it is full.

    async def release(self, session_id: str, principal: str) -> None:
        self._drop(session_id)
        try:
            await self._connections.script(scripts.REMOVE, self._keys.session(session_id), (self.node,))
            await self._connections.pipeline(
                [
                    ("SREM", self._keys.owned(self.node), session_id),
                    ("ZREM", self._keys.principal(principal), session_id),
                    ("ZREM", self._keys.live(principal), session_id),
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
                if found is None:
                    return self._missing(session_id, forgotten=await self._beat.forgotten())
            except (AwayError, DeniedError, ReplyError) as error:
                raise away(error) from error
            known = self._remember(session_id, found.decode(), now)
        return self._location(known[1])

    async def locate_all(self, session_ids: Sequence[str]) -> Sequence[Location | None]:
        try:
            found = await self._connections.pipeline(
                [("HGET", self._keys.meta(one), "node") for one in session_ids]
            )
            forgotten = None in found and await self._beat.forgotten()
        except (AwayError, DeniedError, ReplyError) as error:
            raise away(error) from error
        now = time.monotonic()
        owners: list[Location | None] = []
        for session_id, node in zip(session_ids, found, strict=True):
            if isinstance(node, bytes):
                owners.append(self._location(self._remember(session_id, node.decode(), now)[1]))
            else:
                owners.append(self._missing(session_id, forgotten=forgotten))
        return owners

    def _missing(self, session_id: str, *, forgotten: bool) -> Location | None:
        """Return where a session is that Redis does not know: nowhere, or at the last known owner if Redis has lost its
        data, which the owners write again."""
        if not forgotten:
            self._owners.pop(session_id, None)
            return None
        known = self._owners.get(session_id)
        return Location("", None, live=False) if known is None else self._location(known[1])

    def _remember(self, session_id: str, node: str, now: float) -> tuple[float, str]:
        known = self._owners[session_id] = (now, node)
        while len(self._owners) > MAX_OWNERS:
            self._owners.popitem(last=False)
        return known

    def _location(self, node: str) -> Location:
        status = self._beat.status_of(node)
        return Location(node, None if status is None else self.url_of(status), self._beat.lives(node))

    def url_of(self, status: Status) -> str:
        """Return where to reach a node: through its unix socket if it is another worker of the same command."""
        own = self._settings.peer_socket
        if own and os.path.dirname(status.socket) == os.path.dirname(own):  # no I/O, for each request
            return f"unix:{status.socket}"
        return status.url

    async def sessions_of(self, principal: str) -> list[str]:
        """Return the ids of a principal's sessions, newest first; some may be gone."""
        key = self._keys.principal(principal)
        try:
            await self._prune(key, _PRUNE_LISTED_SECONDS)
            found = await self._connections.command("ZREVRANGE", key, 0, -1)
        except (AwayError, DeniedError, ReplyError) as error:
            raise away(error) from error
        return [word.decode() for word in found]

    async def sessions_on(self, nodes: Sequence[str]) -> list[str]:
        """Return the ids of the sessions of these nodes and of all lost ones; some may be gone."""
        ids: list[str] = []
        try:
            for node in dict.fromkeys((*nodes, *self._beat.dead())):
                ids += await self.claims.owned_by(node)
        except (AwayError, DeniedError, ReplyError) as error:
            raise away(error) from error
        return ids

    async def created_at(self, session_ids: Sequence[str]) -> dict[str, int]:
        """Return when those of the sessions were created that exist."""
        if not session_ids:
            return {}
        try:
            found = await self._connections.pipeline(
                [("HGET", self._keys.meta(one), "created") for one in session_ids], bulk=True
            )
        except (AwayError, DeniedError, ReplyError) as error:
            raise away(error) from error
        return {
            one: int(created)
            for one, created in zip(session_ids, found, strict=True)
            if isinstance(created, bytes)
        }

    async def snapshots(self, session_ids: Sequence[str]) -> dict[str, bytes]:
        """Return the last snapshots of those of the sessions that exist and can be read here."""
        found: dict[str, bytes] = {}
        for session_id in session_ids:
            with suppress(GoneError):
                try:
                    found[session_id] = await self.claims.peek(session_id)
                except (AwayError, DeniedError, ReplyError) as error:
                    raise away(error) from error
        return found

    # --- promises -----------------------------------------------------------------------------------------------------

    async def promise(self, principal: str, key: str, fingerprint: str, session_id: str) -> Promised | None:
        name, mine = self._keys.promise(principal, key), self._opening(fingerprint, session_id)
        try:
            made = await self._connections.command("SET", name, mine, "NX", "PX", OPENING_SECONDS * 1000)
            if made:
                return None
            found, left = await self._connections.pipeline([("GET", name), ("PTTL", name)])
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
        if answer.startswith(NODE):
            node = answer.decode()
            # A node that has just joined is not seen by all others yet.
            new = isinstance(left, int) and left > (OPENING_SECONDS - JOINING_SECONDS) * 1000
            if new or node == self.node or self._beat.lives(node):
                return Promised(first.decode(), None)
            # The node was lost while it opened the session.
            return await self._promise_anew(name, found, mine, (principal, key, fingerprint, session_id))
        try:
            return Promised(first.decode(), self._codec.decode(answer, first.decode()))
        except UnreadableError:
            return Promised(first.decode(), None)

    async def keep_promise(
        self, principal: str, key: str, fingerprint: str, session_id: str, answer: bytes
    ) -> None:
        name, mine = self._keys.promise(principal, key), self._opening(fingerprint, session_id)
        kept = f"{fingerprint} {session_id} ".encode() + self._codec.encode(answer, session_id)
        try:
            await self._connections.script(scripts.EXCHANGE, [name], (mine, kept, PROMISE_SECONDS * 1000))
        except (AwayError, DeniedError, ReplyError) as error:
            raise away(error) from error

    async def _promise_anew(
        self, name: str, found: bytes, mine: str, promise: tuple[str, str, str, str]
    ) -> Promised | None:
        """Take over a promise that nobody will keep any more, unless another request was faster."""
        try:
            if await self._connections.script(
                scripts.EXCHANGE, [name], (found, mine, OPENING_SECONDS * 1000)
            ):
                return None
        except (AwayError, DeniedError, ReplyError) as error:
            raise away(error) from error
        return await self.promise(*promise)

    def _opening(self, fingerprint: str, session_id: str) -> str:
        """Return what is kept of a promise while this node opens the session."""
        return f"{fingerprint} {session_id} {self.node}"

    async def break_promise(self, principal: str, key: str, session_id: str) -> None:
        try:
            name = self._keys.promise(principal, key)
            await self._connections.script(scripts.FORGET, [name], (f" {session_id} ",))
        except (AwayError, DeniedError, ReplyError):
            return  # It expires soon, since it was not made permanent.

    # --- the rest -----------------------------------------------------------------------------------------------------

    async def keep_snapshot(self, journal: RedisJournal, entry: EntryId, version: int, blob: bytes) -> bool:
        """Store a session's state as of a journal entry; False where another node owns it, or where the journal was written
        again since then. Raises AwayError."""
        arguments = (self.node, entry.fence, str(entry), self._expiry(journal), blob, version)
        return bool(await self._connections.script(scripts.SNAPSHOT, journal.keys, arguments, bulk=True))

    async def index(self, journal: RedisJournal) -> None:
        """Put a session on the lists of its node and its principal. Must come first, so that no session exists that a takeover
        would not find. Raises AwayError."""
        identity = journal.identity
        score = repr(identity.opened_at or identity.created)
        lists = [self._keys.principal(identity.principal)]
        if journal.sealed_for is None:
            lists.append(self._keys.live(identity.principal))
        for reply in await self._connections.pipeline(
            [
                ("SADD", self._keys.owned(self.node), identity.session_id),
                *(("ZADD", key, "NX", score, identity.session_id) for key in lists),
            ]
        ):
            if isinstance(reply, ReplyError):
                raise AwayError(str(reply))

    async def renew_expiry(self, journal: RedisJournal) -> None:
        """Renew the expiry of a session's keys. Raises AwayError."""
        await self._connections.script(scripts.EXPIRE, journal.keys, (self.node, self._expiry(journal)))

    def _expiry(self, journal: RedisJournal) -> int:
        """Return the milliseconds for which a session's keys are kept."""
        sealed_for = journal.sealed_for
        if sealed_for is not None and sealed_for < float("inf"):
            return int(sealed_for * 1000) + 1
        return self.expiry_ms

    def _journal(self, identity: Identity) -> RedisJournal:
        snapshot_bytes = self._settings.log_max_bytes // 2
        return RedisJournal(identity, self.node, self._keys, self._codec, self._writing, snapshot_bytes)

    async def _prune(self, key: str, interval: float) -> None:
        """Drop sessions that are gone from one of a principal's lists, at most once in so many seconds."""
        now = time.monotonic()
        if now - self._pruned_at.get(key, float("-inf")) < interval:
            return
        self._pruned_at[key] = now
        # Not those that are still opening.
        old = repr(time.time() - OPENING_SECONDS)
        found = await self._connections.command("ZRANGEBYSCORE", key, "-inf", old)
        ids = [word.decode() for word in found]
        if not ids:
            return
        there = await self._connections.pipeline([("EXISTS", self._keys.meta(one)) for one in ids])
        gone = [one for one, found in zip(ids, there, strict=True) if found == 0]
        if gone:
            await self._connections.command("ZREM", key, *gone)


def away(error: Exception) -> OverloadError:
    """Return the error for callers while Redis does not answer."""
    return OverloadError("recovering", f"Redis does not answer: {type(error).__name__}.", retry_after=1)

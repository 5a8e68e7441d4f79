"""This node in the cluster: its connections, heartbeat and journals.

`start` connects to Redis and raises if Redis is unusable. Later outages are tolerated. Once a second
the node beats, drops connections that do not answer, and renews the expiry of its sessions' keys.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from gateway.cluster.appender import Address, Appender
from gateway.cluster.beat import Beat, NodeSeen, Status
from gateway.cluster.codec import Codec
from gateway.cluster.connections import AwayError, Connections, DeniedError
from gateway.cluster.directory import RedisDirectory
from gateway.cluster.journal import RedisJournal
from gateway.cluster.keys import EntryId, Keys
from gateway.cluster.resp import ReplyError
from gateway.cluster.settings import ClusterSettings
from gateway.cluster.snapshots import Snapshots
from gateway.cluster.versions import common_version
from gateway.relay.events.records import READS
from gateway.relay.tasks import Tasks
from gateway.relay.telemetry import ClusterTelemetry

EXPIRY_RENEWAL_SECONDS: Final = 300.0
STALLED_SECONDS: Final = 1.0
"""After an append was unanswered for so long, new requests are refused instead of waiting."""
_RENEW_AT_ONCE: Final = 64
_TICK_SECONDS: Final = 1.0
_PLACED_SECONDS: Final = 0.01
_LOWER_AGAIN_SECONDS: Final = 0.1
"""Between attempts to write a session in an older version: while it streams, its journal is seldom at rest."""


class ClusterNode:
    """One node, from `start` to `close`. Implements `journal.Writing` and `appender.Events`."""

    def __init__(
        self,
        settings: ClusterSettings,
        signing_keys: Sequence[bytes],
        telemetry: ClusterTelemetry,
        status: Callable[[], Status],
        epoch: Callable[[], str],
    ) -> None:
        """`status` returns this node's status; `epoch` creates the epoch of a log that continues here."""
        self.settings = settings
        self.id = f"n_{secrets.token_hex(8)}"
        self.keys = Keys(settings.prefix)
        self.codec = Codec(signing_keys, encrypt=settings.encrypt)
        self.connections = Connections(settings)
        self._telemetry = telemetry
        self.beat = Beat(
            self.id,
            self.keys,
            self.connections,
            status,
            settings.lease_seconds,
            self._beat_failed,
            self.failed,
            self._data_lost,
        )
        self.directory = RedisDirectory(
            settings,
            self.keys,
            self.codec,
            self.connections,
            self.beat,
            self,
            self._take,
            self._replicated,
            self.drop,
            epoch,
        )
        self._appenders: dict[Address | None, Appender] = {}
        self._journals: dict[str, RedisJournal] = {}
        self._unsettled = 0
        self._up: bool | None = None
        self.on_fenced: Callable[[str], None] = lambda _: None
        """Called with the id of a session that another node owns now."""
        self._tasks = Tasks(self.failed)
        self._snapshots = Snapshots(self._take_snapshot)
        self._snapshotting: set[RedisJournal] = set()
        self._storing = asyncio.Semaphore(4)

    async def start(self) -> None:
        """Beat for the first time and connect. Raises AwayError, DeniedError or ReplyError."""
        await self.beat.once()
        self.beat.start()
        if not self.connections.clustered:
            self._appender(None)
        _ = self._tasks.repeat(self._tick_for_ever, "cluster-ticker")
        if self.connections.watched:
            _ = self._tasks.repeat(self._follow_sentinels, "cluster-sentinels")
        _ = self._tasks.repeat(self._snapshots.keep_taking, "cluster-snapshots")
        _ = self._tasks.repeat(self._lower_versions_for_ever, "cluster-versions")

    async def close(self) -> None:
        """Leave the cluster. Safe to call twice."""
        await self._tasks.end()
        await self.beat.close()
        for appender in self._appenders.values():
            await appender.close()
        self._appenders.clear()
        await self.connections.close()

    async def leave(self) -> None:
        """Remove this node from the list if it owns nothing."""
        try:
            if not await self.directory.claims.owned_by(self.id):
                await self.beat.close()
                await self.beat.forget(self.id)
        except (AwayError, DeniedError, ReplyError):
            return  # The others will consider it dead and find nothing to take over.

    # --- journal.Writing ----------------------------------------------------------------------------------------------

    @property
    def sure(self) -> bool:
        return self.beat.sure and all(
            appender.up and appender.stalled_for < STALLED_SECONDS
            for appender in self._appenders.values()
            if appender.journals or not self.connections.clustered
        )

    async def owned(self, journal: RedisJournal) -> bool:
        session_id = journal.identity.session_id
        location = await self.directory.locate(session_id, fresh=True)
        if location is None or location.node in ("", self.id):
            return True  # Where Redis has lost it, its owner writes it again.
        if self._journals.get(session_id) is journal:
            self._appender(journal.address).compare(journal)
        return False

    @property
    def connected(self) -> bool:
        """Redis answers."""
        return bool(self._up) and self.sure

    @property
    def patience_seconds(self) -> float:
        return self.settings.patience_seconds

    @property
    def version(self) -> int:
        live = [seen.status.reads for seen in self.beat.nodes if not seen.dead]
        own = self.beat.status_of(self.id)
        return common_version(READS if own is None else own.reads, live)

    def dirty(self, journal: RedisJournal) -> None:
        if self._journals.get(journal.identity.session_id) is journal:
            self._appender(journal.address).dirty(journal)

    def unsettled(self, delta: int) -> None:
        self._unsettled += delta
        self._telemetry.journal_unsettled(self._unsettled)

    def snapshot_worthwhile(self, journal: RedisJournal) -> None:
        # Of a session that is opening there is none yet, and there will be a new one then.
        if self._journals.get(journal.identity.session_id) is journal:
            self._snapshots.grown(journal)

    def snapshot_due(self, journal: RedisJournal) -> None:
        if journal not in self._snapshotting:
            _ = self._tasks.run(self._store(journal, *self._snapshot(journal)), "cluster-snapshot")

    def sealed(self, journal: RedisJournal) -> None:
        _ = self._tasks.run(self.directory.closed(journal), "cluster-closed")

    # --- appender.Events ----------------------------------------------------------------------------------------------

    def journal_settled(self, seconds: float) -> None:
        self._telemetry.journal_settled(seconds)

    def journal_repaired(self, journal: RedisJournal, kind: str) -> None:
        self._telemetry.journal_repaired(journal.identity.session_id, kind)

    def fenced(self, journal: RedisJournal) -> None:
        self._discard(journal)
        self._telemetry.fenced(journal.identity.session_id)
        self.on_fenced(journal.identity.session_id)

    def failed(self, error: BaseException) -> None:
        self._telemetry.relay_failed("", error)

    def redis_up(self, up: bool, reason: str) -> None:
        if up is not self._up:
            self._up = up
            self._telemetry.redis_up(up, reason)

    # --- the rest -----------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[NodeSeen]:
        """All nodes that are known, this one included."""
        return self.beat.nodes

    def holds(self, session_id: str) -> bool:
        """Whether a session's journal is written here."""
        return session_id in self._journals

    def forget(self, journal: RedisJournal) -> None:
        """Stop appending this journal: its session left this node."""
        self._discard(journal)
        appender = self._appenders.get(journal.address)
        if appender is not None:
            appender.leave(journal)

    def drop(self, session_id: str) -> None:
        """Stop appending the journal of a session that is removed."""
        journal = self._journals.get(session_id)
        if journal is not None:
            self.forget(journal)

    def _discard(self, journal: RedisJournal) -> None:
        journal.count(False)
        if self._journals.get(journal.identity.session_id) is journal:
            del self._journals[journal.identity.session_id]
        self._snapshots.forget(journal)

    def take(self, journal: RedisJournal) -> None:
        """Append a journal that was claimed."""
        self._take(journal)

    def _take(self, journal: RedisJournal) -> None:
        if journal.sealed_for is None:
            journal.expire_at = asyncio.get_running_loop().time() + EXPIRY_RENEWAL_SECONDS
        self._journals[journal.identity.session_id] = journal
        journal.count(True)
        if self.connections.clustered:
            _ = self._tasks.run(self._place(journal), "cluster-place")
        else:
            self._appender(None).take(journal)

    async def _replicated(self, journal: RedisJournal) -> None:
        """Wait until enough replicas have a session that was just created. Raises AwayError."""
        if not self.settings.wait_replicas:
            return
        while (appender := self._appenders.get(journal.address)) is None or journal not in appender.journals:
            await asyncio.sleep(_PLACED_SECONDS)  # The primary that holds its keys is being looked up.
        await appender.until_replicated(journal)

    def _appender(self, address: Address | None) -> Appender:
        found = self._appenders.get(address)
        if found is None:

            async def find() -> Address:
                return address if address is not None else await self.connections.address(self.keys.nodes)

            found = self._appenders[address] = Appender(
                find,
                self.connections,
                self,
                self.directory.expiry_ms,
                self.id,
                self.directory.index,
                self.settings.wait_replicas,
            )
            found.start()
        return found

    def moved(self, journal: RedisJournal) -> None:
        self._appenders[journal.address].leave(journal)
        _ = self._tasks.run(self._place(journal, again=True), "cluster-place")

    async def _place(self, journal: RedisJournal, *, again: bool = False) -> None:
        """Find the primary that holds a journal's keys, and append it there."""
        while True:
            try:
                if again:
                    await self.connections.forget_slots()
                journal.address = await self.connections.address(journal.keys[0])
                break
            except AwayError as error:
                self._beat_failed(str(error))
                again = True
                await asyncio.sleep(0.2)
        self._appender(journal.address).take(journal)

    async def _follow_primaries(self) -> None:
        """Find journals whose primary cannot be reached at the one that was promoted in its place."""
        for address, appender in list(self._appenders.items()):
            if appender.up:
                continue
            try:
                if appender.journals:
                    await self.connections.forget_slots()
                for journal in list(appender.journals):
                    found = await self.connections.address(journal.keys[0])
                    if found != address:
                        appender.leave(journal)
                        journal.appends.unsettled()
                        journal.address = found
                        self._appender(found).take(journal)
            except AwayError as error:
                self._beat_failed(str(error))
            if not appender.journals:
                del self._appenders[address]
                await appender.close()

    def _snapshot(self, journal: RedisJournal) -> tuple[EntryId, int, bytes]:
        """Return a snapshot with its entry and version. The state and the journal agree at this moment."""
        self._snapshotting.add(journal)
        version = self.version
        return journal.appends.last, version, journal.dump(version)

    async def _store(self, journal: RedisJournal, entry: EntryId, version: int, blob: bytes) -> None:
        try:
            async with self._storing:
                if await self.directory.keep_snapshot(journal, entry, version, blob):
                    journal.snapshot_kept(entry, version)
        except (AwayError, DeniedError, ReplyError):
            self.snapshot_worthwhile(journal)
        finally:
            self._snapshotting.discard(journal)

    async def _take_snapshot(self, journal: RedisJournal) -> None:
        """Take a snapshot of a session at rest."""
        if journal not in self._snapshotting:
            await self._store(journal, *self._snapshot(journal))

    async def _lower_versions_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS if await self._lower_versions() else _LOWER_AGAIN_SECONDS)

    async def _lower_versions(self) -> bool:
        """Write the sessions again that a live node of an older version cannot read. Return whether none is left."""
        version = self.version
        newer = [one for one in self._journals.values() if one.stored_version > version]
        for journal in newer:
            journal.version = min(journal.version, version)
        for journal in newer:
            if journal.at_rest:
                await self._take_snapshot(journal)
        return all(journal.stored_version <= version for journal in newer)

    async def readable(self, session_id: str) -> None:
        """Wait until every live node can read a session."""
        while (journal := self._journals.get(session_id)) and journal.stored_version > self.version:
            await asyncio.sleep(_LOWER_AGAIN_SECONDS)

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            await self._tick()

    async def _tick(self) -> None:
        for appender in self._appenders.values():
            appender.watch()
        if self.connections.clustered:
            await self._follow_primaries()
        self._telemetry.cluster_nodes(Counter(seen.state for seen in self.beat.nodes))
        if self.sure:
            if self.beat.answered:
                # A paused Redis breaks no connection, so no appender reports that it is back.
                self.redis_up(True, "")
            await self._renew_expiry()

    async def _renew_expiry(self) -> None:
        now = asyncio.get_running_loop().time()
        due = [journal for journal in self._journals.values() if journal.expire_at <= now][:_RENEW_AT_ONCE]
        for journal in due:
            journal.expire_at = now + EXPIRY_RENEWAL_SECONDS
            try:
                await self.directory.renew_expiry(journal)
            except ReplyError:
                journal.expire_at = now + _TICK_SECONDS
            except (AwayError, DeniedError):
                # The others would wait as long, and meanwhile nothing drops a connection that does not answer.
                journal.expire_at = now + _TICK_SECONDS
                return

    async def _follow_sentinels(self) -> None:
        """Leave a primary as soon as Sentinel has replaced it."""
        while True:
            await asyncio.sleep(self.beat.interval)
            if await self.connections.replaced():
                self.beat.broken()
                self._reconnect(0.0)

    def _data_lost(self) -> None:
        """Redis has lost its data, as after FLUSHALL: the owners write their sessions again. After a restart the connections
        broke, so this has begun already."""
        self._reconnect(2 * self.beat.interval)

    def _reconnect(self, seconds: float) -> None:
        """Drop the connections for appends that are older than this."""
        since = asyncio.get_running_loop().time() - seconds
        for appender in self._appenders.values():
            appender.reconnect(since)

    def _beat_failed(self, reason: str) -> None:
        self.redis_up(False, reason)

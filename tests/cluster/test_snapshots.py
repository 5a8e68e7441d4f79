"""gateway/cluster/snapshots.py: new snapshots of sessions that pause, and when they are worth their cost."""

import asyncio
from typing import Any, cast

import pytest

from gateway.cluster import journal as journal_module
from gateway.cluster import snapshots as snapshots_module
from gateway.cluster.appends import Appends, Item
from gateway.cluster.connections import AwayError
from gateway.cluster.journal import RedisJournal
from gateway.cluster.keys import EntryId
from gateway.cluster.snapshots import Snapshots
from gateway.relay.events.records import Border, decode
from tests.cluster.kit import FakeSession, node, opened
from tests.cluster.redis_server import RedisServer
from tests.waiting import until


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, and take a snapshot after a few records."""
    monkeypatch.setattr(snapshots_module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(journal_module, "QUIET_BYTES", 1000)


class Growing:
    """A journal that gets records."""

    def __init__(self) -> None:
        self.appends = Appends()
        self.at_rest = True

    def grow(self) -> None:
        self.appends.add(Item(b"r", b"x"))


class Taken:
    """Snapshots as they are taken."""

    def __init__(self) -> None:
        self.journals: list[object] = []
        self.snapshots = Snapshots(self.take)

    async def take(self, journal: RedisJournal) -> None:
        self.journals.append(journal)


def grown(taken: Taken) -> RedisJournal:
    """Return a journal that is worth a snapshot."""
    journal = cast(RedisJournal, Growing())
    taken.snapshots.grown(journal)
    return journal


async def test_a_session_gets_a_snapshot_when_it_pauses() -> None:
    """Nothing was added between two looks, and it gets one snapshot."""
    taken = Taken()
    journal = grown(taken)
    cast(Growing, journal).grow()
    await taken.snapshots._look_at(journal)
    assert taken.journals == []
    for _ in range(3):
        await taken.snapshots._look_at(journal)

    assert taken.journals == [journal]


async def test_a_snapshot_is_taken_once_redis_has_everything() -> None:
    """Until then the state and the journal do not agree; a session that left this node is forgotten."""
    taken = Taken()
    journal, other = grown(taken), grown(taken)
    cast(Growing, journal).at_rest = False
    await taken.snapshots._look_at(journal)
    assert taken.journals == []
    cast(Growing, journal).at_rest = True
    taken.snapshots.forget(other)
    await taken.snapshots._look_at(other)
    looking = asyncio.create_task(taken.snapshots.keep_taking())
    await until(lambda: bool(taken.journals))
    looking.cancel()

    assert taken.journals == [journal]


async def test_a_snapshot_that_redis_did_not_answer_is_tried_again(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt takes a new snapshot, which also covers the records added since the first one."""
    async with node(redis_server.url) as a:
        session = await opened(a, "gws_1")
        keep, attempts = a.directory.keep_snapshot, list[bytes]()

        async def first_fails(journal: RedisJournal, entry: EntryId, version: int, blob: bytes) -> bool:
            attempts.append(blob)
            if len(attempts) == 1:
                raise AwayError("no answer")
            return await keep(journal, entry, version, blob)

        monkeypatch.setattr(a.directory, "keep_snapshot", first_fails)
        await wordy(session)
        await until(lambda: len(attempts) == 2)


async def wordy(session: FakeSession) -> None:
    """Add records of several KiB."""
    for number in range(20):
        session.say(f"{number} " + "x" * 100)
    await session.accept()


async def test_after_a_pause_a_takeover_has_nothing_to_apply(redis_server: RedisServer) -> None:
    """The snapshot holds all records, and the log its events; behind it is only the border of the claim."""
    async with node(redis_server.url) as a, node(redis_server.url) as b:
        session = await opened(a, "gws_1")
        await wordy(session)
        last = str(session.journal.appends.last)
        await until(lambda: redis_server.cli("HGET", "rg:{gws_1}:m", "at") == last)
        stored = await b.directory.claims.one("gws_1", a.id)

        assert stored.snapshot == b"1 21"
        assert len(stored.before) > 21
        assert [type(record) for record in map(decode, stored.after)] == [Border]
        assert not a._snapshots._grown


async def test_a_session_that_never_pauses_gets_snapshots_too(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After more bytes, so that a node that takes it over never applies more than a few MiB."""
    monkeypatch.setattr(snapshots_module, "LOOK_SECONDS", 3600.0)
    monkeypatch.setattr(journal_module, "BUSY_BYTES", 2000)
    async with node(redis_server.url) as a:
        session = await opened(a, "gws_1")
        before = redis_server.cli("HGET", "rg:{gws_1}:m", "at")
        await wordy(session)
        await until(lambda: redis_server.cli("HGET", "rg:{gws_1}:m", "at") != before)


async def test_a_session_that_was_taken_over_gets_a_snapshot_of_what_was_applied(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next takeover does not apply the same records again."""
    monkeypatch.setattr(snapshots_module, "LOOK_SECONDS", 3600.0)
    async with node(redis_server.url) as a, node(redis_server.url) as b:
        await wordy(await opened(a, "gws_1"))
        stored = await b.directory.claims.one("gws_1", a.id)
        stored.journal.claimed(stored.fence, stored.snapshot_at, 21)
        session = FakeSession(stored.journal, 21, 1)
        b.take(stored.journal)
        session.say("a little")

        assert stored.journal in b._snapshots._grown


async def test_a_snapshot_from_before_a_repair_does_not_replace_the_repairs(
    redis_server: RedisServer,
) -> None:
    """It lacks what only the repair has, because the records that it covers are gone."""
    async with node(redis_server.url) as a:
        session = await opened(a, "gws_1")
        entry, blob = session.journal.appends.last, session.journal.dump(1)
        redis_server.cli("FLUSHALL")
        session.say("only in memory")
        await until(lambda: session.journal.appends.fence > entry.fence and session.journal.at_rest)
        kept = await a.directory.keep_snapshot(session.journal, entry, 1, blob)
        again = await a.directory.keep_snapshot(session.journal, session.journal.appends.last, 1, b"new")

        assert (kept, again) == (False, True)
        assert isinstance(entry, EntryId)


async def test_the_cost_of_a_long_conversation_is_spread(redis_server: RedisServer) -> None:
    """The larger a session's snapshot, the more its journal grows before the next one."""

    class Long(FakeSession):
        def dump(self, version: int) -> bytes:
            return b"x" * 10_000

    async with node(redis_server.url) as a:
        session = Long(cast(Any, await opened(a, "gws_1")).journal, 1)
        session.journal.dump(1)
        for _ in range(3):
            session.say("x" * 1000)
        assert not a._snapshots._grown
        for _ in range(3):
            session.say("x" * 1000)

        assert session.journal in a._snapshots._grown

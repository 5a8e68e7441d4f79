"""The version of records and snapshots that nodes write while an upgrade or a rollback is under way."""

from typing import NamedTuple

import pytest

from gateway.cluster.claims import TakenError
from gateway.cluster.node import ClusterNode
from gateway.cluster.versions import common_version
from gateway.relay.events import records
from gateway.relay.events.records import Acknowledged, decode, is_part_of
from tests.cluster.kit import node, opened
from tests.cluster.redis_server import RedisServer
from tests.waiting import until


@pytest.mark.parametrize(
    ("own", "others", "written"),
    [
        ([1], [[1]], 1),
        ([1, 2], [[1, 2]], 2),
        ([1, 2], [[1, 2], [1]], 1),
        ([1, 2], [[1, 2], [2, 3]], 2),
        ([1, 2, 3], [[1, 2, 3], [2, 3], [2]], 2),
        # None in common: the one that most nodes read.
        ([1, 2], [[1, 2], [1], [2, 3], [2, 3]], 2),
        ([2, 3], [[2, 3], [1]], 3),
        ([1], [], 1),
    ],
)
def test_the_highest_version_that_every_node_reads_is_written(
    own: list[int], others: list[list[int]], written: int
) -> None:
    """Upgraded nodes use the former version until the last node of it has left."""
    assert common_version(own, others) == written


async def test_sessions_are_written_again_for_an_older_node_that_joins(redis_server: RedisServer) -> None:
    """A rollback: the older node can then claim a session that was written in the newer version."""
    async with node(redis_server.url, reads=(1, 2)) as new:
        session = await opened(new, "gws_1")
        assert redis_server.cli("HGET", "rg:{gws_1}:m", "v") == "2"
        assert (session.journal.version, session.journal.stored_version) == (2, 2)
        async with node(redis_server.url) as old:
            await until(lambda: new.version == 1)
            await new.readable("gws_1")
            assert redis_server.cli("HGET", "rg:{gws_1}:m", "v") == "1"
            assert (session.journal.version, session.journal.stored_version) == (1, 1)
            session.say("after it")
            await session.accept()

            stored = await old.directory.claims.one("gws_1", new.id)

    assert (stored.journal.version, stored.snapshot) == (1, b"0 1")
    assert [type(decode(record)).__name__ for record in stored.after] == ["ServerEvent", "Accepted", "Border"]


async def test_a_journal_that_is_not_at_rest_is_written_again_later(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot can only replace records that Redis has; newer records are of the older version at once."""
    async with node(redis_server.url, reads=(1, 2)) as new:
        session = await opened(new, "gws_1")
        monkeypatch.setattr(ClusterNode, "version", 1)
        session.say("under way")
        assert not await new._lower_versions()
        assert (session.journal.version, session.journal.stored_version) == (1, 2)
        await until(lambda: session.journal.at_rest)

        assert await new._lower_versions()
        assert session.journal.stored_version == 1


async def test_sessions_are_written_in_the_newer_version_once_the_older_nodes_have_left(
    redis_server: RedisServer,
) -> None:
    """An upgrade: Redis names the version with the next snapshot, before records are written in it."""
    async with node(redis_server.url, reads=(1, 2)) as new:
        async with node(redis_server.url) as old:
            await until(lambda: new.version == 1)
            session = await opened(new, "gws_1")
            assert redis_server.cli("HGET", "rg:{gws_1}:m", "v") == "1"
            await old.beat.close()
            await old.beat.forget(old.id)
        await until(lambda: new.version == 2)
        await until(lambda: session.journal.at_rest)
        assert session.journal.version == 1
        new.snapshot_due(session.journal)
        new.snapshot_due(session.journal)  # Only one snapshot of a session is under way.
        await until(lambda: session.journal.version == 2)

        assert redis_server.cli("HGET", "rg:{gws_1}:m", "v") == "2"


async def test_what_another_version_wrote_is_not_claimed(redis_server: RedisServer) -> None:
    """The session stays with its owner, for a node that can read it."""
    async with node(redis_server.url) as old, node(redis_server.url, reads=(1, 2)) as new:
        await opened(new, "gws_1")
        redis_server.cli("HSET", "rg:{gws_1}:m", "v", "2")

        with pytest.raises(TakenError, match=r"another version \(2\)"):
            await old.directory.claims.one("gws_1", new.id)

        assert redis_server.cli("HGET", "rg:{gws_1}:m", "node") == new.id


class Noted(NamedTuple):
    """A kind of record that version 2 adds."""

    text: str


async def test_kinds_that_a_later_version_added_are_left_out_for_older_nodes(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older node could not read the session with them."""
    monkeypatch.setattr(records, "SINCE", {Noted: 2})
    monkeypatch.setattr(records, "_LETTERS", records._LETTERS | {Noted: "n"})
    noted: records.Record = Noted("x")  # type: ignore[assignment]  # it is one in version 2
    async with node(redis_server.url, reads=(1, 2)) as new:
        session = await opened(new, "gws_1")
        session.journal.add(noted)
        session.journal.version = 1
        session.journal.add(noted)
        await session.accept()

        assert redis_server.cli("XRANGE", "rg:{gws_1}:j", "-", "+").count("n[") == 1
    assert is_part_of(1, Acknowledged(1))

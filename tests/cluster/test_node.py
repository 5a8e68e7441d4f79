"""A node's background tasks: an exception in one is reported, and periodic ones continue."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from gateway.cluster import beat, takeover
from gateway.cluster import node as node_module
from gateway.cluster.connections import AwayError
from gateway.cluster.gate import DialGate
from gateway.cluster.journal import RedisJournal
from gateway.cluster.membership import Membership
from gateway.cluster.node import ClusterNode
from gateway.cluster.takeover import Takeover
from gateway.relay import tasks
from gateway.relay.calls.succession import Prepared
from tests.cluster.kit import node, opened, told
from tests.cluster.redis_server import RedisServer
from tests.waiting import until


class Bug:
    """Raises when it is called, and counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: object) -> Any:
        self.calls += 1
        raise ValueError("a bug")

    async def abandon(self) -> None:
        self()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten all periods."""
    monkeypatch.setattr(tasks, "RESTART_SECONDS", 0.0)
    monkeypatch.setattr(node_module, "_TICK_SECONDS", 0.01)
    monkeypatch.setattr(takeover, "_WATCH_SECONDS", 0.01)
    monkeypatch.setattr(beat, "BEAT_SHARE", 0.01)


async def test_redis_that_is_away_is_asked_to_renew_one_session_only(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt waits for a second, and the ticker has other work: it drops connections that do not answer."""
    async with node(redis_server.url) as one:
        for number in range(3):
            (await opened(one, f"gws_{number}")).journal.expire_at = float("inf")
        asked = []

        async def away(journal: RedisJournal) -> None:
            asked.append(journal)
            raise AwayError

        monkeypatch.setattr(one.directory, "renew_expiry", away)
        for journal in one._journals.values():
            journal.expire_at = 0.0
        await one._renew_expiry()

        assert len(asked) == 1


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (told, "cluster_nodes"),
        (lambda one: one.beat, "_status"),
        (lambda one: one.beat, "dead"),
        (lambda one: one._appender(None), "_find"),
    ],
    ids=["tick", "beat", "watch for lost nodes", "connection for appends"],
)
async def test_a_bug_in_a_periodic_task_does_not_end_it(
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    owner: Callable[[ClusterNode], object],
    name: str,
) -> None:
    """The task is started again, and the exception is reported each time."""
    bug = Bug()
    async with node(redis_server.url) as one:
        taking = Takeover(one, told(one), cast(Any, None), lambda: True)
        taking.start()
        await until(lambda: one.connected)
        monkeypatch.setattr(owner(one), name, bug)
        wire = one._appender(None)._wire
        assert wire is not None
        wire.drop()
        await until(lambda: bug.calls >= 2)
        await taking.close()

        assert {repr(error) for error in told(one).failures} == {"ValueError('a bug')"}


async def test_a_bug_in_a_task_of_one_session_is_reported(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception is reported in the repair of a journal, a snapshot, the end of a prepared call, and the takeover
    of a lost node's sessions."""
    async with node(redis_server.url) as one:
        session = await opened(one, "gws_1")
        failures = told(one).failures
        monkeypatch.setattr(session.journal, "rewrite", Bug())
        redis_server.cli("FLUSHALL")
        one._appender(None)._look_into(session.journal)
        await until(lambda: len(failures) == 1)
        monkeypatch.setattr(one.directory, "keep_snapshot", Bug())
        one.snapshot_due(session.journal)
        await until(lambda: len(failures) == 2)
        nothing = cast(Any, None)
        membership = Membership(one, nothing, nothing, told(one), nothing, nothing, nothing, DialGate())
        prepared = membership._prepared["gws_1"] = cast(Prepared, Bug())
        membership._expire("gws_1", prepared)
        await until(lambda: len(failures) == 3)
        monkeypatch.setattr(one.directory.claims, "owned_by", Bug())
        Takeover(one, told(one), cast(Any, None), lambda: True).replace("n_lost")
        await until(lambda: len(failures) == 4)

        assert {repr(error) for error in failures} == {"ValueError('a bug')"}


async def test_a_node_that_stops_does_not_report_redis_as_lost(redis_server: RedisServer) -> None:
    """The node itself closes the connection."""
    async with node(redis_server.url) as one:
        await until(lambda: one.connected)

    assert told(one).ups == [True]

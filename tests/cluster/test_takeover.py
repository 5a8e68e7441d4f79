"""Lost nodes: which node takes over their sessions, and when. A paused node finds its sessions gone."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.cluster import claims, takeover
from gateway.cluster.claims import Stored
from gateway.cluster.connections import AwayError
from gateway.cluster.node import ClusterNode
from gateway.cluster.takeover import Takeover, UnreadableError
from tests.cluster.kit import FakeSession, node, opened, told
from tests.cluster.redis_server import Proxy, RedisServer
from tests.waiting import until

StartRedis = Callable[..., RedisServer]


class Taking:
    """A node that adopts the sessions it claims."""

    def __init__(self, of: ClusterNode) -> None:
        self.node = of
        self.sessions: dict[str, FakeSession] = {}
        self.draining = False
        self.takeover = Takeover(of, told(of), self.adopt, lambda: not self.draining)

    async def adopt(self, stored: Stored) -> str:
        accepted, head = map(int, stored.snapshot.split())
        stored.journal.claimed(stored.fence, stored.snapshot_at, head)
        self.sessions[stored.session_id] = FakeSession(stored.journal, head, accepted)
        self.node.take(stored.journal)
        return "taken"


@asynccontextmanager
async def taking(url: str) -> AsyncIterator[Taking]:
    """Run a node that takes over sessions, with a lease of 1 s."""
    async with node(url, lease_seconds=1.0) as made:
        one = Taking(made)
        one.takeover.start()
        try:
            yield one
        finally:
            await one.takeover.close()


@pytest.mark.slow
async def test_sessions_of_a_node_that_stops_beating_are_shared_by_the_others(
    redis_server: RedisServer,
) -> None:
    """Each session gets exactly one new owner soon after the lease, and the node leaves the list."""
    async with taking(redis_server.url) as b, taking(redis_server.url) as c:
        async with node(redis_server.url, lease_seconds=1.0) as a:
            for number in range(20):
                await opened(a, f"gws_{number}")
            await a.beat.close()
            async with asyncio.timeout(6):
                await until(lambda: len(b.sessions) + len(c.sessions) == 20)
            assert not b.sessions.keys() & c.sessions.keys()
            assert b.sessions
            assert c.sessions
        await until(lambda: a.id not in redis_server.cli("HKEYS", "rg:{nodes}"))
        next(iter(b.sessions.values())).say("goes on")


@pytest.mark.slow
async def test_paused_owner_finds_itself_replaced(start_redis: StartRedis) -> None:
    """A node cut off for longer than the lease is no longer sure of its sessions, is replaced, and shows nothing of
    what it held."""
    server = start_redis()
    async with (
        Proxy(server.port) as proxy,
        taking(server.url) as b,
        node(proxy.url, lease_seconds=1.0, patience_seconds=0.2) as a,
    ):
        session = await opened(a, "gws_1")
        proxy.stop()
        session.say("never shown")
        await until(lambda: not session.journal.sure)
        await until(lambda: "gws_1" in b.sessions)
        assert not session.was_fenced
        proxy.go_on()
        await until(lambda: session.was_fenced)

        assert session.shown == 1
        assert not session.journal.sure


@pytest.mark.slow
async def test_redis_that_was_away_makes_nobody_look_dead(start_redis: StartRedis) -> None:
    """Redis was stopped for three leases, and no session is taken over afterwards."""
    server = start_redis()
    async with taking(server.url) as b, node(server.url, lease_seconds=1.0) as a:
        await opened(a, "gws_1")
        server.pause()
        await asyncio.sleep(3.0)
        server.go_on()
        await until(lambda: a.beat.sure and b.node.beat.sure)
        await asyncio.sleep(1.2)

        assert b.sessions == {}


async def test_node_tells_that_redis_is_back_after_a_missed_beat(redis_server: RedisServer) -> None:
    """A paused Redis breaks no connection, so only the next beat shows that it answers again."""
    async with node(redis_server.url) as one:
        await until(lambda: one.connected)
        one.beat.answered = False  # as after a beat without an answer
        one._beat_failed("away")
        await one._tick()
        assert told(one).ups == [True, False]
        await one.beat.once()
        await one._tick()

        assert told(one).ups == [True, False, True]
        assert one.connected


@pytest.mark.slow
async def test_workers_of_one_command_are_reached_by_their_sockets(redis_server: RedisServer) -> None:
    """Other nodes, also workers of another command, are reached at the URL that they advertise."""
    url = redis_server.url
    async with (
        node(url, peer_socket="/run/a/worker-0.sock") as one,
        node(url, peer_socket="/run/a/worker-1.sock") as two,
        node(url, peer_socket="/run/b/worker-0.sock") as other,
        node(url) as alone,
    ):
        await until(lambda: len(one.directory.peers) == len(alone.directory.peers) == 3)
        seen = {peer.node: peer.url for peer in one.directory.peers}
        from_alone = {peer.url for peer in alone.directory.peers}

    assert seen[two.id] == "unix:/run/a/worker-1.sock"
    assert seen[other.id] == seen[alone.id] == "http://127.0.0.1:1"
    assert from_alone == {"http://127.0.0.1:1"}


async def test_claim_that_succeeded_without_an_answer_is_adopted_later(redis_server: RedisServer) -> None:
    """Without that the session would belong to a node that does not have it, and every other node would forward
    requests to that one."""
    async with taking(redis_server.url) as b, node(redis_server.url, lease_seconds=1.0) as a:
        await opened(a, "gws_1")
        claims, read = b.node.directory.claims, b.node.directory.claims._read

        async def unanswered(won: Sequence[Any]) -> dict[str, Any]:
            claims._read = read  # type: ignore[method-assign]  # once
            raise AwayError("no answer")

        claims._read = unanswered  # type: ignore[method-assign]
        with pytest.raises(AwayError):
            await b.takeover.take("gws_1", a.id, 0.0)
        await until(lambda: "gws_1" in b.sessions)

        assert redis_server.cli("HGET", "rg:{gws_1}:m", "node") == b.node.id
        assert redis_server.cli("SISMEMBER", f"rg:n:{b.node.id}", "gws_1") == "1"


@pytest.mark.slow
async def test_session_that_cannot_be_adopted_does_not_stop_the_others(redis_server: RedisServer) -> None:
    """It is reported, and stays on the list of the node that claimed it, for a node that can read it."""
    async with taking(redis_server.url) as b:
        adopt = b.adopt

        async def brittle(stored: Stored) -> str:
            if stored.session_id == "gws_3":
                raise ValueError("a bug")
            return await adopt(stored)

        b.takeover._adopt = brittle
        async with node(redis_server.url, lease_seconds=1.0) as a:
            for number in range(8):
                await opened(a, f"gws_{number}")
            await a.beat.close()
            await until(lambda: len(b.sessions) == 7)
        await until(lambda: a.id not in redis_server.cli("HKEYS", "rg:{nodes}"))
        listed = redis_server.cli("SMEMBERS", f"rg:n:{b.node.id}").split()

    assert sorted(listed) == [f"gws_{number}" for number in range(8)]
    assert told(b.node).takeovers.count("failed") == 1


@pytest.mark.slow
async def test_draining_node_takes_nothing(redis_server: RedisServer) -> None:
    """A draining node takes over nothing: the other one takes all the sessions, although it ranks second."""
    async with taking(redis_server.url) as b, taking(redis_server.url) as c:
        c.draining = True
        async with node(redis_server.url, lease_seconds=1.0) as a:
            await opened(a, "gws_1")
            await opened(a, "gws_2")
            await a.beat.close()
            await until(lambda: len(b.sessions) == 2)
            assert c.sessions == {}


async def test_node_that_has_just_joined_is_not_waited_for(redis_server: RedisServer) -> None:
    """A new node cannot detect a lost node for one lease, so it does not rank among those that take over."""
    async with (
        node(redis_server.url, lease_seconds=60.0) as a,
        node(redis_server.url, lease_seconds=60.0) as b,
    ):
        for _ in range(12):
            await a.beat.once()

        assert a.beat.taking_over() == [a.id]
        assert b.id in [seen.node for seen in a.beat.nodes]


@pytest.mark.slow
async def test_sessions_of_another_version_wait_for_a_node_that_reads_them(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node of the older version reports the lost node and them once, and does not ask Redis for them all the time. A node of
    their version takes them over."""
    looks = 0
    async with taking(redis_server.url) as b:
        many = b.node.directory.claims.each

        def counted(*what: Any) -> Any:
            nonlocal looks
            looks += 1
            return many(*what)

        monkeypatch.setattr(b.node.directory.claims, "each", counted)
        async with node(redis_server.url, lease_seconds=1.0) as a:
            await opened(a, "gws_1")
            redis_server.cli("HSET", "rg:{gws_1}:m", "v", "2")
            await a.beat.close()
            await until(lambda: bool(told(b.node).unreadable))
            await asyncio.sleep(1.0)
        assert (told(b.node).lost, told(b.node).unreadable) == ([(a.id, 1)], [(a.id, 1)])
        assert (looks, b.sessions) == (1, {})
        monkeypatch.setattr(claims, "READS", (1, 2))
        b.takeover._again_at.clear()
        await until(lambda: "gws_1" in b.sessions)


async def test_claimed_session_that_cannot_be_read_is_not_claimed_again_and_again(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays on the list of the node that claimed it. The number of such sessions that are remembered is bounded."""
    monkeypatch.setattr(takeover, "MAX_FAILED", 1)
    async with node(redis_server.url, lease_seconds=1.0) as a, taking(redis_server.url) as b:

        async def unreadable(stored: Stored) -> str:
            raise UnreadableError("a malformed record")

        b.takeover._adopt = unreadable
        for session_id in ("gws_1", "gws_2"):
            await opened(a, session_id)
            assert await b.takeover.take(session_id, a.id, 0.0) == "unreadable"
            assert await b.takeover.take(session_id, a.id, 0.0) == "lost_race"

        assert b.takeover._doubtful == {}
        assert list(b.takeover._failed) == ["gws_2"]

"""Which primary the Sentinels name while a failover is under way, and what a node does then."""

from collections.abc import Callable

import pytest
from redis.asyncio.sentinel import MasterNotFoundError

from gateway.cluster.connections import AwayError, Connections
from gateway.cluster.sentinels import Sentinels
from gateway.relay.events.records import Border, decode
from tests.cluster.fake_sentinel import FakeSentinel
from tests.cluster.kit import node, opened, told
from tests.cluster.redis_server import RedisServer
from tests.ports import free_port
from tests.waiting import until

StartRedis = Callable[..., RedisServer]


async def named(*sentinels: FakeSentinel | int) -> int:
    """Return the port of the primary that these Sentinels name; a number is a port without one."""
    hosts = [("127.0.0.1", one if isinstance(one, int) else one.port) for one in sentinels]
    found = Sentinels.of(hosts, 1.0)
    try:
        _, port = await found.discover_master("main")
        return port
    finally:
        await found.aclose()


async def test_the_sentinel_that_knows_the_last_failover_is_believed() -> None:
    """One that has not heard of it names the former primary for a second or two, and it may be the first of the list."""
    async with FakeSentinel(1) as late, FakeSentinel(2) as informed:
        late.epoch, informed.epoch = 4, 5

        assert await named(late, informed) == 2
        assert await named(free_port(), informed, late) == 2


async def test_a_promoted_replica_is_named_before_the_failover_ends() -> None:
    """The state is still that of the former primary then, which is down."""
    async with FakeSentinel(1) as leader:
        leader.primary, leader.flags = 2, "master,s_down,o_down,failover_in_progress"

        assert await named(leader) == 2


async def test_a_primary_that_is_down_is_not_named() -> None:
    """A connection to it would only cost time."""
    async with FakeSentinel(1) as one:
        one.flags = "master,s_down"

        with pytest.raises(MasterNotFoundError):
            await named(one, free_port())


async def test_a_node_leaves_a_primary_that_was_replaced_but_still_answers(
    redis_server: RedisServer, start_redis: StartRedis
) -> None:
    """A primary that only hung accepts writes until a Sentinel tells it that it is a replica, and then loses them."""
    former, promoted = redis_server, start_redis()
    async with FakeSentinel(former.port) as first, FakeSentinel(former.port) as second:
        url = f"redis+sentinel://127.0.0.1:{first.port},127.0.0.1:{second.port}/main"
        async with node(url, lease_seconds=1.0) as a:
            session = await opened(a, "gws_1")
            second.names(promoted.port, 1)
            await until(lambda: promoted.cli("EXISTS", "rg:{gws_1}:j", "rg:{nodes}") == "2")
            written = former.cli("XINFO", "STREAM", "rg:{gws_1}:j")
            session.say("after the failover")
            await session.accept()

            assert told(a).repairs == ["emptied"]
            assert former.cli("XINFO", "STREAM", "rg:{gws_1}:j") == written


async def test_observations_of_a_replaced_primary_make_no_node_look_dead(
    redis_server: RedisServer, start_redis: StartRedis
) -> None:
    """The other nodes beat at its successor, so their beats stand still at the former primary."""
    former, promoted = redis_server, start_redis()
    async with FakeSentinel(former.port) as sentinel:
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        async with node(url, lease_seconds=1.0) as a, node(f"redis://127.0.0.1:{former.port}") as b:
            await until(lambda: a.beat.lives(b.id))
            sentinel.names(promoted.port, 1)
            await until(lambda: promoted.cli("HEXISTS", "rg:{nodes}", a.id) == "1")
            await until(lambda: a.sure)

            assert a.beat.dead() == []
            assert b.id not in [seen.node for seen in a.nodes]


async def test_a_claimed_session_is_read_from_the_server_that_has_the_claim(
    redis_server: RedisServer, start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A former primary has no border of the claim: the log would go on under its epoch, and give its IDs to other texts."""

    async def unnoticed(_: Connections) -> bool:
        return False

    monkeypatch.setattr(Connections, "replaced", unnoticed)
    former, promoted = redis_server, start_redis()
    async with FakeSentinel(former.port) as sentinel, node(redis_server.url) as a:
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        async with node(url) as b:
            await opened(a, "gws_1")
            keys = b.keys.session("gws_1")
            former.cli("MIGRATE", "127.0.0.1", str(promoted.port), "", "0", "5000", "COPY", "KEYS", *keys)
            await b.directory.claims.peek(
                "gws_1"
            )  # over a connection for large answers, to the former primary
            sentinel.names(promoted.port, 1)
            await b.connections._control.connection_pool.disconnect()  # type: ignore[union-attr]  # not a Cluster's

            with pytest.raises(AwayError):
                await b.directory.claims.one("gws_1", a.id)
            again = await b.directory.claims.one("gws_1", b.id)

        assert decode(again.after[-1]) == Border(b.id, again.journal.identity.epoch)


async def test_a_command_whose_connection_was_dropped_counts_as_unanswered(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A RuntimeError of uvloop: the transport was closed before the command was written."""

    async def closed(*_: object) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    async with node(redis_server.url) as a:
        monkeypatch.setattr(a.connections._control, "execute_command", closed)

        with pytest.raises(AwayError):
            await a.connections.command("PING")

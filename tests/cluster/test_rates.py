"""gateway/cluster/rates.py: one token bucket for all nodes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.cluster.connections import Connections
from gateway.cluster.keys import Keys
from gateway.cluster.rates import RedisRates
from gateway.cluster.settings import ClusterSettings, Target
from tests.cluster.redis_server import RedisServer

SLOW = 0.001
"""A rate at which nothing comes back during a test."""


@asynccontextmanager
async def rates(server: RedisServer, nodes: int = 2) -> AsyncIterator[RedisRates]:
    """Run one node's part of the rates."""
    connections = Connections(ClusterSettings(Target.parse(server.url)))

    def failed(error: BaseException) -> None:
        raise AssertionError from error

    made = RedisRates(connections, Keys("rg:"), lambda: nodes, failed)
    try:
        yield made
    finally:
        await made.close()
        await connections.close()


async def test_a_burst_is_one_for_all_nodes(redis_server: RedisServer) -> None:
    """Sessions per minute are exact: three nodes together allow no more than the burst."""
    async with rates(redis_server) as a, rates(redis_server) as b, rates(redis_server) as c:
        waits = [await (a, b, c)[number % 3].take("one", "sessions", 1.0, SLOW, 5.0) for number in range(6)]
        other = await a.take("two", "sessions", 1.0, SLOW, 5.0)

    assert waits[:5] == [0.0] * 5
    assert waits[5] == pytest.approx(1000.0, rel=0.01)
    assert other == 0.0


async def test_tokens_come_back_at_the_rate(redis_server: RedisServer) -> None:
    """The bucket fills by Redis's own clock, and a refusal says how long to wait."""
    async with rates(redis_server, nodes=1000) as a:
        while (wait := await a.take("one", "events", 10.0, 50.0, 20.0)) == 0.0:
            pass
        await asyncio.sleep(wait + 0.01)
        again = await a.take("one", "events", 10.0, 50.0, 20.0)

    assert wait <= 0.2
    assert again == 0.0


async def test_more_than_a_burst_is_taken_from_a_full_bucket(redis_server: RedisServer) -> None:
    """A request above the burst leaves a debt, so that no amount is always refused."""
    async with rates(redis_server) as a, rates(redis_server) as b:
        assert await a.take("one", "bytes", 1000.0, 10.0, 20.0) == 0.0
        wait = await b.take("one", "bytes", 1.0, 10.0, 20.0)

    assert wait == pytest.approx(98.1, abs=0.5)


async def test_requests_take_from_a_stock_that_is_filled_ahead(redis_server: RedisServer) -> None:
    """Of many requests only the first waits for Redis, and Redis gets a command for many of them."""
    async with rates(redis_server) as a:
        suspended = 0
        for _ in range(300):
            taking = a.take("one", "events", 1.0, 200.0, 400.0)
            try:
                taking.send(None)
            except StopIteration:
                await a._tasks.ended()  # the stock is filled beside the requests
                continue
            taking.close()
            suspended += 1
            await a.take("one", "events", 1.0, 200.0, 400.0)
        commands = int(redis_server.cli("INFO", "commandstats").split("cmdstat_eval:calls=")[1].split(",")[0])

    assert suspended == 1
    assert commands < 30


async def test_changed_limit_applies_at_once(redis_server: RedisServer) -> None:
    """A reload of the keys may change a rate."""
    async with rates(redis_server) as a:
        assert await a.take("one", "events", 20.0, 10.0, 20.0) == 0.0
        # The bucket is as empty as before; the new rate fills it in 1 us.
        assert await a.take("one", "events", 1.0, 1e6, 2e6) <= 1e-5


async def test_share_of_the_rate_passes_while_redis_is_away(start_redis: Callable[..., RedisServer]) -> None:
    """Each of two nodes allows half of the rate and half of the burst."""
    server = start_redis()
    async with rates(server, nodes=2) as a:
        assert await a.take("one", "events", 20.0, 2.0, 20.0) == 0.0
        server.kill()
        refused = await a.take("one", "events", 9.0, 2.0, 20.0)
        await asyncio.sleep(0.1)
        passed = await a.take("one", "events", 0.05, 2.0, 20.0)

    assert 0.0 < refused <= 9.0
    assert passed == 0.0


async def test_requests_at_the_same_time_ask_once(redis_server: RedisServer) -> None:
    """Simultaneous requests are served one after another from what the first one took, without exceeding the burst."""
    async with rates(redis_server) as a:
        waits = await asyncio.gather(*(a.take("one", "events", 1.0, SLOW, 10.0) for _ in range(20)))

    assert sum(wait == 0.0 for wait in waits) == 10

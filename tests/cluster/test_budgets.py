"""gateway/cluster/budgets.py: what a key spent today on all nodes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.cluster.budgets import SharedBudgets
from gateway.cluster.connections import Connections
from gateway.cluster.keys import Keys
from gateway.cluster.settings import ClusterSettings, Target
from gateway.errors import OverloadError
from gateway.relay.requests import Principal
from gateway.relay.spending import Allowance, Amount
from tests.cluster.redis_server import RedisServer
from tests.waiting import until

KEY = Principal("one", tokens_per_day=100)


@asynccontextmanager
async def budgets(server: RedisServer) -> AsyncIterator[tuple[Allowance, SharedBudgets]]:
    """Run one node's part of the budgets."""
    connections, allowance = Connections(ClusterSettings(Target.parse(server.url))), Allowance()
    try:
        yield allowance, SharedBudgets(connections, Keys("rg:"), allowance)
    finally:
        await connections.close()


async def test_a_budget_of_a_day_is_one_for_all_nodes(redis_server: RedisServer) -> None:
    """What one node spends is shared with the others, in tokens and in picodollars, and their requests are refused."""
    now = time.time()
    async with budgets(redis_server) as (here, mine), budgets(redis_server) as (there, theirs):
        here.spend("one", 60, 7, now)
        there.spend("one", 50, 5, now)
        here.check(KEY, now)
        await mine.round()
        await theirs.round()
        await mine.round()
        spent = [allowance.spent("one", now) for allowance in (here, there)]
        for allowance in (here, there):
            with pytest.raises(OverloadError, match="100 tokens per day"):
                allowance.check(KEY, now)

    assert spent == [Amount(110, 12), Amount(110, 12)]


async def test_a_round_that_is_cancelled_loses_nothing(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that stops cancels its rounds and adds the rest in a last one."""
    async with budgets(redis_server) as (here, mine), budgets(redis_server) as (there, theirs):
        here.spend("one", 60, 7, time.time())
        with monkeypatch.context() as hanging:
            hanging.setattr(mine._connections, "pipeline", lambda _: asyncio.sleep(3600))
            cut = asyncio.create_task(mine.round())
            await asyncio.sleep(0)
            cut.cancel()
            await asyncio.wait({cut})
        await mine.round()
        there.check(KEY, time.time())
        await theirs.round()

        assert there.spent("one", time.time()) == Amount(60, 7)


async def test_a_node_that_starts_learns_the_day_so_far(redis_server: RedisServer) -> None:
    """The first check of a key asks for its total at once."""
    async with budgets(redis_server) as (here, mine), budgets(redis_server) as (there, theirs):
        here.spend("one", 100, 0, time.time())
        await mine.round()
        keeping = asyncio.create_task(theirs.keep())
        await asyncio.sleep(0)
        there.check(KEY, time.time())
        await until(lambda: there.spent("one", time.time()).tokens == 100, 0.9)
        keeping.cancel()
        await asyncio.wait({keeping})


async def test_what_could_not_be_told_is_told_later(start_redis: Callable[..., RedisServer]) -> None:
    """While Redis is away a node continues counting, and the total is right afterwards."""
    server, now = start_redis(), time.time()
    async with budgets(server) as (here, mine):
        here.spend("one", 10, 1, now)
        server.kill()
        await mine.round()
        here.spend("one", 5, 1, now)
        away = here.spent("one", now)
        server.start()
        await mine.round()
        day = int(now // 86_400)
        total = server.cli("HMGET", f"rg:t:one:{day}", "tokens", "cost").split()
        left = int(server.cli("PTTL", f"rg:t:one:{day}"))

    assert away == here.spent("one", now) == Amount(15, 2)
    assert total == ["15", "2"]
    assert 86_400_000 < left <= 2 * 86_400_000


async def test_nothing_is_sent_for_keys_that_nobody_uses(redis_server: RedisServer) -> None:
    """A key without a budget of a day, or one that was not checked for a minute, costs no command."""
    async with budgets(redis_server) as (here, mine):
        here.check(Principal("one"), time.time())
        here.check(KEY, time.time() - 61)
        before = redis_server.cli("INFO", "stats").split("total_commands_processed:")[1].split()[0]
        await mine.round()
        after = redis_server.cli("INFO", "stats").split("total_commands_processed:")[1].split()[0]

    assert int(after) - int(before) == 1  # the INFO itself

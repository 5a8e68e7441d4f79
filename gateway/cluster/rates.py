"""A key's rate limits, over all nodes.

Redis has one token bucket for each key and limit. A node takes tokens from it in slices, ahead of its requests: half a
second of the rate, shared by the live nodes. So most requests take from the node's own stock and wait for nothing; one
that finds it empty waits for Redis once. What a node has taken and not used can be used later, so the nodes together may
exceed a burst by one slice each. While Redis does not answer, each node lets its share of the rate through.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.cluster import scripts
from gateway.cluster.connections import AwayError, Connections, DeniedError
from gateway.cluster.keys import Keys
from gateway.cluster.resp import ReplyError
from gateway.relay.tasks import Tasks

SLICE_SECONDS: Final = 0.5
LOW_SHARE: Final = 0.5
"""Share of a slice below which the stock is filled again, before a request finds it empty."""
_AGAIN: Final = 3
"""Attempts of a request while others empty the stock that it has filled."""


class _Stock:
    """What this node has taken from one bucket and not used yet."""

    __slots__ = ("burst", "fed_at", "filling", "key", "level", "lock", "rate")

    def __init__(self, key: str, rate: float, burst: float, now: float) -> None:
        self.key, self.rate, self.burst = key, rate, burst
        self.level = 0.0
        self.fed_at = now
        self.lock = asyncio.Lock()
        self.filling = False


class RedisRates:
    """Takes tokens for this node. Implements `downstream.auth.buckets.SharedRates`."""

    def __init__(
        self,
        connections: Connections,
        keys: Keys,
        live_nodes: Callable[[], int],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`failed` is called with the exception that ended a task."""
        self._connections = connections
        self._keys = keys
        self._live_nodes = live_nodes
        self._tasks = Tasks(failed)
        # One for each configured key and limit.
        self._stocks: dict[tuple[str, str], _Stock] = {}

    async def close(self) -> None:
        """Stop filling stocks."""
        await self._tasks.end()

    async def take(self, principal: str, what: str, amount: float, rate: float, burst: float) -> float:
        """Take tokens; return 0, or the seconds until they may be taken."""
        loop = asyncio.get_running_loop()
        stock = self._stocks.get((principal, what))
        if stock is None or (stock.rate, stock.burst) != (rate, burst):
            stock = _Stock(self._keys.bucket(principal, what), rate, burst, loop.time())
            self._stocks[principal, what] = stock
        if stock.level < amount:
            async with stock.lock:  # One request asks, and the others find what is left.
                for _ in range(_AGAIN):
                    if stock.level >= amount:
                        break
                    wait = await self._fill(stock, amount)
                    if wait > 0:
                        return wait
        stock.level -= amount
        if stock.level < LOW_SHARE * self._slice(stock) and not stock.filling:
            stock.filling = True
            _ = self._tasks.run(self._fill_ahead(stock), "cluster-rates")
        return 0.0

    def _slice(self, stock: _Stock) -> float:
        # Whole tokens, so that low limits, such as a few sessions a minute, are exact.
        return float(int(stock.rate * SLICE_SECONDS / max(1, self._live_nodes())))

    async def _fill_ahead(self, stock: _Stock) -> None:
        try:
            await self._fill(stock, 0.0)
        finally:
            stock.filling = False

    async def _fill(self, stock: _Stock, amount: float) -> float:
        """Bring the stock to an amount, and a slice more. Return 0, or the seconds until that much may be taken."""
        loop = asyncio.get_running_loop()
        need = max(0.0, amount - stock.level)
        more = self._slice(stock) if amount else max(0.0, self._slice(stock) - stock.level)
        try:
            taken, wait = await self._connections.script(
                scripts.TAKE, [stock.key], (repr(stock.rate), repr(stock.burst), repr(need), repr(more))
            )
        except (AwayError, DeniedError, ReplyError):
            return self._fill_alone(stock, amount, loop.time())
        stock.fed_at = loop.time()
        stock.level += float(taken)
        return float(wait)

    def _fill_alone(self, stock: _Stock, amount: float, now: float) -> float:
        """Let this node's share of the rate through while Redis does not answer."""
        nodes = max(1, self._live_nodes())
        rate, burst = stock.rate / nodes, max(1.0, stock.burst / nodes)
        stock.level = min(max(burst, stock.level), stock.level + (now - stock.fed_at) * rate)
        stock.fed_at = now
        return max(0.0, min(amount, burst) - stock.level) / rate

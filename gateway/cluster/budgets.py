"""What each key has spent today on all nodes, for budgets of a day.

Once a second a node adds what its sessions have spent to the key's total in Redis, and learns the total. So a budget is
exceeded by what all nodes spend in a second, besides what `relay.spending` says. While Redis does not answer, a node counts
on from the last total, and adds the rest later.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from gateway.cluster.connections import AwayError, Connections, DeniedError, Value
from gateway.cluster.keys import Keys
from gateway.cluster.resp import ReplyError
from gateway.relay.spending import Allowance, Amount

ROUND_SECONDS: Final = 1.0
KEPT_MS: Final = 2 * 86_400_000

_FAILURES: Final = (AwayError, DeniedError, ReplyError)


class SharedBudgets:
    """Keeps one node's allowance up to date."""

    def __init__(self, connections: Connections, keys: Keys, allowance: Allowance) -> None:
        self._connections = connections
        self._keys = keys
        self._allowance = allowance
        self._asked = asyncio.Event()
        allowance.share(self._asked.set)

    async def keep(self) -> None:
        """Add and learn once a second, and at once when a key is asked for that was not used before. Never returns."""
        while True:
            try:
                async with asyncio.timeout(ROUND_SECONDS):
                    await self._asked.wait()
            except TimeoutError:
                pass
            self._asked.clear()
            await self.round()

    async def round(self) -> None:
        """Add what was spent since the last round, and learn the totals."""
        day, unsent = self._allowance.take_unsent(time.time())
        names = sorted(unsent.keys() | self._allowance.watched(time.time()))
        if not names:
            return
        commands = [command for name in names for command in self._commands(name, day, unsent)]
        try:
            replies = await self._connections.pipeline(commands)
            for reply in replies:
                if isinstance(reply, ReplyError):
                    raise reply
        except _FAILURES:
            # Redis may have counted it all the same. Rather too much than too little: it limits a bill.
            self._allowance.put_back(day, unsent)
            return
        except asyncio.CancelledError:
            self._allowance.put_back(day, unsent)  # The last round, of a node that stops, adds it.
            raise
        for number, name in enumerate(names):
            tokens, cost, _ = replies[3 * number : 3 * number + 3]
            self._allowance.learn(day, name, Amount(_count(tokens), _count(cost)))

    def _commands(self, name: str, day: int, unsent: Mapping[str, Amount]) -> list[tuple[Value, ...]]:
        key, amount = self._keys.spent(name, day), unsent.get(name)
        if amount is None:
            return [("HGET", key, "tokens"), ("HGET", key, "cost"), ("EXISTS", key)]
        return [
            ("HINCRBY", key, "tokens", amount.tokens),
            ("HINCRBY", key, "cost", amount.cost),
            ("PEXPIRE", key, KEPT_MS),
        ]


def _count(reply: Any) -> int:  # Any: a number, its digits, or nothing
    return int(reply or 0)

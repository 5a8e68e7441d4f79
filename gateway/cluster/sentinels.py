"""Finds the primary through Sentinel.

redis-py asks one Sentinel after another and believes the first. One that has not heard of a failover yet, for a second or
two, names the former primary, which may still accept writes. So all are asked, and the one that knows the last failover is
believed (its `config-epoch` is the highest). The address is the one of `get-master-addr-by-name`, which names a promoted
replica earlier than the other commands do.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, Self

from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

UNANSWERED: Final = (RedisError, OSError, TimeoutError, AttributeError)
"""What a command to a Sentinel raises that got no answer, or an error as the answer."""


class _Named(NamedTuple):
    """The primary that one Sentinel names."""

    epoch: int
    address: tuple[str, int]
    down: bool


class Sentinels(Sentinel):
    """All Sentinels of one Redis."""

    named: tuple[str, int] | None = None
    """The primary that they named last."""

    @classmethod
    def of(cls, hosts: Iterable[tuple[str, int]], seconds: float) -> Self:
        """Make the clients of Sentinels that have so long to connect and to answer. They have users and passwords of their own,
        if any: those of the primary would be refused."""
        options = {
            "socket_timeout": seconds,
            "socket_connect_timeout": seconds,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),  # One that is lost would cost seconds each time.
        }
        return cls(list(hosts), sentinel_kwargs=options)

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return the address of the primary. Raises MasterNotFoundError, or ResponseError for servers that are no Sentinels."""
        answers = await asyncio.gather(*(_ask(sentinel, service_name) for sentinel in self.sentinels))
        named = [answer for answer in answers if isinstance(answer, _Named)]
        refused = [answer for answer in answers if isinstance(answer, ResponseError)]
        if refused and not named:
            raise refused[0]
        last = max((one.epoch for one in named), default=0)
        for one in named:
            if one.epoch == last and not one.down:
                self.named = one.address
                return one.address
        raise MasterNotFoundError(f"No Sentinel names a primary for {service_name!r} that answers.")


async def _ask(
    sentinel: Any, service: str
) -> _Named | Exception:  # Any: redis-py's client, of which this method has no types
    """Return what one Sentinel names, or why there is no answer."""
    try:
        found = await sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", service)
        if found is None:
            return MasterNotFoundError("no such service")
        state = await sentinel.execute_command("SENTINEL MASTER", service)
    except UNANSWERED as error:
        return error
    address = found[0].decode(), int(found[1])
    # During a failover the state is that of the former primary.
    same = address == (state["ip"], state["port"])
    return _Named(int(state["config-epoch"]), address, same and (state["is_sdown"] or state["is_odown"]))

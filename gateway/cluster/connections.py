"""Connections to Redis: redis-py for commands and scripts, a plain `Wire` for appends.

Every command has a deadline on the socket. A command is never cancelled, since its reply would be matched with the next
command (CVE-2023-28858). On any doubt the connection is dropped and the primary is looked up again: redis-py
neither asks Sentinel again on a retry (redis-py#3874) nor reconnects on READONLY (redis-py#435).
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)

from gateway.cluster.resp import ReplyError, Wire, command
from gateway.cluster.sentinels import UNANSWERED as NO_SENTINEL
from gateway.cluster.sentinels import Sentinels
from gateway.cluster.settings import ClusterSettings

CONTROL_SECONDS: Final = 1.0
"""For a beat, a claim or a look-up: a retry is better than a longer wait."""
BULK_SECONDS: Final = 5.0
"""For snapshots and what a takeover reads."""
CONNECT_SECONDS: Final = 2.0

_UNANSWERED: Final = (RedisError, RedisClusterException, OSError, TimeoutError, AttributeError, RuntimeError)
"""What a command raises that got no answer. redis-py's errors of a Cluster without a primary are no RedisErrors. It raises
an AttributeError if it closed the connection under the command, which happens while it reads a Cluster's slot map again;
uvloop raises a RuntimeError if `drop` did so."""

Value = bytes | str | int
T = TypeVar("T")


class AwayError(Exception):
    """Redis did not answer, or cannot serve now."""


class DeniedError(Exception):
    """Redis refuses this user or password; trying again does not help."""


class Connections:
    """One node's connections to Redis."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._target = settings.target
        self._tls = _context(settings) if self._target.tls else None
        self._sentinel: Sentinels | None = None
        self._followed: tuple[str, int] | None = None
        """The primary that the Sentinels named when `replaced` last asked them."""
        self._control = self._client(CONTROL_SECONDS)
        self._bulk = self._client(BULK_SECONDS)
        for client in (self._control, self._bulk):
            # redis-py makes a dict of an entry's fields, which loses all but one of those with the same name.
            cast("Any", client).set_response_callback(
                "XRANGE", _as_it_came
            )  # Any: its protocol is too narrow

    @property
    def clustered(self) -> bool:
        """Keys are spread over several primaries."""
        return self._target.mode == "cluster"

    async def command(
        self, *parts: Value, bulk: bool = False
    ) -> Any:  # Any: a reply, as the command's page describes it
        """Run one command. Raises AwayError, DeniedError, or ReplyError for what is wrong with the command."""
        return await self._do(lambda client: client.execute_command(*parts), bulk=bulk)

    async def script(
        self, script: str, keys: Sequence[str], arguments: Sequence[Value], *, bulk: bool = False
    ) -> Any:  # Any: see `command`
        """Run one script. Raises as `command` does."""
        return await self._do(lambda client: client.eval(script, len(keys), *keys, *arguments), bulk=bulk)

    async def pipeline(
        self, commands: Sequence[Sequence[Value]], *, bulk: bool = False
    ) -> list[Any]:  # Any: see `command`
        """Run commands together, not as one step; returns their replies, errors as ReplyError among them."""

        async def run(client: Any) -> list[Any]:  # Any: the two clients share no type
            async with client.pipeline(transaction=False) as pipe:
                for parts in commands:
                    pipe.execute_command(*parts)
                return cast("list[Any]", await pipe.execute(raise_on_error=False))

        replies = await self._do(run, bulk=bulk)
        for reply in replies:
            if isinstance(reply, RedisError) and _says_away(reply):
                if isinstance(reply, ReadOnlyError):
                    await self.look_again()
                raise AwayError(str(reply)) from reply
        return [ReplyError(str(reply)) if isinstance(reply, RedisError) else reply for reply in replies]

    async def _do(
        self, run: Callable[[Any], Any], *, bulk: bool
    ) -> Any:  # Any: the two clients share no type
        client = self._bulk if bulk else self._control
        try:
            return await run(client)
        except (AuthenticationError, NoPermissionError) as error:
            raise DeniedError(str(error)) from error
        except ReadOnlyError as error:
            await self.look_again()
            raise AwayError(str(error)) from error
        except ResponseError as error:
            if _says_away(error):
                raise AwayError(str(error)) from error
            raise ReplyError(str(error)) from error
        except _UNANSWERED as error:
            if self._target.mode == "sentinel":
                await self.look_again()
            raise AwayError(str(error) or type(error).__name__) from error

    async def look_again(self) -> None:
        """Drop the idle connections, so that the next command looks up the primary."""
        for client in (self._control, self._bulk):
            if not isinstance(client, RedisCluster):
                await client.connection_pool.disconnect(inuse_connections=False)

    async def drop(self) -> None:
        """Drop the connections, and with them the commands under way: they may be those of a former primary."""
        for client in (self._control, self._bulk):
            if not isinstance(client, RedisCluster):
                with suppress(*_UNANSWERED):
                    await client.connection_pool.disconnect()

    @property
    def watched(self) -> bool:
        """Sentinels name the primary."""
        return self._sentinel is not None

    async def replaced(self) -> bool:
        """Return whether the Sentinels name another primary than when this was last called. Then the connections to the former
        one are dropped: if it only hung, it still answers for about ten seconds, until a Sentinel tells it that it is a
        replica, and then loses all that was written to it."""
        assert self._sentinel is not None, "asked only if watched"
        former = self._followed or self._sentinel.named
        try:
            named = await self._sentinel.discover_master(self._target.service)
        except NO_SENTINEL:
            return False  # None is reached, or a failover is under way.
        self._followed = named
        if former in (None, named):
            return False
        await self.drop()
        return True

    # --- connections for appends --------------------------------------------------------------------------------------

    async def address(self, key: str) -> tuple[str, int] | str:
        """Find the primary that holds `key`: host and port, or the path of a unix socket. Raises AwayError."""
        target = self._target
        if target.unix_path is not None:
            return target.unix_path
        try:
            if isinstance(self._control, RedisCluster):
                await cast(
                    "Any", self._control
                ).initialize()  # Any: an awaitable class, which mypy wants awaited
                node = self._control.get_node_from_key(key)
                if node is None:
                    raise AwayError("no primary serves the slot")
                return str(node.host), int(node.port)
            if self._sentinel is not None:
                host, port = await self._sentinel.discover_master(target.service)
                return str(host), int(port)
        except _UNANSWERED as error:
            raise AwayError(str(error)) from error
        return target.hosts[0]

    async def forget_slots(self) -> None:
        """A key was on another primary: read the Cluster's slot map again with the next look-up."""
        if isinstance(self._control, RedisCluster):
            try:
                await self._control.nodes_manager.initialize()
            except _UNANSWERED as error:
                raise AwayError(str(error)) from error

    async def wire(self, address: tuple[str, int] | str, lost: Callable[[], None]) -> Wire:
        """Open a connection for appends to a primary. Raises AwayError or DeniedError."""
        loop = asyncio.get_running_loop()
        wire: Wire | None = None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if isinstance(address, str):
                    _, wire = await loop.create_unix_connection(lambda: Wire(lost), address)
                else:
                    _, wire = await loop.create_connection(lambda: Wire(lost), *address, ssl=self._tls)
                await self._introduce(wire)
            if self._sentinel is not None and self._sentinel.named != address:
                raise ReplyError("the Sentinels have named another primary meanwhile")
        except (OSError, TimeoutError, ReplyError, DeniedError) as error:
            if wire is not None:
                wire.drop()
            if isinstance(error, DeniedError):
                raise
            raise AwayError(str(error) or "time-out") from error
        return wire

    async def _introduce(self, wire: Wire) -> None:
        settings = self._settings
        if settings.password is not None:
            user = [settings.username] if settings.username else []
            reply = await wire.ask(command(word.encode() for word in ("AUTH", *user, settings.password)))
            if isinstance(reply, ReplyError):
                raise DeniedError(str(reply))
        if self._target.db:
            await _accepted(wire, "SELECT", str(self._target.db))
        role = await _accepted(wire, "ROLE")
        if not isinstance(role, list) or role[0] != b"master":
            raise ReplyError("not the primary")

    # --- life ---------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close all connections of redis-py."""
        for client in (self._control, self._bulk):
            await client.aclose()
        if self._sentinel is not None:
            for sentinel in self._sentinel.sentinels:
                await sentinel.aclose()

    def _client(self, seconds: float) -> "aioredis.Redis | RedisCluster":
        settings, target = self._settings, self._target
        never = Retry(NoBackoff(), 0)
        common: dict[str, Any] = {  # Any: keyword arguments of many types
            "username": settings.username,
            "password": settings.password,
            "socket_timeout": seconds,
            "socket_connect_timeout": CONNECT_SECONDS,
            "client_name": "realtime-gateway",
            "protocol": 2,
        }
        if target.tls:
            common |= {
                "ssl": True,
                "ssl_ca_certs": settings.ca_file,
                "ssl_certfile": settings.certificate_file,
                "ssl_keyfile": settings.key_file,
            }
        if target.mode == "cluster":
            nodes = [ClusterNode(host, port) for host, port in target.hosts]
            return RedisCluster(startup_nodes=nodes, retry=Retry(NoBackoff(), 1), **common)
        if target.mode == "sentinel":
            if self._sentinel is None:
                self._sentinel = Sentinels.of(target.hosts, CONTROL_SECONDS)
            return cast(
                "aioredis.Redis",
                self._sentinel.master_for(target.service, db=target.db, retry=never, **common),
            )
        if target.unix_path is not None:
            return aioredis.Redis(unix_socket_path=target.unix_path, db=target.db, retry=never, **common)
        host, port = target.hosts[0]
        return aioredis.Redis(host=host, port=port, db=target.db, retry=never, **common)


_AWAY: Final = (
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "LOADING",
    "CLUSTERDOWN",
    "READONLY",
    "MASTERDOWN",
    "TRYAGAIN",
    "BUSY",
)
"""Kinds of errors which mean that Redis cannot serve now."""


def _says_away(error: RedisError) -> bool:
    """Return whether an error means that Redis cannot serve now. redis-py removes the kind from the text if it has a class for it."""
    kinds = (ReadOnlyError, OutOfMemoryError, ClusterDownError, MasterDownError, TryAgainError)
    return isinstance(error, kinds) or not isinstance(error, ResponseError) or str(error).startswith(_AWAY)


def _as_it_came(reply: Any, **_: Any) -> Any:  # Any: a reply
    return reply


async def _accepted(wire: Wire, *words: str) -> Any:  # Any: a reply
    reply = await wire.ask(command(word.encode() for word in words))
    if isinstance(reply, ReplyError):
        raise reply
    return reply


def _context(settings: ClusterSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca_file)
    if settings.certificate_file is not None:
        context.load_cert_chain(settings.certificate_file, settings.key_file)
    return context

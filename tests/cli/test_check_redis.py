"""What `gateway check` reports about Redis."""

import pytest

from gateway.cli.check_redis import redis
from gateway.config import Config
from tests.cluster.redis_server import RedisServer
from tests.ports import free_port

pytestmark = pytest.mark.needs("redis-server")


def configured(url: str) -> Config:
    """Return a configuration with that Redis."""
    return Config.model_validate(
        {"cluster": {"url": url}, "access": {"signing_key_file": "/run/secrets/signing-keys"}}
    )


async def test_good_redis_is_ok_in_every_point() -> None:
    """Version, latency and clock are each reported."""
    server = RedisServer().start()
    try:
        findings = await redis(configured(server.url))
    finally:
        server.close()

    assert [finding.what for finding in findings] == ["Redis", "Redis latency", "clock"]
    assert {finding.result for finding in findings} <= {"ok", "warning"}
    assert "noeviction" in findings[0].detail


async def test_redis_that_may_evict_or_is_not_there_fails_with_the_remedy() -> None:
    """The remedy is what to set, or where to look."""
    server = RedisServer("--maxmemory-policy", "allkeys-lru").start()
    try:
        [evicting] = await redis(configured(server.url))
    finally:
        server.close()
    [absent] = await redis(configured(f"redis://127.0.0.1:{free_port()}"))

    assert (evicting.result, absent.result) == ("failed", "failed")
    assert "noeviction" in evicting.detail + evicting.remedy
    assert "cluster.url" in absent.remedy


async def test_one_process_is_not_asked_for_a_redis() -> None:
    """Without `cluster.url` nothing is checked."""
    assert await redis(Config()) == []

"""The checks of `gateway check` if several nodes share a Redis."""

import statistics
import time
from typing import Final

from gateway.cli.check_upstream import Finding
from gateway.config import Config, ConfigError

TRIES: Final = 20
SLOW_SECONDS: Final = 0.01
"""Every response of the gateway waits for one round trip."""
CLOCK_SECONDS: Final = 60.0
"""Requests between nodes are valid for five minutes."""


async def redis(config: Config) -> list[Finding]:
    """Check version, eviction, permissions, latency and clock. Do nothing if `cluster.url` is empty."""
    if not config.cluster.url:
        return []
    from gateway.cluster.connections import AwayError, Connections, DeniedError
    from gateway.cluster.redis_requirements import UnfitError, inspect
    from gateway.cluster.resp import ReplyError
    from gateway.clustering import cluster_settings

    try:
        settings = cluster_settings(config)
    except ConfigError as error:
        return [Finding("failed", "Redis", error.problems[0], "correct it")]
    connections = Connections(settings)
    try:
        found = await inspect(connections, settings)
        took = []
        for _ in range(TRIES):
            began = time.perf_counter()
            await connections.command("PING")
            took.append(time.perf_counter() - began)
        typical = statistics.median(took)
        slow = typical > SLOW_SECONDS
        findings = [
            Finding("ok", "Redis", f"{found.engine} {found.version}, maxmemory-policy {found.eviction}"),
            Finding(
                "warning" if slow else "ok",
                "Redis latency",
                f"{typical * 1000:.1f} ms",
                "every answer waits for it: use a Redis server with a shorter round trip" if slow else "",
            ),
        ]
        try:
            seconds, micros = await connections.command("TIME")
        except (ReplyError, DeniedError):
            return findings  # The required permissions do not include it.
        skew = abs(time.time() - int(seconds) - int(micros) / 1e6)
        late = skew > CLOCK_SECONDS
        remedy = "set the clocks of all nodes by NTP" if late else ""
        return [*findings, Finding("warning" if late else "ok", "clock", f"{skew:.1f} s from Redis'", remedy)]
    except UnfitError as error:
        what, _, remedy = str(error).partition(": ")
        return [Finding("failed", "Redis", what, remedy)]
    except (AwayError, DeniedError, ReplyError) as error:
        remedy = "start Redis, correct cluster.url, or allow connections to it"
        return [Finding("failed", "Redis", f"does not answer: {error}", remedy)]
    finally:
        await connections.close()

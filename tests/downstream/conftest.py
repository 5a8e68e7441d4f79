"""Fixtures of the HTTP side, see `harness`."""

from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest

from gateway.downstream.admin import Operator
from gateway.downstream.auth.access import Access, AccessRules
from gateway.downstream.auth.credentials import Signatures
from gateway.downstream.http.limits import ServerLimits
from gateway.downstream.http.listener import Binding
from gateway.downstream.reading.sse import frame
from gateway.downstream.reading.stream import StreamLimits
from gateway.downstream.server import Server, ServerDependencies
from gateway.relay.hub import Hub
from gateway.relay.limits import RelayLimits
from tests.downstream.harness import SIGNING_KEY, Build, FarEnd, Harness
from tests.facts import Facts


@pytest.fixture
async def build() -> AsyncIterator[Build]:
    """Return a function that starts an HTTP side with other rules or limits; all are closed at the end."""
    harnesses: list[Harness] = []

    async def build(
        rules: AccessRules | None = None,
        relay: RelayLimits | None = None,
        limits: ServerLimits | None = None,
        token: tuple[bytes, ...] = (),
    ) -> Harness:
        facts, far_end = Facts(), FarEnd()
        telemetry = facts.port
        relay = replace(relay or RelayLimits(), parting_seconds=0.05)
        hub = Hub(far_end, frame, telemetry, relay)
        drained: list[bool] = []
        access = Access(rules or AccessRules(), Signatures([SIGNING_KEY]), hub._clock.monotonic)
        operator = Operator(
            metrics=lambda accept: (
                b"up 1\n",
                "application/openmetrics-text" if "open" in accept else "text/plain",
            ),
            drain=lambda: drained.append(True),
            token_sha256=token,
        )
        # A client that closes its side counts as gone, so tests of that need not wait. `test_protocol` has the other case.
        limits = limits or ServerLimits(half_close_seconds=0)
        parts = ServerDependencies(hub, telemetry, access, operator, StreamLimits(15.0, 300.0), limits)
        server = Server(parts)
        await server.start(Binding(), Binding())
        # No Content-Type unless a test sets one: the one that aiohttp guesses for bytes would be refused.
        http = aiohttp.ClientSession(skip_auto_headers=["Content-Type"])
        harness = Harness(parts, server, hub, access, far_end, facts, http, drained)
        harnesses.append(harness)
        return harness

    yield build
    for harness in harnesses:
        await harness.http.close()
        await harness.server.close()
        await harness.hub.close()


@pytest.fixture
async def harness(build: Build) -> Harness:
    """Return a running HTTP side with the defaults: no key, on loopback."""
    return await build()

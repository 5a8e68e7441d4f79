"""Fixtures of the relay: a loop with virtual time, and a hub with fakes around it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gateway.relay.limits import RelayLimits
from tests.relay.fakes import Harness, VirtualLoop

Build = Callable[..., Harness]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return a loop on which waiting takes no time for the tests of this folder."""
    return {"virtual": VirtualLoop}


@pytest.fixture
async def build() -> AsyncIterator[Build]:
    """Return a function that starts a hub with other limits; all are closed at the end and must not have logged an
    error."""
    built: list[Harness] = []

    def build(**limits: Any) -> Harness:
        harness = Harness(RelayLimits(**limits))
        harness.hub.start()
        built.append(harness)
        return harness

    yield build
    for harness in built:
        harness.dialer.gate = None
        async with asyncio.timeout(60):
            await harness.hub.close()
        assert harness.facts.of("relay_failed") == []


@pytest.fixture
async def harness(build: Build) -> Harness:
    """Return a running hub with the default limits and no continuity, so that a lost call ends its session."""
    return build(continuity=False)

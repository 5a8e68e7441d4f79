"""Fixtures of the emulator's tests: a session without a network, and a running emulator with clients."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest_asyncio

from gateway.emulator import Emulator, EmulatorConfig
from tests.emulator.caller import Caller
from tests.emulator.talk import Talk

INTEROP = Path(__file__).parent / "interop"
"""Clients from npm that run against the emulator."""


@pytest_asyncio.fixture
async def talk() -> AsyncIterator[Callable[..., Talk]]:
    """Return a function that makes sessions without a network; they are closed at the end."""
    made: list[Talk] = []

    def make(**options: Any) -> Talk:
        made.append(Talk(**options))
        return made[-1]

    yield make
    for one in made:
        await one.realtime.close()


@pytest_asyncio.fixture
async def emulate() -> AsyncIterator[Callable[..., Any]]:
    """Return a function that starts emulators on port 0; they are closed at the end."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Emulator:
            emulator = Emulator(EmulatorConfig(**{"port": 0, "tokens_per_second": 0.0} | options))
            await emulator.start()
            stack.push_async_callback(emulator.close)
            return emulator

        yield start


@pytest_asyncio.fixture
async def call() -> AsyncIterator[Callable[..., Any]]:
    """Return a function that opens calls; each is closed at the end."""
    async with AsyncExitStack() as stack:

        async def open_call(emulator: Emulator, **options: Any) -> Caller:
            caller = Caller(emulator.base_url)
            stack.push_async_callback(caller.close)
            await caller.open(**options)
            return caller

        yield open_call

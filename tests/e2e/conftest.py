"""The whole relay on real sockets: an emulator in its own process, and gateways in this one or in theirs.

The emulator never shares an interpreter with a gateway: upstream/tuning.py changes the WebRTC library under both.
"""

import gc
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest
import pytest_asyncio
import structlog

from gateway.app import Gateway
from tests.e2e.browser import Chromium
from tests.e2e.caller import Caller, Emulate, Json, Serve, configured
from tests.farend import FarEnd
from tests.programs import Served


@pytest.fixture(scope="session", autouse=True)
def _heap_is_small() -> None:
    """Exclude imported objects from garbage collection, because counting what is held walks through all tracked
    objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _logs_go_nowhere_special() -> None:
    """Reset the logging that a command run in this process has set up: its stream is closed by now."""
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def shared_far_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarEnd]:
    """Run one emulator for all tests without special needs."""
    with FarEnd(tmp_path_factory.mktemp("far-end") / "log", "--tokens-per-second", "0") as far_end:
        yield far_end


@pytest_asyncio.fixture
async def far_end(shared_far_end: FarEnd) -> AsyncIterator[FarEnd]:
    """Return the shared emulator, without faults before and after the test."""
    yield shared_far_end
    await shared_far_end.well()


@pytest.fixture
def emulate(tmp_path: Path) -> Iterator[Emulate]:
    """Return a function that starts emulators with a test's own flags."""
    with ExitStack() as stack:
        names = (tmp_path / f"far-end-{count}.log" for count in itertools.count())

        def start(*flags: str) -> FarEnd:
            return stack.enter_context(FarEnd(next(names), *flags))

        yield start


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Serve]:
    """Return a function that starts gateways in this process; they are closed at the end."""
    async with AsyncExitStack() as stack:

        async def start(upstream: FarEnd | str, /, **sections: Json) -> Gateway:
            base_url = upstream if isinstance(upstream, str) else upstream.base_url
            gateway = Gateway(configured(base_url, **sections))
            stack.push_async_callback(gateway.close)
            await gateway.start()
            return gateway

        yield start


@pytest_asyncio.fixture
async def gateway(serve: Serve, far_end: FarEnd) -> Gateway:
    """Return a gateway with default settings in this process."""
    return await serve(far_end)


@pytest_asyncio.fixture
async def caller(gateway: Gateway) -> AsyncIterator[Caller]:
    """Return a client of that gateway."""
    client = Caller(gateway.url)
    yield client
    await client.http.close()


@pytest.fixture(scope="session")
def chromium(part_path: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """Run one browser for all tests of this folder. Each page has its own context."""
    with Chromium(part_path("chromium"), tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def served(shared_far_end: FarEnd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run `gateway serve` as users do and return its URL. It ends after the file's tests, together with the sessions
    that pages left open."""
    # Answers that pages did not read to the end are not waited for.
    environ = {"GATEWAY_DRAIN__TIMEOUT_SECONDS": "1"}
    log = tmp_path_factory.mktemp("served") / "log"
    with Served(log, shared_far_end.base_url, environ=environ) as program:
        yield program.url

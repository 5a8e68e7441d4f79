"""Redis for the tests of this folder: one shared server that is emptied between tests, and servers that a single
test starts."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.cluster.redis_server import RedisServer


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    """Run one server for a file."""
    server = RedisServer().start()
    yield server
    server.close()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """Return the file's server, empty."""
    shared_redis.cli("FLUSHALL")
    return shared_redis


@pytest.fixture
def start_redis() -> Iterator[Callable[..., RedisServer]]:
    """Return a function that starts servers, which the test may stop and kill."""
    with ExitStack() as stack:

        def start(*options: str) -> RedisServer:
            server = RedisServer(*options)
            stack.callback(server.close)
            return server.start()

        yield start

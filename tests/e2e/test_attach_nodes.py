"""Attached sessions on several nodes: served by any of them, and taken over with their node."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.redis_server import RedisServer
from tests.e2e.caller import KEY, Caller
from tests.e2e.nodes import Follower, Nodes, ask
from tests.e2e.test_attach import peer
from tests.farend import FarEnd

pytestmark = [pytest.mark.slow, pytest.mark.needs("redis-server"), pytest.mark.timeout(120)]


@pytest.fixture
def nodes(tmp_path: Path, far_end: FarEnd) -> Iterator[Nodes]:
    """Return a function that starts nodes on a Redis for this test."""
    server = RedisServer().start()
    made = Nodes(tmp_path, far_end, server.url, OPENAI_API_KEY=KEY)
    yield made
    made.close()
    server.close()


@pytest.mark.parametrize(("end", "cause"), [("kill", "node_lost"), ("terminate", "handover")])
async def test_attached_session_moves_with_its_node(
    nodes: Nodes, far_end: FarEnd, end: str, cause: str
) -> None:
    """Another node attaches to the same call, and neither the end of the old node nor the takeover ends the call."""
    a, b = nodes.start(2)
    async with peer(far_end) as other:
        async with Caller(a.url) as caller:
            session_id = (await caller.open(call_id=other.call_id))["id"]
        async with Follower(session_id, [b.url]) as reader:
            assert await ask(b.url, session_id, "What is 6 times 7?") == "That is 42."
            a.program.kill() if end == "kill" else a.terminate()
            await reader.until("gateway.recovered", seconds=40)
            assert await ask(b.url, session_id, "What is 1 plus 1?") == "That is 2."
            async with Caller(b.url) as caller:
                _, seen = await caller.ask("GET", f"/v1/sessions/{session_id}")
            [recovered] = reader.of("gateway.recovered")
        assert await other.ask("ping") == "Pong!"

    assert recovered["cause"] == cause
    assert recovered["call_id"] == other.call_id
    assert (seen["attached"], seen["call_id"]) == (True, other.call_id)
    assert not reader.gaps

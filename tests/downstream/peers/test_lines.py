"""gateway/downstream/peers/lines.py: a node that cannot be reached."""

import asyncio

import pytest

from gateway.downstream.peers import lines as lines_module
from gateway.downstream.peers.lines import SPREAD_SECONDS, UNREACHABLE_SECONDS, Lines
from gateway.downstream.peers.splice import Outgoing, UnreachableError

ASK = Outgoing("GET", "/", "1.1", [], b"")
NOWHERE = "http://127.0.0.1:1"


async def test_requests_do_not_all_connect_to_a_node_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After one could not connect, the others are told so without trying, until some time has passed."""
    attempts: list[str] = []

    async def connect(url: str, _: object) -> None:
        attempts.append(url)
        raise UnreachableError("refused")

    monkeypatch.setattr(lines_module, "connect", connect)
    lines = Lines(None)
    for _ in range(3):
        with pytest.raises(UnreachableError, match="refused"):
            await lines.send(NOWHERE, ASK)
    with pytest.raises(UnreachableError):
        await lines.send("http://127.0.0.1:2", ASK)
    pause = lines.pause(NOWHERE)
    monkeypatch.setattr(lines_module, "UNREACHABLE_SECONDS", 0.01)
    lines._unreachable.clear()
    for _ in range(2):
        with pytest.raises(UnreachableError):
            await lines.send(NOWHERE, ASK)
        await asyncio.sleep(0.02)

    assert attempts == [NOWHERE, "http://127.0.0.1:2", NOWHERE, NOWHERE]
    assert 0 < pause <= UNREACHABLE_SECONDS + SPREAD_SECONDS
    assert len(lines._unreachable) == 1

"""gateway/downstream/peers/reach.py: nodes that cannot reach each other are reported."""

import asyncio
from typing import Any, cast

import pytest

from gateway.downstream.peers import reach
from gateway.downstream.peers.reach import AGAIN_CHECKS, CLOSED, REPORTED_AFTER, SIGNED_OTHERWISE, Reach
from gateway.downstream.peers.signatures import PeerSignatures
from gateway.relay.journal import Peer
from tests.downstream.peers.conftest import Pair


class Told:
    """Telemetry that records what it is told."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, ...]] = []

    def peer_unreachable(self, node: str, url: str, reason: str, remedy: str) -> None:
        self.facts.append(("unreachable", node, reason, remedy))

    def peer_reachable(self, node: str, url: str) -> None:
        self.facts.append(("reachable", node))


def checks(pair: Pair, url: str) -> tuple[Reach, Told]:
    """Return the checks of the edge, which sees the owner at a URL."""
    told = Told()
    pair.table.peers = [Peer("owner", url, serving=True, room=9)]
    elsewhere = pair.edge.parts.elsewhere
    assert elsewhere is not None
    return Reach(cast(Any, pair.table), elsewhere.fetch, told), told


async def test_a_node_that_is_reached_is_not_reported(pair: Pair) -> None:
    """It is asked again after a while only."""
    one, told = checks(pair, pair.table.urls["owner"])
    asked = 0
    fetch = one._fetch

    async def counted(*what: Any) -> tuple[int, bytes]:
        nonlocal asked
        asked += 1
        status, body = await fetch(*what)
        assert status == 204
        return status, body

    one._fetch = counted
    for _ in range(AGAIN_CHECKS + 1):
        await one.look()

    assert asked == 2
    assert told.facts == []


async def test_a_node_that_cannot_be_reached_is_reported_once(pair: Pair) -> None:
    """The report names the reason and the remedy; it is withdrawn when the node is reached again."""
    one, told = checks(pair, "http://127.0.0.1:1")
    for _ in range(REPORTED_AFTER + 2):
        await one.look()
    [(fact, node, reason, remedy)] = told.facts
    checks(pair, pair.table.urls["owner"])
    await one.look()

    assert (fact, node, remedy) == ("unreachable", "owner", CLOSED)
    assert "refused" in reason.lower() or "connect" in reason.lower()
    assert told.facts[1:] == [("reachable", "owner")]
    assert one._failures == {}


async def test_a_node_with_another_signing_key_is_reported(pair: Pair) -> None:
    """The remedy names the setting that must be the same."""
    one, told = checks(pair, pair.table.urls["owner"])
    elsewhere = pair.edge.parts.elsewhere
    assert elsewhere is not None
    elsewhere.signatures = PeerSignatures([b"another key that has 32 bytes...."])
    for _ in range(REPORTED_AFTER):
        await one.look()

    assert told.facts == [("unreachable", "owner", "it refuses this node's signature", SIGNED_OTHERWISE)]


async def test_a_node_that_left_is_forgotten(pair: Pair) -> None:
    """Nothing is kept of nodes that are not on the list any more."""
    one, _ = checks(pair, "http://127.0.0.1:1")
    await one.look()
    assert one._failures
    pair.table.peers = []
    await one.look()

    assert one._failures == {}


async def test_a_node_that_does_not_answer_is_reported(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall that drops packets gives no error."""
    monkeypatch.setattr(reach, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(reach, "CHECK_SECONDS", 0.01)
    one, told = checks(pair, "http://127.0.0.1:1")

    async def silent(*_: Any) -> tuple[int, bytes]:
        await asyncio.sleep(60)
        raise AssertionError

    one._fetch = silent
    keeping = asyncio.create_task(one.keep())
    while not told.facts:
        await asyncio.sleep(0.005)
    keeping.cancel()
    await asyncio.wait({keeping})

    assert told.facts == [("unreachable", "owner", "no answer", CLOSED)]

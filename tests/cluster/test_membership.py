"""gateway/cluster/membership.py: the rate of hand-overs, and the end. Other effects are tested with whole nodes (tests/e2e)."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.cluster.gate import DialGate
from gateway.cluster.membership import PER_SECOND, STARTED_SHARE, Membership, pause_between
from gateway.relay.journal import Peer
from tests.cluster.kit import Told


class Node:
    """A node with one peer."""

    id = "n_1"
    directory = SimpleNamespace(peers=[Peer("n_2", "http://127.0.0.1:1", serving=True, room=9)])

    async def readable(self, session_id: str) -> None: ...
    async def leave(self) -> None: ...
    async def close(self) -> None: ...


class Dialer:
    """Counts the calls that it hangs up."""

    def __init__(self) -> None:
        self.hung_up = 0

    async def hang_up(self, call_id: str, bearer: str | None) -> None:
        self.hung_up += 1


def member(hub: object = None) -> tuple[Membership, Dialer, list[str]]:
    """Return a node's membership, its dialer, and the IDs of the sessions that its peer was asked to prepare for."""
    dialer, asked = Dialer(), list[str]()

    async def refuse(peer: Peer, errand: str, body: bytes) -> bool:
        asked.append(body.decode())
        return False

    made = Membership(
        cast(Any, Node()), cast(Any, hub), cast(Any, dialer), Told(), refuse, lambda _: None, DialGate()
    )
    return made, dialer, asked


async def test_a_queue_of_hang_ups_does_not_delay_a_stop() -> None:
    """OpenAI ends the calls of lost nodes by itself, so a node that stops does not end hundreds of them."""
    one, dialer, _ = member()
    one._lost_calls.extend(f"rtc_{number}" for number in range(500))
    hanging_up = one._tasks.run(one._hang_up_lost_calls(), "hang-up")
    await asyncio.sleep(0)
    await asyncio.wait_for(one.close(), 5.0)

    assert hanging_up.done()
    assert 1 <= dialer.hung_up < 500


async def test_a_turn_whose_client_cannot_come_back_is_not_handed_over() -> None:
    """Only this node has the connection on which the client waits."""
    sessions = [
        SimpleNamespace(id=f"gws_{returnable}", busy=False, live=True, bearer=None, returnable=returnable)
        for returnable in (False, True)
    ]
    one, _, asked = member(SimpleNamespace(live_sessions=lambda: sessions))
    await one.hand_over_all(0.2)

    assert asked
    assert all("gws_True" in body for body in asked)


def test_hand_overs_are_spread_so_that_peers_can_serve_meanwhile() -> None:
    """With enough time the rate is fixed; with little time all hand-overs begin within the first part of it."""
    assert pause_between(100, 60.0) == 1 / PER_SECOND
    assert pause_between(10_000, 60.0) * 10_000 == pytest.approx(60.0 * STARTED_SHARE)
    assert pause_between(0, 60.0) == 1 / PER_SECOND

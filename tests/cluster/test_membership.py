"""gateway/cluster/membership.py: the rate of hand-overs, and the end. Other effects are tested with whole nodes (tests/e2e)."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.cluster.gate import DialGate
from gateway.cluster.membership import PER_SECOND, STARTED_SHARE, Membership, pause_between
from gateway.errors import OverloadError
from gateway.relay.events.records import ServerEvent, encode
from gateway.relay.journal import Peer
from gateway.relay.limits import RelayLimits
from gateway.relay.requests import Principal
from gateway.relay.state.facts import Opening
from gateway.relay.state.fold import SessionState
from gateway.relay.state.saved import STEP_RECORDS
from tests.cluster.kit import Told, node, opened
from tests.cluster.redis_server import RedisServer


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


def ignore(_: str) -> None:
    """Ignore a lost node or an adopted session."""


def member(hub: object = None) -> tuple[Membership, Dialer, list[str]]:
    """Return a node's membership, its dialer, and the IDs of the sessions that its peer was asked to prepare for."""
    dialer, asked = Dialer(), list[str]()

    async def refuse(peer: Peer, errand: str, body: bytes) -> bool:
        asked.append(body.decode())
        return False

    parts: Any = (Node(), hub, dialer, Told(), refuse, ignore, ignore, DialGate())
    made = Membership(*parts)
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


async def test_hang_ups_wait_until_all_sessions_are_readable() -> None:
    """Hundreds of them would take the time of sessions that clients wait for."""
    one, dialer, _ = member()
    one._lost_calls.append("rtc_1")
    with one._gate.hold():
        hanging_up = one._tasks.run(one._hang_up_lost_calls(), "hang-up")
        await asyncio.sleep(0.02)
        before = dialer.hung_up
    await asyncio.wait_for(hanging_up, 5.0)

    assert (before, dialer.hung_up) == (0, 1)


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


class PreparedCall:
    """A call that was dialled for a session of another node."""

    abandoned = False

    async def abandon(self) -> None:
        self.abandoned = True


class NewOwner:
    """A membership whose Redis has one session, with a hub that records what it dials and adopts."""

    def __init__(self, closed: str | None = None) -> None:
        self.calls: list[PreparedCall] = []
        self.adopted: list[object] = []
        state = SessionState(Opening("gws_1", Principal("one"), {}, 600, 0.0), "{}", "ep00")
        state.closed = closed
        self.snapshot = state.dump()
        claims = SimpleNamespace(peek=self.peek)
        node = SimpleNamespace(directory=SimpleNamespace(claims=claims), take=lambda journal: None)
        hub = SimpleNamespace(limits=RelayLimits(), prepare=self.dial, adopt=self.adopt, draining=False)
        parts: Any = (node, hub, None, Told(), None, ignore, ignore, DialGate())
        self.membership = Membership(*parts)

    async def peek(self, session_id: str) -> bytes:
        return self.snapshot

    async def dial(self, *_: object) -> PreparedCall:
        call = PreparedCall()
        self.calls.append(call)
        if len(self.calls) == 1:
            await self.membership.prepare("gws_1", None)  # The request comes again during the dial.
        return call

    def adopt(self, saved: object, journal: object, prepared: object) -> None:
        self.adopted.append(prepared)

    async def take(self, before: Sequence[bytes] = ()) -> str:
        journal = SimpleNamespace(claimed=lambda *_: None)
        stored: Any = SimpleNamespace(
            session_id="gws_1",
            snapshot=self.snapshot,
            before=before,
            after=[],
            journal=journal,
            fence=2,
            snapshot_at=None,
        )
        return await self.membership.adopt(stored)


async def test_a_session_that_is_prepared_twice_has_one_call() -> None:
    """If the request arrives twice, one of the two calls is abandoned, and the other one is used."""
    owner = NewOwner()
    await owner.membership.prepare("gws_1", None)
    assert await owner.take() == "taken"

    (used,) = owner.adopted
    assert [call.abandoned for call in owner.calls] == [call is not used for call in owner.calls]
    assert used in owner.calls


async def test_a_call_that_was_prepared_for_a_closed_session_is_abandoned() -> None:
    """A session that was closed during its hand-over needs no call."""
    owner = NewOwner("client")
    await owner.membership.prepare("gws_1", None)
    assert await owner.take() == "closed"
    for call in owner.calls:
        owner.membership._expire("gws_1", call)  # type: ignore[arg-type]  # a fake of it
    await owner.membership._tasks.ended()

    assert owner.adopted == [None]
    assert all(call.abandoned for call in owner.calls)


async def test_a_peer_that_does_not_answer_delays_no_stop() -> None:
    """The time of a drain is the operator's, and is not exceeded for a peer that hangs."""
    sessions = [SimpleNamespace(id="gws_1", busy=False, live=True, bearer=None, returnable=True)]
    one, _, _ = member(SimpleNamespace(live_sessions=lambda: sessions))

    async def hang(*_: object) -> bool:
        await asyncio.sleep(3600)
        return True

    one._call = hang
    async with asyncio.timeout(3):
        await one.hand_over_all(0.2)


async def test_a_large_session_is_adopted_in_steps() -> None:
    """Other work has its turn while thousands of records are read."""
    owner, turns = NewOwner(), 0
    records = [encode(ServerEvent(number, 0, "x", "{}")) for number in range(1, 2 * STEP_RECORDS + 2)]
    taking = asyncio.create_task(owner.take(records))
    while not taking.done():
        await asyncio.sleep(0)
        turns += 1

    assert taking.result() == "taken"
    assert turns > 2


async def test_requests_of_the_last_moment_do_not_wait_for_a_session_that_has_moved(
    redis_server: RedisServer,
) -> None:
    """A record that was added when the next owner had the session is not sent any more. Its request is forwarded, at once: it
    would otherwise wait until its node ends, and its connection would end without a response."""
    async with node(redis_server.url) as a, node(redis_server.url) as b:
        session = await opened(a, "gws_1")
        await b.directory.claims.one("gws_1", a.id)
        one, _, _ = member(SimpleNamespace(drop=ignore))
        one.node = a
        posted = asyncio.create_task(session.accept())
        await asyncio.sleep(0)
        moved: Any = SimpleNamespace(id="gws_1", journal=session.journal, released=lambda: None)
        one._release(moved)

        with pytest.raises(OverloadError, match="Another node"):
            await asyncio.wait_for(posted, 2.0)

"""Requests that wait for the next owner of their session."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from gateway.downstream.peers.moves import MOST_LOOKUPS, Moves
from gateway.errors import OverloadError
from gateway.relay.journal import Location


class Owners:
    """A directory that says where sessions are and counts the look-ups."""

    def __init__(self) -> None:
        self.nodes: dict[str, str] = {}
        self.asked: list[int] = []
        self.away = False
        self.broken = False

    async def locate_all(self, session_ids: Sequence[str]) -> Sequence[Location | None]:
        self.asked.append(len(session_ids))
        if self.broken:
            raise ValueError("a bug")
        if self.away:
            raise OverloadError("recovering", "away", retry_after=1)
        return [at(self.nodes[one]) if one in self.nodes else None for one in session_ids]


def at(node: str) -> Location:
    """Return the location of a session on a node."""
    return Location(node, f"http://{node}", live=True)


@pytest.fixture
async def owners() -> Owners:
    """Return a directory without sessions."""
    return Owners()


@pytest.fixture
async def moves(owners: Owners) -> AsyncIterator[Moves]:
    """Return the moves that wait on that directory."""
    made = Moves(owners, lambda error: None)
    yield made
    await made.close()


async def test_all_requests_share_each_look_up(moves: Moves, owners: Owners) -> None:
    """All waiting requests share each look-up, which covers a limited number of sessions, and each request learns of
    its session's move."""
    ids = [f"gws_{number}" for number in range(3 * MOST_LOOKUPS)]
    owners.nodes = dict.fromkeys(ids, "b")

    found = await asyncio.gather(*(moves.next(one, at("a"), 5) for one in ids))

    assert found == [at("b")] * len(ids)
    assert owners.asked == [MOST_LOOKUPS] * 3


async def test_session_that_stays_is_asked_for_again(moves: Moves, owners: Owners) -> None:
    """After the time given the old location is returned, whether or not Redis answered."""
    owners.nodes = {"gws_1": "a"}
    assert await moves.next("gws_1", at("a"), 0.01) == at("a")

    owners.away = True
    assert await moves.next("gws_1", at("a"), 0.01) == at("a")


async def test_session_that_is_gone_is_told(moves: Moves) -> None:
    """A session without an owner is reported as gone."""
    assert await moves.next("gws_1", at("a"), 5) is None


async def test_failed_look_up_is_reported_and_the_next_request_looks_again(owners: Owners) -> None:
    """An exception that nobody expected reaches the log, and does not end all later look-ups."""
    failures: list[BaseException] = []
    moves = Moves(owners, failures.append)
    owners.broken = True
    assert await moves.next("gws_1", at("a"), 0.01) == at("a")
    owners.broken = False
    found = await moves.next("gws_2", at("a"), 5)
    await moves.close()

    assert found is None
    assert [repr(failure) for failure in failures] == ["ValueError('a bug')"]


async def test_request_for_a_session_that_arrives_here_goes_on_at_once(moves: Moves, owners: Owners) -> None:
    """It does not wait for a look-up, of which each covers only some of the sessions."""
    owners.away = True
    waiting = asyncio.create_task(moves.next("gws_1", at("a"), 5))
    await asyncio.sleep(0)
    moves.arrived("gws_1")
    moves.arrived("gws_2")

    assert await waiting is None

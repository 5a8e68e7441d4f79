"""gateway/downstream/turns/own.py: turns in sessions of their own."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from gateway.downstream.turns.own import OwnTurn
from gateway.relay.ports import Handle
from gateway.relay.requests import Promise
from gateway.relay.state.turn import Turn, TurnRequest
from gateway.relay.tasks import Tasks


class Brittle:
    """A session with a turn; ending either of them fails."""

    async def turn(self, request: TurnRequest, promise: Promise) -> Turn:
        return cast(Turn, self)

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    async def close(self, reason: object) -> None:
        raise ValueError("a bug")


async def test_an_exception_at_the_end_of_a_turns_session_is_reported() -> None:
    """The client already has its answer, so the exception is logged."""
    failures: list[BaseException] = []
    turns, own = Tasks(failures.append), OwnTurn()

    async def opened() -> Handle:
        return cast(Handle, Brittle())

    own.start(turns, opened, cast(Any, None))
    await asyncio.wait_for(own.begun, 10)
    own.abandon()
    await turns.ended()

    assert [repr(failure) for failure in failures] == ["ValueError('a bug')"]

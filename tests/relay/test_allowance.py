"""gateway/relay/allowance.py: tokens by caller and day, and what a session does when they are spent."""

import pytest

from gateway.errors import OverloadError
from gateway.relay.allowance import Allowance
from gateway.relay.ports import Principal
from gateway.relay.state import CloseReason
from gateway.relay.turn import TurnRequest
from tests.relay.conftest import Build
from tests.relay.fakes import client_event

NOON = 1_790_000_000.0 // 86_400 * 86_400 + 43_200
ANN = Principal("ann", tokens_per_day=10)


def test_a_spent_day_is_refused_until_midnight() -> None:
    """The refusal says how long that is; the next day begins at nothing."""
    allowance = Allowance()
    allowance.spend("ann", 9, NOON)
    allowance.check(ANN, NOON)
    allowance.spend("ann", 1, NOON)
    with pytest.raises(OverloadError) as caught:
        allowance.check(ANN, NOON)

    assert (caught.value.code, caught.value.retry_after) == ("rate-limited", 43_200)
    allowance.check(ANN, NOON + 43_200)


def test_callers_spend_apart() -> None:
    """Another caller's tokens, or a caller without a limit, are no matter."""
    allowance = Allowance()
    allowance.spend("bob", 1000, NOON)

    allowance.check(ANN, NOON)
    allowance.check(Principal("bob"), NOON)


async def test_a_session_that_has_cost_its_limit_ends(build: Build) -> None:
    """After the response.done that says so, with reason `limit`."""
    house = build()
    session = await house.open(principal=Principal("ann", tokens_per_session=5))
    for _ in range(2):  # three tokens each
        await session.submit([client_event("response.create")])
        house.call.start()
        house.call.finish()

    assert await house.closed(session) is CloseReason.LIMIT


async def test_nothing_more_is_asked_once_the_day_is_spent(build: Build) -> None:
    """Not by events, not by turns, not by another session; what costs nothing passes."""
    house = build()
    ann = Principal("ann", tokens_per_day=3)
    session = await house.open(principal=ann)
    await session.submit([client_event("response.create")])
    house.call.start()
    house.call.finish()

    for asking in (
        session.submit([client_event("response.create")]),
        session.turn(TurnRequest([])),
        house.open(principal=ann),
    ):
        with pytest.raises(OverloadError) as caught:
            await asking
        assert caught.value.code == "rate-limited"
    await session.submit([client_event("conversation.item.create", item={})])

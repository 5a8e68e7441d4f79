"""gateway/relay/state/responses.py: which responses are in flight, and which of them have begun."""

from typing import Any

import pytest

from gateway.relay.state.delivery import delivery
from gateway.relay.state.effects import Effect, FirstDelta, ResponseDone, Unrecorded
from gateway.relay.state.responses import MAX_ACTIVE, Responses
from gateway.relay.usage import Charge
from tests.relay.fakes import client_event

CHARGE = Charge("m")


class Desk:
    """The responses of one session, and the resulting records."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.responses = Responses()

    def create(self, id: str = "r1", now: float = 0.0, conversation: str | None = "c") -> None:
        value = {"response": {"id": id, "conversation_id": conversation}}
        self.effects += self.responses.created(value, None, now)

    def finish(self, id: str = "r1", now: float = 0.0, **members: Any) -> None:
        response = {"id": id, "status": "completed", **members}
        self.effects += self.responses.done({"response": response}, CHARGE, now)


def test_a_response_is_active_until_it_is_done() -> None:
    """A response is active until it is done, whatever created it."""
    desk = Desk()
    desk.create()
    assert (desk.responses.active, desk.responses.busy) == (("r1",), True)
    desk.finish()

    assert (desk.responses.active, desk.responses.busy) == ((), False)


def test_a_response_out_of_band_leaves_the_conversation_free() -> None:
    """A response out of band has no conversation, so another one may run in the default conversation."""
    desk = Desk()
    desk.create(conversation=None)

    assert (desk.responses.active, desk.responses.busy) == (("r1",), False)


def test_the_first_delta_is_timed_from_the_question() -> None:
    """The time to the first delta counts from the request, once per response."""
    desk = Desk()
    desk.responses.asked(10.0)
    desk.create(now=10.2)
    assert desk.responses.mute == 1
    for now in (10.5, 11.0):
        desk.effects += desk.responses.delta({"response_id": "r1"}, now)
    desk.effects += desk.responses.delta({}, 12.0)

    assert desk.effects == [FirstDelta(0.5)]
    assert desk.responses.mute == 0


def test_a_response_nobody_asked_for_is_timed_from_its_creation() -> None:
    """Turn detection creates responses without a request; an earlier request does not belong to them."""
    desk = Desk()
    desk.responses.asked(1.0)
    desk.create("r1", now=2.0)
    desk.create("r2", now=50.0)
    desk.effects += desk.responses.delta({"response_id": "r2"}, 50.25)

    assert desk.effects == [FirstDelta(0.25)]


def test_a_done_response_is_told_with_status_time_and_charge() -> None:
    """The duration counts from the response's creation."""
    desk = Desk()
    desk.create(now=1.0)
    desk.finish(now=3.5)

    assert desk.effects == [ResponseDone("completed", 2.5, CHARGE, None)]


@pytest.mark.parametrize("value", [{}, {"response": None}, {"response": 7}])
def test_a_done_of_no_shape_is_told_as_other(value: dict[str, object]) -> None:
    """A done event of an invalid shape is reported as `other`, because the service's shapes are not trusted."""
    assert Desk().responses.done(value, None, 1.0) == [ResponseDone("other", 0.0, None, None)]


@pytest.mark.parametrize(
    ("details", "codes"),
    [
        ({"error": {"code": "rate_limit_exceeded", "type": "t"}}, ["rate_limit_exceeded"]),
        ({"error": {"type": "server_error", "code": None}}, ["server_error"]),
        ({"error": {"code": 7}}, ["other"]),
        ({"error": {}}, ["other"]),
        ({"error": None}, []),
        ("failed", []),
        (None, []),
    ],
)
def test_a_failed_response_is_an_error_of_upstreams(details: object, codes: list[str]) -> None:
    """A failed response counts as an upstream error, because many failures show only here."""
    desk = Desk()
    desk.create()
    desk.finish(status="failed", status_details=details)

    assert [
        effect.error for effect in desk.effects if isinstance(effect, ResponseDone) and effect.error
    ] == codes


def test_a_lost_call_leaves_its_responses_unrecorded() -> None:
    """All responses of a lost call are reported, also requested ones that had not begun, and none is active any
    more."""
    desk = Desk()
    desk.create("r1")
    desk.create("r2")
    assert (desk.responses.lost(1), desk.responses.lost(0)) == ([Unrecorded(3)], [])

    assert (desk.responses.active, desk.responses.busy, desk.responses.mute) == ((), False, 0)


def test_responses_that_never_end_are_bounded() -> None:
    """Above the limit the oldest response is treated as lost."""
    desk = Desk()
    for number in range(MAX_ACTIVE + 1):
        desk.create(f"r{number}")

    assert len(desk.responses.active) == MAX_ACTIVE
    assert desk.responses.active[0] == "r1"
    assert desk.effects == [Unrecorded(1)]


def test_a_response_knows_what_asked_for_it() -> None:
    """The request is kept so that it can be repeated; a response that the service began by itself has none."""
    responses = Responses()
    asked = delivery(7, 3, client_event("response.create"))
    responses.created({"response": {"id": "own"}}, None, 0.0)
    responses.created({"response": {"id": "asked"}}, asked, 0.0)

    assert responses.requests == [asked]
    assert responses.dump() == [["own", False, None], ["asked", False, [7, 3, 0, asked.text]]]

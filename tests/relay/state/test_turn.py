"""gateway/relay/state/turn.py: the events of a turn, and which events belong to it."""

from collections.abc import Mapping
from typing import Any

import pytest

from gateway.errors import GatewayError, UpstreamError
from gateway.relay.events.eventlog import EventId
from gateway.relay.state.turn import Progress, Turn, TurnRequest, check_text, queue_full

TOKEN = "abcdefghijklmnopqr"
USER = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
LAST = EventId("e", 9)


def make(*items: Mapping[str, object], **response: Any) -> Turn:
    """Make a turn that was sent."""
    turn = Turn(1, TOKEN, TurnRequest(items or (USER,), response))
    turn.opening()
    return turn


def created(turn: Turn, response_id: object = "resp_1") -> Progress:
    """Report to a turn that its response was created."""
    response = {"id": response_id, "metadata": {"gateway_turn": turn.id}}
    return turn.look("response.created", {"response": response})


def refused(turn: Turn, suffix: str, code: str = "invalid_value") -> Progress:
    """Report to a turn that one of its events was refused."""
    error = {
        "type": "invalid_request_error",
        "code": code,
        "message": "No.",
        "event_id": f"evt_{TOKEN}_{suffix}",
    }
    return turn.look("error", {"error": error})


def done(turn: Turn, response_id: str = "resp_1") -> Progress:
    """Report to a turn that a response is done."""
    return turn.look("response.done", {"response": {"id": response_id, "status": "completed"}})


def test_its_events_carry_names_of_their_own() -> None:
    """Each event has an event_id, each item an id, and the response has the turn's mark beside the caller's
    metadata."""
    turn = Turn(1, TOKEN, TurnRequest([USER, {**USER, "id": "mine"}], {"metadata": {"a": "b"}, "tools": []}))
    events = [*turn.opening(), turn.asking()]

    assert [event.value for event in events] == [
        {
            "type": "conversation.item.create",
            "item": {**USER, "id": f"item_{TOKEN}000"},
            "event_id": f"evt_{TOKEN}_i0",
        },
        {"type": "conversation.item.create", "item": {**USER, "id": "mine"}, "event_id": f"evt_{TOKEN}_i1"},
        {
            "type": "response.create",
            "response": {"metadata": {"a": "b", "gateway_turn": turn.id}, "tools": []},
            "event_id": f"evt_{TOKEN}_r",
        },
    ]
    assert [event.type for event in events] == [event.value["type"] for event in events]
    assert [event.event_id for event in events] == [event.value["event_id"] for event in events]


def test_its_names_keep_to_the_services_lengths() -> None:
    """An item's id has at most 32 characters, as the service requires."""
    turn = Turn(1, TOKEN, TurnRequest([USER] * 1000))

    assert max(len(str(event.value["item"]["id"])) for event in turn.opening()[:-1]) <= 32  # type: ignore[index]


def test_metadata_that_is_no_object_gives_way() -> None:
    """Metadata that is not an object is replaced, because the mark needs an object."""
    event = make(metadata="x").asking()

    assert event.value["response"] == {"metadata": {"gateway_turn": f"turn_{TOKEN}"}}


def test_any_text_can_be_sent() -> None:
    """Half a surrogate pair is escaped, because UTF-8 cannot encode it."""
    (event,) = Turn(1, TOKEN, TurnRequest([{"type": "message", "content": "é\ud800"}])).opening()

    assert event.text.encode()
    assert "\\ud800" in event.text


def test_the_cancel_names_the_response_once_it_is_known() -> None:
    """Without an ID the service cancels the active response."""
    turn = make()
    assert "response_id" not in turn.cancelling().value
    created(turn)

    assert turn.cancelling().value["response_id"] == "resp_1"


@pytest.mark.parametrize(
    ("type", "value", "progress"),
    [
        ("conversation.item.added", {"item": {"id": f"item_{TOKEN}000"}}, Progress.OURS),
        ("conversation.item.deleted", {"item_id": f"item_{TOKEN}000"}, Progress.OURS),
        ("conversation.item.added", {"item": {"id": "item_other"}}, Progress.FOREIGN),
        ("conversation.item.added", {"item": None}, Progress.FOREIGN),
        ("response.output_text.delta", {"response_id": "resp_1"}, Progress.OURS),
        ("response.output_text.delta", {"response_id": "resp_2"}, Progress.FOREIGN),
        ("response.output_text.delta", {}, Progress.FOREIGN),
        ("response.created", {"response": {"id": "resp_2", "metadata": None}}, Progress.FOREIGN),
        ("response.created", {"response": None}, Progress.FOREIGN),
        ("response.done", {"response": {"id": "resp_2"}}, Progress.FOREIGN),
        ("response.done", {}, Progress.FOREIGN),
        ("rate_limits.updated", {}, Progress.FOREIGN),
        ("session.updated", {}, Progress.FOREIGN),
        ("error", {}, Progress.FOREIGN),
        ("error", {"error": {"event_id": None}}, Progress.FOREIGN),
        ("error", {"error": {"event_id": "evt_other"}}, Progress.FOREIGN),
        ("", {}, Progress.FOREIGN),
    ],
)
def test_its_events_are_those_of_its_items_and_its_response(
    type: str, value: dict[str, object], progress: Progress
) -> None:
    """All other events of the session do not belong to the turn (contract 1.4)."""
    turn = make()
    assert created(turn) is Progress.OURS

    assert turn.look(type, value) is progress


def test_nothing_is_its_response_before_it_is_created() -> None:
    """A response without an id of ours is not the turn's, nor is one whose id is not a string."""
    turn = make()
    assert turn.look("response.output_text.delta", {"response_id": None}) is Progress.FOREIGN
    assert done(turn) is Progress.FOREIGN
    assert created(turn, response_id=7) is Progress.OURS

    assert turn.response_id is None


def test_the_responses_items_are_its_own_too() -> None:
    """An item that the response creates is recognized by its id."""
    turn = make()
    created(turn)
    turn.look("response.output_item.added", {"response_id": "resp_1", "item": {"id": "item_out"}})

    assert turn.look("conversation.item.done", {"item": {"id": "item_out"}}) is Progress.OURS


def test_it_is_over_with_its_response() -> None:
    """The turn's last event is its response.done, which is also its result."""
    turn = make()
    created(turn)
    progress = done(turn)
    turn.finish(LAST)

    assert progress is Progress.DONE
    assert turn.over
    assert turn.result == {"id": "resp_1", "status": "completed"}
    assert (turn.last, turn.failure) == (LAST, None)


def test_a_response_that_is_no_object_is_no_response() -> None:
    """The service's events are not trusted: one without a response object belongs to no turn."""
    turn = make()
    created(turn)

    assert turn.look("response.done", {"response": ["resp_1"]}) is Progress.FOREIGN


def test_a_refused_response_ends_it() -> None:
    """A refused response ends the turn, and the error contains the service's message."""
    turn = make()
    progress = refused(turn, "r")

    assert (progress, turn.over) == (Progress.DONE, True)
    assert turn.failure is not None
    assert turn.failure.code == "upstream-rejected"
    assert turn.failure.members["upstream"] == {
        "type": "invalid_request_error",
        "code": "invalid_value",
        "message": "No.",
        "param": None,
    }


def test_a_refused_item_finishes_it_before_it_is_over() -> None:
    """The response was requested together with the item, and arrives anyway."""
    turn = make(USER, USER)
    turn.asked = True
    progress = refused(turn, "i0")
    failure = turn.failure
    turn.finish(LAST)

    assert (progress, turn.over) == (Progress.DONE, False)
    assert refused(turn, "i1") is Progress.OURS
    assert created(turn) is Progress.OURS
    assert done(turn) is Progress.DONE
    assert (turn.over, turn.result, turn.failure, turn.last) == (True, None, failure, LAST)


def test_a_refused_item_and_a_refused_response_are_one_failure() -> None:
    """The first refusal is the turn's error; the second means that nothing follows."""
    turn = make()
    refused(turn, "i0")
    failure = turn.failure
    turn.finish(LAST)

    assert refused(turn, "r") is Progress.DONE
    assert (turn.over, turn.failure) == (True, failure)


def test_an_active_response_is_waited_for() -> None:
    """The service allows one response at a time, so a turn that comes second waits instead of failing."""
    turn = make()
    progress = refused(turn, "r", "conversation_already_has_active_response")

    assert (progress, turn.failure, turn.over) == (Progress.BUSY, None, False)


def test_a_cancel_that_came_too_late_is_harmless() -> None:
    """If the cancel is refused, the response had ended before."""
    turn = make()
    created(turn)
    turn.cancelling()

    assert refused(turn, "c", "response_cancel_not_active") is Progress.OURS
    assert turn.failure is None


def test_finishing_wakes_those_who_wait_once() -> None:
    """The shell wakes the waiting callers once the state is complete. A cancelled waiter is skipped, a later one is
    woken at once, and a second end changes nothing."""
    turn, woken = make(), list[str]()
    turn.subscribe(lambda: woken.append("a"))
    cancel = turn.subscribe(lambda: woken.append("b"))
    cancel()
    cancel()
    failure = UpstreamError("upstream-failed", "Gone.")
    assert turn.finish(LAST, failure)
    assert not turn.finish(EventId("e", 99), UpstreamError("upstream-failed", "Again."))
    assert woken == []
    turn.wake()
    turn.wake()
    turn.subscribe(lambda: woken.append("late"))

    assert woken == ["a", "late"]
    assert (turn.last, turn.failure) == (LAST, failure)


def test_an_end_does_not_undo_a_result() -> None:
    """A session that ends after the response was done does not change the turn's result."""
    turn = make()
    created(turn)
    done(turn)
    turn.finish(LAST, UpstreamError("upstream-failed", "Gone."))

    assert turn.failure is None


@pytest.mark.parametrize("modalities", [["audio"], ["text", "audio"], [], None, "text"])
def test_a_turn_without_text_is_refused(modalities: object) -> None:
    """A turn without text is refused if only text was requested (contract 1.4)."""
    with pytest.raises(GatewayError) as caught:
        check_text(TurnRequest([], {"output_modalities": modalities}))
    assert caught.value.code == "no-text-output"


def test_a_turn_of_text_passes() -> None:
    """A turn with text is accepted; text is the default."""
    check_text(TurnRequest([]))
    check_text(TurnRequest([], {"output_modalities": ["text"]}))


def test_a_full_queue_says_when_to_come_back() -> None:
    """A full queue is 429 with Retry-After."""
    assert (queue_full(8).code, queue_full(8).retry_after) == ("turn-queue-full", 2)

"""gateway/relay/state/fold.py with mirror.py and deliveries.py: what a session knows of its conversation, and of the
events it sent."""

import json
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import OverloadError
from gateway.relay.events import frames
from gateway.relay.events.records import Accepted, Acknowledged, DoubtSettled, LineState, ServerEvent
from gateway.relay.requests import Principal
from gateway.relay.state import deliveries, fold
from gateway.relay.state.deliveries import MAX_IN_FLIGHT
from gateway.relay.state.facts import Opening
from gateway.relay.state.fold import WATCHED, SessionState
from gateway.relay.state.mirror import Mirror, restorable
from gateway.relay.state.responses import MAX_ACTIVE
from tests.relay.fakes import client_event


def message(item_id: str, text: str = "Hello", role: str = "user", **members: Any) -> dict[str, Any]:
    """Return a message as the service echoes it."""
    kind = "output_text" if role == "assistant" else "input_text"
    content = [{"type": kind, "text": text}]
    return {
        "id": item_id,
        "type": "message",
        "role": role,
        "status": "completed",
        "content": content,
        **members,
    }


class Desk:
    """A session's state, fed by both sides."""

    def __init__(self, attach_to: str | None = None, **bounds: int) -> None:
        opening = Opening("gws_1", Principal("ann"), {}, 600, 0.0, attach_to=attach_to)
        self.state = SessionState(opening, '{"model":"m"}', "e1")
        self.state.mirror = Mirror('{"model":"m"}', **bounds)

    def send(self, type: str, **members: Any) -> None:
        event = client_event(type, **members)
        self.state.accept(
            Accepted(self.state.accepted + 1, [event.text]), [event], 0.0, self.state.accepted + 1
        )

    def hear(self, type: str, value: dict[str, Any]) -> None:
        self.state.arrived(type, value, self.state.head + 1, 0.0)

    def add(self, item: object, **members: Any) -> None:
        self.hear("conversation.item.added", {"item": item, **members})

    def finish(self, item: object) -> None:
        self.hear("conversation.item.done", {"item": item})

    def restart(self, renamed: dict[str, str], refused: Collection[str] = ()) -> None:
        self.state.apply(LineState("connected", "rtc_2", None, None, "stalled", renamed, list(refused)))

    @property
    def ids(self) -> list[object]:
        return [item["id"] for item in self.state.mirror.seed().items]

    @property
    def waiting(self) -> list[int]:
        return [one.number for one in self.state.ledger.in_flight]


# --- items ------------------------------------------------------------------------------------------------------------


def test_items_stand_in_the_order_of_the_service() -> None:
    """An item is placed after the named one, first for null, and last if the name is missing or unknown."""
    desk = Desk()
    desk.add(message("a"), previous_item_id=None)
    desk.add(message("c"), previous_item_id="a")
    desk.add(message("b"), previous_item_id="a")
    desk.add(message("0"), previous_item_id=None)
    desk.add(message("d"))
    desk.add(message("e"), previous_item_id="unknown")
    desk.add(message("f"), previous_item_id=["odd"])

    assert desk.ids == ["0", "a", "b", "c", "d", "e", "f"]


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=20))
def test_any_insertions_keep_the_services_order(steps: list[tuple[int, bool]]) -> None:
    """After any insertions the mirror equals the service's list."""
    desk, expected = Desk(), list[str]()
    for number, (at, delete) in enumerate(steps):
        if delete and expected:
            gone = expected.pop(at % len(expected))
            desk.hear("conversation.item.deleted", {"item_id": gone})
            continue
        place = at % (len(expected) + 1)
        desk.add(message(str(number)), previous_item_id=expected[place - 1] if place else None)
        expected.insert(place, str(number))

        assert desk.ids == expected


def test_an_item_is_what_it_was_when_it_was_done() -> None:
    """Until an item is done it is unfinished, and counts as lost."""
    desk = Desk()
    desk.add(message("a", "", "assistant", status="in_progress"))
    assert (desk.ids, desk.state.mirror.seed().lost) == ([], 1)
    desk.finish(message("a", "Done.", "assistant"))

    assert desk.state.mirror.seed().items[0]["content"] == [{"type": "output_text", "text": "Done."}]
    assert desk.state.mirror.seed().lost == 0


def test_an_item_out_of_band_is_not_of_the_conversation() -> None:
    """An item out of band is done but never added, so it is not part of the conversation."""
    desk = Desk()
    desk.hear("response.output_item.done", {"item": message("a")})

    assert desk.ids == []


@pytest.mark.parametrize("item", [None, 7, {}, {"id": 7}])
def test_an_item_of_no_shape_is_not_mirrored(item: object) -> None:
    """An item of an invalid shape is ignored, because the service's shapes are not trusted."""
    desk = Desk()
    desk.add(item)
    desk.finish(item)

    assert (desk.ids, desk.state.mirror.seed().lost) == ([], 0)


def test_a_deleted_item_is_gone() -> None:
    """A deleted item is removed, and deleting it again changes nothing."""
    desk = Desk()
    desk.add(message("a"))
    for _ in range(2):
        desk.hear("conversation.item.deleted", {"item_id": "a"})

    assert (desk.ids, desk.state.mirror._size, desk.state.mirror.seed().lost) == ([], 0, 0)


def test_a_truncated_part_is_gone() -> None:
    """The truncated part was not heard, so it is removed."""
    desk = Desk()
    content = [{"type": "output_audio", "transcript": "One."}, {"type": "output_audio", "transcript": "Two."}]
    desk.add(message("a", role="assistant", content=content))
    desk.hear("conversation.item.truncated", {"item_id": "a", "content_index": 1})

    assert desk.state.mirror.seed().items[0]["content"] == [{"type": "output_text", "text": "One."}]


def test_a_transcription_makes_audio_sayable() -> None:
    """A transcription, which arrives after the item is done, is what audio is seeded with."""
    desk = Desk()
    desk.add(message("a", content=[{"type": "input_audio", "transcript": None}]))
    assert desk.ids == []
    desk.hear(
        "conversation.item.input_audio_transcription.completed",
        {"item_id": "a", "content_index": 0, "transcript": "Hi."},
    )

    assert desk.state.mirror.seed().items[0]["content"] == [{"type": "input_text", "text": "Hi."}]


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"item_id": "a"},
        {"item_id": "a", "content_index": 9},
        {"item_id": "a", "content_index": "0"},
        {"item_id": "odd", "content_index": 0},
        {"item_id": "unknown", "content_index": 0},
        {"item_id": ["a"], "content_index": 0},
    ],
)
@pytest.mark.parametrize(
    "type",
    ["conversation.item.truncated", "conversation.item.input_audio_transcription.completed"],
)
def test_a_change_that_meets_nothing_changes_nothing(type: str, value: dict[str, object]) -> None:
    """A change of a part that does not exist, or is not an object, has no effect."""
    desk = Desk()
    desk.add(message("a"))
    desk.add({"id": "odd", "type": "message", "role": "user", "content": ["text"]})
    before = desk.state.mirror.seed()
    desk.hear(type, value)

    assert desk.state.mirror.seed().items == before.items


def test_events_that_are_not_watched_mean_nothing() -> None:
    """Other events do not change the state."""
    desk = Desk()
    desk.hear("response.output_text.delta", {"delta": "a"})

    assert desk.state.mirror.seed().items == []


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_the_oldest_items_fall_out_and_are_counted() -> None:
    """Items beyond the limit are dropped from the oldest on and counted."""
    desk = Desk(max_items=3)
    for item_id in "abcde":
        desk.add(message(item_id))

    assert (desk.ids, desk.state.mirror.seed().lost) == (["c", "d", "e"], 2)


def test_long_items_push_others_out() -> None:
    """Items are dropped by bytes, also when one grows; the newest stays however long it is."""
    desk = Desk(max_bytes=1000)
    for item_id in "ab":
        desk.add(message(item_id))
    desk.finish(message("b", "x" * 2000))

    assert (desk.ids, desk.state.mirror.seed().lost) == (["b"], 1)


@pytest.mark.parametrize("letter", ["x", "é", "水", "🙂"])
def test_the_mirrors_bytes_are_those_of_the_text(letter: str) -> None:
    """The size of an item does not depend on its JSON escapes, which would make some texts three times as large."""
    desk = Desk(max_bytes=20_000)
    size = len(letter.encode())
    for item_id in "abc":
        desk.add(message(item_id, letter * (6000 // size)))

    assert desk.ids == ["a", "b", "c"]


def test_events_in_flight_are_bounded() -> None:
    """Accepted events are not forgotten: further ones are refused until the transport or the service confirms."""
    desk = Desk()
    for _ in range(MAX_IN_FLIGHT):
        desk.send("some.future.event")
    assert desk.state.ledger.crowded(1, 10)
    with pytest.raises(OverloadError) as caught:
        desk.state.ledger.require_room(1, 10)
    assert (caught.value.code, caught.value.retry_after) == ("upstream-backpressure", 1)
    desk.state.apply(Acknowledged(desk.state.ledger.delivery_at(7)))

    assert desk.waiting[0] == 8
    desk.state.ledger.require_room(7, 10)


def test_events_in_flight_are_bounded_in_bytes() -> None:
    """The limit counts bytes of text, not the size of the parsed value; a single large event is accepted."""
    desk = Desk()
    desk.state.ledger.require_room(1, 5_000_000)
    desk.send("some.future.event", a="x" * 4_000_000)

    assert desk.state.ledger.crowded(1, 200_000)
    assert 4_000_000 < desk.state.size < 4_010_000


# --- what is in flight ------------------------------------------------------------------------------------------------


def test_what_changes_the_conversation_is_unconfirmed_until_the_service_says_so() -> None:
    """An event that changes the conversation is confirmed by the service's answers in order; other events are
    confirmed by the transport."""
    desk = Desk()
    for type in (
        "session.update",
        "conversation.item.create",
        "input_audio_buffer.append",
        "response.create",
    ):
        desk.send(type, item={"type": "message", "role": "user"})
    assert desk.waiting == [1, 2, 3, 4]
    desk.state.apply(Acknowledged(3))
    assert desk.waiting == [1, 2, 4]
    desk.add(message("a"))
    assert desk.waiting == [1, 4]
    desk.hear("response.created", {})
    desk.hear("session.updated", {})

    assert desk.waiting == []


def test_deleting_and_truncating_are_confirmed_too() -> None:
    """Delete and truncate are each confirmed by their own event."""
    desk = Desk()
    desk.send("conversation.item.delete", item_id="a")
    desk.send("conversation.item.truncate", item_id="a")
    desk.hear("conversation.item.truncated", {"item_id": "a"})
    assert desk.waiting == [1]
    desk.hear("conversation.item.deleted", {"item_id": "a"})

    assert desk.waiting == []


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("conversation.item.retrieve", "conversation.item.retrieved"),
        ("input_audio_buffer.commit", "input_audio_buffer.committed"),
        ("input_audio_buffer.clear", "input_audio_buffer.cleared"),
    ],
)
def test_what_is_answered_is_waited_for_and_not_sent_again(asked: str, answered: str) -> None:
    """An event that refers to a buffer or a response of the old call is reported if it is lost, but not sent again,
    because a new call has neither."""
    desk = Desk()
    desk.send(asked)
    assert (desk.waiting, desk.state.again) == ([1], [])
    assert answered in WATCHED
    desk.hear(answered, {})

    assert desk.waiting == []


def test_a_cancel_is_confirmed_by_the_response_that_it_ended() -> None:
    """A cancel is confirmed only by the response that it ended, not by one that was over before; what the transport
    has acknowledged is harmless."""
    desk = Desk()
    desk.send("response.cancel", response_id="r1")
    desk.send("response.cancel")
    for response_id, status in (("r2", "completed"), ("r1", "completed")):
        desk.hear("response.done", {"response": {"id": response_id, "status": status}})
    assert (desk.waiting, desk.state.again) == ([1, 2], [])
    desk.hear("response.done", {"response": {"id": "r1", "status": "cancelled"}})
    assert desk.waiting == [2]
    desk.hear("response.done", {"response": {"id": "r3", "status": "cancelled"}})
    assert desk.waiting == []
    desk.send("response.cancel")
    desk.state.apply(Acknowledged(3))

    assert desk.waiting == []


def test_a_named_item_confirms_its_own_create() -> None:
    """An event without an ID is confirmed by the service's generated ID; an unknown ID confirms the first such event."""
    desk = Desk()
    desk.send("conversation.item.create", item={"type": "message", "role": "system"})
    desk.send("conversation.item.create", item={"type": "message", "role": "user"})
    desk.send("conversation.item.create", item={"type": "message", "role": "user"})
    desk.send("conversation.item.create", item={"id": "mine"})
    desk.send("conversation.item.create", item={"id": "other"})
    desk.add(message("mine"))
    assert desk.waiting == [1, 2, 3, 5]
    desk.add(message("given"))
    assert desk.waiting == [1, 3, 5]
    desk.add(message("given too"))
    desk.add(message("unasked"))

    assert desk.waiting == [1, 5]


def test_what_the_service_begins_itself_confirms_nothing() -> None:
    """A response's own item is added unfinished and confirms no event."""
    desk = Desk()
    desk.send("conversation.item.create", item={})
    desk.add(message("a", role="assistant", status="in_progress"))

    assert desk.waiting == [1]


def test_a_refused_event_is_not_waited_for() -> None:
    """A refused event is removed if the error names it."""
    desk = Desk()
    desk.send("session.update", event_id="s", session={"voice": "x"})
    desk.send("response.create", event_id="r")
    for event_id in ("unknown", None, "r"):
        desk.hear("error", {"error": {"event_id": event_id}})

    assert desk.waiting == [1]


def test_a_nameless_refusal_is_settled_by_what_is_confirmed_later() -> None:
    """A later confirmation settles it: events before it without an ID were refused, those with an ID would have been
    named, and later ones are open."""
    desk = Desk()
    desk.send("response.create")
    desk.send("response.create", event_id="named")
    desk.send("session.update", session={})
    desk.hear("error", {"error": {"event_id": None}})
    desk.send("conversation.item.delete", item_id="a")
    assert desk.waiting == [1, 2, 3, 4]
    desk.hear("conversation.item.deleted", {"item_id": "a"})

    assert desk.waiting == [2]


def test_a_nameless_refusal_is_settled_by_a_later_refusal_with_a_name() -> None:
    """Answers come in order, so everything before the event that is named later was answered, too."""
    desk = Desk()
    desk.send("session.update")
    desk.send("session.update", event_id="named before")
    desk.hear("error", {"error": {"event_id": None}})
    desk.send("session.update", event_id="s", session={})
    desk.send("session.update")
    desk.hear("error", {"error": {"event_id": "s"}})

    assert desk.waiting == [2, 4]


def test_a_nameless_refusal_is_settled_by_a_sign_of_life() -> None:
    """A call that had time to answer has answered everything; without such an error it may have taken all events."""
    desk = Desk()
    desk.send("response.create")
    desk.state.apply(DoubtSettled())
    assert (desk.waiting, desk.state.cut) == ([1], True)
    desk.hear("error", {"error": {"event_id": None}})
    desk.state.apply(DoubtSettled())

    assert (desk.waiting, desk.state.cut) == ([], False)


def test_a_response_in_flight_is_cut_until_it_is_done() -> None:
    """The request of an interrupted response is kept and sent again before everything unconfirmed; a response that
    the service began has none."""
    desk = Desk()
    desk.hear("response.created", {"response": {"id": "own"}})
    desk.send("response.create")
    desk.hear("response.created", {"response": {"id": "asked"}})
    desk.send("conversation.item.create", item={})
    assert sorted(one.number for one in desk.state.again) == [1, 2]
    for response_id in ("own", "asked"):
        assert desk.state.cut
        desk.hear("response.done", {"response": {"id": response_id}})

    assert not desk.state.cut
    assert sorted(one.number for one in desk.state.again) == [2]


def test_responses_that_never_end_are_bounded() -> None:
    """If a service begins responses without end, their number is limited."""
    desk = Desk()
    for at in range(MAX_ACTIVE + 5):
        desk.hear("response.created", {"response": {"id": str(at)}})

    assert len(desk.state.responses.active) == MAX_ACTIVE


def test_items_that_a_new_call_refused_are_not_offered_to_the_next() -> None:
    """A loss that was already reported is not counted again."""
    desk = Desk(max_items=2)
    for item_id in "abc":
        desk.add(message(item_id))
    assert desk.state.mirror.seed().lost == 1
    desk.restart({}, {"b"})

    assert (desk.ids, desk.state.mirror.seed().lost) == (["c"], 0)


def test_a_confirmed_update_is_part_of_the_next_call() -> None:
    """The update is applied as it was requested; an unrequested one, or one of an invalid shape, changes nothing."""
    desk = Desk()
    desk.hear("session.updated", {"session": {"voice": "echo"}})
    desk.send("session.update", session="odd")
    desk.hear("session.updated", {})
    desk.send("session.update", session={"voice": "x"})
    assert desk.state.mirror.seed().session == {"model": "m"}
    desk.hear("session.updated", {"session": {"id": "sess_1", "voice": "x"}})

    assert desk.state.mirror.seed().session == {"model": "m", "voice": "x"}


def test_an_update_refused_without_a_name_is_not_taken_for_the_next_one() -> None:
    """The echo shows which update the service took; seeding the refused one would make the next call fail as well."""
    desk = Desk()
    desk.send("session.update", session={"audio": {"output": {"voice": "nobody"}}})
    desk.send("session.update", session={"audio": {"output": {"voice": "x"}}, "tools": [{}], "prompt": None})
    desk.send("session.update", session={"speed": 2})
    desk.hear("error", {"error": {"event_id": None}})
    desk.hear("session.updated", {"session": {"audio": {"output": {"voice": "x"}}, "tools": []}})

    expected: dict[str, object] = {
        "model": "m",
        "audio": {"output": {"voice": "x"}},
        "tools": [{}],
        "prompt": None,
    }
    assert desk.state.mirror.seed().session == expected
    assert desk.waiting == [3]


def test_an_update_that_the_echo_does_not_show_is_the_oldest() -> None:
    """If the echo matches no update it belongs to the oldest, because the service may write a value in another form."""
    desk = Desk()
    desk.send("session.update", session={"speed": 1})
    desk.send("session.update", session={"speed": 2})
    desk.hear("session.updated", {"session": {"speed": 1.5}})

    assert (desk.state.mirror.seed().session, desk.waiting) == ({"model": "m", "speed": 1}, [2])


def test_an_echo_is_compared_with_the_first_updates_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand large updates may be in flight, and each is parsed to be compared."""
    monkeypatch.setattr(deliveries, "MAX_COMPARED_BYTES", 100)
    desk = Desk()
    for speed in range(5):
        desk.send("session.update", session={"speed": speed})
    desk.hear("session.updated", {"session": {"speed": 4}})

    assert (desk.state.mirror.seed().session, desk.waiting) == ({"model": "m", "speed": 0}, [2, 3, 4, 5])


def test_a_new_call_has_new_names_and_nothing_in_flight() -> None:
    """A new call has its own item IDs and nothing in flight, and items that it did not get are removed."""
    desk = Desk()
    desk.add(message("a"))
    desk.add(message("b"))
    desk.add(message("c", role="assistant", status="in_progress"))
    desk.send("response.create")
    desk.restart({"a": "a2"})
    desk.finish(message("c", role="assistant"))

    assert (desk.ids, desk.waiting) == (["a2", "b"], [])


# --- what can be seeded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "restored"),
    [
        (message("a"), {"type": "input_text", "text": "Hello"}),
        (message("a", role="system"), {"type": "input_text", "text": "Hello"}),
        (message("a", role="assistant"), {"type": "output_text", "text": "Hello"}),
        (
            message(
                "a", role="assistant", content=[{"type": "output_audio", "transcript": "Hi", "audio": "AAAA"}]
            ),
            {"type": "output_text", "text": "Hi"},
        ),
        (
            message("a", content=[{"type": "input_image", "image_url": "data:x", "detail": "low"}]),
            {"type": "input_image", "image_url": "data:x", "detail": "low"},
        ),
        (
            message("a", content=[{"type": "input_image", "image_url": "data:x", "detail": None}]),
            {"type": "input_image", "image_url": "data:x"},
        ),
        (
            message("a", content=[7, {"type": "input_text", "text": "b"}, {"type": "new"}]),
            {"type": "input_text", "text": "b"},
        ),
    ],
)
def test_messages_are_given_again_in_text(item: dict[str, Any], restored: dict[str, Any]) -> None:
    """Messages are seeded as text, audio as its transcript; other parts are left out."""
    again = restorable(item)

    assert again is not None
    assert again == {"id": "a", "type": "message", "role": item["role"], "content": [restored]}


def test_calls_of_functions_and_their_outputs_are_given_again() -> None:
    """Function calls and their outputs are seeded with the members that a create accepts."""
    call = {"id": "a", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"id": "b", "type": "function_call_output", "call_id": "c", "output": "1"}

    assert restorable({**call, "status": "completed", "object": "realtime.item"}) == call
    assert restorable({**output, "status": "completed"}) == output


@pytest.mark.parametrize(
    "item",
    [
        {
            "type": "message",
            "status": "in_progress",
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}],
        },
        {"type": "message", "role": "user", "content": []},
        {"type": "message", "role": "user", "content": None},
        {"type": "message", "role": 7, "content": [{"type": "input_text", "text": "a"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_audio"}]},
        {"type": "mcp_call"},
        {},
    ],
)
def test_what_cannot_be_said_again_is_lost(item: dict[str, object]) -> None:
    """Items that are unfinished, empty, or of a kind that a create does not accept are lost."""
    assert restorable(item) is None


def test_what_only_enters_the_log_is_not_parsed_in_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that takes a session over reads thousands of deltas. While a response has had no delta yet, or a turn
    runs, any event may concern it."""
    parsed: list[str] = []

    def counted(text: str) -> dict[str, object] | None:
        parsed.append(text)
        return frames.peek(text)

    monkeypatch.setattr(fold, "peek", counted)
    state, replay = Desk().state, ["rate_limits.updated", "response.created", "some.delta", "some.delta"]
    for sequence, type_ in enumerate(replay, start=1):
        text = json.dumps({"type": type_, "response_id": "resp_1", "response": {"id": "resp_1"}})
        state.apply(ServerEvent(sequence, 0, type_, text))

    assert state.head == 4
    assert [json.loads(text)["type"] for text in parsed] == ["response.created", "some.delta"]

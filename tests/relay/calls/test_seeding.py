"""gateway/relay/calls/seeding.py: a new call gets the conversation of the previous one."""

import json
from typing import Any

from gateway.relay.calls.seeding import Seeding
from gateway.relay.state.mirror import Seed


def make(*ids: str, lost: int = 0) -> Seeding:
    """Start seeding items with these ids."""
    return Seeding(Seed({}, [{"id": item_id, "type": "message", "text": "é"} for item_id in ids], lost))


def added(seeding: Seeding, item_id: str) -> None:
    """Let the service take an item under this id."""
    for type in ("conversation.item.added", "conversation.item.done"):
        assert seeding.received(type, {"item": {"id": item_id}}) == []


def refused(seeding: Seeding, event_id: object) -> list[dict[str, Any]]:
    """Let the service refuse an event, and return the events that are sent in response."""
    return [json.loads(text) for text in seeding.received("error", {"error": {"event_id": event_id}})]


def test_every_item_is_created_in_order_under_its_own_id() -> None:
    """Each event has an event_id, so that refusals can be assigned."""
    events = [json.loads(text) for text in make("a", "b").opening()]

    assert [event["item"]["id"] for event in events] == ["a", "b"]
    assert [event["event_id"] for event in events] == ["evt_seed_0", "evt_seed_1"]
    assert {event["type"] for event in events} == {"conversation.item.create"}


def test_what_changed_in_the_session_since_the_dial_is_sent_first() -> None:
    """Only members that differ are sent, and never the model, which is fixed when a call is created."""
    session: dict[str, object] = {"model": "b", "instructions": "new", "tools": [], "audio": None}
    seeding = Seeding(Seed(session, [{"id": "a"}], 0), {"model": "a", "instructions": "old", "tools": []})
    update, created = [json.loads(text) for text in seeding.opening()]

    assert update["type"] == "session.update"
    assert update["session"] == {"type": "realtime", "instructions": "new", "audio": None}
    assert created["event_id"] == "evt_seed_0"
    assert refused(seeding, update["event_id"]) == []


def test_seeding_is_done_when_every_item_is() -> None:
    """Seeding is complete only when every item is done; an item that was only added is not."""
    seeding = make("a", "b", lost=3)
    added(seeding, "a")
    seeding.received("conversation.item.added", {"item": {"id": "b"}})
    assert (seeding.done, seeding.restored) == (False, 1)
    seeding.received("conversation.item.done", {"item": {"id": "b"}})

    assert (seeding.done, seeding.restored, seeding.lost, seeding.renamed) == (True, 2, 3, {})


def test_nothing_to_seed_is_done() -> None:
    """An empty conversation needs no events."""
    assert make().done
    assert list(make().opening()) == []


def test_an_id_that_is_refused_gives_way_to_another() -> None:
    """An item whose id is refused is sent again without an id at the same position, and its new id is recorded
    beside the old one."""
    seeding = make("a", "b", "c")
    assert refused(seeding, "evt_seed_1") == []
    added(seeding, "a")
    seeding.received("conversation.item.added", {"item": {"id": "c"}})
    (again,) = [
        json.loads(text) for text in seeding.received("conversation.item.done", {"item": {"id": "c"}})
    ]
    added(seeding, "item_new")

    assert again == {
        "type": "conversation.item.create",
        "event_id": "evt_seed_1_again",
        "previous_item_id": "a",
        "item": {"type": "message", "text": "é"},
    }
    assert (seeding.done, seeding.restored, seeding.renamed) == (True, 3, {"b": "item_new"})


def test_several_refused_ids_keep_their_order() -> None:
    """Several refused ids are sent again one after the other, each after its predecessor's new id, the first one at
    the root."""
    seeding = make("a", "b")
    assert refused(seeding, "evt_seed_1") == []
    (first,) = refused(seeding, "evt_seed_0")
    seeding.received("conversation.item.added", {"item": {"id": "a2"}})
    seeding.received("conversation.item.added", {"item": {"id": "a2"}})
    (second,) = [json.loads(t) for t in seeding.received("conversation.item.done", {"item": {"id": "a2"}})]
    added(seeding, "b2")

    assert [first["previous_item_id"], second["previous_item_id"]] == ["root", "a2"]
    assert (seeding.done, seeding.renamed) == (True, {"a": "a2", "b": "b2"})


def test_an_item_refused_twice_is_lost() -> None:
    """It is counted as lost and delays nothing; the next item follows its predecessor."""
    seeding = make("a", "b", "c", lost=1)
    refused(seeding, "evt_seed_0")
    refused(seeding, "evt_seed_2")
    seeding.received("conversation.item.added", {"item": {"id": "b"}})
    assert len(seeding.received("conversation.item.done", {"item": {"id": "b"}})) == 1
    (third,) = refused(seeding, "evt_seed_0_again")
    assert refused(seeding, "evt_seed_2_again") == []

    assert third["previous_item_id"] == "b"
    assert (seeding.done, seeding.restored, seeding.lost, seeding.renamed) == (True, 1, 3, {})
    assert seeding.refused == {"a", "c"}


def test_errors_about_anything_else_are_passed_over() -> None:
    """Errors about other events are ignored."""
    seeding = make("a")

    assert [refused(seeding, event_id) for event_id in (None, 7, "evt_other")] == [[], [], []]
    assert not seeding.done


def test_items_nobody_sent_are_passed_over() -> None:
    """An error without an event_id is ignored if no item is unanswered."""
    seeding = make("a")
    added(seeding, "stranger")

    assert (seeding.done, seeding.renamed) == (False, {})


def test_the_sessions_echo_is_kept() -> None:
    """The echo of session.updated says when the new call ends; one of an invalid shape says nothing, as do other
    events."""
    seeding = make()
    seeding.received("session.created", {"session": {"expires_at": 7}})
    assert seeding.session == {"expires_at": 7}
    seeding.received("rate_limits.updated", {})
    seeding.received("session.updated", {"session": None})

    assert seeding.session == {}

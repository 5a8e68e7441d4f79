"""One accepted client event: the IDs it names, and the size it counts with."""

import json

import pytest

from gateway.relay.events.envelope import client_event
from gateway.relay.state.delivery import delivery

MESSAGE = {"id": "msg_1", "type": "message", "role": "user"}


@pytest.mark.parametrize(
    ("item", "named", "shape"),
    [
        (MESSAGE, "msg_1", ("message", "user")),
        ({"type": "function_call_output"}, None, ("function_call_output", None)),
        ({**MESSAGE, "role": 7}, "msg_1", ("message", 7)),
        ("no object", None, (None, None)),
    ],
)
@pytest.mark.parametrize("parsed", [False, True])
def test_a_created_item_is_named(
    item: object, named: str | None, shape: tuple[object, object], parsed: bool
) -> None:
    """ID, type and role are the same when read from an event's text and from its value, whatever their types."""
    value = {"type": "conversation.item.create", "item": item}
    event = client_event(json.dumps(value), "conversation.item.create", None, value if parsed else None)

    made = delivery(1, 1, event)

    assert (made.names, made.shape) == (named, shape)


@pytest.mark.parametrize(
    ("type", "member"),
    [
        ("conversation.item.delete", "item_id"),
        ("conversation.item.truncate", "item_id"),
        ("response.cancel", "response_id"),
    ],
)
def test_an_event_about_something_names_it(type: str, member: str) -> None:
    """The event is matched by the item or response that it names."""
    made = delivery(1, 1, client_event(json.dumps({"type": type, member: "x_1"}), type, None))

    assert made.names == "x_1"


def test_text_beyond_ascii_is_counted_with_four_bytes_a_character() -> None:
    """A Python string with one wide character uses four bytes for each of its characters."""
    narrow = delivery(1, 1, client_event('{"type":"x","a":"e"}', "x", None))
    wide = delivery(1, 1, client_event('{"type":"x","a":"é"}', "x", None))

    assert wide.held_bytes - narrow.held_bytes == 3 * len('{"type":"x","a":"é"}')

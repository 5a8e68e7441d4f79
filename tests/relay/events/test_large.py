"""gateway/relay/events/large.py: large frames are read and written in steps, with the same result as at once."""

import json

import pytest
from hypothesis import given

from gateway.relay.events.frames import server_event
from gateway.relay.events.jsontext import LARGE_BYTES, finish
from gateway.relay.events.large import LargeValue, read_large, written
from gateway.relay.state.fold import KEPT_AS_TEXT, READ_WHOLE
from tests.relay.events.test_envelope import texts


@given(texts())
def test_a_large_frame_is_read_as_a_small_one(text: str) -> None:
    """Type and value are those of `server_event`."""
    assert finish(read_large(text, READ_WHOLE, KEPT_AS_TEXT)) == server_event(text, READ_WHOLE)


@pytest.mark.parametrize("text", ["", "[]", '{"type":NaN}', "7"])
def test_a_large_frame_that_is_no_object_is_none(text: str) -> None:
    """It must not be relayed."""
    assert finish(read_large(text, READ_WHOLE, KEPT_AS_TEXT)) is None


def test_the_member_that_is_kept_is_written_once() -> None:
    """The text of an event's item comes with its value; any other member is written when it is asked for."""
    item = {"id": "i", "x": [1]}
    text = json.dumps({"type": "conversation.item.added", "item": item, "n": {"a": 1}})
    read = finish(read_large(text, READ_WHOLE, KEPT_AS_TEXT))

    assert read is not None
    value = read[1]
    assert isinstance(value, LargeValue)
    assert written(value, "item") is value.written[1]
    assert written(value, "item") == b'{"id":"i","x":[1]}'
    assert written(value, "n") == b'{"a":1}'
    assert written(dict(value), "item") == b'{"id":"i","x":[1]}'
    assert written({}, "item") == b"null"


def test_an_item_that_is_no_object_is_not_written() -> None:
    """Nobody keeps it."""
    text = json.dumps({"type": "conversation.item.added", "item": "x" * (LARGE_BYTES + 1)})
    read = finish(read_large(text, READ_WHOLE, KEPT_AS_TEXT))

    assert read is not None
    assert not isinstance(read[1], LargeValue)

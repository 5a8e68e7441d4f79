"""gateway/relay/events/large.py: large frames are read and written in steps, with the same result as at once."""

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.relay.events import large
from gateway.relay.events.envelope import compact
from gateway.relay.events.frames import server_event
from gateway.relay.events.jsontext import LARGE_BYTES, finish
from gateway.relay.events.large import LargeValue, read_large, written, written_in_steps
from gateway.relay.state.fold import KEPT_AS_TEXT, READ_WHOLE
from tests.relay.events.test_envelope import texts

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.sampled_from([1, 3, 1000]))
def test_a_value_is_written_in_steps_as_at_once(value: dict[str, Any], size: int) -> None:
    """However long strings are cut, the text is that of `compact`, and the value is unchanged."""
    before = json.dumps(value)
    with mock.patch.object(large, "LARGE_BYTES", size):
        text = finish(written_in_steps(value))

    assert text == compact(value)
    assert json.dumps(value) == before


@pytest.mark.parametrize("odd", ["\ud800", "\ud800" * (LARGE_BYTES + 1), 10**30])
def test_a_value_that_msgspec_cannot_write_is_written(odd: object) -> None:
    """Lone surrogates, in a short or a long string, and numbers of any size are written as `compact` does."""
    value: dict[str, object] = {"a": ["x" * (LARGE_BYTES + 1), odd]}

    assert finish(written_in_steps(value)) == compact(value)


def test_a_long_string_is_written_in_pieces() -> None:
    """Each piece is a step, so a string of megabytes does not hold the loop."""
    steps = written_in_steps({"a": "\n" * (3 * LARGE_BYTES)})

    assert sum(1 for _ in steps) == 3


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

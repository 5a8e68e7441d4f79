"""Refused members of a client's JSON, with the service's messages."""

from typing import Any

import pytest

from gateway.emulator.protocol.errors import Refusal
from gateway.emulator.protocol.shapes import Flag, Number, Record, Series, Shape, Table, Tagged, Text, Word


@pytest.mark.parametrize(
    ("shape", "value", "code", "said"),
    [
        (Text(), 5, "invalid_type", "expected a string, but got an integer"),
        (Text(longest=2), "abc", "string_above_max_length", "maximum length 2"),
        (Word(("a", "b")), "c", "invalid_value", "Supported values are: 'a' and 'b'"),
        (Flag(), 1, "invalid_type", "expected a boolean, but got an integer"),
        (Number(0, 9, whole=True), True, "invalid_type", "expected an integer, but got a boolean"),
        (Series(Text()), "a", "invalid_type", "expected an array, but got a string"),
        (Series(Text(), most=1), ["a", "b"], "array_above_max_length", "maximum length 1"),
        (Series(Text(), least=1), [], "array_below_min_length", "minimum length 1"),
        (Record({}), None, "invalid_type", "expected an object, but got null"),
        (Table(Text(), 1, 2), [], "invalid_type", "expected an object, but got an array"),
        (Table(Text(), 1, 2), {"a": "x", "b": "y"}, "object_above_max_properties", "at most 1 properties"),
        (Table(Text(), 1, 2), {"abc": "x"}, "invalid_value", "longer than 2 characters"),
        (Tagged({"a": Record({})}), 1.5, "invalid_type", "expected an object, but got a number"),
    ],
)
def test_wrong_value_is_refused_by_its_path(shape: Shape, value: Any, code: str, said: str) -> None:
    """A wrong value is refused with its code, path and message; a valid one is accepted."""
    with pytest.raises(Refusal, match=said) as refused:
        shape.check(value, "session.x")

    assert (refused.value.code, refused.value.param) == (code, "session.x")

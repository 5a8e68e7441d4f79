"""gateway/relay/events/longtext.py: long strings are read and written in pieces, with the same result as at once."""

import json
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.relay.events import longtext
from gateway.relay.events.envelope import compact, compose
from gateway.relay.events.jsontext import LARGE_BYTES, finish
from gateway.relay.events.longtext import PART, in_text, read_long, written_in_steps

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)

STRINGS = st.lists(
    st.sampled_from(["a", "é", "漢", "😀", '"', "\\", "\n", "\ud83d", "\ude00", "\ue000", "\x01"]),
    max_size=60,
).map("".join)

PIECES = st.lists(
    st.sampled_from(
        [
            "a",
            "é",
            "😀",
            r"\"",
            r"\\",
            r"\n",
            r"\u00e9",
            r"\ud83d\ude00",
            r"\ud83d",
            r"\ude00",
            r"\u0378",
            "\u0378",
        ]
    ),
    max_size=60,
).map("".join)
"""What stands between the quotes of a JSON string."""


@given(PIECES, PIECES, st.sampled_from([19, 20, 25, 31]))
@example(r"\\" * 40 + r"\"" * 40, "", 19)
@example(r"\ud83d\ude00" * 20, r"\ud83d" * 20 + r"\ude00" * 20, 19)
def test_a_text_is_read_in_pieces_as_at_once(first: str, second: str, size: int) -> None:
    """Wherever long strings are cut, the value is the same."""
    text = f'{{"a": ["{first}", 1], "{second}": "{second}", "b": "{first}{second}"}}'
    with mock.patch.object(longtext, "PART", size):
        value = finish(read_long(text))

    assert value == json.loads(text)


@given(st.text(st.sampled_from('{}[]",:1e\\u0 '), max_size=80), st.sampled_from([19, 24]))
def test_what_is_no_json_is_refused_in_pieces(text: str, size: int) -> None:
    """Reading in pieces refuses what a parser refuses."""
    try:
        expected: object = json.loads(text)
    except ValueError:
        expected = ValueError
    with mock.patch.object(longtext, "PART", size):
        if expected is ValueError:
            with pytest.raises((ValueError, RecursionError)):
                finish(read_long(text))
        else:
            assert finish(read_long(text)) == expected


@pytest.mark.parametrize(
    "odd",
    [
        longtext._MARK,
        longtext._MARK + "0" + longtext._MARK,
        longtext._MARK + "9" + longtext._MARK,
    ],
)
@pytest.mark.parametrize("where", ["before", "within", "name"])
@pytest.mark.parametrize("escaped", [False, True])
def test_a_text_that_contains_the_mark_is_read_at_once(odd: str, where: str, escaped: bool) -> None:
    """Whatever a text contains, it is read right."""
    value = {"a": [odd, "x" * 3 * PART]}
    if where == "within":
        value = {"a": [odd + "x" * 3 * PART + odd]}
    elif where == "name":
        value = {"x" * 3 * PART: [odd]}

    assert finish(read_long(json.dumps(value, ensure_ascii=escaped))) == value


def test_a_long_string_is_read_in_steps() -> None:
    """One of megabytes takes a step for each 256 KiB, twice: it is searched for quotes, and read."""
    text = json.dumps({"a": "\n" * 8 * PART})

    assert sum(1 for _ in read_long(text)) >= 8
    assert finish(read_long(text)) == {"a": "\n" * 8 * PART}


@given(st.dictionaries(STRINGS, STRINGS | JSON, max_size=4), st.sampled_from([1, 3, 1000]))
def test_a_value_is_written_in_pieces_as_at_once(value: dict[str, Any], size: int) -> None:
    """However long strings are cut, the text has the same value, and the value is unchanged."""
    before = json.dumps(value)
    with mock.patch.object(longtext, "LARGE_BYTES", size), mock.patch.object(longtext, "PART", size):
        text = finish(written_in_steps(value))

    assert json.loads(text) == json.loads(compact(value))
    assert json.dumps(value) == before


@pytest.mark.parametrize("odd", ["\ud800", "\ud800" * (LARGE_BYTES + 1), 10**30])
def test_a_value_that_msgspec_cannot_write_is_written(odd: object) -> None:
    """Lone surrogates, in a short or a long string, and numbers of any size are written as `compact` does."""
    value: dict[str, object] = {"a": ["x" * (LARGE_BYTES + 1), odd]}

    assert finish(written_in_steps(value)) == compact(value)
    assert json.loads(compose(finish(in_text(value)))) == json.loads(compose(value))


def test_only_what_holds_a_long_string_is_copied() -> None:
    """Everything else is the value's own, and a value without long strings is returned as it is."""
    short: dict[str, object] = {"a": [1, "x"]}
    long: dict[str, object] = {"short": short, "long": ["y" * (LARGE_BYTES + 1), 1], "n": None}
    found: Any = finish(in_text(long))

    assert finish(in_text(short)) is short
    assert found["short"] is short
    assert bytes(found["long"][0]) == compact(long["long"])[1 : LARGE_BYTES + 4]
    assert isinstance(found["long"][0], msgspec.Raw)


def test_a_value_of_very_many_parts_is_searched_in_steps() -> None:
    """Looking for long strings in thousands of values takes milliseconds."""
    value: dict[str, object] = {"a": list(range(20_000))}

    assert sum(1 for _ in in_text(value)) == 2
    assert finish(in_text(value)) is value


def test_a_long_string_very_deep_is_written_at_once() -> None:
    """Python's recursion limit is not ours: such a value is written as any other."""
    value: Any = "x" * (LARGE_BYTES + 1)
    for _ in range(5000):
        value = [value]

    assert finish(in_text(value)) is value


def test_what_is_no_json_value_is_not_written() -> None:
    """A mistake of the gateway's own raises."""
    with pytest.raises(TypeError, match="object"):
        compact(object())

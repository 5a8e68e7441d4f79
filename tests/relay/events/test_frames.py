"""gateway/relay/events/frames.py: frames from upstream are read as far as is needed."""

import json
import math
import re
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.relay.events import frames
from gateway.relay.events.frames import Read, deltas, passing, peek, read_in_steps, server_event
from gateway.relay.events.jsontext import SEARCHED_BYTES, finish
from tests.relay.events.test_envelope import SPACE, texts


@given(texts(), SPACE, SPACE)
def test_a_frame_that_is_an_object_is_read(text: str, before: str, after: str) -> None:
    """A frame that is an object is parsed, with or without white space around it."""
    value = peek(before + text + after)

    assert value is not None
    assert value["type"] == json.loads(text)["type"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "7",
        "[]",
        "null",
        "{",
        "{} {}",
        '{"a":NaN}',
        "\ufeff{}",
        "\x00",
        '{"a":' * 200_000,
        "not json",
    ],
)
def test_a_frame_that_is_no_object_is_none(text: str) -> None:
    """A frame that is not an object is not relayed, and raises nothing."""
    assert peek(text) is None


def test_a_frame_with_a_number_of_any_length_is_read() -> None:
    """int() refuses more than 4300 digits, but an event with such a number must not be lost."""
    assert peek('{"type":"x","a":' + "7" * 5000 + "}") == {"type": "x", "a": math.inf}


@given(texts(), SPACE, SPACE)
def test_the_head_of_a_frame_is_what_a_parser_reads(text: str, before: str, after: str) -> None:
    """Typed parsing and building the whole value give the same members that decide how a frame is handled."""
    value = json.loads(text)
    read = server_event(before + text + after, frozenset())

    assert read is not None
    type_, ids = read
    assert type_ == (value["type"] if isinstance(value["type"], str) else "")
    for name in ("response_id", "item_id"):
        expected = value.get(name)
        assert ids[name] == (expected if isinstance(expected, str) else None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"type":"x","response_id":"r","item_id":"i"}', ("x", {"response_id": "r", "item_id": "i"})),
        ('{"type":7,"response_id":[],"item_id":"i"}', ("", {"response_id": None, "item_id": "i"})),
        ('{"type":"x","a":"\\ud800"}', ("x", {"response_id": None, "item_id": None})),
        ("{}", ("", {"response_id": None, "item_id": None})),
        ("[]", None),
        ("7", None),
        ('{"type":"x"', None),
        ('{"type":NaN}', None),
        ('{"a":' * 200_000, None),
    ],
)
def test_the_head_of_an_odd_frame(text: str, expected: Read | None) -> None:
    """Members of another type count as missing, and a frame that is not an object has no head."""
    assert server_event(text, frozenset()) == expected


def test_lists_of_very_many_values_are_left_out_of_a_frame() -> None:
    """Lists that would block the loop are not built; everything around them is."""
    many = "[" + "[]," * 30_000 + "0]"
    text = f'{{"type":"x","a":[1,2],"item":{{"id":"i","content":{many}}},"b":{many}}}'

    assert peek(text) == {"type": "x", "a": [1, 2], "item": {"id": "i", "content": None}, "b": None}
    assert peek(many) is None


def test_many_lists_together_are_bounded() -> None:
    """Lists are built as long as all of them together hold no more values than a frame that is built whole."""
    many = [0] * (frames.WHOLE // 3 * 2)
    value: Any = peek(json.dumps({"type": "x", "a": many, "b": {"c": many, "d": many, "e": 1}, "f": [2]}))

    built = [value["a"], value["b"]["c"], value["b"]["d"]]
    assert built.count(many) == 1
    assert built.count(None) == 2
    assert (value["b"]["e"], value["f"]) == (1, [2])


def test_large_members_of_a_frame_of_very_many_values_are_read_in_steps() -> None:
    """Each of them takes milliseconds."""
    many = "[" + "[]," * 100_000 + "0]"
    steps = read_in_steps(f'{{"type":"x","a":{many},"b":{many}}}', frozenset({"x"}))

    assert sum(1 for _ in steps) >= 2


def test_half_a_surrogate_pair_in_a_frame_of_very_many_values_is_read() -> None:
    """The value of such a frame is only inspected, so half a pair may become U+FFFD."""
    text = f'{{"type":"x","a":"\\ud800","b":[{"0," * 30_000}0]}}'

    assert peek(text) == {"type": "x", "a": "\ufffd", "b": None}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"type":"error","a":1}', ("error", {"type": "error", "a": 1})),
        ('{ "a":1,"type":"error"}', ("error", {"type": "error", "a": 1})),
        ('{"type":"error","item_id":"i","type":"x"}', ("x", {"type": "x", "item_id": "i"})),
        ('{"type":"error","type":7}', ("", {"type": 7})),
        ('{"type":"x","item_id":"i","a":1}', ("x", {"response_id": None, "item_id": "i"})),
        ('{"type":"error"', None),
        ("[]", None),
    ],
)
def test_an_event_is_read_whole_where_its_type_says_so(text: str, found: object) -> None:
    """An event is parsed completely if its type requires it. The type is found at any position, also after a
    misleading first match."""
    assert server_event(text, frozenset({"error"})) == found


def test_of_a_frame_with_very_many_members_the_type_is_kept() -> None:
    """Building each member costs far more than skipping it, so only the type is kept."""
    members = ",".join(f'"{number}":1' for number in range(frames.WHOLE))
    lists = ",".join(["1"] * (frames.WHOLE + 2))

    assert peek('{"type":"x",' + members + "}") == {"type": "x"}
    assert peek('{"type":"x","b":[' + lists + '],"c":{"d":1}}') == {"type": "x", "b": None, "c": {"d": 1}}


def test_commas_in_a_long_text_are_no_values() -> None:
    """Commas in a string do not count as values: the output of a tool may be a megabyte of JSON in a string."""
    output = json.dumps([{"a": 1, "b": [2, 3]}] * frames.WHOLE)
    frame = {"type": "conversation.item.added", "item": {"id": "i", "content": [{"text": output}]}}

    assert peek(json.dumps(frame)) == frame


def test_a_large_frame_of_lone_surrogates_is_read_in_part() -> None:
    """The surrogates are mended, and the list of very many values is left out."""
    text = '{"type":"x","a":"\\ud800","b":[' + "1," * frames.WHOLE + "1]}"

    assert peek(text) == {"type": "x", "a": "\ufffd", "b": None}


def test_a_long_member_of_few_values_beside_very_many_is_read() -> None:
    """A member is left out for its values, not for its length."""
    text = "a," * frames.WHOLE
    frame = json.dumps({"type": "x", "a": [text], "b": [0] * (frames.WHOLE + 1)})

    assert peek(frame) == {"type": "x", "a": [text], "b": None}


def test_a_frame_with_lone_surrogates_that_is_not_json_is_none() -> None:
    """Replacing the surrogates of a frame that is not JSON does not make it JSON."""
    assert peek('{"type":"x","a":"\\ud800","b":[' + "1," * (frames.WHOLE + 2) + "]}") is None


DELTA = '{"type":"response.output_text.delta","response_id":"%s","delta":"x"}'


@pytest.mark.parametrize(
    ("last", "read"),
    [
        ('{"type":"error"}', 2),
        ('{"type":"other"}', 3),
        ('{"type":"other","a":"\\ud800"}', 2),
        ('{"type":"other","a":"\ud800"}', 2),
        ('{"type":"other","a":"' + "x" * SEARCHED_BYTES + '"}', 2),
        ('{"type":7}', 2),
        ("{}", 2),
        ("no json", 2),
        ('{"type":"other","a":' + "[" * 100_000, 2),
    ],
)
def test_events_pass_together_up_to_one_that_is_watched_large_or_odd(last: str, read: int) -> None:
    """Events that only the log needs are taken together; any other is left for the reader of single events."""
    came = [DELTA % "a", DELTA % "b", DELTA % "c", last, DELTA % "d"]
    events = passing(came[:4], 1, frozenset({"error"}))

    assert [(type_, text) for type_, text, _ in events] == [
        (json.loads(text)["type"], text) for text in came[1 : 1 + read]
    ]
    assert {turn for *_, turn in events} == {0}
    assert len(deltas(came, 1, "b", 7)) == 2


def test_deltas_of_the_running_turn_carry_its_number() -> None:
    """While a turn runs, only deltas of responses pass together: those of its response are its own."""
    came = [DELTA % "a", DELTA % "b", '{"type":"response.done"}', DELTA % "a"]

    assert [turn for *_, turn in deltas(came, 0, "b", 7)] == [0, 7]
    assert [turn for *_, turn in deltas(came, 0, None, 7)] == [0, 0]
    assert [turn for *_, turn in deltas(came, 3, "a", 7)] == [7]
    assert deltas(came, 2, "b", 7) == []
    assert deltas(["{"], 0, "b", 7) == []
    assert deltas(['{"type":"conversation.item.input_audio_transcription.delta"}'], 0, "b", 7) == []


@given(st.lists(texts(), max_size=5))
def test_what_passes_together_is_what_a_parser_reads(came: list[str]) -> None:
    """Each event that passes has the type that the standard library finds in it, and comes in its order."""
    for type_, text, turn in passing(came, 0, frozenset()):
        assert (json.loads(text)["type"], turn) == (type_, 0)
    assert [text for _, text, _ in passing(came, 0, frozenset())] == came[
        : len(passing(came, 0, frozenset()))
    ]


@given(texts(), st.integers(0, 20), st.sampled_from([1, 16, 64, 1 << 16]))
def test_values_are_counted_outside_strings(text: str, limit: int, looked_at: int) -> None:
    """However a text is cut, no value is missed; with few strings in a part, nothing else is counted."""
    outside = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    values = sum(map(outside.count, ",[{"))
    with mock.patch.object(frames, "_LOOKED_AT", looked_at):
        more = finish(frames._holds_more(text.encode(), b",[{", limit))

    assert more or values <= limit
    if looked_at == 1 << 16:
        assert more == (values > limit)


def test_a_string_longer_than_a_part_holds_no_values() -> None:
    """Commas in a string count in none of the parts that it is cut into, and values behind it count."""
    size = frames._LOOKED_AT
    text = b'{"a":"' + b"," * 3 * size + rb"\\\"" + b"," * size + b'","b":[1,2]}'

    assert not finish(frames._holds_more(text, b",[{", 4))
    assert finish(frames._holds_more(text, b",[{", 3))

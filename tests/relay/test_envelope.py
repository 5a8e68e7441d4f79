"""gateway/relay/envelope.py: what comes in is checked whole and goes out as it came."""

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import CallerError
from gateway.relay.envelope import MAX_DEPTH, compose, member, parse_json, parse_ndjson, parse_object, peek

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=10,
)
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**200), 10**200) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)
EVENT = st.builds(
    lambda members, type_: {**members, "type": type_, "event_id": None},
    st.dictionaries(st.text(st.characters()), JSON, max_size=3),
    st.text(st.characters()),
)
SPACE = st.text(" \t\n\r", max_size=3)
INLINE_SPACE = st.text(" \t\r", max_size=3)


@st.composite
def texts(draw: st.DrawFn, separators: bool = True) -> str:
    """An event's text as some client may write it: escaped or not, spaced or not."""
    value = draw(EVENT)
    ascii_only = draw(st.booleans())
    spaces = draw(st.sampled_from([(",", ":"), (", ", ": ")] + ([(" ,\r\n", "\t: ")] if separators else [])))
    text = json.dumps(value, ensure_ascii=ascii_only, separators=spaces)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, separators=spaces)  # half a surrogate pair can only be escaped
    return text


def refused(body: bytes, *, lines: bool = False, max_events: int = 100, strict: bool = False) -> CallerError:
    """Give what a body is refused with."""
    parse = parse_ndjson if lines else parse_json
    with pytest.raises(CallerError) as caught:
        parse(body, max_events=max_events, strict_members=strict)
    return caught.value


# --- what goes through ------------------------------------------------------------------------------------------------


@given(texts(), SPACE, SPACE)
def test_one_event_is_the_slice_that_came(text: str, before: str, after: str) -> None:
    """White space around goes; within, every byte stays, and the value is what any parser reads."""
    (event,) = parse_json((before + text + after).encode(), max_events=1)

    assert event.text == text
    assert event.size == len(text.encode())
    assert event.type == json.loads(text)["type"]
    assert event.event_id is None


@given(st.lists(st.tuples(SPACE, texts(), SPACE), min_size=1, max_size=5))
def test_an_arrays_elements_are_slices_of_it(parts: list[tuple[str, str, str]]) -> None:
    """Joined by what stood between them, the slices are the body again."""
    body = "[" + ",".join(before + text + after for before, text, after in parts) + "]"
    events = parse_json(body.encode(), max_events=5)

    assert [event.text for event in events] == [text for _, text, _ in parts]


@given(
    st.lists(st.tuples(INLINE_SPACE, texts(separators=False), INLINE_SPACE), min_size=1, max_size=5),
    st.data(),
)
def test_lines_are_the_array_of_the_same_events(
    parts: list[tuple[str, str, str]], data: st.DataObject
) -> None:
    """NDJSON gives what the array gives, whatever line ends and blank lines there are."""
    ends = st.sampled_from(["\n", "\r\n", "\n\n", "\n \r\n"])
    body = "".join(before + text + after + data.draw(ends) for before, text, after in parts)
    array = "[" + ",".join(text for _, text, _ in parts) + "]"

    assert [e.text for e in parse_ndjson(body.encode(), max_events=5)] == [text for _, text, _ in parts]
    assert [e.text for e in parse_json(array.encode(), max_events=5)] == [text for _, text, _ in parts]


def test_numbers_go_through_as_written() -> None:
    """A number of any length is sent as it came; the parsed one is only for looking at."""
    text = '{"type":"x","a":' + "1" * 5000 + ',"b":1e999,"c":-0.0,"d":1.50}'
    (event,) = parse_json(text.encode(), max_events=1)

    assert event.text == text
    assert event.value["a"] == math.inf


@pytest.mark.parametrize("lone", ['"\\ud800"', '"\\udc00\\ud800"'])
def test_half_a_surrogate_pair_goes_through_as_its_escape(lone: str) -> None:
    """RFC 8259 8.2 allows it; what it means is OpenAI's to judge."""
    text = f'{{"type":"x","a":{lone}}}'
    (event,) = parse_json(text.encode(), max_events=1)

    assert event.text == text


def test_an_event_id_is_a_string_or_null() -> None:
    """Both are read; the string is kept for the error that may name it."""
    events = parse_json(b'[{"type":"x","event_id":"e"},{"type":"x","event_id":null}]', max_events=2)

    assert [event.event_id for event in events] == ["e", None]


def test_a_batch_may_be_as_long_as_allowed() -> None:
    """The bound itself still passes, as array and as lines."""
    assert len(parse_json(b'[{"type":"x"},{"type":"x"}]', max_events=2)) == 2
    assert len(parse_ndjson(b'{"type":"x"}\n{"type":"x"}', max_events=2)) == 2


# --- what does not ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"\xef\xbb\xbf{}",
        b'{"type":"\xff"}',
        b'{"type":"\xed\xa0\x80"}',
        b'{"type":"x"} {"type":"x"}',
        b'{"type":"x"}]',
        b"[",
        b'[{"type":"x"}',
        b'[{"type":"x"} {"type":"x"}]',
        b'[{"type":"x"},]',
        b"[,]",
        b'[{"type":"x"}] 1',
        b'{"type":NaN}',
        b'{"type":"x","a":-Infinity}',
        b'{"type":"x","a":[Infinity]}',
        b'{"type":"x",}',
        b"{'type':'x'}",
        b'{"type":"a\nb"}',
        b'{"type":"x","a":01}',
        b'{"type":"x","a":.5}',
        b'\x00{"type":"x"}',
        b'\xc2\xa0{"type":"x"}',
    ],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    """RFC 8259 in strict UTF-8, and nothing more."""
    assert refused(body).code == "invalid-json"


@pytest.mark.parametrize(
    "body", [b"1", b'"x"', b"null", b"[1]", b"[[]]", b"{}", b'{"type":1}', b'{"type":null}']
)
def test_what_is_json_but_no_event_is_refused(body: bytes) -> None:
    """An event is an object with a type that is a string."""
    assert refused(body).code == "invalid-event"


@pytest.mark.parametrize("event_id", [b"1", b"[]", b"{}", b"true"])
def test_an_event_id_of_another_kind_is_refused(event_id: bytes) -> None:
    """It could not be matched with an error that names it."""
    error = refused(b'{"type":"x","event_id":' + event_id + b"}")

    assert (error.code, error.flaws[0].pointer) == ("invalid-event", "/event_id")


@pytest.mark.parametrize("lines", [False, True])
def test_an_empty_batch_is_refused(lines: bool) -> None:
    """Nothing to send is a mistake worth telling."""
    assert refused(b"\n \r\n" if lines else b"[ ]", lines=lines).code == "invalid-event"


@pytest.mark.parametrize("lines", [False, True])
def test_a_batch_above_the_bound_is_too_large(lines: bool) -> None:
    """The bound is in the answer."""
    body = b'{"type":"x"}\n' * 3 if lines else b'[{"type":"x"},{"type":"x"},{"type":"x"}]'
    error = refused(body, lines=lines, max_events=2)

    assert (error.code, error.members) == ("too-large", {"limit": 2})


@pytest.mark.parametrize(
    ("body", "pointer", "line"),
    [
        (b'[{"type":"x"},{"type":2}]', "/1/type", None),
        (b'[{"type":"x"},7]', "/1", None),
        (b'{"event_id":"e"}', "/type", None),
        (b"7", "", None),
        (b'[{"type":"x"},\n{"type":NaN}]', "/1", 2),
        (b'{"type":"x",\n\n!}', None, 3),
        (b'{"type":"NaN \\" NaN",\n\n"a":[1,-Infinity]}', None, 3),
    ],
)
def test_a_flaw_in_json_is_pointed_at(body: bytes, pointer: str | None, line: int | None) -> None:
    """By pointer where an event is at fault, by line where the JSON is."""
    flaw = refused(body).flaws[0]

    assert (flaw.pointer, flaw.line) == (pointer, line)


@pytest.mark.parametrize(
    ("body", "pointer", "line", "code"),
    [
        (b'\n{"type":"x"}\r\n\n7', None, 4, "invalid-event"),
        (b'{"type":"x"}\n{"event_id":3,"type":"x"}', "/event_id", 2, "invalid-event"),
        (b'{"type":"x"}\n{"type":', None, 2, "invalid-json"),
        (b'{"type":"x"}\n{"type":"x"}{"type":"x"}', None, 2, "invalid-json"),
        (b'[{"type":"x"}]', None, 1, "invalid-event"),
    ],
)
def test_a_flaw_in_lines_is_named_by_line(body: bytes, pointer: str | None, line: int, code: str) -> None:
    """Lines are counted from 1, blank ones too."""
    error = refused(body, lines=True)

    assert (error.code, error.flaws[0].pointer, error.flaws[0].line) == (code, pointer, line)


def test_the_place_is_said_in_words_too() -> None:
    """The detail alone is enough to find the mistake."""
    assert "byte 2 is 0xff" in refused(b'{"\xff').detail
    assert "(line 2 column 3)" in refused(b'{"type":\n  !}').detail
    assert "at '/1/type'" in refused(b'[{"type":"x"},{}]').detail
    assert "(the body)" in refused(b"7").detail
    assert "(line 2)" in refused(b'{"type":"x"}\n7', lines=True).detail


# --- depth ------------------------------------------------------------------------------------------------------------


def nested(levels: int) -> bytes:
    """Give an event of so many levels."""
    return b'{"type":"x","a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def test_the_deepest_allowed_passes() -> None:
    """64 levels, the array of a batch counted in."""
    assert parse_json(nested(MAX_DEPTH), max_events=1)
    assert parse_json(b"[" + nested(MAX_DEPTH - 1) + b"]", max_events=1)


@pytest.mark.parametrize("body", [nested(MAX_DEPTH + 1), b"[" + nested(MAX_DEPTH) + b"]", nested(200_000)])
def test_deeper_is_refused(body: bytes) -> None:
    """One level more, or so many that the parser itself gives up."""
    error = refused(body)

    assert error.code == "invalid-json"
    assert "deeper than 64" in error.detail


@pytest.mark.parametrize("filler", ["[" * 500, '\\"[' * 500, "\\\\" * 99 + "{" * 99])
def test_brackets_in_strings_are_no_depth(filler: str) -> None:
    """Only structure nests, also behind escapes, and beside many shallow pairs."""
    text = f'{{"type":"x","a":"{filler}","b":[{",".join(["[]"] * 99)}]}}'

    assert parse_json(text.encode(), max_events=1)[0].text == text


def test_depth_is_found_quickly_in_a_megabyte() -> None:
    """A long string costs no state for each of its characters: milliseconds, where a naive pattern takes a hundred."""
    body = b'{"type":"x","a":"' + b"a" * 1_000_000 + b"[" * 80 + b'"}'
    begun = time.process_time()
    parse_json(body, max_events=1)

    assert time.process_time() - begun < 0.05


# --- strict members ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":"x","type":"y"}',
        b'{"type":"x","Type":"y"}',
        b'{"type":"x","a":{"k":1,"K":2}}',
        b'{"type":"x","a":[{"k":1,"\\u006b":2}]}',
        '{"type":"x","stra\u00dfe":1,"STRASSE":2}'.encode(),
    ],
)
def test_ambiguous_members_are_refused_where_rules_depend_on_them(body: bytes) -> None:
    """Repeated members, or such that differ only in case, at any depth and however escaped."""
    for lines in (False, True):
        error = refused(body, lines=lines, strict=True)
        assert error.code == "invalid-json"
        assert "repeat" in error.detail


def test_ambiguous_members_pass_untouched_elsewhere() -> None:
    """Without such rules they are OpenAI's to judge."""
    text = '{"type":"x","type":"y","Type":"z"}'
    (event,) = parse_json(text.encode(), max_events=1)

    assert (event.text, event.type) == (text, "y")


# --- bodies that are no events ----------------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from("abc"), PLAIN, max_size=3))
def test_an_object_is_read_as_what_it_is(value: dict[str, object]) -> None:
    """Any object of ordinary values, white space around."""
    assert parse_object(f" {json.dumps(value)}\n".encode()) == value


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"7", b"{} {}", b'{"a":1,"A":2}', b'{"a":NaN}', b"\xef\xbb\xbf{}"]
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    """Under the same rules as an event's, and members are always strict."""
    with pytest.raises(CallerError) as caught:
        parse_object(body)
    assert caught.value.code == "invalid-json"


@pytest.mark.parametrize(
    ("part", "what", "column"),
    [
        ('"1e999",1e999', "a number beyond all range", 15),
        ("-1.5E+400", "a number beyond all range", 7),
        ('"\\\\ud800 \\ud83d\\ude00 \\udc00"', "half of a surrogate pair", 29),
        ('"\\uD800x"', "half of a surrogate pair", 8),
    ],
)
def test_what_cannot_be_written_again_is_named_with_its_place(part: str, what: str, column: int) -> None:
    """One cause, and the line and column where it stands."""
    with pytest.raises(CallerError) as refused:
        parse_object(('{\n "a":[' + part + "]}").encode())

    assert refused.value.detail == f"Not JSON: {what} (line 2 column {column})."


@pytest.mark.parametrize("part", ["1e999", "-1e999", "1" * 400, '"\\ud800"', '{"\\udfff":1}'])
def test_what_could_not_be_written_again_is_refused(part: str) -> None:
    """A create or a turn is written anew, and no JSON in UTF-8 could say this."""
    with pytest.raises(CallerError) as caught:
        parse_object(f'{{"a":[{part}]}}'.encode())
    assert caught.value.code == "invalid-json"


@given(st.dictionaries(st.text(st.characters()), JSON, max_size=3))
def test_what_the_gateway_writes_can_be_sent_and_read(value: dict[str, object]) -> None:
    """Its own events are UTF-8 and mean what they are made of, half surrogate pairs included."""
    text = compose(value)

    assert json.loads(text.encode()) == value


def test_what_the_gateway_writes_is_short() -> None:
    """No spaces, and no escapes where none are needed."""
    assert compose({"a": "é", "b": [1]}) == '{"a":"é","b":[1]}'


# --- on the way down --------------------------------------------------------------------------------------------------


@given(texts(), SPACE, SPACE)
def test_a_frame_that_is_an_object_is_read(text: str, before: str, after: str) -> None:
    """With or without white space around."""
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
    """It is not to be relayed, and raises nothing."""
    assert peek(text) is None


def test_a_frame_with_a_number_of_any_length_is_read() -> None:
    """int() refuses more than 4300 digits; an event must not get lost for that."""
    assert peek('{"type":"x","a":' + "7" * 5000 + "}") == {"type": "x", "a": math.inf}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"a": {"b": 1}}, 1),
        ({"a": {}}, None),
        ({"a": 7}, None),
        ([], None),
        (None, None),
        ({"a": {"b": None}}, None),
    ],
)
def test_members_are_followed_as_far_as_they_go(value: object, found: object) -> None:
    """Nothing on the way raises, whatever stands there."""
    assert member(value, "a", "b") == found

"""gateway/relay/events/envelope.py: input is checked completely and passed on unchanged."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import CallerError
from gateway.relay.events import jsontext, surrogates
from gateway.relay.events.envelope import (
    MAX_ELEMENTS,
    MAX_VALUES,
    ClientEvent,
    client_event,
    compact,
    compose,
    matches_type,
    member,
    parse_object,
    read_json,
    read_members,
    read_ndjson,
    read_object,
)
from gateway.relay.events.jsontext import MAX_DEPTH, Steps, finish

T = TypeVar("T")


def parse_json(body: bytes, *, max_events: int, strict_members: bool = False) -> tuple[ClientEvent, ...]:
    """Read a body without a pause."""
    return finish(read_json(body, max_events=max_events, strict_members=strict_members))


def parse_ndjson(body: bytes, *, max_events: int, strict_members: bool = False) -> tuple[ClientEvent, ...]:
    """Read lines without a pause."""
    return finish(read_ndjson(body, max_events=max_events, strict_members=strict_members))


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
    """An event's text as a client may write it: escaped or not, with or without white space."""
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
    """Return the error with which a body is refused."""
    parse = parse_ndjson if lines else parse_json
    with pytest.raises(CallerError) as caught:
        parse(body, max_events=max_events, strict_members=strict)
    return caught.value


# --- what is accepted ---------------------------------------------------------------------------------------------------


@given(texts(), SPACE, SPACE)
def test_one_event_is_the_slice_that_came(text: str, before: str, after: str) -> None:
    """White space around the event is removed; within it every byte stays, and the value is what any parser reads."""
    (event,) = parse_json((before + text + after).encode(), max_events=1)

    assert event.text == text
    assert event.size == len(text.encode())
    assert event.type == json.loads(text)["type"]
    assert event.event_id is None


@given(st.lists(st.tuples(SPACE, texts(), SPACE), min_size=1, max_size=5))
def test_an_arrays_elements_are_slices_of_it(parts: list[tuple[str, str, str]]) -> None:
    """The slices, joined by what stood between them, are the body again."""
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
    """NDJSON gives the same events as the array, with any line ends and blank lines."""
    ends = st.sampled_from(["\n", "\r\n", "\n\n", "\n \r\n"])
    body = "".join(before + text + after + data.draw(ends) for before, text, after in parts)
    array = "[" + ",".join(text for _, text, _ in parts) + "]"

    assert [e.text for e in parse_ndjson(body.encode(), max_events=5)] == [text for _, text, _ in parts]
    assert [e.text for e in parse_json(array.encode(), max_events=5)] == [text for _, text, _ in parts]


def test_numbers_go_through_as_written() -> None:
    """A number of any length is sent unchanged; the parsed one is only used for checks."""
    text = '{"type":"x","a":' + "1" * 5000 + ',"b":1e999,"c":-0.0,"d":1.50}'
    (event,) = parse_json(text.encode(), max_events=1)

    assert event.text == text
    assert event.value["a"] == math.inf


@pytest.mark.parametrize("lone", ['"\\ud800"', '"\\udc00\\ud800"'])
def test_half_a_surrogate_pair_goes_through_as_its_escape(lone: str) -> None:
    """RFC 8259 8.2 allows half of a surrogate pair as an escape, and OpenAI judges what it means."""
    text = f'{{"type":"x","a":{lone}}}'
    (event,) = parse_json(text.encode(), max_events=1)

    assert event.text == text


def test_an_event_id_is_a_string_or_null() -> None:
    """A string is kept for the error that may name it; null is accepted."""
    events = parse_json(b'[{"type":"x","event_id":"e"},{"type":"x","event_id":null}]', max_events=2)

    assert [event.event_id for event in events] == ["e", None]


def test_a_batch_may_be_as_long_as_allowed() -> None:
    """A batch of exactly the limit is accepted, as an array and as lines."""
    assert len(parse_json(b'[{"type":"x"},{"type":"x"}]', max_events=2)) == 2
    assert len(parse_ndjson(b'{"type":"x"}\n{"type":"x"}', max_events=2)) == 2


# --- what is refused ----------------------------------------------------------------------------------------------------


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
    """Only RFC 8259 in strict UTF-8 is accepted."""
    assert refused(body).code == "invalid-json"


@pytest.mark.parametrize(
    "body", [b"1", b'"x"', b"null", b"[1]", b"[[]]", b"{}", b'{"type":1}', b'{"type":null}']
)
def test_what_is_json_but_no_event_is_refused(body: bytes) -> None:
    """An event is an object with a string as its type; anything else is refused."""
    assert refused(body).code == "invalid-event"


@pytest.mark.parametrize("event_id", [b"1", b"[]", b"{}", b"true"])
def test_an_event_id_of_another_kind_is_refused(event_id: bytes) -> None:
    """An `event_id` that is neither a string nor null is refused, because no error could name it."""
    error = refused(b'{"type":"x","event_id":' + event_id + b"}")

    assert (error.code, error.flaws[0].pointer) == ("invalid-event", "/event_id")


@pytest.mark.parametrize("lines", [False, True])
def test_an_empty_batch_is_refused(lines: bool) -> None:
    """A batch without events is refused, because it is probably a mistake."""
    assert refused(b"\n \r\n" if lines else b"[ ]", lines=lines).code == "invalid-event"


@pytest.mark.parametrize("lines", [False, True])
def test_a_batch_above_the_bound_is_too_large(lines: bool) -> None:
    """The answer to a batch above the limit contains the limit."""
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
    """The error has a pointer if an event is wrong, and a line if the JSON is."""
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
    """Lines are counted from 1, including blank ones."""
    error = refused(body, lines=True)

    assert (error.code, error.flaws[0].pointer, error.flaws[0].line) == (code, pointer, line)


def test_a_flaw_inside_an_element_is_found_where_the_element_begins() -> None:
    """A problem with a whole element is reported with its pointer and the line on which it begins."""
    deep = nested(MAX_DEPTH).decode()
    flaw = refused(f'[{{"type":"x"}},\n\n{deep}]'.encode()).flaws[0]

    assert (flaw.pointer, flaw.line) == ("/1", 3)


def test_the_place_is_said_in_words_too() -> None:
    """The detail alone says where the mistake is."""
    assert "byte 2 is 0xff" in refused(b'{"\xff').detail
    assert "(line 2 column 3)" in refused(b'{"type":\n  !}').detail
    assert "at '/1/type'" in refused(b'[{"type":"x"},{}]').detail
    assert "(the body)" in refused(b"7").detail
    assert "(line 2)" in refused(b'{"type":"x"}\n7', lines=True).detail


# --- depth ------------------------------------------------------------------------------------------------------------


def nested(levels: int) -> bytes:
    """Return an event of this many levels."""
    return b'{"type":"x","a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def test_the_deepest_allowed_passes() -> None:
    """64 levels are accepted, including the array of a batch."""
    assert parse_json(nested(MAX_DEPTH), max_events=1)
    assert parse_json(b"[" + nested(MAX_DEPTH - 1) + b"]", max_events=1)


@pytest.mark.parametrize("body", [nested(MAX_DEPTH + 1), b"[" + nested(MAX_DEPTH) + b"]", nested(200_000)])
def test_deeper_is_refused(body: bytes) -> None:
    """One level more is refused, and so is a body so deep that the parser itself fails."""
    error = refused(body)

    assert error.code == "invalid-json"
    assert "deeper than 64" in error.detail


@pytest.mark.parametrize("filler", ["[" * 500, '\\"[' * 500, "\\\\" * 99 + "{" * 99])
def test_brackets_in_strings_are_no_depth(filler: str) -> None:
    """Only structure counts as depth: brackets in strings do not, also after escapes and beside many shallow pairs."""
    text = f'{{"type":"x","a":"{filler}","b":[{",".join(["[]"] * 99)}]}}'

    assert parse_json(text.encode(), max_events=1)[0].text == text


def test_depth_is_found_quickly_in_a_megabyte() -> None:
    """Scanning a long string takes milliseconds and no state per character, where a naive pattern takes a hundred."""
    body = b'{"type":"x","a":"' + b"a" * 1_000_000 + b"[" * 80 + b'"}'

    def spent() -> float:
        begun = time.thread_time()
        parse_json(body, max_events=1)
        return time.thread_time() - begun

    assert min(spent() for _ in range(3)) < 0.05


# --- the standard library as the reference ----------------------------------------------------------------------------


def _constant(word: str) -> None:
    raise ValueError(word)


def reference(body: bytes) -> Any:
    """Return the values that the standard library's parser reads from a body under this module's rules; raise
    ValueError."""
    value = json.loads(body.decode(), parse_constant=_constant)
    if _depth(value) > MAX_DEPTH:
        raise ValueError("depth")
    return value


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def is_event(value: Any) -> bool:
    """Return whether a value is a client event."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("type"), str)
        and (value.get("event_id") is None or isinstance(value["event_id"], str))
    )


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An event, or an array of events, with a few characters replaced, repeated or dropped."""
    parts = draw(st.lists(texts(), min_size=1, max_size=3))
    text = draw(st.sampled_from(parts) | st.just("[" + ",".join(parts) + "]"))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 2))
        piece = draw(st.text('{}[]":,\\ue0d18D-+.\t\n nul\x00\x1f\u00a0', max_size=3))
        text = text[:at] + piece + text[at + cut :]
    return text.encode()


@given(damaged(), st.booleans())
@settings(max_examples=250)
def test_the_standard_library_decides_what_is_an_event(body: bytes, dense: bool) -> None:
    """A body is accepted exactly if the reference parser reads it and every value is an event; the values are the
    same."""
    try:
        value = reference(body)
        events = value if isinstance(value, list) else [value]
        expected = events if events and all(map(is_event, events)) else None
        code = "invalid-event"
    except (ValueError, RecursionError):
        expected, code = None, "invalid-json"
    got: tuple[ClientEvent, ...] = ()
    refusal = None
    with dense_from(0 if dense else jsontext.DENSE):
        try:
            got = parse_json(body, max_events=10)
        except CallerError as error:
            refusal = error.code

    assert refusal == (None if expected is not None else code)
    expected = expected or []
    assert [(event.type, event.event_id) for event in got] == [
        (each["type"], each.get("event_id")) for each in expected
    ]
    assert all(same(json.loads(event.text), each) for event, each in zip(got, expected, strict=True))
    assert all(same(event.value, each) for event, each in zip(got, expected, strict=True))


@contextlib.contextmanager
def dense_from(commas: int) -> Iterator[None]:
    """Treat texts as dense from this number of commas on, and split work into many steps."""
    step = 2 if commas < 10 else jsontext.STEP_TOKENS
    with (
        mock.patch.object(jsontext, "DENSE", commas),
        mock.patch.object(jsontext, "STEP_TOKENS", step),
        mock.patch.object(surrogates, "STEP_ESCAPES", step),
    ):
        yield


def same(ours: Any, theirs: Any) -> bool:
    """Compare values; a long integer may be a float here."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, int) and not isinstance(theirs, bool) and abs(theirs) > 10**290:
        return isinstance(ours, int | float)
    return bool(ours == theirs and type(ours) is type(theirs))


@given(st.lists(JSON, min_size=2, max_size=6))
def test_a_value_built_by_token_is_the_standard_librarys(values: list[Any]) -> None:
    """The parser for texts with very many values returns the same values as the other one."""
    data = json.dumps(values).encode()
    with dense_from(0):
        value = jsontext.finish(jsontext.built(data))

    assert same(value, json.loads(data))


@given(st.lists(st.tuples(SPACE, texts(), SPACE), min_size=2, max_size=5), st.integers(1, 4))
def test_a_dense_arrays_elements_are_the_same_slices(
    parts: list[tuple[str, str, str]], max_events: int
) -> None:
    """Split by token or by msgspec, the slices and the limit are the same."""
    body = ("[" + ",".join(before + text + after for before, text, after in parts) + "]").encode()
    outcomes = []
    for commas in (0, jsontext.DENSE):
        with dense_from(commas):
            try:
                outcomes.append([event.text for event in parse_json(body, max_events=max_events)])
            except CallerError as error:
                outcomes.append([error.code])

    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "filler",
    [
        "[],",
        *(
            pytest.param(other, marks=pytest.mark.slow)
            for other in ("{},", '"",', "0,", '{"a":0},', '"\\ud800",', "1e999,")
        ),
    ],
)
@pytest.mark.parametrize("form", ['{"type":"x","a":[%s0]}', '[{"type":"x","a":[%s0]},{"type":"y"}]'])
def test_a_megabyte_of_anything_is_read_in_many_steps(filler: str, form: str) -> None:
    """Parsing a body with very many values yields often: after some thousand tokens, and after each pass of msgspec."""
    body = (form % (filler * ((1 << 20) // len(filler) - 40))).encode()
    count, events = steps_of(read_json(body, max_events=256, strict_members=True))

    assert events[0].type == "x"
    assert count >= 2 * body.count(b",") // jsontext.STEP_TOKENS


def test_a_megabyte_of_events_beyond_the_bound_is_refused_in_one_pass() -> None:
    """Elements beyond the limit are not collected only to be counted."""
    body = b"[" + b"[]," * 300_000 + b"0]"
    begun = time.process_time()
    error = refused(body)

    assert error.code == "too-large"
    assert time.process_time() - begun < 0.1


def steps_of(steps: Steps[T]) -> tuple[int, T]:
    """Return how often a computation yielded, and its result."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return count, result
        count += 1


def test_an_object_of_very_many_values_is_read_in_steps() -> None:
    """A create's body is built in steps, too, and has the value that the standard library reads."""
    body = json.dumps({"a": [[1, "x", None, {"b": True}]] * (MAX_VALUES // 6)}).encode()
    count, value = steps_of(read_object(body))

    assert value == json.loads(body)
    assert count > 5


@pytest.mark.parametrize(
    ("filler", "values"),
    [("1,", 1), ("[],", 2), ('{"a":[0]},', 3), ("[[[[[[[[1]]]]]]]],", 9), ('"[,]{}",', 1), ('"\\"[,",', 1)],
)
@pytest.mark.parametrize("form", ['{"session":[%s1]}', ' {"session":{"a":[%s1]}}\n'])
def test_an_object_of_more_values_than_are_ever_needed_is_refused(
    filler: str, values: int, form: str
) -> None:
    """It would be parsed and written several times. Commas and brackets in strings are no values."""
    around = form.count("{") + form.count("[")
    fitting = (MAX_VALUES - around) // values
    value = parse_object((form % (filler * fitting)).encode())
    with pytest.raises(CallerError) as refusal:
        parse_object((form % (filler * (fitting + 1))).encode())

    assert value == json.loads(form % (filler * fitting))
    assert (refusal.value.code, refusal.value.members) == ("too-large", {"limit": MAX_VALUES})


@pytest.mark.parametrize("type", ["session.update", "response.create"])
@pytest.mark.parametrize("read", [parse_json, parse_ndjson])
def test_events_that_are_parsed_whole_may_hold_so_many_values_together(
    type: str, read: Callable[..., tuple[ClientEvent, ...]]
) -> None:
    """Other events are only passed on, whatever they hold."""
    event = b'{"type":"%s","a":[' + b"1," * (MAX_VALUES // 2) + b"1]}"
    between = b"," if read is parse_json else b"\n"
    batch = [event % type.encode(), event % b"x", event % b"conversation.item.create"]
    whole = b"[%s]" if read is parse_json else b"%s"
    events = read(whole % between.join(batch), max_events=9)
    with pytest.raises(CallerError) as refusal:
        read(whole % between.join([*batch, event % type.encode()]), max_events=9)

    assert [event.type for event in events] == [type, "x", "conversation.item.create"]
    assert (refusal.value.code, refusal.value.members) == ("too-large", {"limit": MAX_VALUES})


def test_one_event_that_is_parsed_whole_has_the_same_limit() -> None:
    """A body need not be an array."""
    error = refused(b'{"type":"session.update","session":{"a":[' + b"[1]," * MAX_VALUES + b"1]}}")

    assert (error.code, error.members) == ("too-large", {"limit": MAX_VALUES})


def test_floats_beyond_the_quick_range_are_read_by_the_standard_library() -> None:
    """The parser takes 8 us for each, and refuses infinity, for which everything would be parsed again."""
    value = jsontext.plain(b"[1.5e300,1e999,-1e999,1e-400,0.1]")

    assert value == [1.5e300, float("inf"), float("-inf"), 0.0, 0.1]
    with mock.patch.object(jsontext, "odd", side_effect=AssertionError):
        assert jsontext.plain(b"[1.5e300,1e999]") == [1.5e300, float("inf")]


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
    """Members that repeat or differ only in case are refused at any depth and however escaped."""
    for lines in (False, True):
        error = refused(body, lines=lines, strict=True)
        assert error.code == "invalid-json"
        assert "repeat" in error.detail


def test_ambiguous_members_pass_untouched_elsewhere() -> None:
    """Without such rules ambiguous members are passed on, and OpenAI judges them."""
    text = '{"type":"x","type":"y","Type":"z"}'
    (event,) = parse_json(text.encode(), max_events=1)

    assert (event.text, event.type) == (text, "y")


# --- bodies that are not events ----------------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from("abc"), PLAIN, max_size=3))
def test_an_object_is_read_as_what_it_is(value: dict[str, object]) -> None:
    """An object of ordinary values is accepted, with or without white space around it."""
    assert parse_object(f" {json.dumps(value)}\n".encode()) == value


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"7", b"{} {}", b'{"a":1,"A":2}', b'{"a":NaN}', b"\xef\xbb\xbf{}"]
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    """Other values are refused by the same rules as for an event, and members are always strict."""
    with pytest.raises(CallerError) as caught:
        parse_object(body)
    assert caught.value.code == "invalid-json"


@pytest.mark.parametrize(
    ("part", "what", "column"),
    [
        ('"1e999",1e999', "a number out of range", 15),
        ("-1.5E+400", "a number out of range", 7),
        ('"\\\\ud800 \\ud83d\\ude00 \\udc00"', "half of a surrogate pair", 29),
        ('"\\uD800x"', "half of a surrogate pair", 8),
        ('"é",1e999', "a number out of range", 11),
        # Two lengths, so that an escape is cut off in one of them if the text is cut anywhere.
        pytest.param('"' + r"\\" * 200_000 + '",1e999', "a number out of range", 400_010, id="even"),
        pytest.param('"é' + r"\\" * 200_000 + '",1e999', "a number out of range", 400_011, id="odd"),
    ],
)
def test_what_cannot_be_written_again_is_named_with_its_place(part: str, what: str, column: int) -> None:
    """The error names one cause, with its line and column."""
    with pytest.raises(CallerError) as refused:
        parse_object(('{\n "a":[' + part + "]}").encode())

    assert refused.value.detail == f"Not JSON: {what} (line 2 column {column})."


def test_a_number_of_a_megabyte_is_read_and_judged_in_steps() -> None:
    """Checking, building and judging so long a token take milliseconds each, so other work runs in between."""
    count, value = steps_of(read_object(b'{"a":0.' + b"1" * 1_000_000 + b"}"))

    assert count >= 4
    assert isinstance(value["a"], float)


@pytest.mark.parametrize("part", ["1e999", "-1e999", "1" * 400, '"\\ud800"', '{"\\udfff":1}'])
def test_what_could_not_be_written_again_is_refused(part: str) -> None:
    """A create or a turn is encoded again, and a lone surrogate cannot be encoded as UTF-8."""
    with pytest.raises(CallerError) as caught:
        parse_object(f'{{"a":[{part}]}}'.encode())
    assert caught.value.code == "invalid-json"


@given(st.dictionaries(st.text(st.characters()), JSON, max_size=3))
def test_what_the_gateway_writes_can_be_sent_and_read(value: dict[str, object]) -> None:
    """The gateway's own events are UTF-8 and have the same value, half surrogate pairs included."""
    text = compose(value)

    assert json.loads(text.encode()) == value


@given(JSON)
def test_what_is_kept_is_utf8_and_the_same_value(value: Any) -> None:
    """What is kept of a conversation is UTF-8 without needless escapes, and half surrogate pairs keep their value."""
    text = compact({"a": value})

    assert same(jsontext.plain(text), {"a": value})
    assert b"\\u00e9" not in compact({"a": "é\ud800"})


def test_a_megabyte_of_half_surrogate_pairs_is_read_in_few_steps() -> None:
    """It is checked by a parser that accepts them, and goes up as it came."""
    body = b'{"type":"x","a":"' + b"\\ud800" * 170_000 + b'"}'
    count, (event,) = steps_of(read_json(body, max_events=1))

    assert (event.text, event.type) == (body.decode(), "x")
    assert 2 <= count < 10


def test_depth_behind_half_a_surrogate_pair_is_found() -> None:
    """JSON that msgspec refuses for a lone surrogate is checked for its depth as any other."""
    body = b'{"type":"x","a":"\\ud800","b":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

    assert refused(body).code == "invalid-json"


def test_half_a_surrogate_pair_is_written_as_its_escape() -> None:
    """Half of a surrogate pair is written as its escape, because UTF-8 cannot encode it."""
    assert compose({"a": "\ud800", "b": "é"}) == '{"a":"\\ud800","b":"\\u00e9"}'


def test_what_the_gateway_writes_is_short() -> None:
    """No spaces, and no escapes where none are needed."""
    assert compose({"a": "é", "b": [1]}) == '{"a":"é","b":[1]}'


@pytest.mark.parametrize("number", ["1" * 280 + "e99", "-" + "9" * 280 + "E+99", "12e400"])
def test_a_number_is_judged_by_its_value_not_by_its_look(number: str) -> None:
    """A number outside the range of a float is refused in any notation, and text that looks alike is not."""
    with pytest.raises(CallerError):
        parse_object(f'{{"a":{number}}}'.encode())

    assert parse_object(f'{{"a":"{number}","b":1e12}}'.encode()) == {"a": number, "b": 1e12}


@pytest.mark.parametrize("part", ["1e999", '"\\ud800","\\ud801","\\ud802"'])
def test_an_object_is_judged_in_steps_as_at_once(part: str) -> None:
    """Wherever the work is split, a value that cannot be encoded is found, and an ordinary large exponent is
    accepted."""
    with dense_from(0):
        with pytest.raises(CallerError):
            parse_object(f'{{"a":[1,2,3,4,{part}]}}'.encode())

        assert parse_object(b'{"a":[1,2,3,4,1e20]}') == {"a": [1, 2, 3, 4, 1e20]}


def test_an_objects_flaw_is_found_behind_white_space() -> None:
    """The position of a mistake is its position in the body as it was sent, including leading white space."""
    with pytest.raises(CallerError) as caught:
        parse_object(b' \n{"a":!}')

    assert caught.value.flaws[0].line == 2


def test_an_events_value_is_read_from_its_text_or_as_known() -> None:
    """The value is kept beside the text only if it was built already."""
    assert client_event('{"type":"x","a":1}', "x", None).value == {"type": "x", "a": 1}
    assert client_event("", "x", None, {"a": 2}).value == {"a": 2}


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
    """Following members of any value raises no error."""
    assert member(value, "a", "b") == found


@pytest.mark.parametrize(
    ("pattern", "type", "matches"),
    [
        ("response.create", "response.create", True),
        ("response.create", "response.created", False),
        ("response.*", "response.create", True),
        ("response.*", "responses", False),
        ("*", "anything", True),
    ],
)
def test_a_pattern_is_a_type_or_the_beginning_of_one(pattern: str, type: str, matches: bool) -> None:
    """The same patterns apply to what a client secret may send and to what a filtered read shows."""
    assert matches_type(pattern, type) is matches


def test_a_batch_is_read_with_pauses_between_its_events() -> None:
    """Each event is below the limit of a step, but 256 of them are not, so parsing yields between them."""
    event = b'{"type":"x","a":[' + b"1," * 2000 + b"1]}"
    steps = read_json(b"[" + b",".join([event] * 200) + b"]", max_events=256, strict_members=True)

    assert sum(1 for _ in steps) >= 200 * len(event) // jsontext.SEARCHED_BYTES


def test_the_value_of_an_event_with_very_many_values_is_cut() -> None:
    """Freeing a very large value cannot be done in steps, so the value is cut; the text that is sent stays complete."""
    count = jsontext.DENSE + 2
    body = b'{"type":"x","a":[' + b"[1]," * count + b'[1]],"b":{"c":2}}'
    (event,) = parse_json(body, max_events=1)
    value: Any = event.value

    assert (len(value["a"]), value["b"]) == (MAX_ELEMENTS, {"c": 2})
    assert event.text == body.decode()


def test_a_long_body_of_lines_is_read_with_pauses() -> None:
    """Parsing yields after each part that a regular expression searches in about 2 ms."""
    lines = (b'{"type":"x","a":"' + b"y" * 1000 + b'"}\n') * 200

    assert sum(1 for _ in read_ndjson(lines, max_events=256)) >= len(lines) // jsontext.SEARCHED_BYTES


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"type":"x","item_id":"i"}', "i"),
        ('{"type":"x","item_id":"i","a":"\\ud800"}', "i"),
        ('{"type":"x","item_id":"i","a":"\\\\ud800\\udc00\\ud83d\\ude00"}', "i"),
        ('{"type":"x","item_id":"i","a":"\\ud800","b":[' + "1," * jsontext.DENSE + "1]}", "i"),
        ('{"type":"x","item_id":7}', None),
        ('{"type":"x","item_id":7,"a":"\\ud800"}', None),
        ('{"type":"x","item_id":7,"a":"\\u00e9"}', None),
    ],
)
def test_members_are_read_by_type(text: str, found: str | None) -> None:
    """A lone surrogate in another member is no hindrance; a member of another type is none."""
    read = read_members(msgspec.json.Decoder(ItemNamed), text)

    assert (read.item_id if read else None) == found


class ItemNamed(msgspec.Struct):
    """An event that names an item."""

    item_id: str | None = None


def test_long_white_space_between_values_is_passed_over() -> None:
    """Long white space is also skipped where the value is built token by token."""
    body = b'{"type":1,' + b" " * 5000 + b'"a":[' + b"1," * (jsontext.DENSE + 2) + b"1]}"
    with pytest.raises(CallerError) as refusal:
        parse_json(body, max_events=1)

    assert refusal.value.code == "invalid-event"

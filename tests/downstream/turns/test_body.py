"""A turn's request, parsed from its bytes."""

import pytest

from gateway.downstream.reading.parameters import Format
from gateway.downstream.turns.body import TurnWanted, parse, wait
from gateway.errors import CallerError

JSON = "application/json"
CURL = "application/x-www-form-urlencoded"


def text_of(wanted: TurnWanted) -> object:
    """Return the text of the one message that a turn has."""
    (item,) = wanted.request.items
    content = item["content"]
    assert isinstance(content, list)
    return content[0]["text"]


def test_text_is_a_users_message() -> None:
    """A text body is a user's message, and by default it is answered as text."""
    wanted = parse("Grüß dich".encode(), "text/plain", own_session=False)

    (item,) = wanted.request.items
    assert item["content"] == [{"type": "input_text", "text": "Grüß dich"}]
    assert (item["role"], wanted.plain, wanted.request.response) == ("user", True, {})


@pytest.mark.parametrize(
    ("media_type", "plain"), [(JSON, False), (CURL, False), (None, False), ("text/plain", True)]
)
def test_object_is_read_unless_it_is_named_text(media_type: str | None, plain: bool) -> None:
    """A JSON object is parsed unless its type says that it is text."""
    assert parse(b'{"input":"x"}', media_type, own_session=False).plain is plain


@pytest.mark.parametrize("media_type", [CURL, None])
@pytest.mark.parametrize(
    "body", [b"hello", b" \n hello", b"a=b&c=d", b"xinput=1", b"(1)", b"&" * 1_000_000 + b"a"]
)
def test_what_does_not_look_like_anything_is_text(body: bytes, media_type: str | None) -> None:
    """A body with curl's default type or none is JSON or a form if it looks like one, and text otherwise."""
    wanted = parse(body, media_type, own_session=False)

    assert wanted.plain
    assert text_of(wanted) == body.decode()


@pytest.mark.parametrize("media_type", [CURL, None])
@pytest.mark.parametrize(
    "body",
    [
        b'{"input":"x",}',
        b"{'input':'x'}",
        b"{input:x}",
        b" \n{",
        b"[",
        b"[1]",
        b"[" * 100_000,
        b'\xef\xbb\xbf{"input":"x"}',
    ],
)
def test_broken_json_is_not_taken_for_text(body: bytes, media_type: str | None) -> None:
    """Broken JSON is refused instead of billed as a question; the error says how to send it as text."""
    with pytest.raises(CallerError) as refused:
        parse(body, media_type, own_session=False)

    assert refused.value.code == "invalid-json"
    assert refused.value.detail.endswith("To send it as text, set Content-Type: text/plain.")


def test_what_is_called_text_is_text() -> None:
    """A body whose type is text is never parsed."""
    assert text_of(parse(b"{input:x}", "text/plain", own_session=False)) == "{input:x}"
    assert text_of(parse(b"input=x", "text/plain", own_session=False)) == "input=x"


@pytest.mark.parametrize("media_type", [CURL, None, "text/plain"])
def test_a_byte_order_mark_is_not_part_of_a_text(media_type: str | None) -> None:
    """A byte order mark, which editors on Windows write, is removed from a text."""
    assert text_of(parse(b"\xef\xbb\xbfHi", media_type, own_session=False)) == "Hi"


def test_a_form_with_an_input_is_read_as_a_form() -> None:
    """The other fields of the form are members of the response, as in JSON; by default the answer is text."""
    wanted = parse(b"instructions=Be+brief.&input=6+times+7%3F", CURL, own_session=False)

    assert (text_of(wanted), wanted.plain) == ("6 times 7?", True)
    assert wanted.request.response == {"instructions": "Be brief."}


def test_whole_numbers_in_a_form_are_numbers() -> None:
    """Upstream does not accept `max_output_tokens` as a string. Texts that look like numbers stay texts."""
    wanted = parse(
        b"input=7&instructions=8&max_output_tokens=50&tool_choice=auto&x=07", CURL, own_session=False
    )

    assert text_of(wanted) == "7"
    assert wanted.request.response == {
        "instructions": "8",
        "max_output_tokens": 50,
        "tool_choice": "auto",
        "x": "07",
    }


@pytest.mark.parametrize(
    "body",
    [
        b"input=",
        b"input=%ff",
        b"input=\xff",
        b"input=a&input=b",
        b"input=a&metadata=b",
        b"input=a&session=b",
        b"input=a" + b"&x=1" * 100,
    ],
)
def test_a_wrong_form_is_refused(body: bytes) -> None:
    """A form is refused for the same reasons as the same JSON would be."""
    with pytest.raises(CallerError) as refused:
        parse(body, CURL, own_session=False)

    assert refused.value.code == "invalid-parameter"


def test_list_is_taken_as_items() -> None:
    """A list is taken as items unchanged; an empty one asks for a response to the conversation so far."""
    item = {"type": "item_reference", "id": "item_1"}

    assert parse(
        b'{"input":[{"type":"item_reference","id":"item_1"}]}', JSON, own_session=False
    ).request.items == [item]
    assert parse(b'{"input":[]}', JSON, own_session=False).request.items == []


def test_session_is_for_a_session_of_its_own() -> None:
    """`session` is used where a turn opens its own session, and is then not part of the response."""
    wanted = parse(b'{"input":"x","session":{"a":1},"tools":[]}', JSON, own_session=True)

    assert (wanted.session, wanted.request.response) == ({"a": 1}, {"tools": []})


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b"{}", "/input"),
        (b'{"input":""}', "/input"),
        (b'{"input":null}', "/input"),
        (b'{"input":[{},1]}', "/input/1"),
        (b'{"input":"x","session":{}}', "/session"),
        (b'{"input":"x","metadata":[]}', "/metadata"),
    ],
)
def test_wrong_member_is_pointed_at(body: bytes, pointer: str) -> None:
    """The error has one sentence and a JSON pointer."""
    with pytest.raises(CallerError) as refused:
        parse(body, JSON, own_session=False)

    assert (refused.value.code, refused.value.flaws[0].pointer) == ("invalid-parameter", pointer)


@pytest.mark.parametrize(("body", "media_type"), [(b"\xff", "text/plain"), (b"", None), (b"x\xff{}", CURL)])
def test_text_is_utf8_and_not_empty(body: bytes, media_type: str | None) -> None:
    """A text must be valid UTF-8 and not empty."""
    with pytest.raises(CallerError, match="input"):
        parse(body, media_type, own_session=False)


def test_a_question_in_text_is_answered_in_text() -> None:
    """Without a preference the client gets the first format, and a text is answered as text."""
    text, json = (
        parse(b"x", "text/plain", own_session=False),
        parse(b'{"input":"x"}', JSON, own_session=False),
    )

    assert tuple(text.formats) == ("text", "json", "sse", "ndjson")
    assert tuple(json.formats) == ("json", "text", "sse", "ndjson")


def test_wait_is_seconds() -> None:
    """`wait` is in seconds; None means as long as it takes."""
    assert wait(None, format="text", keyed=False) is None
    assert wait("2.5", format="json", keyed=True) == 2.5


@pytest.mark.parametrize(
    ("text", "format", "keyed"),
    [
        ("0", "json", True),
        ("56", "json", True),
        ("nan", "json", True),
        ("1_0", "json", True),
        ("1e1", "json", True),
        ("x", "json", True),
        ("5", "text", True),
        ("5", "json", False),
    ],
)
def test_wait_that_makes_no_sense_is_refused(text: str, format: Format, keyed: bool) -> None:
    """A wait is refused if it is out of range, for a stream, or without a key to ask again with."""
    with pytest.raises(CallerError, match="wait"):
        wait(text, format=format, keyed=keyed)

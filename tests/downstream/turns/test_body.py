"""What a turn's request says, read from its bytes."""

import pytest

from gateway.downstream.turns.body import Form, choose, parse, wait
from gateway.errors import CallerError

JSON = "application/json"
CURL = "application/x-www-form-urlencoded"


def test_text_is_a_users_message() -> None:
    """And text is its natural answer."""
    wanted = parse("Grüß dich".encode(), "text/plain", own_session=False)

    (item,) = wanted.request.items
    assert item["content"] == [{"type": "input_text", "text": "Grüß dich"}]
    assert (item["role"], wanted.plain, wanted.request.response) == ("user", True, {})


@pytest.mark.parametrize(
    ("media_type", "plain"), [(JSON, False), (CURL, False), (None, False), ("text/plain", True)]
)
def test_object_is_read_unless_it_is_named_text(media_type: str | None, plain: bool) -> None:
    """Who says text means it."""
    assert parse(b'{"input":"x"}', media_type, own_session=False).plain is plain


@pytest.mark.parametrize("body", [b"hello", b"[1]", b"{", b"[" * 100_000])
def test_what_is_no_object_is_text_for_curl(body: bytes) -> None:
    """Whatever it looks like."""
    assert parse(body, CURL, own_session=False).plain


def test_list_is_taken_as_items() -> None:
    """As they are; an empty one asks for a response to what was said already."""
    item = {"type": "item_reference", "id": "item_1"}

    assert parse(
        b'{"input":[{"type":"item_reference","id":"item_1"}]}', JSON, own_session=False
    ).request.items == [item]
    assert parse(b'{"input":[]}', JSON, own_session=False).request.items == []


def test_session_is_for_a_session_of_its_own() -> None:
    """There it is not part of the response."""
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
    """One sentence and a JSON pointer."""
    with pytest.raises(CallerError) as refused:
        parse(body, JSON, own_session=False)

    assert (refused.value.code, refused.value.flaws[0].pointer) == ("invalid-parameter", pointer)


@pytest.mark.parametrize(("body", "media_type"), [(b"\xff", "text/plain"), (b"", None), (b"\xff{}", CURL)])
def test_text_is_utf8_and_not_empty(body: bytes, media_type: str | None) -> None:
    """There is nothing to say otherwise."""
    with pytest.raises(CallerError, match="input"):
        parse(body, media_type, own_session=False)


@pytest.mark.parametrize(
    ("named", "accept", "plain", "form"),
    [
        (None, None, True, "text"),
        (None, "*/*", True, "text"),
        (None, None, False, "json"),
        (None, "*/*", False, "json"),
        (None, "text/plain", False, "text"),
        (None, "text/event-stream", True, "sse"),
        (None, "application/json, text/plain;q=0.5", True, "json"),
        ("sse", "application/json", True, "sse"),
    ],
)
def test_form_follows_the_wish(named: str | None, accept: str | None, plain: bool, form: Form) -> None:
    """The parameter, else Accept, else the form of the question."""
    assert choose(named, accept, plain=plain) == form


def test_form_that_there_is_not_is_refused() -> None:
    """By the code that fits where it was asked for."""
    with pytest.raises(CallerError) as parameter:
        choose("xml", None, plain=True)
    with pytest.raises(CallerError) as header:
        choose(None, "image/png", plain=True)

    assert (parameter.value.code, header.value.code) == ("invalid-parameter", "not-acceptable")


def test_wait_is_seconds() -> None:
    """None for as long as it takes."""
    assert wait(None, form="text", keyed=False) is None
    assert wait("2.5", form="json", keyed=True) == 2.5


@pytest.mark.parametrize(
    ("text", "form", "keyed"),
    [
        ("0", "json", True),
        ("56", "json", True),
        ("nan", "json", True),
        ("x", "json", True),
        ("5", "text", True),
        ("5", "json", False),
    ],
)
def test_wait_that_makes_no_sense_is_refused(text: str, form: Form, keyed: bool) -> None:
    """Out of range, for a stream, or without a key to come back with."""
    with pytest.raises(CallerError, match="wait"):
        wait(text, form=form, keyed=keyed)

"""Section 1.2: sending client events."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conformance.wire import NDJSON, Answer, Json, Session, item

CLEAR: Json = {"type": "input_audio_buffer.clear"}


def deep(levels: int) -> str:
    """Return an event whose nesting has this many levels, the object itself included."""
    return '{"type":"x","a":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


async def test_one_event_is_accepted(session: Session) -> None:
    """A body that is one client event is answered with 202 and a receipt."""
    answer = await session.post(CLEAR)

    assert answer.status == 202
    assert answer.json == {"accepted": 1, "first": 1, "last": 1, "head": answer.json["head"]}


async def test_an_array_is_accepted(session: Session) -> None:
    """A JSON array is a batch."""
    assert (await session.post([CLEAR, CLEAR, CLEAR])).json["accepted"] == 3


@pytest.mark.parametrize("end", ["\n", "", "\r\n"], ids=repr)
async def test_ndjson_is_accepted(session: Session, end: str) -> None:
    """Lines of events are a batch, with any line end after the last one."""
    body = "\n".join([json.dumps(CLEAR)] * 2) + end
    answer = await session.post(body, Content_Type=NDJSON)

    assert (answer.status, answer.json["accepted"]) == (202, 2)


async def test_first_and_last_count_through_the_session(session: Session) -> None:
    """The numbers of a receipt continue where the last one's ended."""
    receipts = [await session.send(CLEAR), await session.send(CLEAR, CLEAR), await session.send(CLEAR)]

    assert [(receipt["first"], receipt["last"]) for receipt in receipts] == [(1, 1), (2, 3), (4, 4)]


async def test_reading_after_a_receipts_head_shows_all_it_caused(session: Session) -> None:
    """The receipt's `head` was taken before the events were sent, so a read after it shows everything they caused."""
    receipt = await session.send(item("Hello", "item_mine"))
    seen = await session.until("conversation.item.added", after=receipt["head"])

    assert seen[-1]["event"]["item"]["id"] == "item_mine"


async def test_a_batch_is_sent_in_order(session: Session) -> None:
    """Ten items of one batch appear in the conversation in its order."""
    ids = [f"item_{number}" for number in range(10)]
    await session.send(*(item("Hello", id) for id in ids))
    seen: list[str] = []
    cursor = session.head
    while len(seen) < len(ids):
        page = await session.until("conversation.item.added", after=cursor)
        seen.append(page[-1]["event"]["item"]["id"])
        cursor = page[-1]["id"]

    assert seen == ids


async def test_overlapping_posts_queue(session: Session) -> None:
    """Twenty simultaneous POSTs are all accepted, each batch stays together, and the session stays open."""
    answers = await asyncio.gather(*(session.post([CLEAR, CLEAR]) for _ in range(20)))

    assert {answer.status for answer in answers} == {202}
    assert sorted(answer.json["first"] for answer in answers) == list(range(1, 41, 2))
    assert (await session.look())["state"] == "connected"


async def test_a_batch_with_one_bad_event_is_not_sent_at_all(session: Session) -> None:
    """A batch is checked completely before anything of it is sent, and the error points to the invalid event."""
    answer = await session.post([item("Hello", "item_bad"), {"kind": "no type"}])
    receipt = await session.send(item("Hello", "item_good"))
    seen = await session.until("conversation.item.added")

    flaws = answer.problem(400, "invalid-event")["errors"]
    assert any(flaw["pointer"].startswith("/1") for flaw in flaws)
    assert receipt["first"] == 1
    assert seen[-1]["event"]["item"]["id"] == "item_good"


async def test_a_bad_line_of_ndjson_is_named(session: Session) -> None:
    """Problems in NDJSON are reported with the line number, from 1."""
    body = json.dumps(CLEAR) + "\nnonsense\n"
    answer = await session.post(body, Content_Type=NDJSON)

    assert [flaw["line"] for flaw in answer.problem(400, "invalid-json")["errors"]] == [2]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b'{"type":"x"',
        b"{'type':'x'}",
        b'{"type":"x"} {"type":"y"}',
        b'\xef\xbb\xbf{"type":"x"}',
        b'{"type":"x","a":NaN}',
        b'{"type":"x","a":Infinity}',
        b'{"type":"x","a":-Infinity}',
        b'{"type":"x","a":01}',
        b'{"type":"x","a":"\xff"}',
        b'{"type":"x","a":"\xed\xa0\x80"}',
        b'{"type":"x","a":"\xc0\xaf"}',
        b'{"type":"x","a":"\x01"}',
        deep(65).encode(),
    ],
    ids=lambda body: repr(body[:32]),
)
async def test_what_is_no_strict_json_is_400(session: Session, body: bytes) -> None:
    """Only strict UTF-8 and RFC 8259 JSON pass, without BOM, NaN or Infinity, and no deeper than 64."""
    (await session.post(body)).problem(400, "invalid-json")


async def test_sixty_four_levels_pass(session: Session) -> None:
    """JSON with exactly 64 levels is accepted."""
    assert (await session.post(deep(64))).status == 202


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        '"text"',
        "7",
        "null",
        "{}",
        '{"type":7}',
        '{"type":null}',
        '{"type":"x","event_id":7}',
        "[[]]",
        "[null]",
    ],
)
async def test_what_is_no_event_is_400(session: Session, body: str) -> None:
    """An event is an object with a string `type`, and an `event_id` that is a string, null or missing."""
    (await session.post(body)).problem(400, "invalid-event")


@pytest.mark.parametrize("event_id", ["mine", None])
async def test_an_event_id_is_a_string_or_null(session: Session, event_id: str | None) -> None:
    """An `event_id` may be a string or null."""
    assert (await session.post({**CLEAR, "event_id": event_id})).status == 202


async def test_unknown_types_pass(session: Session) -> None:
    """Events of unknown types are passed on, and OpenAI answers them with an event."""
    receipt = await session.send({"type": "nobody.knows", "event_id": "mine"})
    error = (await session.until("error", after=receipt["head"]))[-1]["event"]["error"]

    assert error["event_id"] == "mine"


async def test_too_many_events_are_413(session: Session) -> None:
    """The number of events in a batch is limited, and the problem names the limit."""
    limit = session.created["limits"]["max_batch_events"]
    fits = await session.post("[" + ",".join(['{"type":"x"}'] * limit) + "]")
    answer = await session.post("[" + ",".join(['{"type":"x"}'] * (limit + 1)) + "]")

    assert fits.status == 202
    assert answer.problem(413, "too-large")["limit"] == limit


async def test_too_large_a_body_is_413(session: Session) -> None:
    """The size of a body is limited, and the problem names the limit."""
    limit = session.created["limits"]["max_body_bytes"]
    answer = await session.post('{"type":"x","a":"' + "a" * limit + '"}')

    assert answer.problem(413, "too-large")["limit"] <= limit


@pytest.mark.parametrize(
    "media_type",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        "text/plain",
        "text/plain;charset=UTF-8",
        "application/x-www-form-urlencoded",
    ],
)
async def test_json_has_many_media_types(session: Session, media_type: str | None) -> None:
    """A body without a type, or with the type of JSON, plain text or curl's default, is read as JSON."""
    headers = {"Content_Type": media_type} if media_type else {}

    assert (await session.post(json.dumps(CLEAR), **headers)).status == 202


@pytest.mark.parametrize("media_type", ["application/xml", "image/png", "multipart/form-data; boundary=a"])
async def test_other_media_types_are_415(session: Session, media_type: str) -> None:
    """A body of another media type is refused."""
    (await session.post(json.dumps(CLEAR), Content_Type=media_type)).problem(415, "unsupported-media-type")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate"])
async def test_an_encoded_body_is_415(session: Session, encoding: str) -> None:
    """A compressed body is refused, because a small one could expand to a large one."""
    answer = await session.post(json.dumps(CLEAR), Content_Encoding=encoding)

    answer.problem(415, "unsupported-media-type")


async def test_a_chunked_body_is_fine(session: Session) -> None:
    """A client that does not know its body's length can send it chunked."""

    async def chunks() -> AsyncIterator[bytes]:
        for byte in json.dumps(CLEAR).encode():
            yield bytes([byte])

    headers = session.wire._headers(None)
    async with session.wire.http.post(
        session.wire.url + session.events, data=chunks(), headers=headers
    ) as answer:
        assert answer.status == 202


async def test_a_repeated_post_is_not_sent_again(session: Session) -> None:
    """With an Idempotency-Key, the second attempt gets the first one's answer and sends nothing."""
    first = await session.post(CLEAR, Idempotency_Key="once")
    again = await session.post(CLEAR, Idempotency_Key="once")
    after = await session.send(CLEAR)

    assert "Idempotency-Replayed" not in first.headers
    assert (again.status, again.headers["Idempotency-Replayed"]) == (202, "true")
    assert again.json == first.json
    assert after["first"] == 2


async def test_a_key_with_another_body_is_422(session: Session) -> None:
    """A key stands for one request."""
    await session.post(CLEAR, Idempotency_Key="once")

    (await session.post([CLEAR], Idempotency_Key="once")).problem(422, "idempotency-key-reused")


async def test_a_refused_post_may_be_corrected_under_its_key(session: Session) -> None:
    """A refused request has sent nothing, so its key can be used for the corrected request."""
    (await session.post("nonsense", Idempotency_Key="once")).problem(400, "invalid-json")

    assert (await session.post(CLEAR, Idempotency_Key="once")).status == 202


async def test_keys_are_scoped_to_their_session(session: Session) -> None:
    """The same key in another session is another key."""
    await session.post(CLEAR, Idempotency_Key="once")
    async with session.wire.session() as second:
        answer = await second.post(CLEAR, Idempotency_Key="once")

    assert (answer.status, answer.json["first"]) == (202, 1)
    assert "Idempotency-Replayed" not in answer.headers


async def test_a_closed_session_takes_no_more(session: Session) -> None:
    """POST to a closed session is 410."""
    await session.wire.call("DELETE", session.path)
    answer: Answer = await session.post(CLEAR)

    assert answer.problem(410, "session-closed")["retryable"] is False


@pytest.mark.parametrize("text", ["ü 🙂 \u2028", "line\nline", '"\\/\b\f'], ids=repr)
async def test_text_is_not_changed(session: Session, text: str) -> None:
    """Text appears unchanged in the conversation."""
    receipt = await session.send(item(text))
    seen: Any = (await session.until("conversation.item.added", after=receipt["head"]))[-1]["event"]

    assert seen["item"]["content"][0]["text"] == text

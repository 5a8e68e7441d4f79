"""Sending client events."""

import json
from collections.abc import AsyncIterator

import pytest

from gateway.downstream.http.limits import ServerLimits
from gateway.relay.limits import RelayLimits
from tests.downstream.harness import Build, Harness

EVENT = '{"type":"response.create"}'


async def events_path(harness: Harness) -> str:
    """Open a session and return the path of its events."""
    return f"/v1/sessions/{(await harness.open())['id']}/events"


async def test_one_event_is_accepted_and_counted(harness: Harness) -> None:
    """202 has the number of events, their sequence numbers, and the head before them."""
    path = await events_path(harness)
    first = await harness.call("POST", path, data=EVENT)
    second = await harness.call("POST", path, data=f"[{EVENT},{EVENT}]")

    assert first.status == 202
    assert {k: first.json[k] for k in ("accepted", "first", "last")} == {"accepted": 1, "first": 1, "last": 1}
    assert {k: second.json[k] for k in ("accepted", "first", "last")} == {
        "accepted": 2,
        "first": 2,
        "last": 3,
    }
    assert first.json["head"].endswith("-1")
    assert set(first.json) == {"accepted", "first", "last", "head"}


async def test_events_are_sent_as_the_bytes_that_came(harness: Harness) -> None:
    """Events are sent unchanged: odd spacing, numbers and escapes arrive as they were."""
    path = await events_path(harness)
    odd = [
        '{ "type" :"a", "n": 1.0e+05, "s":"\\u00e9é\U0001f600" }',
        '{"type":"b","x":123456789012345678901234567890,"d":1,"d":2}',
    ]
    await harness.call("POST", path, data=f"[ {odd[0]} , {odd[1]}\n]".encode())

    assert harness.far_end.sent == odd


@pytest.mark.parametrize(
    "kind", [None, "application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded"]
)
async def test_media_types_read_as_json(harness: Harness, kind: str | None) -> None:
    """A body with no type, JSON, plain text or curl's default type is read as JSON."""
    path = await events_path(harness)
    headers = {} if kind is None else {"Content-Type": kind}
    answer = await harness.call("POST", path, data=EVENT.encode(), headers=headers)

    assert answer.status == 202
    assert harness.far_end.sent == [EVENT]


async def test_ndjson_is_read_by_its_type(harness: Harness) -> None:
    """NDJSON is recognized by its type, and blank lines are skipped."""
    path = await events_path(harness)
    body = f"{EVENT}\n\n{EVENT}\r\n".encode()
    answer = await harness.call("POST", path, data=body, headers={"Content-Type": "application/x-ndjson"})

    assert answer.json["accepted"] == 2
    assert harness.far_end.sent == [EVENT, EVENT]


async def test_other_media_types_are_refused(harness: Harness) -> None:
    """Other media types are refused with 415."""
    path = await events_path(harness)
    answer = await harness.call("POST", path, data=b"<a/>", headers={"Content-Type": "application/xml"})

    assert (answer.status, answer.code) == (415, "unsupported-media-type")


async def test_empty_media_type_counts_as_none(harness: Harness) -> None:
    """A body is JSON unless the request says something else."""
    path = await events_path(harness)
    answer = await harness.call("POST", path, data=EVENT, headers={"Content-Type": ""})

    assert answer.status == 202


@pytest.mark.parametrize("encoding", ["gzip", "identity", ""])
async def test_encoded_body_is_refused(harness: Harness, encoding: str) -> None:
    """A Content-Encoding is refused with 415 before anything is unpacked."""
    path = await events_path(harness)
    answer = await harness.call("POST", path, data=b"\x1f\x8b", headers={"Content-Encoding": encoding})

    assert (answer.status, answer.code) == (415, "unsupported-media-type")


async def test_chunked_body_is_fine(harness: Harness) -> None:
    """A client that does not know its body's length may send it in chunks."""
    path = await events_path(harness)

    async def chunks() -> AsyncIterator[bytes]:
        for byte in EVENT.encode():
            yield bytes([byte])

    answer = await harness.call("POST", path, data=chunks())

    assert answer.status == 202
    assert harness.far_end.sent == [EVENT]


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_over_the_limit_is_refused_with_the_limit(build: Build, chunked: bool) -> None:
    """413 names the limit, whether or not the client announced the length."""
    harness = await build(limits=ServerLimits(max_body_bytes=100))
    path = await events_path(harness)
    body = json.dumps({"type": "x" * 200}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    answer = await harness.call("POST", path, data=chunks() if chunked else body)

    assert (answer.status, answer.code) == (413, "too-large")
    assert answer.json["limit"] == 100
    assert harness.far_end.sent == []


async def test_event_over_the_limit_is_refused(build: Build) -> None:
    """The limit of one event also applies within a batch."""
    harness = await build(relay=RelayLimits(max_event_bytes=50))
    path = await events_path(harness)
    answer = await harness.call("POST", path, json=[{"type": "a"}, {"type": "x" * 60}])

    assert (answer.status, answer.code) == (413, "too-large")
    assert harness.far_end.sent == []


async def test_batch_over_the_limit_is_refused(build: Build) -> None:
    """A batch with too many events is refused."""
    harness = await build(limits=ServerLimits(max_batch_events=2))
    path = await events_path(harness)
    answer = await harness.call("POST", path, json=[{"type": "a"}] * 3)

    assert (answer.status, answer.code) == (413, "too-large")
    assert answer.json["limit"] == 2


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        (b"", "invalid-json", None),
        (b"\xef\xbb\xbf{}", "invalid-json", None),
        (b'{"type":"a"', "invalid-json", None),
        (b'{"type":NaN}', "invalid-json", None),
        (b"[" * 65 + b"]" * 65, "invalid-json", None),
        (b"[]", "invalid-event", None),
        (b"3", "invalid-event", ""),
        (b"{}", "invalid-event", "/type"),
        (b'[{"type":"a"},{"type":1}]', "invalid-event", "/1/type"),
        (b'{"type":"a","event_id":1}', "invalid-event", "/event_id"),
    ],
)
async def test_bad_bodies_are_refused_whole(
    harness: Harness, body: bytes, code: str, pointer: str | None
) -> None:
    """If any event of a batch is invalid nothing is sent, and the problem names the place."""
    path = await events_path(harness)
    answer = await harness.call("POST", path, data=body)

    assert (answer.status, answer.code) == (400, code)
    if pointer is not None:
        assert answer.json["errors"][0]["pointer"] == pointer
    assert harness.far_end.sent == []


async def test_unknown_types_pass(harness: Harness) -> None:
    """Events of unknown types are passed on, because OpenAI judges them."""
    path = await events_path(harness)

    assert (await harness.call("POST", path, json={"type": "no.such.thing"})).status == 202


async def test_repeat_with_a_key_sends_nothing_twice(harness: Harness) -> None:
    """A repeat gets the stored receipt, marked as a replay; another body under the same key is refused."""
    path = await events_path(harness)
    headers = {"Idempotency-Key": "k1"}
    first = await harness.call("POST", path, data=EVENT, headers=headers)
    again = await harness.call("POST", path, data=EVENT, headers=headers)
    other = await harness.call("POST", path, json={"type": "other"}, headers=headers)

    assert again.body == first.body
    assert again.status == 202
    assert again.headers["Idempotency-Replayed"] == "true"
    assert harness.far_end.sent == [EVENT]
    assert (other.status, other.code) == (422, "idempotency-key-reused")


async def test_same_key_in_another_session_is_another_key(harness: Harness) -> None:
    """Keys are scoped to the session."""
    headers = {"Idempotency-Key": "k1"}
    for _ in range(2):
        answer = await harness.call("POST", await events_path(harness), data=EVENT, headers=headers)
        assert "Idempotency-Replayed" not in answer.headers

    assert harness.far_end.sent == [EVENT, EVENT]


async def test_closed_session_takes_nothing(harness: Harness) -> None:
    """While the log of a closed session is kept, a POST gets 410."""
    path = await events_path(harness)
    await harness.call("DELETE", path.removesuffix("/events"))
    answer = await harness.call("POST", path, data=EVENT)

    assert (answer.status, answer.code) == (410, "session-closed")
    assert answer.json["retryable"] is False


async def test_locked_member_is_refused_in_session_update(build: Build) -> None:
    """A member that is locked at create cannot be set later either."""
    harness = await build(relay=RelayLimits(session_locked=("model",)))
    path = await events_path(harness)
    answer = await harness.call("POST", path, json={"type": "session.update", "session": {"model": "x"}})

    assert (answer.status, answer.code) == (403, "member-locked")


async def test_time_from_read_to_handed_over_is_told(harness: Harness) -> None:
    """The `up` histogram gets one value for each accepted request and none for a refused one."""
    path = await events_path(harness)
    await harness.call("POST", path, data=EVENT)
    await harness.call("POST", path, data=b"{}")

    ((seconds,),) = harness.facts.of("relayed_up")
    assert 0 <= seconds < 1


@pytest.mark.parametrize("chunked", [False, True])
async def test_large_bodies_are_charged_while_they_are_handled(harness: Harness, chunked: bool) -> None:
    """Large bodies are charged to the memory budget while they are handled, and refused beyond it."""
    path = await events_path(harness)
    event = b'{"type":"input_audio_buffer.append","audio":"%b"}' % (b"A" * 100_000)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(event), 10_000):
            yield event[start : start + 10_000]

    budget = harness.hub.budget
    before, total = budget.held, budget.total_bytes
    budget.total_bytes = before + 50_000
    refused = await harness.call("POST", path, data=pieces() if chunked else event)
    held = budget.held
    budget.total_bytes = total
    sent = await harness.call("POST", path, data=pieces() if chunked else event)

    assert (refused.status, refused.code) == (503, "capacity")
    assert held <= before
    assert sent.status == 202

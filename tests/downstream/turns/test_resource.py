"""One text turn in one request over real sockets, with a simulated far end (docs/api.md, 4 Turns)."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, cast

import aiohttp
import pytest

from gateway.errors import OverloadError, UpstreamError
from gateway.relay.events.eventlog import EventId
from gateway.relay.limits import RelayLimits
from gateway.relay.session import Session as RelaySession
from gateway.relay.states import CloseReason
from tests.downstream.harness import Answer, Build, Harness
from tests.downstream.raw import connect
from tests.downstream.streams import DEADLINE_SECONDS, Session, deltas, opened, said
from tests.waiting import until

Json = dict[str, Any]


class Model:
    """Answers turns: it reads what the gateway sent and emits the events that a test asks for."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._turns = 0
        self._taken = 0

    @property
    def sent(self) -> list[Json]:
        return [json.loads(text) for text in self._harness.far_end.sent]

    def of(self, type_: str) -> list[Json]:
        """Return the events of a type that were sent."""
        return [event for event in self.sent if event["type"] == type_]

    async def asked(self, count: int = 1) -> Json:
        """Wait until this many responses were requested, and return the last."""

        def ready() -> bool:
            if len(self.of("response.create")) >= count:
                return True
            for event in self.of("conversation.item.create")[self._taken :]:
                self._taken += 1
                self.say("conversation.item.added", item=event["item"])
            return False

        await until(ready)
        return self.of("response.create")[count - 1]

    def say(self, type_: str, **members: object) -> None:
        assert self._harness.far_end.sink is not None
        self._harness.far_end.sink.received(0, json.dumps({"type": type_, **members}))

    def begin(self, asked: Json) -> str:
        """Create the requested response."""
        self._turns += 1
        id_ = f"resp_{self._turns}"
        response = {"id": id_, "conversation_id": "conv_1", "metadata": asked["response"]["metadata"]}
        self.say("response.created", response={**response, "status": "in_progress"})
        return id_

    def speak(self, id_: str, *words: str) -> None:
        for word in words:
            self.say("response.output_text.delta", response_id=id_, item_id="item_a", delta=word)

    def end(
        self,
        id_: str,
        text: str | None = None,
        status: str = "completed",
        error: Json | None = None,
        also: Sequence[Json] = (),
    ) -> None:
        """Finish a response, with its text if it has any and with other items."""
        content = [{"type": "output_text", "text": text}]
        output = [{"id": "item_a", "type": "message", "content": content}] if text is not None else []
        output += also
        details = {"type": status, "error": error} if error else None
        response = {
            "id": id_,
            "status": status,
            "status_details": details,
            "output": output,
            "usage": {"t": 1},
        }
        self.say("response.done", response=response)

    async def answer(self, *words: str, count: int = 1) -> None:
        """Answer the requested turn completely."""
        id_ = self.begin(await self.asked(count))
        self.speak(id_, *words)
        self.end(id_, "".join(words))

    def refuse(self, event: Json, code: str = "invalid_value") -> None:
        """Refuse an event that was sent."""
        error = {
            "type": "invalid_request_error",
            "code": code,
            "message": "No.",
            "event_id": event["event_id"],
        }
        self.say("error", error=error)


@pytest.fixture
def model(harness: Harness) -> Model:
    """Return the model that answers."""
    return Model(harness)


@pytest.fixture
async def session(harness: Harness) -> Session:
    """Return an open session."""
    return await opened(harness)


def turn(session: Session, body: object = "Hello", **options: Any) -> "asyncio.Task[Answer]":
    """Post a turn; text as curl does, the rest as JSON."""
    return post(session.harness, f"/v1/sessions/{session.id}/turns", body, **options)


def post(harness: Harness, path: str, body: object = "Hello", **options: Any) -> "asyncio.Task[Answer]":
    """Start a POST; text goes as curl's `-d` sends it, the rest as JSON."""
    headers = options.pop("headers", {})
    if isinstance(body, str):
        headers = {"Content-Type": "application/x-www-form-urlencoded", **headers}
        return asyncio.create_task(harness.call("POST", path, data=body.encode(), headers=headers, **options))
    return asyncio.create_task(harness.call("POST", path, json=body, headers=headers, **options))


async def got(task: "asyncio.Task[Answer]") -> Answer:
    """Wait for an answer; fail if none comes."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await task


# --- what is sent -----------------------------------------------------------------------------------------------------


async def test_a_turn_is_no_larger_than_a_batch(session: Session) -> None:
    """The items and the response.create of a turn count as events and are limited as in a batch."""
    limit = session.harness.parts.limits.max_batch_events
    item = {"type": "message", "role": "user", "content": []}
    answer = await got(turn(session, {"input": [item] * limit}))

    assert (answer.status, answer.code, answer.json["limit"]) == (413, "too-large", limit)
    assert session.harness.far_end.sent == []


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ("Hello", {}),
        ("Hello", {"Content-Type": "text/plain"}),
        ({"input": "Hello"}, {}),
        ('{"input":"Hello"}', {}),
    ],
)
async def test_text_becomes_a_message_and_a_response(
    session: Session, model: Model, body: object, headers: dict[str, str]
) -> None:
    """Both events have ids, and the response carries the turn's id, however the text is written."""
    asked = turn(session, body, headers=headers)
    await model.answer("Hi")
    answer = await got(asked)

    item, response = model.sent
    assert answer.status == 200
    assert item["item"]["content"] == [{"type": "input_text", "text": "Hello"}]
    assert item["event_id"] != response["event_id"]
    assert response["response"]["metadata"]["gateway_turn"].startswith("turn_")


@pytest.mark.parametrize("body", ['"x"', "a=b&c=d", "42"])
async def test_what_is_no_object_is_the_text_itself(session: Session, model: Model, body: str) -> None:
    """A body that is not an object is the text itself, because curl sends the form type for every body."""
    asked = turn(session, body)
    await model.answer("Hi")
    await got(asked)

    assert model.sent[0]["item"]["content"][0]["text"] == body


async def test_items_and_other_members_pass(session: Session, model: Model) -> None:
    """Each item of a list is sent unchanged as one event; members other than input and session go into the response."""
    output = {"type": "function_call_output", "call_id": "call_1", "output": "5"}
    message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "So?"}]}
    wanted = {"instructions": "Be brief.", "metadata": {"mine": "1"}}
    asked = turn(session, {"input": [output, message], **wanted})
    await model.answer("Five.")
    await got(asked)

    first, second, response = model.sent
    assert first["item"] == {**output, "id": first["item"]["id"]}
    assert second["item"] == {**message, "id": second["item"]["id"]}
    assert response["response"]["instructions"] == "Be brief."
    assert response["response"]["metadata"]["mine"] == "1"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": ""},
        {"input": 1},
        {"input": [1]},
        {"input": "x", "session": {}},
        {"input": "x", "metadata": 1},
    ],
)
async def test_wrong_body_is_refused(session: Session, model: Model, body: Json) -> None:
    """A wrong body is refused with a pointer before anything is sent."""
    answer = await got(turn(session, body))

    assert (answer.status, answer.code) == (400, "invalid-parameter")
    assert answer.json["errors"][0]["pointer"]
    assert model.sent == []


async def test_body_named_json_must_be_an_object(session: Session) -> None:
    """A body whose type is JSON must be an object and is not treated as text."""
    answer = await got(turn(session, "Hello", headers={"Content-Type": "application/json"}))

    assert (answer.status, answer.code) == (400, "invalid-json")


# --- the answer as text -----------------------------------------------------------------------------------------------


async def test_text_is_streamed_as_it_comes(session: Session, model: Model) -> None:
    """The status is sent with the first delta, and each delta is sent at once."""
    url = f"{session.harness.url}/v1/sessions/{session.id}/turns"
    headers = {"Content-Type": "text/plain"}
    asking = asyncio.create_task(session.harness.http.post(url, data=b"Hello", headers=headers))
    id_ = model.begin(await model.asked())
    model.say("response.output_text.delta", response_id="resp_other", delta="not mine")
    assert not asking.done()
    model.speak(id_, "Grüß ")
    async with asyncio.timeout(DEADLINE_SECONDS), await asking as answer:
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert await answer.content.readany() == "Grüß ".encode()
        model.speak(id_, "Gott")
        assert await answer.content.readany() == b"Gott"
        model.end(id_, "Grüß Gott")
        assert await answer.content.read() == b""


@pytest.mark.parametrize("status", ["failed", "cancelled", "incomplete", "call"])
async def test_an_answer_that_is_not_whole_cuts_the_connection(
    session: Session, model: Model, status: str
) -> None:
    """If the answer is incomplete, or a function call follows the text, the partial text arrives but the body ends
    early."""
    url = f"{session.harness.url}/v1/sessions/{session.id}/turns"
    headers = {"Content-Type": "text/plain"}
    asking = asyncio.create_task(session.harness.http.post(url, data=b"Hello", headers=headers))
    id_ = model.begin(await model.asked())
    model.speak(id_, "Half ")
    async with asyncio.timeout(DEADLINE_SECONDS), await asking as answer:
        assert answer.status == 200
        assert await answer.content.readany() == b"Half "
        if status == "call":
            model.end(id_, "Half ", also=[{"type": "function_call", "name": "f", "call_id": "call_1"}])
        else:
            model.end(id_, "Half ", status)
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.content.read()


async def test_an_answer_that_is_not_whole_resets_a_connection_without_chunks(
    session: Session, model: Model
) -> None:
    """In HTTP/1.0, as nginx speaks it by default, the end of the connection is the end of the body. So it is reset, when the
    client has got the partial text."""
    reader, writer = await connect(session.harness.url)
    path = f"/v1/sessions/{session.id}/turns"
    writer.write(f"POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nHello".encode())
    id_ = model.begin(await model.asked())
    model.speak(id_, "Half ")
    head = await reader.readuntil(b"\r\n\r\n")
    half = await reader.readexactly(5)
    model.end(id_, "Half ", "incomplete")
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(DEADLINE_SECONDS):
            await reader.read()
    writer.close()

    assert b" 200 OK" in head
    assert half == b"Half "


async def test_a_function_call_is_not_an_answer_in_text(session: Session, model: Model) -> None:
    """Before the first text the error has its own status; as JSON the same response is 200."""
    asked = turn(session, headers=KEY)
    call = {"type": "function_call", "name": "f", "call_id": "call_1"}
    model.end(model.begin(await model.asked()), also=[call])
    answer = await got(asked)
    again = await got(turn(session, headers=KEY, params={"format": "json"}))

    assert (answer.status, answer.code) == (406, "no-text-output")
    assert again.json["output"] == [call]


async def test_halves_of_a_pair_are_joined(session: Session, model: Model) -> None:
    """A far end that counts in UTF-16 may split a character; a half that stays alone becomes a replacement
    character."""
    words = ("Hi ", "\ud83d", "\ude00", " end ", "\ud83d")
    asked = turn(session, headers=KEY)
    await model.answer(*words)
    answer = await got(asked)
    again = await got(turn(session, headers=KEY))

    assert answer.body.decode() == again.body.decode() == "Hi 😀 end \ufffd"


@pytest.mark.parametrize("form", ["text", "sse", "ndjson"])
async def test_a_streamed_answer_ends_its_connection(session: Session, model: Model, form: str) -> None:
    """A streamed answer closes its connection, because some readers see no other end."""
    asked = turn(session, params={"format": form})
    await model.answer("Hi")

    assert (await got(asked)).headers["Connection"] == "close"


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        ("failed", {"code": "server_error", "message": "Sorry."}, (502, "upstream-failed")),
        (
            "failed",
            {"code": "rate_limit_exceeded", "message": "Try again in 1.2s."},
            (429, "upstream-rate-limited"),
        ),
        ("cancelled", None, (502, "upstream-failed")),
        ("incomplete", None, (502, "upstream-failed")),
        ("completed", None, (406, "no-text-output")),
    ],
)
async def test_no_words_have_a_status(
    session: Session, model: Model, status: str, error: Json | None, expected: tuple[int, str]
) -> None:
    """Before the first text, every error has its own status."""
    asked = turn(session)
    model.end(model.begin(await model.asked()), None, status, error)
    answer = await got(asked)

    assert (answer.status, answer.code) == expected
    if status == "failed" and answer.status == 429:
        assert answer.headers["Retry-After"] == "2"


async def test_text_of_a_turn_that_is_to_have_none(session: Session, model: Model) -> None:
    """A response that is to have no text is refused before it costs anything."""
    body = {"input": "Hello", "output_modalities": ["audio"]}
    answer = await got(turn(session, body, headers={"Accept": "text/plain"}))

    assert (answer.status, answer.code) == (406, "no-text-output")
    assert model.sent == []


# --- the answer as JSON -----------------------------------------------------------------------------------------------


async def test_json_gives_the_response(session: Session, model: Model) -> None:
    """The JSON answer has the text as its own member, and the position in the log where the turn ended."""
    asked = turn(session, {"input": "Hello"})
    await model.answer("Hi ", "there")
    answer = await got(asked)

    assert answer.json == {
        "id": "resp_1",
        "status": "completed",
        "output_text": "Hi there",
        "output": [
            {"id": "item_a", "type": "message", "content": [{"type": "output_text", "text": "Hi there"}]}
        ],
        "usage": {"t": 1},
        "error": None,
        "session_id": session.id,
        "head": session.id_after(5),
    }


async def test_json_tells_a_failure_inside(session: Session, model: Model) -> None:
    """A response that failed is answered with 200 and `error`, as OpenAI's Responses do."""
    error = {"type": "server_error", "code": "server_error", "message": "Sorry."}
    asked = turn(session, {"input": "Hello"})
    model.end(model.begin(await model.asked()), None, "failed", error)
    answer = await got(asked)

    assert (answer.status, answer.json["status"], answer.json["error"]) == (200, "failed", error)
    assert (answer.json["output_text"], answer.json["output"]) == (None, [])


async def test_rate_limit_is_one(session: Session, model: Model) -> None:
    """A rate limit is 429 with Retry-After, because the same request can succeed later."""
    error = {"code": "rate_limit_exceeded", "message": "Rate limit reached. Please try again in 1m3s."}
    asked = turn(session, {"input": "Hello"})
    model.end(model.begin(await model.asked()), None, "failed", error)
    answer = await got(asked)

    assert (answer.status, answer.code, answer.headers["Retry-After"]) == (429, "upstream-rate-limited", "63")


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("form", ["text", "json", "sse"])
async def test_refused_event_is_a_bad_gateway(session: Session, model: Model, which: int, form: str) -> None:
    """An `error` that names an event of the turn is 502, and the problem contains OpenAI's message."""
    asked = turn(session, params={"format": form})
    await model.asked()
    model.refuse(model.sent[which])
    answer = await got(asked)

    assert (answer.status, answer.code) == (502, "upstream-rejected")
    assert answer.json["upstream"]["code"] == "invalid_value"


async def test_stream_of_a_turn_that_moves_to_another_node_is_rotated(
    session: Session, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client reconnects with its key and finds the turn there; an error would look like the turn's end."""
    monkeypatch.setattr("gateway.downstream.turns.answer.FIRST_EVENT_SECONDS", 0.01)
    first = turn(session)
    await model.asked()
    waiting = turn(session, headers={"Accept": "text/event-stream"})
    await until(lambda: bool(session.harness.facts.of("stream_opened")))
    cast(RelaySession, session.harness.hub.find(session.id, None)).released()
    answer = await got(waiting)

    assert answer.status == 200
    assert b"event: gateway.rotating" in answer.body
    assert b"gateway.error" not in answer.body
    assert (await got(first)).status == 503


async def test_stream_that_fails_ends_with_the_error(session: Session, model: Model) -> None:
    """After the first event the status cannot change, so the problem is sent as an event."""
    url = f"{session.harness.url}/v1/sessions/{session.id}/turns"
    asking = asyncio.create_task(
        session.harness.http.post(url, json={"input": "Hello"}, headers={"Accept": "text/event-stream"})
    )
    model.begin(await model.asked())
    async with asyncio.timeout(DEADLINE_SECONDS), await asking as answer:
        model.refuse(model.sent[1])
        body = await answer.read()

    assert answer.status == 200
    assert body.count(b"event: gateway.error\n") == 1
    assert b"upstream-rejected" in body


async def test_error_of_another_event_is_not_the_turns(session: Session, model: Model) -> None:
    """An error about another client's event does not end the turn."""
    asked = turn(session, {"input": "Hello"})
    id_ = model.begin(await model.asked())
    model.refuse({"event_id": "somebody_elses"})
    model.end(id_, "Hi")

    assert (await got(asked)).json["output_text"] == "Hi"


async def test_lost_session_is_a_bad_gateway(session: Session, model: Model) -> None:
    """A session that is lost ends the turn with 502."""
    asked = turn(session, {"input": "Hello"})
    await model.asked()
    await session.handle.close(CloseReason.UPSTREAM_LOST)
    answer = await got(asked)

    assert (answer.status, answer.code) == (502, "upstream-failed")


@pytest.mark.parametrize("form", ["text", "json", "sse", "ndjson"])
async def test_turn_of_a_session_that_moves_ends(session: Session, model: Model, form: str) -> None:
    """If the session moves to another node, the answer does not wait, because the turn's last events may never be
    visible here."""
    asked = turn(session, {"input": "Hello"}, params={"format": form})
    await model.asked()
    (running,) = [session.handle.state.turns.running]
    failure = OverloadError("recovering", "Another node has the session now.", retry_after=1)
    running.finish(EventId(session.handle.reader.head.epoch, 99), failure)
    running.wake()
    answer = await got(asked)

    assert (answer.status, answer.code) == (503, "recovering")


@pytest.mark.slow
async def test_turn_that_takes_too_long_is_cancelled(build: Build) -> None:
    """A turn that takes too long is answered with 504 and its phase, and the response is cancelled."""
    harness = await build(relay=RelayLimits(turn_timeout_seconds=0.2))
    harness.hub.start()
    session, model = await opened(harness), Model(harness)
    asked = turn(session, {"input": "Hello"})
    model.begin(await model.asked())
    answer = await got(asked)

    assert (answer.status, answer.code, answer.json["phase"]) == (504, "upstream-timeout", "response")
    assert [event["response_id"] for event in model.of("response.cancel")] == ["resp_1"]


# --- the answer as an event stream ------------------------------------------------------------------------------------


async def test_stream_gives_the_turns_own_events(session: Session, model: Model) -> None:
    """The stream has exactly the turn's events, as in the log, up to its response.done."""
    url = f"{session.harness.url}/v1/sessions/{session.id}/turns"
    headers = {"Accept": "text/event-stream"}
    asking = asyncio.create_task(session.harness.http.post(url, json={"input": "Hello"}, headers=headers))
    id_ = model.begin(await model.asked())
    model.say("rate_limits.updated")
    model.speak(id_, "1")
    model.end(id_, "1")
    async with asyncio.timeout(DEADLINE_SECONDS), await asking as answer:
        body = await answer.read()

    async with session.read(after=session.id_after(1)) as log:
        blocks = [block for block in await log.take(5) if said(block)["type"].startswith("response.")]
    expected = b"".join(f"id: {block.id}\ndata: {block.data}\n\n".encode() for block in blocks)
    assert deltas(blocks) == [1]
    assert body.endswith(expected)
    assert b"rate_limits" not in body


async def test_lines_give_the_turns_own_events(session: Session, model: Model) -> None:
    """The same as JSON lines, each with its ID."""
    asked = turn(session, headers={"Accept": "application/x-ndjson"})
    await model.answer("1")
    answer = await got(asked)
    opening, *lines = map(json.loads, answer.body.splitlines())

    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert (opening["id"], opening["event"]["type"]) == (None, "gateway.open")
    assert [(line["id"], line["event"]["type"]) for line in lines] == [
        (session.id_after(2), "response.created"),
        (session.id_after(3), "response.output_text.delta"),
        (session.id_after(4), "response.done"),
    ]


# --- queueing ---------------------------------------------------------------------------------------------------------


async def test_turns_queue_in_order(session: Session, model: Model) -> None:
    """Turns run one at a time, and each gets its own answer."""
    tasks = []
    for number in range(3):
        tasks.append(turn(session, {"input": f"{number}"}))
        await until(lambda: len(session.handle.state.turns.waiting) + 1 == len(tasks))
    for number in range(3):
        await model.answer(f"answer {number}", count=number + 1)
    answers = [(await got(task)).json["output_text"] for task in tasks]

    assert answers == ["answer 0", "answer 1", "answer 2"]
    assert [event["item"]["content"][0]["text"] for event in model.of("conversation.item.create")] == [
        "0",
        "1",
        "2",
    ]


async def test_turn_too_many_is_refused(build: Build) -> None:
    """A turn beyond the queue's limit is refused with 429 and Retry-After."""
    harness = await build(relay=RelayLimits(max_waiting_turns=1))
    session, model = await opened(harness), Model(harness)
    tasks = [turn(session, {"input": "1"})]
    await model.asked()
    tasks.append(turn(session, {"input": "2"}))
    await until(lambda: len(session.handle.state.turns.waiting) == 1)
    answer = await got(turn(session, {"input": "3"}))
    await session.handle.close(CloseReason.CLIENT)
    await asyncio.gather(*tasks)

    assert (answer.status, answer.code) == (429, "turn-queue-full")
    assert "Retry-After" in answer.headers


# --- once -------------------------------------------------------------------------------------------------------------

KEY = {"Idempotency-Key": "once"}


async def test_repeat_attaches_to_the_running_turn(session: Session, model: Model) -> None:
    """A repeat follows the running turn from its first event and causes no second charge."""
    first = turn(session, {"input": "Hello"}, headers=KEY)
    id_ = model.begin(await model.asked())
    model.speak(id_, "Hi ")
    second = turn(session, {"input": "Hello"}, headers={**KEY, "Accept": "text/plain"})
    await until(lambda: session.harness.facts.of("idempotent_replay") == [()])
    model.speak(id_, "there")
    model.end(id_, "Hi there")

    assert (await got(first)).json["output_text"] == "Hi there"
    assert (await got(second)).body == b"Hi there"
    assert (await got(second)).headers["Idempotency-Replayed"] == "true"
    assert len(model.of("response.create")) == 1


@pytest.mark.parametrize("form", ["text", "json", "sse"])
async def test_repeat_of_a_finished_turn_gives_its_answer(session: Session, model: Model, form: str) -> None:
    """A repeat may ask for another form."""
    asked = turn(session, headers=KEY, params={"format": "json"})
    await model.answer("Hi ", "there")
    await got(asked)
    again = await got(turn(session, headers=KEY, params={"format": form}))

    assert again.headers["Idempotency-Replayed"] == "true"
    assert (b"Hi there" if form != "sse" else b"response.done") in again.body
    assert len(model.of("response.create")) == 1


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("form", ["sse", "ndjson"])
async def test_repeat_goes_on_behind_what_was_seen(
    session: Session, model: Model, form: str, done: bool
) -> None:
    """A repeat continues after `Last-Event-ID`, both in a running turn and in a stored answer."""
    first = turn(session, {"input": "Hello"}, headers=KEY, params={"format": form})
    id_ = model.begin(await model.asked())
    model.speak(id_, "1", "2", "3")
    if done:
        model.end(id_, "1234")
        await got(first)
    seen = {**KEY, "Last-Event-ID": session.id_after(4)}
    second = turn(session, {"input": "Hello"}, headers=seen, params={"format": form})
    await until(lambda: session.harness.facts.of("idempotent_replay") == [()])
    if not done:
        model.speak(id_, "4")
        model.end(id_, "1234")
    answer = await got(second)
    words = [word for word in "1234" if f'"delta": "{word}"'.encode() in answer.body]

    assert words == (["3"] if done else ["3", "4"])
    assert b"gateway.gap" not in answer.body


@pytest.mark.parametrize(
    ("cursor", "status", "gap"), [("earliest", 200, False), ("zzzz-3", 200, True), ("NONE", 400, False)]
)
async def test_repeat_with_another_cursor(
    session: Session, model: Model, cursor: str, status: int, gap: bool
) -> None:
    """A cursor before the turn starts at the turn; one that names no event is a gap; one with invalid characters is
    refused."""
    asked = turn(session, {"input": "Hello"}, headers=KEY, params={"format": "sse"})
    await model.answer("1")
    await got(asked)
    headers = {**KEY, "Last-Event-ID": cursor}
    answer = await got(turn(session, {"input": "Hello"}, headers=headers, params={"format": "sse"}))

    assert (answer.status, b"gateway.gap" in answer.body) == (status, gap)
    assert (b'"delta": "1"' in answer.body) == (status == 200)
    assert b"session.created" not in answer.body


async def test_first_request_ignores_a_stale_cursor(session: Session, model: Model) -> None:
    """The first request ignores a cursor, because a client that posts turns in a loop may still send the one of the
    turn before."""
    headers = {**KEY, "Last-Event-ID": "zzzz-3"}
    asked = turn(session, {"input": "Hello"}, headers=headers, params={"format": "sse"})
    await model.answer("1")
    answer = await got(asked)

    assert (answer.status, b"gateway.gap" in answer.body) == (200, False)


async def test_key_of_another_body_is_refused(session: Session, model: Model) -> None:
    """A key that was used with another body is refused with 422."""
    asked = turn(session, {"input": "Hello"}, headers=KEY)
    await model.answer("Hi")
    await got(asked)
    answer = await got(turn(session, {"input": "Goodbye"}, headers=KEY))

    assert (answer.status, answer.code) == (422, "idempotency-key-reused")


async def test_rate_limited_turn_may_be_tried_again(session: Session, model: Model) -> None:
    """A rate-limited turn may be repeated with its key, because it produced no answer."""
    error = {"code": "rate_limit_exceeded", "message": "Slow down."}
    asked = turn(session, {"input": "Hello"}, headers=KEY)
    model.end(model.begin(await model.asked()), None, "failed", error)
    assert (await got(asked)).status == 429
    again = turn(session, {"input": "Hello"}, headers=KEY)
    await model.answer("Hi", count=2)

    assert (await got(again)).json["output_text"] == "Hi"


@pytest.mark.slow
async def test_wait_gives_the_request_back(session: Session, model: Model) -> None:
    """202 is returned while the turn continues; a repeat with the same key gets the answer later."""
    asked = turn(session, {"input": "Hello"}, headers=KEY, params={"wait": "1"})
    id_ = model.begin(await model.asked())
    early = await got(asked)
    model.end(id_, "Hi")
    late = await got(turn(session, {"input": "Hello"}, headers=KEY, params={"wait": "1"}))

    assert (early.status, early.json, "Retry-After" in early.headers) == (
        202,
        {"status": "in_progress"},
        True,
    )
    assert (late.status, late.json["output_text"]) == (200, "Hi")


@pytest.mark.parametrize(("wait", "headers"), [("1", {}), ("0", KEY), ("56", KEY), ("x", KEY)])
async def test_wait_needs_a_key_and_sense(session: Session, wait: str, headers: dict[str, str]) -> None:
    """`wait` needs a key, because otherwise the answer could not be requested again."""
    answer = await got(turn(session, {"input": "Hello"}, headers=headers, params={"wait": wait}))

    assert (answer.status, answer.code) == (400, "invalid-parameter")


# --- its own session ---------------------------------------------------------------------------------------------


async def test_own_turn_opens_and_closes_its_session(harness: Harness, model: Model) -> None:
    """The session is opened as the body says, and nothing stays open afterwards."""
    asked = post(harness, "/v1/turns", {"input": "Hello", "session": {"instructions": "Rhyme."}})
    await model.answer("Hi")
    answer = await got(asked)
    (request,) = harness.far_end.requests
    await until(lambda: harness.far_end.closed == 1)

    assert answer.json["output_text"] == "Hi"
    assert request.session["instructions"] == "Rhyme."
    assert harness.hub.find(answer.json["session_id"], None).view().state == "closed"


async def test_refused_opening_is_told(harness: Harness) -> None:
    """If the session cannot be opened, the error is that of a create."""
    harness.far_end.refusal = UpstreamError("upstream-rejected", "No such model.")
    answer = await got(post(harness, "/v1/turns"))

    assert (answer.status, answer.code) == (502, "upstream-rejected")


async def test_leaving_client_ends_its_own_turn(harness: Harness, model: Model) -> None:
    """The response is cancelled and the session closed, because no client is left to read it."""
    asked = post(harness, "/v1/turns")
    model.begin(await model.asked())
    asked.cancel()
    await until(lambda: harness.far_end.closed == 1)

    assert [event["response_id"] for event in model.of("response.cancel")] == ["resp_1"]
    assert harness.hub.all_sessions()[0].close_reason == "client"


async def test_client_that_leaves_while_opening_ends_it(harness: Harness) -> None:
    """If the client leaves while the session opens, no session remains."""
    gate = asyncio.Event()
    harness.far_end.gate = gate.wait
    asked = post(harness, "/v1/turns")
    await until(lambda: len(harness.far_end.requests) == 1)
    asked.cancel()
    await until(lambda: not harness.hub._opening)

    assert harness.hub.all_sessions() == []


async def test_client_with_a_key_may_come_back(harness: Harness, model: Model) -> None:
    """With a key the turn continues without its client, and the repeat finds it."""
    asked = post(harness, "/v1/turns", {"input": "Hello"}, headers=KEY)
    id_ = model.begin(await model.asked())
    asked.cancel()
    await until(lambda: harness.facts.of("http_answered") != [])
    again = post(harness, "/v1/turns", {"input": "Hello"}, headers=KEY)
    await until(lambda: harness.facts.of("idempotent_replay") == [()])
    model.end(id_, "Hi")

    assert (await got(again)).json["output_text"] == "Hi"
    assert len(harness.far_end.requests) == 1


async def test_leaving_client_leaves_a_sessions_turn_alone(session: Session, model: Model) -> None:
    """If a client leaves a turn of an existing session, the turn continues in the log."""
    asked = turn(session)
    id_ = model.begin(await model.asked())
    asked.cancel()
    await until(lambda: session.harness.facts.of("http_answered") != [])
    model.end(id_, "Hi")
    async with session.read() as log:
        types = [said(block)["type"] for block in await log.take(4)]

    assert types[-1] == "response.done"
    assert model.of("response.cancel") == []


async def test_closing_server_ends_turns(harness: Harness, model: Model) -> None:
    """A closing server ends turns, and no session remains open."""
    asked = post(harness, "/v1/turns", headers=KEY)
    await model.asked()
    await harness.hub.close()
    answer = await got(asked)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await harness.server.close()

    assert answer.status >= 400

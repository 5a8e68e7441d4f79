"""Section 1.4: a text turn in one request."""

import asyncio
import json
from typing import Any

import pytest

from tests.conformance.wire import EVENT_STREAM, JSON, LONG_QUESTION, Answer, Json, Session, Wire, item

HELLO = "Say hello."
FORM = "application/x-www-form-urlencoded"


async def turn(session: Session, body: Any, accept: str | None = JSON, **headers: str) -> Answer:
    """Run one turn in a session."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if accept:
        given["Accept"] = accept
    return await session.wire.call("POST", f"{session.path}/turns", body, headers=given)


def said(answer: Answer) -> str:
    """Return the text of a JSON answer's response, which must be complete."""
    assert answer.status == 200, answer.body
    assert answer.json["status"] == "completed", answer.json
    text: str = answer.json["output_text"]
    return text


# --- the body ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", [None, "text/plain", FORM])
async def test_plain_text_is_a_turn(session: Session, media_type: str | None) -> None:
    """A body that is not a JSON object is the text itself."""
    headers = {"Content_Type": media_type} if media_type else {}

    assert said(await turn(session, HELLO, **headers))


@pytest.mark.parametrize("media_type", [None, JSON, FORM])
async def test_a_json_object_is_a_turn(session: Session, media_type: str | None) -> None:
    """A body with curl's default type, or none, that parses as a JSON object is one."""
    headers = {"Content_Type": media_type} if media_type else {}
    answer = await turn(session, '{"input":"Say hello."}', **headers)
    items = await session.until("response.done")

    assert said(answer)
    assert [text_of(entry["event"]) for entry in items if is_question(entry["event"])] == [HELLO]


def is_question(event: Json) -> bool:
    """Return whether an event shows a user's message in the conversation."""
    return event["type"] == "conversation.item.added" and bool(event["item"].get("role") == "user")


def text_of(event: Json) -> str:
    """Return the text of a user's message."""
    text: str = event["item"]["content"][0]["text"]
    return text


async def test_plain_text_that_looks_like_json_stays_text(session: Session) -> None:
    """A plain text body is not parsed."""
    text = '{"input":"Say hello."}'
    await turn(session, text, Content_Type="text/plain")
    items = await session.until("response.done")

    assert [text_of(entry["event"]) for entry in items if is_question(entry["event"])] == [text]


async def test_input_may_be_items(session: Session) -> None:
    """A turn may add several conversation items before it asks for a response."""
    items = [item(text)["item"] for text in ("My name is Ada.", "What is my name?")]

    assert "Ada" in said(await turn(session, {"input": items}))


async def test_other_keys_go_into_the_response(session: Session) -> None:
    """Other members of the body become members of `response.create`."""
    answer = await turn(session, {"input": HELLO, "metadata": {"mine": "yes"}})
    done = (await session.until("response.done"))[-1]["event"]["response"]

    assert said(answer)
    assert done["metadata"]["mine"] == "yes"


@pytest.mark.parametrize("body", ["{}", '{"input":7}', '{"input":[7]}', '{"input":null}'])
async def test_a_turn_without_input_is_400(session: Session, body: str) -> None:
    """A JSON body without an input is refused."""
    assert (await turn(session, body, Content_Type=JSON)).status == 400


# --- the answer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", [None, "*/*", "text/plain"])
async def test_text_in_is_text_out(session: Session, accept: str | None) -> None:
    """Without a specific `Accept`, a text body is answered with text."""
    answer = await turn(session, HELLO, accept)

    assert (answer.status, answer.media_type) == (200, "text/plain")
    assert answer.body.decode().strip()


async def test_text_streams_as_it_comes(session: Session) -> None:
    """The beginning of an answer arrives before the answer is complete."""
    wire = session.wire
    async with wire.http.post(
        f"{wire.url}{session.path}/turns", data=LONG_QUESTION, headers=wire._headers({"Accept": "text/plain"})
    ) as answer:
        first = await answer.content.readany()
        state = [entry["event"]["type"] for entry in (await session.poll(wait=0, limit=1000)).json["events"]]
        rest = await answer.content.read()

    assert first
    assert "response.done" not in state
    assert rest


async def test_json_has_the_members_of_the_contract(session: Session) -> None:
    """The JSON answer holds the text, the output, the usage, and the position of the log."""
    answer = await turn(session, HELLO)
    done = (await session.until("response.done"))[-1]
    body = answer.json

    assert said(answer)
    assert body.keys() >= {"id", "status", "output_text", "output", "usage", "error", "session_id", "head"}
    assert (body["id"], body["session_id"], body["error"]) == (
        done["event"]["response"]["id"],
        session.id,
        None,
    )
    assert body["output"] == done["event"]["response"]["output"]
    assert body["usage"] == done["event"]["response"]["usage"]


async def test_an_event_stream_has_the_turns_events(session: Session) -> None:
    """The turn's events have the form of all streams and end with its `response.done`."""
    answer = await turn(session, HELLO, EVENT_STREAM)
    blocks = [block for block in answer.blocks if block.data is not None]
    types = [block.type for block in blocks]
    log = {entry["id"]: entry["event"] for entry in await session.until("response.done")}

    assert (answer.status, answer.media_type) == (200, EVENT_STREAM)
    assert types[0] == "gateway.open"
    assert types[-1] == "response.done"
    assert "session.created" not in types
    assert {"response.created", "response.output_text.delta"} <= set(types)
    assert all(log[block.id] == block.value for block in blocks if block.event == "message" and block.id)


async def test_json_lines_have_the_turns_events(session: Session) -> None:
    """The same events as JSON lines."""
    answer = await turn(session, HELLO, "application/x-ndjson")
    lines = [json.loads(line) for line in answer.body.splitlines() if line]
    log = {entry["id"]: entry["event"] for entry in await session.until("response.done")}

    assert (answer.status, answer.media_type) == (200, "application/x-ndjson")
    assert (lines[0]["id"], lines[0]["event"]["type"]) == (None, "gateway.open")
    assert lines[-1]["event"]["type"] == "response.done"
    assert all(log[line["id"]] == line["event"] for line in lines[1:])


async def test_a_repeated_turn_goes_on_behind_the_last_event_id(session: Session) -> None:
    """A client that was cut off gets the remaining events of the same turn."""
    first = await turn(session, HELLO, EVENT_STREAM, Idempotency_Key="resumed")
    seen = [block for block in first.blocks if block.event == "message" and block.data is not None]
    half = seen[len(seen) // 2]
    again = await turn(session, HELLO, EVENT_STREAM, Idempotency_Key="resumed", Last_Event_ID=str(half.id))
    rest = [block.id for block in again.blocks if block.event == "message" and block.data is not None]

    assert rest == [block.id for block in seen[seen.index(half) + 1 :]]


@pytest.mark.parametrize("body", ['{"input":"Hi",}', "{'input':'Hi'}", "[Hi]"])
@pytest.mark.parametrize("media_type", [FORM, None])
async def test_broken_json_is_not_asked_as_text(session: Session, body: str, media_type: str | None) -> None:
    """The problem for broken JSON says how to send it as text."""
    headers = {"Content_Type": media_type} if media_type else {}
    answer = await turn(session, body, None, **headers)

    assert "text/plain" in answer.problem(400, "invalid-json")["detail"]


async def test_a_form_with_an_input_is_a_turn(session: Session) -> None:
    """A form with an `input`, as jQuery and Apps Script encode an object, is a turn."""
    answer = await turn(session, "input=Repeat+after+me%3A+one+two", None, Content_Type=FORM)

    assert (answer.status, answer.media_type, answer.body) == (200, "text/plain", b"one two")


async def test_a_turn_can_be_done_by_format(session: Session) -> None:
    """`?format=` chooses the form of the answer where `Accept` cannot be set."""
    path = f"{session.path}/turns"
    answers = {
        name: await session.wire.call("POST", path, HELLO, query={"format": name})
        for name in ("json", "sse", "text")
    }

    assert {name: answer.media_type for name, answer in answers.items()} == {
        "json": JSON,
        "sse": EVENT_STREAM,
        "text": "text/plain",
    }


async def test_a_turn_without_text_is_406(session: Session) -> None:
    """A turn that asks for an audio response has no text to stream, so it is refused."""
    answer = await turn(session, {"input": HELLO, "output_modalities": ["audio"]}, "text/plain")

    answer.problem(406, "no-text-output")


async def test_a_refused_response_is_502_with_what_the_service_said(session: Session) -> None:
    """An error that OpenAI reports for the turn's event becomes the problem."""
    answer = await turn(session, {"input": HELLO, "nobody_knows": True})
    problem = answer.problem(502, "upstream-rejected")

    assert problem["upstream"]["message"]


# --- several turns ----------------------------------------------------------------------------------------------------


async def test_turns_of_one_session_queue_in_order(session: Session) -> None:
    """Turns that overlap are answered one after the other, each with its own answer."""
    first = asyncio.create_task(turn(session, "Repeat after me: one"))
    await session.until("response.created")
    second = asyncio.create_task(turn(session, "Repeat after me: two"))

    assert [said(await task).strip() for task in (first, second)] == ["one", "two"]


async def test_a_turn_waits_behind_an_active_response(session: Session) -> None:
    """A turn does not disturb another client's response."""
    receipt = await session.send(item(LONG_QUESTION), {"type": "response.create"})
    answer = await turn(session, HELLO)
    log = await session.until("response.done", after=receipt["head"])

    assert said(answer)
    assert log[-1]["event"]["response"]["status"] == "completed"
    assert log[-1]["event"]["response"]["id"] != answer.json["id"]


async def test_a_full_queue_is_429(session: Session) -> None:
    """Eight turns can wait behind the running one; another one is refused with `Retry-After`."""
    running = asyncio.create_task(turn(session, LONG_QUESTION))
    await session.until("response.created")
    waiting = [asyncio.create_task(turn(session, HELLO)) for _ in range(9)]
    answers = await asyncio.gather(running, *waiting)
    refused = [answer for answer in answers if answer.status != 200]

    assert len(refused) == 1
    refused[0].problem(429, "turn-queue-full")
    assert int(refused[0].headers["Retry-After"]) > 0


async def test_a_turn_goes_on_when_its_client_leaves(session: Session) -> None:
    """A session's turn is logged completely whether or not a client waits for it."""
    task = asyncio.create_task(turn(session, LONG_QUESTION))
    await session.until("response.created")
    task.cancel()
    done = (await session.until("response.done"))[-1]["event"]["response"]

    assert done["status"] == "completed"


# --- retries ----------------------------------------------------------------------------------------------------------


async def test_a_repeated_turn_gives_the_stored_answer(session: Session) -> None:
    """With an Idempotency-Key, a repeat gets the stored answer and causes no second response and no second charge."""
    first = await turn(session, HELLO, Idempotency_Key="once")
    again = await turn(session, HELLO, Idempotency_Key="once")
    log = (await session.poll(wait=0, limit=1000)).json["events"]

    assert said(first) == said(again)
    assert first.json["id"] == again.json["id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert [entry["event"]["type"] for entry in log].count("response.created") == 1


async def test_a_turn_repeated_meanwhile_attaches(session: Session) -> None:
    """While the first request runs, the same request gets its turn from the first event."""
    answers = await asyncio.gather(
        *(turn(session, LONG_QUESTION, "text/plain", Idempotency_Key="once") for _ in range(2))
    )

    assert answers[0].body == answers[1].body != b""
    assert {answer.status for answer in answers} == {200}


async def test_another_turn_under_a_used_key_is_422(session: Session) -> None:
    """A key that was used for another turn is refused."""
    await turn(session, HELLO, Idempotency_Key="once")

    (await turn(session, "Something else", Idempotency_Key="once")).problem(422, "idempotency-key-reused")


@pytest.mark.slow
async def test_a_turn_that_takes_longer_than_the_wait_is_202(session: Session) -> None:
    """With `?wait=` and a key, a client can ask again for the answer of a turn that takes longer."""
    path, headers = f"{session.path}/turns", {"Idempotency-Key": "once", "Accept": JSON}
    question = "Write 600 words about rivers"
    first = await session.wire.call("POST", path, question, headers=headers, query={"wait": 1})
    last = await session.wire.call("POST", path, question, headers=headers, query={"wait": 55})

    assert (first.status, first.json["status"]) == (202, "in_progress")
    assert int(first.headers["Retry-After"]) >= 0
    assert said(last)


async def test_a_wait_needs_a_key(session: Session) -> None:
    """Without a key no client could ask again for the answer, so `?wait=` is refused."""
    answer = await session.wire.call(
        "POST", f"{session.path}/turns", HELLO, query={"wait": 1, "format": "json"}
    )

    answer.problem(400, "invalid-parameter")


# --- without a session ------------------------------------------------------------------------------------------------


async def test_a_turn_makes_its_own_session(wire: Wire) -> None:
    """A turn without a session opens one for itself."""
    answer = await wire.call("POST", "/v1/turns", HELLO, headers={"Accept": "text/plain"})

    assert answer.status == 200
    assert answer.body.decode().strip()


async def test_the_session_of_a_turn_is_closed_after_it(wire: Wire) -> None:
    """The session of such a turn is closed afterwards, so that it costs nothing more."""
    answer = await wire.call("POST", "/v1/turns", {"input": HELLO}, headers={"Accept": JSON})
    path = f"/v1/sessions/{answer.json['session_id']}"
    async with asyncio.timeout(10):
        while (session := (await wire.call("GET", path)).json)["state"] != "closed":
            await asyncio.sleep(0.05)

    assert said(answer)
    assert session["close_reason"] == "client"


async def test_a_turn_of_its_own_takes_a_session_object(wire: Wire) -> None:
    """`session` in the body has the same meaning as in a create."""
    body = {"input": HELLO, "session": {"instructions": 'Always answer with "Aye".'}}
    answer = await wire.call("POST", "/v1/turns", body, headers={"Accept": JSON})

    assert said(answer).strip() == "Aye"


async def test_a_turn_of_its_own_streams_events(wire: Wire) -> None:
    """The event stream of a turn ends cleanly with its response."""
    answer = await wire.call("POST", "/v1/turns", HELLO, headers={"Accept": EVENT_STREAM})
    blocks = [block for block in answer.blocks if block.data is not None]

    assert blocks[-1].type == "response.done"
    assert blocks[-1].value["response"]["status"] == "completed"


async def test_a_repeated_turn_of_its_own_is_replayed(wire: Wire) -> None:
    """A repeat on `/v1/turns` with the same key opens no second session and is charged once."""
    headers = {"Accept": JSON, "Idempotency-Key": "own-turn-once"}
    first = await wire.call("POST", "/v1/turns", HELLO, headers=headers)
    again = await wire.call("POST", "/v1/turns", HELLO, headers=headers)

    assert said(first) == said(again)
    assert first.json["id"] == again.json["id"]
    assert first.json["session_id"] == again.json["session_id"]

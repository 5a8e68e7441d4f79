"""Turns whose response goes wrong, takes too long, or is not waited for (docs/api.md, 4 Turns)."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from gateway.app import Gateway
from gateway.client import BlockParser
from tests.e2e.caller import Caller, Json, Serve
from tests.farend import FarEnd
from tests.waiting import until

pytestmark = pytest.mark.slow

QUESTION = "Write 60 words about rain"
TEXT = {"Accept": "text/plain"}
JSON = {"Accept": "application/json"}
EVENTS = {"Accept": "text/event-stream"}


async def types_received(far_end: FarEnd, call_id: str) -> list[str]:
    """Return the types of what a call's client has sent."""
    return [json.loads(frame)["type"] for frame in await far_end.received(call_id)]


async def cancelled(far_end: FarEnd, call_id: str) -> bool:
    """Return whether a call's client has cancelled a response."""
    return "response.cancel" in await types_received(far_end, call_id)


async def test_a_failed_response_is_an_answer(caller: Caller, far_end: FarEnd) -> None:
    """As in OpenAI's Responses, `failed` is 200 with the error inside."""
    await far_end.faults(response_error="server_error")
    answer, turn = await caller.ask("POST", "/v1/turns", QUESTION, headers=JSON)

    assert (answer.status, turn["status"]) == (200, "failed")
    assert turn["error"]["code"] == "server_error"


async def test_a_failed_response_is_a_problem_to_who_wants_text(caller: Caller, far_end: FarEnd) -> None:
    """Before the first delta, a text answer can still become a problem object."""
    await far_end.faults(response_error="server_error")
    answer, problem = await caller.ask("POST", "/v1/turns", QUESTION, headers=TEXT)

    assert (answer.status, problem["code"]) == (502, "upstream-failed")


async def test_a_failed_response_ends_an_event_stream_as_it_came(caller: Caller, far_end: FarEnd) -> None:
    """A reader of events gets the failure as the service wrote it."""
    await far_end.faults(response_error="server_error", fail_after_deltas=3)
    answer, body = await caller.ask("POST", "/v1/turns", QUESTION, headers=EVENTS)
    blocks = [json.loads(block.data) for block in BlockParser().feed(body) if block.data]

    assert answer.status == 200
    assert [block["type"] for block in blocks].count("response.output_text.delta") == 3
    assert (blocks[-1]["type"], blocks[-1]["response"]["status"]) == ("response.done", "failed")


@pytest.mark.parametrize("headers", [TEXT, JSON], ids=["text", "json"])
async def test_an_upstream_rate_limit_is_429(
    caller: Caller, far_end: FarEnd, headers: dict[str, str]
) -> None:
    """The service's own rate limit is passed on as 429 with Retry-After."""
    await far_end.faults(response_error="rate_limit_exceeded")
    answer, problem = await caller.ask("POST", "/v1/turns", QUESTION, headers=headers)

    assert (answer.status, problem["code"], problem["retryable"]) == (429, "upstream-rate-limited", True)
    assert int(answer.headers["Retry-After"]) > 0


async def test_an_incomplete_response_says_so(caller: Caller, far_end: FarEnd) -> None:
    """An answer that reached its token limit is 200 with status `incomplete`."""
    await far_end.faults(response_incomplete="max_output_tokens")
    answer, turn = await caller.ask("POST", "/v1/turns", QUESTION, headers=JSON)

    assert (answer.status, turn["status"], turn["error"]) == (200, "incomplete", None)


@pytest.mark.parametrize("headers", [JSON, TEXT], ids=["json", "text"])
async def test_a_response_that_never_begins_is_504(
    serve: Serve, far_end: FarEnd, headers: dict[str, str]
) -> None:
    """After `turn_timeout_seconds` the response is cancelled, and the problem names the phase."""
    gateway = await serve(far_end, relay={"turn_timeout_seconds": 1})
    await far_end.faults(first_delta_seconds=60)
    async with Caller(gateway.url) as caller:
        session = await caller.open()
        path = f"/v1/sessions/{session['id']}/turns"
        answer, problem = await caller.ask("POST", path, QUESTION, headers=headers)
        await until(lambda: cancelled(far_end, session["call_id"]))

        assert (answer.status, problem["code"], problem["phase"]) == (504, "upstream-timeout", "response")
        _, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")
        assert now["state"] == "connected"


async def test_a_turn_of_its_own_is_cancelled_when_its_client_leaves(
    gateway: Gateway, caller: Caller, far_end: FarEnd
) -> None:
    """When the client leaves, the response is cancelled and the session closed, so nothing more is billed."""
    await far_end.faults(tokens_per_second=20)
    await left_after_some(caller, "/v1/turns")
    call_id = await newest_call(far_end)
    await until(lambda: cancelled(far_end, call_id))
    await until(lambda: ended(far_end, call_id))


async def test_a_sessions_turn_goes_on_when_its_client_leaves(caller: Caller, far_end: FarEnd) -> None:
    """The response is in the log even after its client left."""
    await far_end.faults(tokens_per_second=200)
    session = await caller.open()
    await left_after_some(caller, f"/v1/sessions/{session['id']}/turns")
    done = (await caller.until(session["id"], "response.done"))[-1].value

    assert done["response"]["status"] == "completed"
    assert not await cancelled(far_end, session["call_id"])


async def left_after_some(caller: Caller, path: str) -> None:
    """Ask for text and leave in the middle of the answer."""
    async with aiohttp.ClientSession() as http:
        answer = await http.post(
            caller.url + path, data=QUESTION, headers=TEXT | {"Content-Type": "text/plain"}
        )
        assert await answer.content.readany()
        answer.close()


async def newest_call(far_end: FarEnd) -> str:
    """Return the id of the call that was opened last."""
    calls = (await far_end._ask("GET", "/calls"))["data"]
    return str(calls[-1]["id"])


async def ended(far_end: FarEnd, call_id: str) -> bool:
    """Return whether a call is over at the far end."""
    return (await far_end.call(call_id))["end_reason"] is not None


async def test_an_answer_that_outran_a_small_log_is_not_taken_for_whole(
    serve: Serve, far_end: FarEnd
) -> None:
    """A text answer is cut off or refused if the log dropped an unread part of it."""
    gateway = await serve(far_end, relay={"log_max_events": 5})
    async with Caller(gateway.url) as caller:
        try:
            answer, said = await caller.ask("POST", "/v1/turns", "Write 2000 words about rain", headers=TEXT)
        except aiohttp.ClientPayloadError:
            return

        assert answer.status >= 400 or len(said.split()) >= 2000


async def test_a_function_call_is_answered_by_its_output(caller: Caller, far_end: FarEnd) -> None:
    """A turn may end in a function call, and the next one contains the function's output."""
    tool = {
        "type": "function",
        "name": "get_weather",
        "description": "Tell the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    session = await caller.open(session={"tools": [tool]})
    path = f"/v1/sessions/{session['id']}/turns"
    _, asked = await caller.ask("POST", path, {"input": "What is the weather in Paris?"}, headers=JSON)
    call = next(item for item in asked["output"] if item["type"] == "function_call")
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": '{"sky":"purple"}'}
    answer, told = await caller.ask("POST", path, {"input": [output]}, headers=JSON)

    assert "Paris" in call["arguments"]
    assert answer.status == 200, told
    assert "purple" in told["output_text"]


async def test_turns_of_many_sessions_do_not_mix(caller: Caller, far_end: FarEnd) -> None:
    """Thirty simultaneous conversations each get their own answers."""

    async def converse(number: int) -> Any:
        session: Json = await caller.open()
        path = f"/v1/sessions/{session['id']}/turns"
        await caller.ask("POST", path, f"My favourite number is {number}.", headers=JSON)
        _, turn = await caller.ask("POST", path, f"Repeat after me: {number} it is", headers=JSON)
        await caller.ask("DELETE", f"/v1/sessions/{session['id']}")
        return turn["output_text"]

    answers = await asyncio.gather(*map(converse, range(30)))

    assert answers == [f"{number} it is" for number in range(30)]

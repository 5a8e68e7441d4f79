"""The brain that asks a chat completions server, with a small server made here."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from gateway.emulator.brain.chat import ChatBrain
from gateway.emulator.protocol.brain import BrainError, FunctionCall, Prompt
from tests.emulator.caller import Caller
from tests.emulator.talk import Talk
from tests.serving import serving

WEATHER = {"type": "function", "name": "weather", "description": "d", "parameters": {"type": "object"}}


class Model:
    """A chat completions server that records its requests and streams `script` as its answer."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.script: list[str] = []
        self.status = 200
        self.kind = "text/event-stream"
        self.hold = asyncio.Event()
        self.hold.set()
        self.left = asyncio.Event()
        self.url = ""

    def deltas(self, *deltas: dict[str, Any]) -> None:
        chunks = [json.dumps({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
        self.script = [": a comment\n\n", *(f"data: {chunk}\n\n" for chunk in chunks), "data: [DONE]\n\n"]

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        self.keys.append(request.headers.get("Authorization"))
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        response = web.StreamResponse(headers={"Content-Type": self.kind})
        await response.prepare(request)
        try:
            for part in self.script:
                await response.write(part.encode())
            await self.hold.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        return response


@pytest_asyncio.fixture
async def model() -> AsyncIterator[Model]:
    """Run a chat completions server."""
    one = Model()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", one.complete)
    async with serving(app, handler_cancellation=True) as url:
        one.url = f"{url}/v1"
        yield one


@pytest_asyncio.fixture
async def brain(model: Model) -> AsyncIterator[ChatBrain]:
    """Return a brain that asks it."""
    one = ChatBrain(model.url + "/", "small", "secret")
    yield one
    await one.close()


async def test_answer_is_streamed_as_it_comes(model: Model, brain: ChatBrain) -> None:
    """Each piece of the completion is passed on before the next one exists; empty pieces are skipped."""
    model.deltas({"role": "assistant", "content": ""}, {"content": "Grü"}, {"content": "ße"})
    answer = brain.answer(Prompt("Be brief.", [], [], "auto", "gpt-realtime"))

    assert [p async for p in answer] == ["Grü", "ße"]
    assert model.keys == ["Bearer secret"]
    assert model.requests[0] == {
        "model": "small",
        "stream": True,
        "messages": [{"role": "system", "content": "Be brief."}],
    }


async def test_conversation_becomes_messages(model: Model, brain: ChatBrain) -> None:
    """Messages, calls and their outputs are sent in the form of chat completions, with the tools and the tool
    choice."""
    model.deltas({"content": "ok"})
    items: list[dict[str, Any]] = [
        {"id": "1", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {
            "id": "2",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "yo"}],
        },
        {"id": "3", "type": "function_call", "name": "weather", "call_id": "c1", "arguments": "{}"},
        {"id": "4", "type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"id": "5", "type": "mcp_approval_response", "approval_request_id": "x", "approve": True},
    ]
    choice = {"type": "function", "name": "weather"}
    assert [p async for p in brain.answer(Prompt("", items, [WEATHER], choice, "gpt-realtime"))] == ["ok"]

    request = model.requests[0]
    called = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    assert request["messages"][1:] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    assert request["tools"][0]["function"]["name"] == "weather"
    assert request["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


async def test_function_calls_are_put_together(model: Model, brain: ChatBrain) -> None:
    """Mixed pieces of two calls become two complete calls in order."""
    model.deltas(
        {"tool_calls": [{"index": 1, "function": {"name": "b", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"name": "a", "arguments": '{"x"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
    )
    pieces = [p async for p in brain.answer(Prompt("", [], [], "auto", "gpt-realtime"))]

    assert pieces == [FunctionCall("a", '{"x":1}'), FunctionCall("b", "{}")]


@pytest.mark.parametrize(("status", "script"), [(500, []), (401, []), (200, ["data: {not json\n\n"])])
async def test_failure_is_told(status: int, script: list[str], model: Model, brain: ChatBrain) -> None:
    """An error status and a broken stream both end as BrainError."""
    model.status, model.script = status, script
    with pytest.raises(BrainError):
        [p async for p in brain.answer(Prompt("", [], [], "auto", "gpt-realtime"))]


@pytest.mark.parametrize(
    ("status", "kind", "script", "told"),
    [
        (404, "", [], r"answered 404: no\."),
        (200, "text/event-stream", ['data: {"error":{"message":"out of memory"}}\n\n'], r"failed: out of memory\."),
        (200, "text/event-stream", ['data: {"error":"out of memory."}\n\n'], r"failed: out of memory\."),
        (200, "application/json", ['{"choices":[{"message":{"content":"Hello"}}]}'], "does not stream"),
    ],
)  # fmt: skip
async def test_failure_is_told_in_the_servers_words(
    status: int, kind: str, script: list[str], told: str, model: Model, brain: ChatBrain
) -> None:
    """A missing model, an error in the middle of the stream, and a server that cannot stream all raise an error
    instead of an empty answer."""
    model.status, model.kind, model.script = status, kind, script
    with pytest.raises(BrainError, match=told):
        [p async for p in brain.answer(Prompt("", [], [], "auto", "gpt-realtime"))]


async def test_failed_completion_is_a_failed_response(talk: Callable[..., Talk]) -> None:
    """If the model server cannot be reached the response fails, and the session continues."""
    brain = ChatBrain("http://127.0.0.1:9/v1", "small", None)
    try:
        one = talk(brain=brain)
        one.user("Hello")
        done = await one.respond()
    finally:
        await brain.close()

    assert done["status"] == "failed"
    assert done["status_details"]["error"]["type"] == "server_error"


async def test_cancelled_response_leaves_the_model_server(
    model: Model, brain: ChatBrain, talk: Callable[..., Talk]
) -> None:
    """`response.cancel` closes the request, so that the model stops working."""
    model.deltas({"content": "one"})
    model.script.pop()
    model.hold.clear()
    one = talk(brain=brain)
    one.user("Hello")
    one.send("response.create")
    await one.until(lambda: "response.output_text.delta" in one.types)
    one.send("response.cancel")

    await asyncio.wait_for(model.left.wait(), 10)
    assert one.last("response.done")["response"]["status"] == "cancelled"


async def test_whole_emulator_answers_with_the_model(
    model: Model, emulate: Callable[..., Any], call: Callable[..., Any]
) -> None:
    """With `brain_url` a turn over a real channel is answered by the model server."""
    model.deltas({"content": "I am"}, {"content": " a model."})
    caller: Caller = await call(await emulate(brain_url=model.url, brain_model="m"))

    assert await caller.ask("Who are you?") == "I am a model."

"""The official `openai` package against the emulator: its models parse every event, its client every answer."""

import asyncio
import importlib
import json
import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from pydantic import TypeAdapter

from gateway.emulator.faults import Faults
from gateway.emulator.protocol.catalog import EVENTS
from tests.emulator.caller import Caller
from tests.emulator.talk import SPEECH, Talk

Json = dict[str, Any]
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Look up the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
# Two that are in no recording of the present service, and one that only telephone calls cause.
UNHEARD = {
    "conversation.created",
    "conversation.item.created",
    "input_audio_buffer.dtmf_event_received",
}


@pytest.fixture(scope="module")
def openai() -> Any:
    """Import the package, in CI always, elsewhere if it is installed. It takes a second, so not during collection."""
    if os.environ.get("CI"):
        return importlib.import_module("openai")
    return pytest.importorskip("openai", reason="the openai package is not installed, and these tests run it")


@pytest.fixture(scope="module")
def realtime(openai: Any) -> Any:
    """Import the package's types of the Realtime API."""
    return importlib.import_module("openai.types.realtime")


def at_once(delay: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
    """Let a timer expire without waiting."""
    loop = asyncio.get_running_loop()
    return loop.call_at(loop.time(), callback, *args)


async def everything(talk: Callable[..., Talk]) -> list[Json]:
    """Let a few sessions send every event that the emulator can send."""
    return [*await conversing(talk), *await listening(talk), *await calling_servers(talk)]


async def listening(talk: Callable[..., Talk]) -> list[Json]:
    """Let sessions receive audio, transcribe it, fail to transcribe it, and wait in vain for a user."""
    said: list[Json] = []
    transcription = {"model": "gpt-4o-transcribe-diarize"}
    turns = {"type": "server_vad", "silence_duration_ms": 200, "idle_timeout_ms": 5000}
    audio = {"input": {"transcription": transcription, "turn_detection": turns}}
    logprobs = ["item.input_audio_transcription.logprobs"]
    for faults in (Faults(), Faults(transcription_error="audio_unintelligible")):
        one = talk(session={"audio": audio, "include": logprobs}, faults=faults, carries_audio=True)
        with mock.patch.object(asyncio.get_running_loop(), "call_later", at_once):
            one.send("input_audio_buffer.append", audio=SPEECH)
            await one.until(lambda one=one: "input_audio_buffer.timeout_triggered" in one.types)  # type: ignore[misc] # bound at once
        said += one.said
    bare = talk(
        session={"type": "transcription", "audio": {"input": {"transcription": {"model": "whisper-1"}}}}
    )
    bare.realtime.opened()
    bare.send(
        "session.update", session={"type": "transcription", "audio": {"input": {"turn_detection": None}}}
    )
    bare.send("input_audio_buffer.append", audio=SPEECH)
    bare.send("input_audio_buffer.commit")
    return said + bare.said


async def calling_servers(talk: Callable[..., Talk]) -> list[Json]:
    """Let sessions import tools, fail to import, call them, fail to call, and ask for approval."""
    said: list[Json] = []
    for approval in ("never", "always"):
        for fault in (None, "call"):
            tools = [
                {
                    "type": "mcp",
                    "server_label": label,
                    "server_url": "https://x.example",
                    "require_approval": approval,
                }
                for label in ("demo", "nowhere")
            ]
            one = talk(session={"tools": tools}, faults=Faults(mcp_error=fault))
            one.realtime.opened()
            one.user("Roll the dice")
            asked = (await one.respond())["output"][-1]
            if approval == "always":
                answer = {
                    "type": "mcp_approval_response",
                    "approval_request_id": asked["id"],
                    "approve": True,
                }
                one.send("conversation.item.create", item=answer)
            await one.respond(tool_choice="none")
            said += one.said
    return said


async def conversing(talk: Callable[..., Talk]) -> list[Json]:
    """Let sessions converse, in text and in audio, over a call and over a WebSocket."""
    said: list[Json] = []
    for model in ("gpt-realtime", "gpt-realtime-2.1"):
        for modality, carried in (("text", False), ("audio", False), ("audio", True)):
            session = {"model": model, "output_modalities": [modality], "tools": [WEATHER]}
            one = talk(session=session, carries_audio=carried)
            one.realtime.opened()
            one.send("session.update", session={"type": "realtime", "instructions": "Be brief."})
            one.user("Hello", id="item_hello")
            await one.respond()
            one.user("How is the weather in Oslo?")
            called = (await one.respond())["output"][-1]
            output = {"type": "function_call_output", "call_id": called["call_id"], "output": "Rain."}
            one.send("conversation.item.create", item=output)
            spoken = (await one.respond(metadata={"a": "b"}))["output"][0]
            await one.respond(conversation="none", input=[], max_output_tokens=2)
            one.user("Count to 20")
            one.send("response.create")
            if modality == "audio" and not carried:
                await one.until(lambda one=one: one.types[-1] == "output_audio_buffer.started")  # type: ignore[misc] # bound at once
            one.send("response.create")
            one.send("output_audio_buffer.clear")
            one.send("response.cancel")
            one.send("conversation.item.truncate", item_id=spoken["id"], content_index=0, audio_end_ms=100)
            one.send("conversation.item.retrieve", item_id="item_hello")
            one.send("conversation.item.delete", item_id="item_hello")
            one.send("input_audio_buffer.append", audio="AAAA" * 4000)
            one.send("input_audio_buffer.commit")
            one.send("input_audio_buffer.commit")
            one.send("input_audio_buffer.clear")
            one.send("session.update", session={})
            said += one.said
    failing = talk(faults=Faults(response_error="server_error"))
    failing.user("Hello")
    await failing.respond()
    return said + failing.said


async def test_models_read_every_event(talk: Callable[..., Talk], realtime: Any) -> None:
    """The package's union accepts each event that the emulator can send, as the model of its own type."""
    reader = TypeAdapter(realtime.RealtimeServerEvent)
    said = await everything(talk)

    for event in said:
        read = reader.validate_python(event)
        assert read.type == event["type"]
        kept = json.loads(read.model_dump_json(exclude_unset=True))
        assert kept.keys() == event.keys()


async def test_every_event_the_package_knows_is_said_or_listed(
    talk: Callable[..., Talk], realtime: Any
) -> None:
    """The events that the package can parse and the emulator never sends are exactly those of the list."""
    read = TypeAdapter(realtime.RealtimeServerEvent).json_schema()
    known = {
        read["$defs"][option["$ref"].rsplit("/", 1)[-1]]["properties"]["type"]["const"]
        for option in read["anyOf"]
    }
    said = {event["type"] for event in await everything(talk)}

    assert said - known == set()
    assert known - said == UNHEARD


def test_catalog_has_every_client_event_of_the_package(realtime: Any) -> None:
    """The emulator and the package know the same client events."""
    schema = TypeAdapter(realtime.RealtimeClientEvent).json_schema()
    known = {
        name
        for part in schema["$defs"].values()
        if isinstance(name := part.get("properties", {}).get("type", {}).get("const"), str)
        and "event_id" in part["properties"]
    }

    assert known == set(EVENTS)


async def test_client_accepts_the_http_answers(emulate: Callable[..., Any], openai: Any) -> None:
    """The package's client creates a secret, opens a call with it, hangs up, and parses both kinds of refusal."""
    emulator = await emulate()
    caller = Caller(emulator.base_url)
    client = openai.AsyncOpenAI(base_url=emulator.base_url, api_key="sk-test", max_retries=0)
    try:
        offer = await caller.offer()
        secret = await client.realtime.client_secrets.create(
            session={"type": "realtime", "model": "gpt-realtime", "output_modalities": ["text"]}
        )
        created = await client.realtime.calls.with_raw_response.create(
            sdp=offer, session={"type": "realtime", "output_modalities": ["text"]}
        )
        call_id = created.headers["location"].rsplit("/", 1)[-1]
        await client.realtime.calls.hangup(call_id)

        assert secret.value.startswith("ek_")
        assert secret.session.model == "gpt-realtime"
        assert created.status_code == 201
        with pytest.raises(openai.NotFoundError) as gone:
            await client.realtime.calls.hangup(call_id)
        assert gone.value.code == "call_id_not_found"
        with pytest.raises(openai.BadRequestError, match="audio media section"):
            await client.realtime.calls.create(
                sdp="v=0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n"
            )
    finally:
        await client.close()
        await caller.close()


@pytest.mark.parametrize("attached", [False, True])
async def test_client_speaks_and_calls_a_function_over_a_websocket(
    attached: bool, emulate: Callable[..., Any], call: Callable[..., Any], openai: Any
) -> None:
    """`realtime.connect` runs a text turn and a tool turn, in its own session and on another client's call."""
    emulator = await emulate()
    client = openai.AsyncOpenAI(base_url=emulator.base_url, api_key="sk-test", max_retries=0)
    to = {"call_id": (await call(emulator)).call_id} if attached else {"model": "gpt-realtime"}
    said: list[Any] = []
    try:
        async with client.realtime.connect(**to) as connection:
            session = {"type": "realtime", "output_modalities": ["text"], "tools": [WEATHER]}
            await connection.session.update(session=session)
            for item in (_user("Repeat after me: hello"), _user("What is the weather in Oslo?"), None):
                if item is None:
                    item = {"type": "function_call_output", "call_id": said[-1].call_id, "output": "Rain."}
                await connection.conversation.item.create(item=item)
                await connection.response.create()
                async for event in connection:
                    if event.type == "response.done":
                        said.append(event.response.output[0])
                        break
    finally:
        await client.close()

    assert said[0].content[0].text == "hello"
    assert json.loads(said[1].arguments) == {"city": "Oslo"}
    assert said[2].content[0].text == "Rain."


def _user(text: str) -> Json:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}

"""The protocol of a session without a network: client events in, server events out."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.emulator.protocol.catalog import EVENTS
from tests.emulator.talk import Talk

MakeTalk = Callable[..., Talk]
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Look up the weather for a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TURN = [
    "conversation.item.added",
    "conversation.item.done",
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
    "rate_limits.updated",
]


def error(talk: Talk) -> dict[str, Any]:
    """Return the last error."""
    told: dict[str, Any] = talk.last("error")["error"]
    return told


# -- the session -------------------------------------------------------------------------------------------------------


async def test_session_speaks_first(talk: MakeTalk) -> None:
    """`session.created` with the whole session object is sent before any client event."""
    one = talk()
    one.realtime.opened()

    assert one.types == ["session.created"]
    assert one.said[0]["session"]["id"] == "sess_u1_test"


async def test_update_changes_the_present_keys_only(talk: MakeTalk) -> None:
    """Members that an update does not name stay, also nested audio members; null turns detection off."""
    one = talk(session={"instructions": "Old."})
    one.send(
        "session.update",
        session={"type": "realtime", "max_output_tokens": 99, "audio": {"input": {"turn_detection": None}}},
    )
    session = one.last("session.updated")["session"]

    assert (session["instructions"], session["max_output_tokens"]) == ("Old.", 99)
    assert session["audio"]["input"]["turn_detection"] is None
    assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24000}


async def test_turn_detection_comes_back_complete(talk: MakeTalk) -> None:
    """Both kinds of detection are returned with their defaults."""
    one = talk()
    for kind in ("server_vad", "semantic_vad"):
        audio = {"input": {"turn_detection": {"type": kind}, "transcription": {"model": "m"}}}
        one.send("session.update", session={"type": "realtime", "audio": audio})
    server, semantic = (e["session"]["audio"]["input"] for e in one.said)

    assert server["turn_detection"]["silence_duration_ms"] == 200
    assert semantic["turn_detection"] == {
        "type": "semantic_vad",
        "eagerness": "auto",
        "create_response": True,
        "interrupt_response": True,
    }
    assert semantic["transcription"] == {"model": "m", "language": None, "prompt": None}


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({"instructions": "x"}, "missing_required_parameter", "session.type"),
        ({"type": "realtime", "foo": 1}, "unknown_parameter", "session.foo"),
        ({"type": "realtime", "audio": {"input": {"foo": 1}}}, "unknown_parameter", "session.audio.input.foo"),
        ({"type": "realtime", "temperature": 0.8}, "unknown_parameter", "session.temperature"),
        ({"type": "realtime", "instructions": 1}, "invalid_type", "session.instructions"),
        ({"type": "realtime", "max_output_tokens": 0}, "integer_below_min_value", "session.max_output_tokens"),
        ({"type": "realtime", "output_modalities": []}, "array_below_min_length", "session.output_modalities"),
        ({"type": "realtime", "output_modalities": ["video"]}, "invalid_value", "session.output_modalities[0]"),
        ({"type": "realtime", "tools": [{"type": "function"}]}, "missing_required_parameter", "session.tools[0].name"),
        ({"type": "realtime", "tool_choice": "maybe"}, "invalid_type", "session.tool_choice"),
        ({"type": "realtime", "model": "other"}, "invalid_value", "session.model"),
        ({"type": "realtime", "audio": {"output": {"speed": 9}}}, "decimal_above_max_value", "session.audio.output.speed"),
    ],
)  # fmt: skip
async def test_wrong_update_is_refused_whole(
    session: dict[str, Any], code: str, param: str, talk: MakeTalk
) -> None:
    """One wrong member refuses the whole update, and the error names it."""
    one = talk(session={"instructions": "Old."})
    before = json.dumps(one.realtime.session)
    one.send("session.update", event_id="mine", session={"tracing": "auto"} | session)

    assert (error(one)["code"], error(one)["param"], error(one)["event_id"]) == (code, param, "mine")
    assert json.dumps(one.realtime.session) == before


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
async def test_number_that_is_none_is_not_echoed(number: str, talk: MakeTalk) -> None:
    """Numbers that only Python's parser accepts are refused, because clients could not parse the echo."""
    one = talk()
    tool = f'{{"type":"function","name":"f","parameters":{{"maximum":{number}}}}}'
    one.realtime.receive(f'{{"type":"session.update","session":{{"type":"realtime","tools":[{tool}]}}}}')

    assert error(one)["code"] == "invalid_json"
    assert one.types == ["error"]


async def test_voice_stays_once_it_was_heard(talk: MakeTalk) -> None:
    """After the first spoken answer, a change of the voice is refused."""
    one = talk(session={"output_modalities": ["audio"]})
    change = {"type": "realtime", "audio": {"output": {"voice": "sage"}}}
    one.send("session.update", session=change)
    one.user("Say hello.")
    await one.respond()
    one.send("session.update", session=change)
    assert "error" not in one.types
    change["audio"]["output"]["voice"] = "ash"  # type: ignore[index] # a plain literal
    one.send("session.update", session=change)

    assert error(one)["code"] == "cannot_update_voice"


# -- items -------------------------------------------------------------------------------------------------------------


async def test_items_stand_where_they_were_put(talk: MakeTalk) -> None:
    """Without `previous_item_id` an item is appended; with it, it is inserted after that item or, with `root`,
    first."""
    one = talk()
    one.user("a", id="a")
    one.user("c", id="c")
    content = [{"type": "input_text", "text": "x"}]
    for name, after in (("b", "a"), ("0", "root")):
        item = {"type": "message", "role": "user", "id": name, "content": content}
        one.send("conversation.item.create", item=item, previous_item_id=after)

    assert [item["id"] for item in one.realtime.conversation] == ["0", "a", "b", "c"]
    assert [e["previous_item_id"] for e in one.said if e["type"].endswith("added")] == [None, "a", "a", None]


@pytest.mark.parametrize(
    ("kind", "members", "code"),
    [
        ("conversation.item.retrieve", {"item_id": "nobody"}, "item_not_found"),
        ("conversation.item.delete", {"item_id": "nobody"}, "item_not_found"),
        (
            "conversation.item.truncate",
            {"item_id": "a", "content_index": 0, "audio_end_ms": 0},
            "unsupported_content_type",
        ),
        ("conversation.item.create", {"item": {"type": "message"}}, "missing_required_parameter"),
        ("conversation.item.create", {"item": {"type": "telegram"}}, "invalid_value"),
        ("conversation.item.create", {}, "missing_required_parameter"),
    ],
)
async def test_impossible_item_event_is_refused(
    kind: str, members: dict[str, Any], code: str, talk: MakeTalk
) -> None:
    """Unknown items, items that are not speech and items without their members are refused."""
    one = talk()
    one.user("a", id="a")
    one.send(kind, **members)

    assert error(one)["code"] == code


async def test_item_id_is_taken_once(talk: MakeTalk) -> None:
    """A second item with the same id is refused, and so is one after an unknown item."""
    one = talk()
    one.user("a", id="a")
    one.user("b", id="a")
    assert error(one)["param"] == "item.id"
    item = {"type": "message", "role": "user", "content": []}
    one.send("conversation.item.create", item=item, previous_item_id="nobody")

    assert error(one)["param"] == "previous_item_id"
    assert len(one.realtime.conversation) == 1


async def test_item_is_given_back_and_forgotten(talk: MakeTalk) -> None:
    """Retrieve returns an item unchanged; after delete, neither retrieve nor the model knows it."""
    one = talk()
    one.user("My name is Ada.", id="a")
    one.send("conversation.item.retrieve", item_id="a")
    one.send("conversation.item.delete", item_id="a")
    answer = await one.ask("What is my name?")

    assert one.last("conversation.item.retrieved")["item"]["content"][0]["text"] == "My name is Ada."
    assert one.last("conversation.item.deleted")["item_id"] == "a"
    assert answer == "You have not told me your name."


async def test_spoken_item_is_truncated(talk: MakeTalk) -> None:
    """The part of the audio that the user did not hear is removed, and so is the transcript."""
    one = talk(session={"output_modalities": ["audio"]})
    one.user("Say hello.")
    item = (await one.respond())["output"][0]
    one.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=40)

    assert one.last("conversation.item.truncated")["audio_end_ms"] == 40
    assert one.realtime.conversation.get(item["id"])["content"][0]["transcript"] == ""


# -- responses ---------------------------------------------------------------------------------------------------------


async def test_turn_causes_its_events_in_order(talk: MakeTalk) -> None:
    """One text turn, from the user's item to the rate limits."""
    one = talk()
    assert await one.ask("ping") == "Pong!"

    assert one.types == TURN
    assert [e["event_id"][:6] for e in one.said] == ["event_"] * len(TURN)
    assert len({e["event_id"] for e in one.said}) == len(TURN)


async def test_conversation_goes_on_over_turns(talk: MakeTalk) -> None:
    """A fact from one turn is known in a later one."""
    one = talk()
    await one.ask("Remember that the code is 4711.")
    await one.ask("My name is Ada.")

    assert await one.ask("What is the code?") == "The code is 4711."
    assert await one.ask("What is my name?") == "Your name is Ada."


async def test_second_response_waits_for_the_first(talk: MakeTalk) -> None:
    """While one response writes to the conversation another is refused, and the error names the active one."""
    one = talk(rate=50)
    one.user("Count to 100")
    one.send("response.create")
    one.send("response.create", event_id="second")
    running = one.last("response.created")["response"]["id"]

    assert error(one)["code"] == "conversation_already_has_active_response"
    assert f"in progress: {running}. Wait" in error(one)["message"]
    assert error(one)["event_id"] == "second"


async def test_out_of_band_responses_run_beside_and_leave_no_trace(talk: MakeTalk) -> None:
    """A response with `conversation: none` runs in parallel, with its metadata, without items and without
    `conversation.*` events."""
    one = talk(rate=200)
    one.user("Count to 30")
    one.send("response.create")
    question = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "ping"}]}
    aside = {"conversation": "none", "metadata": {"topic": "aside"}, "input": [question]}
    one.send("response.create", response=aside)
    await one.until(lambda: one.types.count("response.done") == 2)
    first, second = (e["response"] for e in one.said if e["type"] == "response.done")

    assert first["metadata"] == {"topic": "aside"}
    assert first["conversation_id"] is None
    assert first["output"][0]["content"][0]["text"] == "Pong!"
    assert second["conversation_id"] == one.realtime.conversation.id
    assert len(one.realtime.conversation) == 2
    assert one.types.count("conversation.item.added") == 2


async def test_response_reads_only_the_input_it_is_given(talk: MakeTalk) -> None:
    """`input` replaces the conversation; a reference includes an item of it; an unknown one is refused."""
    one = talk()
    one.user("My name is Ada.", id="told")
    question = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "What is my name?"}],
    }
    without = await one.respond(conversation="none", input=[question])
    within = await one.respond(
        conversation="none", input=[{"type": "item_reference", "id": "told"}, question]
    )
    one.send("response.create", response={"input": [{"type": "item_reference", "id": "nobody"}]})

    assert without["output"][0]["content"][0]["text"] == "You have not told me your name."
    assert within["output"][0]["content"][0]["text"] == "Your name is Ada."
    assert error(one)["code"] == "item_not_found"


async def test_response_has_its_own_instructions_and_modality(talk: MakeTalk) -> None:
    """Instructions and modality of one response do not become the session's."""
    one = talk()
    one.user("Say hello.")
    done = await one.respond(instructions="Answer in uppercase.", output_modalities=["audio"])

    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": "HELLO THERE!"}]
    assert done["usage"]["output_token_details"]["audio_tokens"] > 0
    assert one.realtime.session["output_modalities"] == ["text"]
    assert await one.ask("Say hello.") == "Hello there!"


async def test_token_limit_makes_a_response_incomplete(talk: MakeTalk) -> None:
    """After `max_output_tokens` the response ends with the text so far and the reason."""
    one = talk()
    one.user("Count to 100")
    done = await one.respond(max_output_tokens=5)

    assert (done["status"], done["status_details"]) == (
        "incomplete",
        {"type": "incomplete", "reason": "max_output_tokens"},
    )
    assert one.types.count("response.output_text.delta") == 5
    assert done["output"][0]["status"] == "incomplete"
    assert done["output"][0]["content"][0]["text"] == "1, 2,"


async def test_cancelled_response_ends_with_its_done_events(talk: MakeTalk) -> None:
    """`response.cancel` ends the text, part and item, then the response; the text so far stays."""
    one = talk(rate=200)
    one.user("Count to 100")
    one.send("response.create")
    await one.until(lambda: one.types.count("response.output_text.delta") == 3)
    one.send("response.cancel")
    done = one.last("response.done")["response"]

    assert done["status"] == "cancelled"
    assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert one.types[-6:] == TURN[8:]
    deltas = [e["delta"] for e in one.said if e["type"] == "response.output_text.delta"]
    assert done["output"][0]["content"][0]["text"] == "".join(deltas)
    assert await one.ask("ping") == "Pong!"


async def test_cancel_names_its_response(talk: MakeTalk) -> None:
    """A response out of band is cancelled by its id; cancelling an unknown one, or without any, is refused without
    effect."""
    one = talk(rate=50)
    one.user("Count to 100")
    one.send("response.create", response={"conversation": "none"})
    one.send("response.cancel")
    assert error(one)["code"] == "response_cancel_not_active"
    one.send("response.cancel", response_id=one.last("response.created")["response"]["id"])

    assert one.last("response.done")["response"]["status"] == "cancelled"


async def test_mistake_in_the_brain_is_a_failed_response(
    talk: MakeTalk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A brain that raises ends its response as failed and is logged; the session continues."""
    one = talk()
    one.user("ping")
    with monkeypatch.context() as patch:
        patch.setattr("gateway.emulator.brain.rules.reply", lambda _: 1 / 0)
        done = await one.respond()

    assert (done["status"], done["status_details"]["error"]["type"]) == ("failed", "server_error")
    assert "brain_failed" in caplog.text
    assert await one.ask("ping") == "Pong!"


async def test_empty_conversation_is_answered(talk: MakeTalk) -> None:
    """A response to an empty conversation is a greeting."""
    assert (await talk().respond())["output"][0]["content"][0]["text"] == "Hello! How can I help you?"


async def test_usage_adds_up_over_a_conversation(talk: MakeTalk) -> None:
    """Totals are sums, a text session has no audio tokens, input grows with the conversation, and cached tokens come
    in whole units."""
    one = talk()
    read = written = cached = 0
    for _ in range(6):
        one.user("Write 60 words about arithmetic")
        usage = (await one.respond())["usage"]
        details, out = usage["input_token_details"], usage["output_token_details"]

        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        assert (
            usage["input_tokens"]
            == details["text_tokens"] + details["audio_tokens"] + details["image_tokens"]
        )
        assert usage["output_tokens"] == out["text_tokens"] + out["audio_tokens"]
        assert out["audio_tokens"] == details["audio_tokens"] == 0
        assert usage["input_tokens"] > read + written
        cached = details["cached_tokens"]
        assert cached == sum(details["cached_tokens_details"].values()) == read // 64 * 64
        read, written = usage["input_tokens"], usage["output_tokens"]
    assert cached > 0


async def test_long_conversation_loses_its_beginning_for_the_model(talk: MakeTalk) -> None:
    """Beyond the truncation limit the oldest items are not read; with `disabled` the response is refused instead."""
    limits = {"type": "retention_ratio", "retention_ratio": 0.5, "token_limits": {"post_instructions": 200}}
    one = talk(session={"truncation": limits})
    one.user("My name is Ada.")
    one.user("word " * 400)
    assert await one.ask("What is my name?") == "You have not told me your name."
    one.send("session.update", session={"type": "realtime", "truncation": "disabled"})
    one.user("word " * 40_000)
    one.send("response.create")

    assert error(one)["code"] == "context_length_exceeded"


# -- what the service accepts and what it does not ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({"audio": {"output": {"format": {"type": "audio/pcm"}}}}, "missing_required_parameter", "rate"),
        ({"audio": {"output": {"format": {"type": "audio/pcm", "rate": 16000}}}}, "integer_below_min_value", "rate"),
        ({"audio": {"output": {"format": {"type": "audio/pcmu", "rate": 8000}}}}, "unknown_parameter", "rate"),
        ({"max_output_tokens": 4097}, "integer_above_max_value", "max_output_tokens"),
        ({"reasoning": {"effort": "none"}}, "invalid_value", "effort"),
        ({"reasoning": {"summary": "auto"}}, "unknown_parameter", "summary"),
        ({"tools": [{"type": "function", "name": "f", "strict": True}]}, "unknown_parameter", "strict"),
        ({"tools": [{"type": "mcp", "server_label": "x", "allowed_callers": ["me"]}]}, "invalid_value", "allowed_callers[0]"),
        ({"audio": {"input": {"transcription": {"delay": "long"}}}}, "invalid_value", "delay"),
    ],
)  # fmt: skip
async def test_session_member_is_refused(session: Any, code: str, param: str, talk: MakeTalk) -> None:
    """A session member that neither the package nor the service accepts is refused and named."""
    one = talk()
    one.send("session.update", session={"type": "realtime", **session})

    assert error(one)["code"] == code
    assert error(one)["param"].endswith(param)


@pytest.mark.parametrize(
    "session",
    [
        {"audio": {"output": {"format": {"type": "audio/pcm", "rate": 24000}}}},
        {"audio": {"output": {"format": {"type": "audio/pcma"}}, "input": {"format": {"type": "audio/pcm"}}}},
        {"max_output_tokens": 4096},
        {"reasoning": {"effort": "minimal"}},
        {"audio": {"input": {"transcription": {"model": "m", "keywords": ["a"], "languages": ["de"], "delay": "low"}}}},
        {"tools": [{"type": "mcp", "server_label": "x", "allowed_callers": ["direct", "programmatic"]}]},
        {"tools": [{"type": "mcp", "server_label": "x", "headers": {"a": "b"}, "allowed_tools": {"read_only": True}}]},
        {"tools": [{"type": "mcp", "server_label": "x", "require_approval": {"never": {"tool_names": ["a"]}}}]},
    ],
)  # fmt: skip
async def test_session_member_is_taken(session: Any, talk: MakeTalk) -> None:
    """A session member of the package's types is accepted."""
    one = talk()
    one.send("session.update", session={"type": "realtime", **session})

    assert one.types[0] == "session.updated"


async def test_noise_reduction_keeps_what_is_left_out(talk: MakeTalk) -> None:
    """An update may set only the type or only the strength; the other keeps its value, and null removes both."""
    one = talk()
    seen = []
    for given in ({"type": "near_field", "strength": 0.5}, {"type": "far_field"}, {"strength": 1}, None):
        one.send(
            "session.update", session={"type": "realtime", "audio": {"input": {"noise_reduction": given}}}
        )
        seen.append(one.last("session.updated")["session"]["audio"]["input"]["noise_reduction"])

    assert seen[1:] == [{"type": "far_field", "strength": 0.5}, {"type": "far_field", "strength": 1}, None]


async def test_response_has_no_speed(talk: MakeTalk) -> None:
    """A response can set format and voice; the speed belongs to the session."""
    one = talk()
    one.send("response.create", response={"audio": {"output": {"voice": "ash", "speed": 1.0}}})

    assert error(one)["param"] == "response.audio.output.speed"


# -- audio in events: a WebSocket --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["audio/pcm", "audio/pcmu", "audio/pcma"])
async def test_spoken_answer_carries_its_sound(kind: str, talk: MakeTalk) -> None:
    """Over a WebSocket each token has 300 ms of audio in the session's format, which counts as six audio tokens of
    usage."""
    format_ = {"type": kind, "rate": 24000} if kind == "audio/pcm" else {"type": kind}
    audio = {"output": {"format": format_}}
    one = talk(session={"output_modalities": ["audio"], "audio": audio}, carries_audio=True)
    one.user("Hello")
    usage = (await one.respond())["usage"]["output_token_details"]
    deltas = [e for e in one.said if e["type"] == "response.output_audio.delta"]
    tokens = one.types.count("response.output_audio_transcript.delta")

    assert len(deltas) == tokens
    assert {len(base64.b64decode(e["delta"])) for e in deltas} == {300 * (48 if kind == "audio/pcm" else 8)}
    assert usage["audio_tokens"] == 6 * tokens
    assert not any(kind.startswith("output_audio_buffer.") for kind in one.types)


async def test_websocket_has_no_output_buffer_to_clear(talk: MakeTalk) -> None:
    """`output_audio_buffer.clear` is not an event of a WebSocket, and is not in the list of known events."""
    one = talk(carries_audio=True)
    one.send("output_audio_buffer.clear")

    assert error(one)["code"] == "invalid_value"
    assert error(one)["message"].count("output_audio_buffer.clear") == 1


async def test_truncation_beyond_the_sound_is_refused(talk: MakeTalk) -> None:
    """A spoken item can be truncated within its audio, but not beyond an earlier cut."""
    one = talk(session={"output_modalities": ["audio"]}, carries_audio=True)
    one.user("Say hello.")
    item = (await one.respond())["output"][0]["id"]
    for end in (901, 600, 601):
        one.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=end)

    assert [e["error"]["message"] for e in one.said if e["type"] == "error"] == [
        "Audio content of 900ms is already shorter than 901ms",
        "Audio content of 600ms is already shorter than 601ms",
    ]


# -- functions ---------------------------------------------------------------------------------------------------------


async def test_function_is_called_and_its_output_used(talk: MakeTalk) -> None:
    """A tool that the text asks for is called with arguments that fit its schema; the next answer is its output."""
    one = talk(session={"tools": [WEATHER]})
    one.user("What is the weather in Oslo in celsius?")
    called = (await one.respond())["output"][0]
    output = {
        "type": "function_call_output",
        "call_id": called["call_id"],
        "output": '{"sky":"clear","degrees":12}',
    }
    one.send("conversation.item.create", item=output)
    answer = (await one.respond())["output"][0]["content"][0]["text"]

    assert json.loads(called["arguments"]) == {"city": "Oslo", "unit": "celsius"}
    assert answer == "Here is what I found: sky is clear; degrees is 12."


@pytest.mark.parametrize(
    ("choice", "text", "calls"),
    [
        ("none", "weather in Rome", 0),
        ("required", "Hello", 1),
        ("auto", "Hello", 0),
        ({"type": "function", "name": "get_weather"}, "Hello", 1),
    ],
)
async def test_tool_choice_is_obeyed(choice: Any, text: str, calls: int, talk: MakeTalk) -> None:
    """`none` never calls, `required` always calls, and a named function is the one that is called."""
    one = talk(session={"tools": [WEATHER]})
    one.user(text)
    done = await one.respond(tool_choice=choice)

    assert sum(item["type"] == "function_call" for item in done["output"]) == calls


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
@pytest.mark.parametrize("before", ["nothing", "system", "output"])
async def test_forced_tool_is_called_without_words_of_a_user(
    before: str, choice: Any, talk: MakeTalk
) -> None:
    """A choice that forces a call is obeyed in an empty conversation, after a system message, and after an output."""
    one = talk(session={"tools": [WEATHER]})
    if before == "system":
        content = [{"type": "input_text", "text": "Begin."}]
        item = {"type": "message", "role": "system", "content": content}
        one.send("conversation.item.create", item=item)
    elif before == "output":
        call = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}"}
        one.send("conversation.item.create", item=call)
        one.send(
            "conversation.item.create",
            item={"type": "function_call_output", "call_id": "call_1", "output": "Rain."},
        )
    done = await one.respond(tool_choice=choice)

    assert [item["type"] for item in done["output"]] == ["function_call"]
    assert isinstance(json.loads(done["output"][0]["arguments"])["city"], str)


@pytest.mark.parametrize("known", [False, True])
async def test_output_needs_its_call_in_the_conversation(known: bool, talk: MakeTalk) -> None:
    """An output for an unknown function call, or one whose item was deleted, is refused with the service's message."""
    one = talk()
    if known:
        call = {"id": "f", "type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
        one.send("conversation.item.create", item=call)
        one.send("conversation.item.delete", item_id="f")
    output = {"type": "function_call_output", "call_id": "call_1", "output": "5"}
    one.send("conversation.item.create", item=output, event_id="mine")

    assert error(one) == {
        "type": "invalid_request_error",
        "code": "invalid_tool_call_id",
        "message": "Tool call ID 'call_1' not found in conversation.",
        "param": None,
        "event_id": "mine",
    }
    assert [i["type"] for i in one.realtime.conversation] == []


@pytest.mark.parametrize("call_id", ["call/1", "", "call 1", "été", "call_1\n"])
@pytest.mark.parametrize("kind", ["function_call", "function_call_output"])
async def test_call_id_has_few_characters(kind: str, call_id: str, talk: MakeTalk) -> None:
    """A `call_id` with other characters than letters, digits, `_` and `-` is refused, and the error has the pattern."""
    one = talk()
    members = {"name": "f", "arguments": "{}"} if kind == "function_call" else {"output": "5"}
    one.send("conversation.item.create", item={"type": kind, "call_id": call_id, **members})

    assert (error(one)["code"], error(one)["param"]) == ("invalid_value", "item.call_id")
    assert "'^[a-zA-Z0-9_-]+$'" in error(one)["message"]


async def test_newer_model_comments_and_interleaves(talk: MakeTalk) -> None:
    """gpt-realtime-2.1 comments in the same response, with phases, and its call begins before its text is done."""
    one = talk(session={"tools": [WEATHER], "model": "gpt-realtime-2.1"})
    one.user("What is the weather in Oslo?")
    done = await one.respond()
    message, called = done["output"]
    output = {"type": "function_call_output", "call_id": called["call_id"], "output": "Rain."}
    one.send("conversation.item.create", item=output)
    final = (await one.respond())["output"][0]

    assert (message["phase"], final["phase"]) == ("commentary", "final_answer")
    assert "phase" not in called
    text_done = one.types.index("response.output_text.done")
    assert one.types.index("response.function_call_arguments.delta") < text_done
    assert one.types.index("response.function_call_arguments.done") > text_done
    assert [e["output_index"] for e in one.said if e["type"] == "response.output_item.done"] == [0, 1, 0]


# -- audio buffers -----------------------------------------------------------------------------------------------------


async def test_audio_buffer_is_kept_without_listening(talk: MakeTalk) -> None:
    """Append, commit and clear are answered; less than 100 ms cannot be committed; invalid base64 is refused."""
    one = talk()
    one.send("input_audio_buffer.append", audio="AAAA" * 2000)
    one.send("input_audio_buffer.commit")
    committed = one.last("input_audio_buffer.committed")
    one.send("input_audio_buffer.commit")
    assert error(one)["code"] == "input_audio_buffer_commit_empty"
    one.send("input_audio_buffer.append", audio="not base64!")
    assert error(one)["param"] == "audio"
    one.send("input_audio_buffer.clear")

    assert one.realtime.conversation.get(committed["item_id"])["content"] == [
        {"type": "input_audio", "transcript": None}
    ]
    assert one.types[-1] == "input_audio_buffer.cleared"


async def test_output_buffer_is_cleared_while_it_speaks(talk: MakeTalk) -> None:
    """Clearing stops the audio of a spoken response, and has no effect on a text response."""
    one = talk(rate=200, session={"output_modalities": ["audio"]})
    one.send("output_audio_buffer.clear")
    one.user("Count to 100")
    one.send("response.create")
    await one.until(lambda: "output_audio_buffer.started" in one.types)
    one.send("output_audio_buffer.clear")
    one.send("response.cancel")

    assert one.types.count("output_audio_buffer.cleared") == 1
    assert "output_audio_buffer.stopped" not in one.types


# -- what is not an event --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "code", "param"),
    [
        ("", "invalid_json", None),
        ("{", "invalid_json", None),
        ("[" * 100_000, "invalid_json", None),
        ("1" * 10_000, "invalid_json", None),
        (b"\xff", "invalid_json", None),
        ("[]", "invalid_event", None),
        ("null", "invalid_event", None),
        ("{}", "missing_required_parameter", "type"),
        ('{"type":5}', "invalid_value", "type"),
        ('{"type":"response.create","response":[]}', "invalid_type", "response"),
        ('{"type":"response.create","foo":1}', "unknown_parameter", "foo"),
        ('{"type":"transcription_session.update"}', None, None),
    ],
)
async def test_what_is_no_event_is_refused(frame: str | bytes, code: str, param: str, talk: MakeTalk) -> None:
    """Anything that is not a client event gets an `error`, and the session continues."""
    one = talk()
    one.realtime.receive(frame)

    assert (error(one)["code"], error(one)["param"], error(one)["event_id"]) == (code, param, None)
    assert await one.ask("ping") == "Pong!"


async def test_unknown_type_is_told_what_is_known(talk: MakeTalk) -> None:
    """The error for an unknown type lists all known types."""
    one = talk()
    one.send("session.delete")

    assert all(f"'{kind}'" in error(one)["message"] for kind in EVENTS)


async def test_close_ends_responses_without_a_word(talk: MakeTalk) -> None:
    """A closed session sends nothing more."""
    one = talk(rate=200)
    one.user("Count to 100")
    one.send("response.create")
    await one.until(lambda: "response.output_text.delta" in one.types)
    await one.realtime.close()
    before = len(one.frames)
    one.send("session.update", session={"type": "realtime"})

    assert len(one.frames) == before
    assert not one.realtime._writer._active


async def test_open_responses_are_bounded(talk: MakeTalk) -> None:
    """The number of open responses is limited."""
    one = talk(rate=1)
    one.user("Count to 100")
    for _ in range(65):
        one.send("response.create", response={"conversation": "none"})

    assert error(one)["code"] == "too_many_responses"
    assert one.types.count("response.created") == 64

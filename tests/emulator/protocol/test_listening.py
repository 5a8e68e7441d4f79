"""The input side of a session: turn detection, transcription, the idle timeout."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.emulator.faults import Faults
from tests.emulator.talk import SPEECH, Talk, pcm

MakeTalk = Callable[..., Talk]
VAD = {"type": "server_vad", "prefix_padding_ms": 50, "silence_duration_ms": 200}
NAMED = "conversation.item.input_audio_transcription"


def hearing(talk: MakeTalk, *, detection: Any = VAD, transcription: Any = None, **options: Any) -> Talk:
    """Make a session that receives audio."""
    audio = {"input": {"turn_detection": detection, "transcription": transcription}}
    session = {"audio": audio} | options.pop("session", {})
    return talk(session=session, hear=lambda _: "Repeat after me: ahoy", **options)


async def test_detected_turn_has_the_recorded_order(talk: MakeTalk) -> None:
    """Speech becomes an item, then its transcript, then a response that answers it."""
    one = hearing(talk, transcription={"model": "gpt-4o-transcribe"})
    one.send("input_audio_buffer.append", audio=SPEECH)
    await one.until(lambda: "response.done" in one.types)
    started, stopped = (one.last(f"input_audio_buffer.speech_{what}") for what in ("started", "stopped"))

    assert [kind for kind in dict.fromkeys(one.types) if not kind.startswith("response.output")][:8] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        f"{NAMED}.delta",
        f"{NAMED}.completed",
        "response.created",
    ]
    assert (started["audio_start_ms"], stopped["audio_end_ms"]) == (50, 800)
    assert started["item_id"] == stopped["item_id"] == one.last("input_audio_buffer.committed")["item_id"]
    assert one.last("response.done")["response"]["output"][0]["content"][0]["text"] == "ahoy"


async def test_model_hears_what_nobody_transcribes(talk: MakeTalk) -> None:
    """Without transcription the item has no transcript, but the answer still uses the words."""
    one = hearing(talk)
    one.send("input_audio_buffer.append", audio=SPEECH)
    await one.until(lambda: "response.done" in one.types)

    assert one.last("response.done")["response"]["output"][0]["content"][0]["text"] == "ahoy"
    assert next(i["content"] for i in one.realtime.conversation) == [
        {"type": "input_audio", "transcript": None}
    ]
    assert not any(kind.startswith(NAMED) for kind in one.types)


async def test_audio_item_is_heard(talk: MakeTalk) -> None:
    """A complete utterance that arrives as an item is answered, too."""
    one = hearing(talk)
    content = [{"type": "input_audio", "audio": SPEECH}]
    one.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
    done = await one.respond()

    assert done["output"][0]["content"][0]["text"] == "ahoy"


async def test_what_was_heard_is_billed_as_sound(talk: MakeTalk) -> None:
    """Input audio costs a token per 100 ms, however it arrives, and its words are not billed in addition."""
    one = hearing(talk, detection=None)
    one.send("input_audio_buffer.append", audio=SPEECH)
    one.send("input_audio_buffer.commit")
    content = [{"type": "input_audio", "audio": pcm((10_000, 0))}]
    one.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
    first = (await one.respond())["usage"]["input_token_details"]
    second = (await one.respond())["usage"]["input_token_details"]
    silent = talk()
    silent.user("")
    silent.user("")
    text = (await silent.respond())["usage"]["input_token_details"]["text_tokens"]

    assert (first["audio_tokens"], first["text_tokens"], first["cached_tokens"]) == (112, text, 0)
    assert second["audio_tokens"] == 112
    assert second["cached_tokens_details"]["audio_tokens"] == 64


async def test_client_may_keep_the_turns_to_itself(talk: MakeTalk) -> None:
    """With `create_response` off, speech only becomes an item."""
    one = hearing(talk, detection=VAD | {"create_response": False})
    one.send("input_audio_buffer.append", audio=SPEECH)

    assert one.types[-1] == "conversation.item.done"


@pytest.mark.parametrize(("interrupts", "status"), [(True, "cancelled"), (False, "completed")])
async def test_speech_interrupts_a_response(interrupts: bool, status: str, talk: MakeTalk) -> None:
    """Speech ends the running response if the session says so, with that reason."""
    one = hearing(talk, detection=VAD | {"interrupt_response": interrupts, "create_response": False})
    one.user("Count to 50")
    one.send("response.create")
    one.send("input_audio_buffer.append", audio=pcm((100, 9000)))
    await one.until(lambda: "response.done" in one.types)
    done = one.last("response.done")["response"]

    assert done["status"] == status
    if interrupts:
        assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}


@pytest.mark.parametrize(
    ("model", "usage"),
    [
        ("whisper-1", {"type": "duration", "seconds": 1.2}),
        (
            "gpt-4o-transcribe",
            {
                "type": "tokens",
                "total_tokens": 17,
                "input_tokens": 12,
                "input_token_details": {"text_tokens": 0, "audio_tokens": 12},
                "output_tokens": 5,
            },
        ),
    ],
)
async def test_transcription_costs_by_model(model: str, usage: Any, talk: MakeTalk) -> None:
    """A commit is transcribed token by token; whisper is billed by the second, other models by tokens."""
    one = hearing(talk, detection=None, transcription={"model": model})
    one.send("input_audio_buffer.append", audio=SPEECH)
    one.send("input_audio_buffer.commit")
    completed = one.last(f"{NAMED}.completed")
    item = one.realtime.conversation.get(completed["item_id"])

    assert "".join(e["delta"] for e in one.said if e["type"] == f"{NAMED}.delta") == "Repeat after me: ahoy"
    assert completed["transcript"] == item["content"][0]["transcript"] == "Repeat after me: ahoy"
    assert completed["usage"] == usage
    assert "logprobs" not in completed


async def test_speakers_and_probabilities_are_named_where_asked(talk: MakeTalk) -> None:
    """A diarising model names the speakers and times; `include` adds the probability of each token."""
    session = {"include": ["item.input_audio_transcription.logprobs"]}
    model = {"model": "gpt-4o-transcribe-diarize"}
    one = hearing(talk, detection=None, transcription=model, session=session)
    one.send("input_audio_buffer.append", audio=SPEECH)
    one.send("input_audio_buffer.commit")
    segment = one.last(f"{NAMED}.segment")

    assert (segment["speaker"], segment["start"], segment["end"]) == ("A", 0.0, 1.2)
    assert one.last(f"{NAMED}.completed")["logprobs"][0]["bytes"] == list(b"Repeat")


async def test_transcription_fails_by_a_fault(talk: MakeTalk) -> None:
    """With this fault the item stays without a transcript, and the failure has the given code."""
    faults = Faults(transcription_error="audio_unintelligible")
    one = hearing(talk, detection=None, transcription={"model": "whisper-1"}, faults=faults)
    one.send("input_audio_buffer.append", audio=SPEECH)
    one.send("input_audio_buffer.commit")

    assert one.last(f"{NAMED}.failed")["error"]["code"] == "audio_unintelligible"
    assert one.types[-1] == f"{NAMED}.failed"


async def test_silence_after_a_response_begins_a_turn(
    talk: MakeTalk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `idle_timeout_ms`, counted from the end of the audio, a turn starts by itself."""
    one = hearing(talk, detection=VAD | {"idle_timeout_ms": 5000}, carries_audio=True)
    one.send("session.update", session={"type": "realtime", "output_modalities": ["audio"]})
    loop, delays = asyncio.get_running_loop(), []

    def soon(delay: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        delays.append(delay)
        return loop.call_at(loop.time() + (0 if len(delays) == 1 else 3600), callback, *args)

    monkeypatch.setattr(loop, "call_later", soon)
    await one.respond()
    await one.until(lambda: one.types.count("response.done") == 2)
    timeout = one.last("input_audio_buffer.timeout_triggered")
    deltas = one.types[: one.types.index("response.done")].count("response.output_audio.delta")

    assert delays[0] == pytest.approx(5 + deltas * 0.3)
    assert timeout["audio_end_ms"] - timeout["audio_start_ms"] == 5000
    assert one.last("input_audio_buffer.committed")["item_id"] == timeout["item_id"]


async def test_user_who_speaks_ends_the_wait(talk: MakeTalk) -> None:
    """Speech, a commit, a response and the session's end each stop the idle timer."""
    one = hearing(talk, detection=VAD | {"idle_timeout_ms": 5000, "create_response": False})
    listener = one.realtime._listener
    for event in (
        {"type": "input_audio_buffer.append", "audio": pcm((100, 9000))},
        {"type": "input_audio_buffer.commit"},
    ):
        await one.respond()
        assert listener._idle is not None
        one.realtime.receive(json.dumps(event))
        assert listener._idle is None


async def test_transcription_session_has_no_responses(talk: MakeTalk) -> None:
    """A transcription session transcribes audio, has no responses, and accepts only updates of its own type."""
    transcription = {"model": "gpt-live-transcribe", "keywords": ["ahoy"], "languages": ["en"]}
    audio = {"input": {"transcription": transcription, "turn_detection": VAD}}
    one = talk(session={"type": "transcription", "audio": audio})
    one.realtime.opened()
    one.send("input_audio_buffer.append", audio=SPEECH)
    completed = one.types.count(f"{NAMED}.completed")
    errors = []
    for kind, members in (
        ("response.create", {}),
        ("session.update", {"session": {"type": "realtime", "instructions": "x"}}),
    ):
        one.send(kind, **members)
        errors.append(one.last("error")["error"]["message"])
    one.send("session.update", session={"type": "transcription", "include": None})

    assert one.said[0]["session"]["object"] == "realtime.transcription_session"
    assert completed == 1
    assert "response.created" not in one.types
    assert errors == [
        "A transcription session has no responses.",
        "Passing a realtime session update event to a transcription session is not allowed.",
    ]
    assert one.types[-1] == "session.updated"

"""The input side of a session: appended audio, turn detection, transcription, and the idle timeout.

It does not recognise words: transcripts come from `--hear`, or describe the length of the audio. It measures only loudness
(`audio`) and keeps no audio. The events are in the recorded order: `speech_started`, `speech_stopped`, `committed`,
`item.added`, `item.done`, transcription, and then the response.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.emulator.protocol.audio import AudioBuffer, Speech
from gateway.emulator.protocol.items import new_item
from gateway.emulator.protocol.live import LiveSession
from gateway.emulator.protocol.tokens import tokenize

Json = dict[str, Any]
# Realtime costs: input audio is one token per 100 ms.
_TOKENS_PER_SECOND = 10
# The log probability of each token of a transcript if a client asks for `logprobs`.
_LOGPROB = -0.01


@dataclass(frozen=True, slots=True)
class Turns:
    """What listening causes: `respond` begins a response, `interrupt` ends the one that is running."""

    respond: Callable[[], None]
    interrupt: Callable[[], None]
    busy: Callable[[], bool]


class Listener:
    """One session's audio input. `hear(seconds)` returns the words in that much audio."""

    def __init__(self, live: LiveSession, hear: Callable[[float], str], turns: Turns) -> None:
        self._live = live
        self._hear = hear
        self._turns = turns
        self._buffer = AudioBuffer()
        self._item_id = ""
        self._start_ms = 0
        self._idle: asyncio.TimerHandle | None = None

    def append(self, audio: str) -> None:
        """Append audio; raises Refusal. With turn detection on, speech in it causes items and responses."""
        given = self._live.object["audio"]["input"]
        for speech in self._buffer.append(audio, given["format"]["type"], given["turn_detection"]):
            if speech.begins:
                self._begin(speech)
            else:
                self._end(speech)

    def clear(self) -> None:
        """Discard what was appended."""
        self._buffer.clear()
        self._live.emit({"type": "input_audio_buffer.cleared"})

    def commit(self) -> None:
        """Make an item from the appended audio; raises Refusal if it is too short."""
        self._commit(self._live.ids.item(), self._buffer.commit())

    def rest(self, seconds: float = 0.0) -> None:
        """Begin to wait for the user after a response whose audio still plays for `seconds`.

        After `idle_timeout_ms` without speech a response begins by itself (Realtime: turn_detection).
        """
        self.wake()
        timeout = (self._live.object["audio"]["input"]["turn_detection"] or {}).get("idle_timeout_ms")
        if timeout:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(seconds + timeout / 1000, self._time_out, timeout)

    def wake(self) -> None:
        """Stop waiting for the user: they speak, or a response begins."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _begin(self, speech: Speech) -> None:
        self.wake()
        detection = self._live.object["audio"]["input"]["turn_detection"]
        self._item_id = self._live.ids.item()
        self._start_ms = max(0, speech.at_ms - (detection.get("prefix_padding_ms") or 0))
        self._live.emit(
            {
                "type": "input_audio_buffer.speech_started",
                "audio_start_ms": self._start_ms,
                "item_id": self._item_id,
            }
        )
        if detection["interrupt_response"]:
            self._turns.interrupt()

    def _end(self, speech: Speech) -> None:
        self._live.emit(
            {
                "type": "input_audio_buffer.speech_stopped",
                "audio_end_ms": speech.at_ms,
                "item_id": self._item_id,
            }
        )
        self._commit(self._item_id, self._buffer.commit(self._start_ms))
        self._respond()

    def _time_out(self, timeout: int) -> None:
        self._idle = None
        if self._buffer.speaking or self._turns.busy():
            return
        start, item_id = self._buffer.at_ms, self._live.ids.item()
        self._live.emit(
            {
                "type": "input_audio_buffer.timeout_triggered",
                "audio_start_ms": start,
                "audio_end_ms": start + timeout,
                "item_id": item_id,
            }
        )
        self._buffer.clear()
        self._place(item_id, "", 0.0)
        self._respond()

    def _respond(self) -> None:
        detection = self._live.object["audio"]["input"]["turn_detection"]
        if (
            detection["create_response"]
            and self._live.object["type"] == "realtime"
            and not self._turns.busy()
        ):
            self._turns.respond()

    def _commit(self, item_id: str, seconds: float) -> None:
        self.wake()
        said = self._hear(seconds)
        part = self._place(item_id, said, seconds)
        if self._live.object["audio"]["input"]["transcription"] is not None:
            self._transcribe(item_id, part, said, seconds)

    def _place(self, item_id: str, said: str, seconds: float) -> Json:
        """Put the item in the conversation and return its one part of content."""
        content = [{"type": "input_audio", "transcript": None}]
        item = new_item(
            {"id": item_id, "type": "message", "role": "user", "content": content}, self._live.ids
        )
        self._live.conversation.heard[item_id] = said
        self._live.conversation.sounds[item_id] = round(seconds * 1000)
        before = self._live.conversation.place(item, None)
        self._live.emit(
            {"type": "input_audio_buffer.committed", "previous_item_id": before, "item_id": item_id}
        )
        for kind in ("conversation.item.added", "conversation.item.done"):
            self._live.emit({"type": kind, "previous_item_id": before, "item": item})
        part: Json = item["content"][0]
        return part

    # -- transcription --------------------------------------------------------------------------------------------

    def _transcribe(self, item_id: str, part: Json, said: str, seconds: float) -> None:
        place = {"item_id": item_id, "content_index": 0}
        base = "conversation.item.input_audio_transcription"
        code = self._live.faults.transcription_error
        if code is not None:
            error = {
                "type": "transcription_error",
                "code": code,
                "message": "The audio could not be transcribed.",
                "param": None,
            }
            self._live.emit({"type": f"{base}.failed", **place, "error": error})
            return
        model = self._live.object["audio"]["input"]["transcription"]["model"] or ""
        tokens = tokenize(said)
        if "diarize" in model:
            segment = {
                "id": f"seg_{self._live.ids.draw(21)}",
                "text": said,
                "speaker": "A",
                "start": 0.0,
                "end": seconds,
            }
            self._live.emit({"type": f"{base}.segment", **place, **segment})
        for token in tokens:
            self._live.emit({"type": f"{base}.delta", **place, "delta": token, **self._logprobs([token])})
        part["transcript"] = said
        self._live.emit(
            {
                "type": f"{base}.completed",
                **place,
                "transcript": said,
                "usage": _usage(model, seconds, len(tokens)),
                **self._logprobs(tokens),
            }
        )

    def _logprobs(self, tokens: list[str]) -> Json:
        if "item.input_audio_transcription.logprobs" not in (self._live.object["include"] or ()):
            return {}
        return {"logprobs": [{"token": t, "bytes": list(t.encode()), "logprob": _LOGPROB} for t in tokens]}


def _usage(model: str, seconds: float, tokens: int) -> Json:
    """Return the usage of a transcription: a duration for whisper and the live models, tokens for the others."""
    if "whisper" in model or "live" in model:
        return {"type": "duration", "seconds": seconds}
    audio = round(seconds * _TOKENS_PER_SECOND)
    return {
        "type": "tokens",
        "total_tokens": audio + tokens,
        "input_tokens": audio,
        "input_token_details": {"text_tokens": 0, "audio_tokens": audio},
        "output_tokens": tokens,
    }

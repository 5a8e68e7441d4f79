"""The input audio buffer: how much was appended, and where speech begins and ends in it. No I/O.

It measures loudness in frames of 20 ms. It does not recognise words and keeps no audio. A commit needs 100 ms of audio, as on
the service. Times are milliseconds of audio since the session began (Realtime: input_audio_buffer.speech_started).
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from gateway.emulator.protocol.errors import Refusal
from gateway.emulator.protocol.sound import BYTES_PER_MS, peak

_LEAST_MS = 100
_FRAME_MS = 20
# A peak of 1,000 of 32,768 is speech at the default threshold of 0.5; the emulator's own tone is below it.
_PEAK_AT_FULL_THRESHOLD = 2000
# Semantic detection knows when a sentence is complete; the emulator uses half a second of silence instead.
_SEMANTIC_SILENCE_MS = 500


@dataclass(frozen=True, slots=True)
class Speech:
    """The start or end of speech at `at_ms`."""

    begins: bool
    at_ms: int


class AudioBuffer:
    """The audio appended since the last commit, in milliseconds, and whether it is speech now."""

    __slots__ = ("_committed", "_ms", "_quiet_ms", "_rest", "speaking")

    def __init__(self) -> None:
        self.speaking = False
        self._ms = 0.0
        self._committed = 0.0
        self._quiet_ms = 0
        self._rest = b""

    @property
    def at_ms(self) -> int:
        """The end of the audio so far."""
        return int(self._ms)

    def append(self, audio: str, kind: str, detection: dict[str, Any] | None) -> list[Speech]:
        """Append base64 audio of the format `kind` and return where speech starts and ends in it (nothing without `detection`).

        Raises Refusal if it is not base64.
        """
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError):
            # The service's reported message, word for word (from its beta period).
            raise Refusal(
                "invalid_value",
                "Invalid 'audio'. Expected base64-encoded audio bytes (mono PCM16 at 24kHz) but got an invalid value.",
                param="audio",
            ) from None
        if detection is None:
            self._ms += len(data) / BYTES_PER_MS[kind]
            self._rest = b""
            return []
        return self._listen(self._rest + data, kind, detection)

    def clear(self) -> None:
        """Discard what was appended since the last commit."""
        self._committed = self._ms
        self.speaking = False
        self._quiet_ms = 0

    def commit(self, start_ms: int | None = None) -> float:
        """Empty the buffer and return its length in seconds; speech found by detection began at `start_ms`.

        Raises Refusal if a client commits too little.
        """
        ms = self._ms - (self._committed if start_ms is None else start_ms)
        if start_ms is None and ms < _LEAST_MS:
            raise Refusal(
                "input_audio_buffer_commit_empty",
                f"Error committing input audio buffer: buffer too small. Expected at least {_LEAST_MS}ms of audio, "
                f"but buffer only has {ms:.2f}ms of audio.",
            )
        self.clear()
        return ms / 1000

    def _listen(self, data: bytes, kind: str, detection: dict[str, Any]) -> list[Speech]:
        size = _FRAME_MS * BYTES_PER_MS[kind]
        whole = len(data) // size * size
        self._rest = data[whole:]
        wanted = (detection.get("threshold") or 0.5) * _PEAK_AT_FULL_THRESHOLD
        silence = detection.get("silence_duration_ms") or _SEMANTIC_SILENCE_MS
        found = []
        for at in range(0, whole, size):
            loud = peak(data[at : at + size], kind) > wanted
            self._quiet_ms = 0 if loud else self._quiet_ms + _FRAME_MS
            if loud and not self.speaking:
                self.speaking = True
                found.append(Speech(True, self.at_ms))
            self._ms += _FRAME_MS
            if self.speaking and self._quiet_ms >= silence:
                self.speaking = False
                found.append(Speech(False, self.at_ms))
        return found

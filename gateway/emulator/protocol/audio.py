"""The input audio buffer, as far as it can be kept without listening. No I/O.

Refuses to hear: bytes are counted, not stored. A commit needs 100 ms of audio, as the service demands.
"""

import base64
import binascii

from gateway.emulator.protocol.errors import Refusal

# PCM, 24 kHz, 16 bit, mono.
_BYTES_PER_MS = 48
_LEAST_MS = 100


class AudioBuffer:
    """How much audio was appended since the last commit."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = 0

    def append(self, audio: str) -> None:
        """Take base64 audio; raises Refusal where it is none."""
        try:
            self._bytes += len(base64.b64decode(audio, validate=True))
        except (binascii.Error, ValueError):
            raise Refusal(
                "invalid_value", "Invalid 'audio'. Expected base64-encoded audio bytes.", param="audio"
            ) from None

    def clear(self) -> None:
        self._bytes = 0

    def commit(self) -> None:
        """Empty the buffer into an item; raises Refusal where there is too little in it."""
        ms = self._bytes / _BYTES_PER_MS
        if ms < _LEAST_MS:
            raise Refusal(
                "input_audio_buffer_commit_empty",
                f"Error committing input audio buffer: buffer too small. Expected at least {_LEAST_MS}ms of audio, "
                f"but buffer only has {ms:.2f}ms of audio.",
            )
        self._bytes = 0

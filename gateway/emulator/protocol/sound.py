"""Loudness of PCM16 and G.711 frames, and a quiet tone in place of speech. No I/O.

It is not a codec. Formats have the service's names: `audio/pcm` is 24 kHz, 16 bit, mono, little-endian; `audio/pcmu` and
`audio/pcma` are 8 kHz (ITU-T G.711).
"""

import array
import base64
import functools
import math
import sys

BYTES_PER_MS = {"audio/pcm": 48, "audio/pcmu": 8, "audio/pcma": 8}
# The duration of one transcript token: about the pace of speech, and six audio tokens of 50 ms (Realtime costs).
TOKEN_MS = 300
# A whole number of periods in TOKEN_MS, so that consecutive pieces join without a break.
_HERTZ = 400
# 1 % of full scale: audible in headphones, quiet on loudspeakers, and not detected as speech.
_AMPLITUDE = 328


def peak(frame: bytes, kind: str) -> int:
    """Return the largest magnitude of a frame, 0 to 32,768."""
    if kind != "audio/pcm":
        return max(frame.translate(_LOUDNESS[kind])) * 256
    samples = _native(array.array("h", frame))
    return max(*samples, -min(samples))


@functools.cache
def tone(kind: str) -> str:
    """Return TOKEN_MS of the tone, in base64."""
    samples = array.array("h", (round(_AMPLITUDE * math.sin(angle)) for angle in _angles(kind)))
    if kind == "audio/pcm":
        data = _native(samples).tobytes()
    else:
        decode = _DECODERS[kind]
        data = bytes(min(range(256), key=lambda code: abs(decode(code) - sample)) for sample in samples)
    return base64.b64encode(data).decode("ascii")


def _angles(kind: str) -> list[float]:
    rate = 24_000 if kind == "audio/pcm" else 8_000
    return [2 * math.pi * _HERTZ * at / rate for at in range(TOKEN_MS * rate // 1000)]


def _native(samples: "array.array[int]") -> "array.array[int]":
    if sys.byteorder == "big":  # pragma: no cover - no machine in CI is
        samples.byteswap()
    return samples


def _mu_law(code: int) -> int:
    code = ~code & 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84 << ((code & 0x70) >> 4)) - 0x84
    return -magnitude if code & 0x80 else magnitude


def _a_law(code: int) -> int:
    code ^= 0x55
    exponent, mantissa = (code & 0x70) >> 4, (code & 0x0F) << 4
    magnitude = mantissa + 8 if exponent == 0 else (mantissa + 0x108) << (exponent - 1)
    return magnitude if code & 0x80 else -magnitude


_DECODERS = {"audio/pcmu": _mu_law, "audio/pcma": _a_law}
# The high byte of each code's magnitude, for bytes.translate: finding a frame's peak is then one call.
_LOUDNESS = {kind: bytes(abs(decode(code)) >> 8 for code in range(256)) for kind, decode in _DECODERS.items()}

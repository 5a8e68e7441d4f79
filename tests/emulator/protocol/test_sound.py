"""The quiet tone, and the level of a frame."""

import array
import base64
import itertools

import pytest

from gateway.emulator.protocol.sound import BYTES_PER_MS, TOKEN_MS, peak, tone


@pytest.mark.parametrize("kind", sorted(BYTES_PER_MS))
def test_tone_lasts_a_token_and_is_quiet(kind: str) -> None:
    """A piece of the tone is exactly as long as a token, audible, and far below the level of speech."""
    data = base64.b64decode(tone(kind), validate=True)

    assert len(data) == TOKEN_MS * BYTES_PER_MS[kind]
    assert 256 <= peak(data, kind) <= 400


def test_tone_has_whole_periods() -> None:
    """A piece ends where the next one begins, so together they are one tone of 400 Hz, measured by its changes of
    sign."""
    samples = array.array("h", base64.b64decode(tone("audio/pcm")) * 2)
    rises = sum(before < 0 <= after for before, after in itertools.pairwise(samples))

    assert rises == 2 * 400 * TOKEN_MS // 1000 - 1
    assert samples[0] == 0


@pytest.mark.parametrize(
    ("kind", "frame", "loudness"),
    [
        ("audio/pcm", b"\x00\x00\x00\x80", 32768),
        ("audio/pcm", b"\xff\x7f\x00\x00", 32767),
        # ITU-T G.711: silence, and the loudest code of either sign.
        ("audio/pcmu", b"\xff\x7f", 0),
        ("audio/pcmu", b"\xff\x80", 32124 // 256 * 256),
        ("audio/pcmu", b"\x00", 32124 // 256 * 256),
        ("audio/pcma", b"\xd5\x55", 0),
        ("audio/pcma", b"\xaa", 32256 // 256 * 256),
        ("audio/pcma", b"\x2a", 32256 // 256 * 256),
    ],
)
def test_peak_is_the_loudest_sample(kind: str, frame: bytes, loudness: int) -> None:
    """The largest magnitude of either sign counts; for G.711 it is exact to 256."""
    assert peak(frame, kind) == loudness

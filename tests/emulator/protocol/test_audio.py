"""The input audio buffer: durations, and where speech begins and ends."""

import base64

import pytest

from gateway.emulator.protocol.audio import AudioBuffer, Speech
from gateway.emulator.protocol.errors import Refusal
from tests.emulator.talk import pcm

VAD = {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 200}


def test_commit_returns_the_seconds_since_the_last() -> None:
    """The duration follows from bytes and format, and restarts with each commit and clear."""
    buffer = AudioBuffer()
    buffer.append(pcm((1500, 0)), "audio/pcm", None)
    first = buffer.commit()
    buffer.append(pcm((700, 0)), "audio/pcm", None)
    buffer.clear()
    buffer.append(base64.b64encode(bytes(8 * 250)).decode(), "audio/pcmu", None)

    assert (first, buffer.commit(), buffer.at_ms) == (1.5, 0.25, 2450)


def test_commit_of_too_little_is_refused() -> None:
    """At least 100 ms are required, and the refusal says how much there was."""
    buffer = AudioBuffer()
    buffer.append(pcm((90, 0)), "audio/pcm", None)

    with pytest.raises(Refusal, match=r"only has 90\.00ms"):
        buffer.commit()


@pytest.mark.parametrize("audio", ["???", "AAA", "AAAA\n"])
def test_what_is_no_base64_is_refused(audio: str) -> None:
    """Audio must be base64 without line ends."""
    with pytest.raises(Refusal, match="mono PCM16 at 24kHz"):
        AudioBuffer().append(audio, "audio/pcm", None)


@pytest.mark.parametrize("piece", [1, 7, 960, 100_000])
def test_speech_is_found_however_the_audio_is_cut(piece: int) -> None:
    """Speech begins with the first loud frame and ends with the silence after it, however the audio is split."""
    buffer, found = AudioBuffer(), []
    data = base64.b64decode(pcm((100, 0), (300, 9000), (100, 0), (100, 9000), (400, 0)))
    for at in range(0, len(data), piece):
        audio = base64.b64encode(data[at : at + piece]).decode()
        found += buffer.append(audio, "audio/pcm", VAD)

    assert found == [Speech(True, 100), Speech(False, 800)]
    assert not buffer.speaking


@pytest.mark.parametrize(("threshold", "heard"), [(0.9, False), (0.1, True)])
def test_threshold_decides_what_is_speech(threshold: float, heard: bool) -> None:
    """A higher threshold requires louder audio."""
    found = AudioBuffer().append(pcm((100, 1000)), "audio/pcm", {"threshold": threshold})

    assert [speech.begins for speech in found] == [True] * heard


def test_short_speech_is_committed_all_the_same() -> None:
    """Speech that was detected is committed, however short it is."""
    buffer = AudioBuffer()
    found = buffer.append(pcm((20, 9000), (20, 0)), "audio/pcm", {"silence_duration_ms": 20})

    assert [s.at_ms for s in found] == [0, 40]
    assert buffer.commit(0) == 0.04

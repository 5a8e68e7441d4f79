"""Offer and answer as text, against an offer of aiortc's form and the answer recorded from the service."""

from pathlib import Path

import pytest

from gateway.upstream import sdp

OFFER = "\r\n".join(
    [
        "v=0",
        "o=- 1 1 IN IP4 0.0.0.0",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE 0 1",
        "m=audio 9 UDP/TLS/RTP/SAVPF 96",
        "a=sendrecv",
        "a=mid:0",
        "a=candidate:1 1 udp 2130706431 192.0.2.7 40000 typ host",
        "a=fingerprint:sha-256 AA",
        "a=fingerprint:sha-384 BB",
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
        "a=mid:1",
        "a=max-message-size:262144",
        "a=candidate:1 1 udp 2130706431 192.0.2.7 40000 typ host",
        "a=fingerprint:sha-256 AA",
        "a=fingerprint:sha-512 CC",
        "",
    ]
)
ANSWER = "\r\n".join(
    [
        "v=0",
        "a=fingerprint:sha-256 DD",
        "a=ice-lite",
        "m=audio 9 UDP/TLS/RTP/SAVPF 96",
        "a=setup:active",
        "a=ice-ufrag:u",
        "a=ice-pwd:p",
        "a=sendrecv",
        "a=candidate:1 1 udp 2130706431 192.0.2.9 3478 typ host",
        "a=candidate:2 1 tcp 1671430143 192.0.2.9 443 typ host tcptype passive",
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
        "a=setup:active",
        "a=sendrecv",
        "a=max-message-size:1073741823",
        "",
    ]
)


def test_offer_raises_the_message_size_in_the_data_section() -> None:
    """The offer asks for server events as large as the gateway takes."""
    sent = sdp.offer_to_send(OFFER, 4194304)

    assert sent.count("a=max-message-size:4194304\r\n") == 1
    assert "262144" not in sent


def test_offer_without_a_message_size_gets_one() -> None:
    """A data section that names no size is given one at its end."""
    sent = sdp.offer_to_send(OFFER.replace("a=max-message-size:262144\r\n", ""), 4194304)

    assert sent.endswith("a=max-message-size:4194304\r\n")


def test_offer_keeps_one_fingerprint_a_section() -> None:
    """Only SHA-256 is shown, in both sections."""
    sent = sdp.offer_to_send(OFFER, 1)

    assert sent.count("a=fingerprint:") == sent.count("a=fingerprint:sha-256 AA\r\n") == 2


def test_offer_with_no_sha_256_keeps_what_it_has() -> None:
    """Where there is no SHA-256 line, the others stay: an offer without any fingerprint is none."""
    sent = sdp.offer_to_send(OFFER.replace("sha-256", "sha-1"), 1)

    assert "a=fingerprint:sha-384 BB\r\n" in sent


def test_offer_is_otherwise_untouched() -> None:
    """Every other line is sent byte for byte, and the final CRLF with them."""
    sent = sdp.offer_to_send(OFFER, 262144)

    assert [
        line for line in OFFER.split("\r\n") if "sha-384" not in line and "sha-512" not in line
    ] == sent.split("\r\n")
    assert sent.endswith("\r\n")


@pytest.mark.parametrize(("kind", "name"), [("audio", "audio"), ("application", "data channel")])
def test_offer_without_a_section_is_refused(kind: str, name: str) -> None:
    """An offer that the service would refuse is not sent."""
    with pytest.raises(sdp.SdpError, match=name):
        sdp.offer_to_send(OFFER.replace(f"m={kind}", "m=video"), 1)


def test_answer_makes_audio_inactive_and_data_not() -> None:
    """The audio section loses its direction for `inactive`; the data section keeps its own."""
    applied = sdp.answer_to_apply(ANSWER).text
    audio, data = applied.split("m=application")

    assert audio.count("a=inactive\r\n") == 1
    assert "a=sendrecv" not in audio
    assert "a=sendrecv\r\n" in data


def test_answer_repeats_its_candidates_in_every_section() -> None:
    """The data section gets the candidates of the first, and a section that has its own keeps them."""
    applied = sdp.answer_to_apply(ANSWER).text
    again = sdp.answer_to_apply(applied).text

    assert applied.count("a=candidate:1 ") == 2
    assert again.count("a=candidate:1 ") == 2


def test_answer_tells_what_was_agreed() -> None:
    """Message size, role, lite and the kinds of candidates are read, and no address."""
    answer = sdp.answer_to_apply(ANSWER)

    assert (answer.max_message_bytes, answer.ice_lite, answer.setup) == (1073741823, True, "active")
    assert answer.candidates == ("host/udp", "host/tcp")


@pytest.mark.parametrize(
    ("line", "expected"),
    [("", 65536), ("a=max-message-size:0\r\n", None), ("a=max-message-size:many\r\n", 65536)],
)
def test_answer_message_size_follows_rfc_8841(line: str, expected: int | None) -> None:
    """Absent means 64 KiB, zero means any size."""
    text = ANSWER.replace("a=max-message-size:1073741823\r\n", line)

    assert sdp.answer_to_apply(text).max_message_bytes == expected


def test_answer_without_its_last_line_end_is_mended() -> None:
    """What is added after a line that lost its end does not run into it."""
    text = ANSWER.replace("m=application", "m=application").removesuffix("\r\n")
    swapped = text[: text.index("m=audio")] + text[text.index("m=application") :] + "\r\n"
    swapped += text[text.index("m=audio") : text.index("m=application")].rstrip("\r\n")

    assert sdp.answer_to_apply(swapped).text.endswith("tcptype passive\r\na=inactive\r\n")


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("v=0", "<html>", "does not begin with v=0"),
        ("m=audio", "m=video", "no audio section"),
        ("m=application", "m=video", "no section for the data channel"),
        ("m=audio 9", "m=audio 0", "rejects the audio section"),
        ("m=application 9", "m=application 0", "rejects the section for the data channel"),
        ("a=ice-ufrag:u", "a=x", "no ICE user name"),
        ("a=ice-pwd:p", "a=x", "no ICE password"),
        ("a=fingerprint:sha-256 DD", "a=x", "no certificate fingerprint"),
        ("a=setup:active", "a=setup:actpass", "'actpass'"),
        ("a=setup:active", "a=x", "expected 'active' or 'passive'"),
        (" udp ", " tcp ", "no UDP address"),
    ],
)
def test_answer_that_makes_no_call_is_refused(before: str, after: str, complaint: str) -> None:
    """Each thing that is missing is named."""
    with pytest.raises(sdp.SdpError, match=complaint):
        sdp.answer_to_apply(ANSWER.replace(before, after))


def test_candidates_of_an_unknown_form_are_told_as_such() -> None:
    """A line that is no candidate by RFC 8839 does not stop anything."""
    assert sdp.local_candidates("a=candidate:what\r\na=candidate:1 1 udp 1 192.0.2.1 9 typ\r\n") == (
        "unknown/unknown",
        "unknown/udp",
    )


def test_m_line_without_a_port_is_left_to_the_parser() -> None:
    """A media line that is broken is not taken for a rejected one."""
    assert sdp.answer_to_apply(ANSWER.replace("m=audio 9 ", "m=audio ")).setup == "active"


def test_local_candidates_are_told_once_without_addresses() -> None:
    """The offer's own candidates are named by kind."""
    assert sdp.local_candidates(OFFER) == ("host/udp",)


def test_recorded_answer_is_applied_whole(recordings: Path) -> None:
    """The service's own answer passes, with its three UDP and three TCP candidates."""
    text = (recordings / "answer.sdp").read_bytes().decode()

    answer = sdp.answer_to_apply(text)

    assert answer.candidates.count("host/udp") == answer.candidates.count("host/tcp") == 3 * 1
    assert answer.max_message_bytes == 1073741823
    assert answer.text.replace("a=inactive\r\n", "").count("\r\n") == text.count("\r\n") - 1 + 6

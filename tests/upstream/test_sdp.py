"""Offer and answer as text, compared with aiortc's parser and the recorded answer of the service."""

from dataclasses import replace
from pathlib import Path

import pytest
from aiortc.sdp import SessionDescription, candidate_to_sdp

from gateway.upstream import sdp

OFFERED = sdp.Offer(
    ice_user="user",
    ice_password="password",
    fingerprint="AA:BB",
    candidates=(
        "1 1 udp 2130706431 192.0.2.7 40000 typ host",
        "2 1 udp 16777215 198.51.100.7 50000 typ relay raddr 192.0.2.7 rport 40000",
    ),
    max_message_bytes=4194304,
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


def test_offer_is_what_an_independent_parser_reads() -> None:
    """Aiortc reads from the offer what was written: two sections over one transport, and audio with its codecs."""
    read = SessionDescription.parse(OFFERED.text(session=7))

    assert [(media.kind, media.rtp.muxId) for media in read.media] == [("audio", "0"), ("application", "1")]
    assert [group.items for group in read.group] == [["0", "1"]]
    for media in read.media:
        assert media.ice is not None
        assert (media.ice.usernameFragment, media.ice.password) == ("user", "password")
        assert media.dtls is not None
        assert [(each.algorithm, each.value) for each in media.dtls.fingerprints] == [("sha-256", "AA:BB")]
        assert media.dtls.role == "auto"
        assert [candidate_to_sdp(each) for each in media.ice_candidates] == list(OFFERED.candidates)
        assert media.ice_candidates_complete
    audio, data = read.media
    assert (audio.direction, audio.rtcp_mux) == ("sendrecv", True)
    assert [codec.name for codec in audio.rtp.codecs] == ["opus", "G722", "PCMU", "PCMA"]
    assert data.sctpCapabilities is not None
    assert (data.sctp_port, data.sctpCapabilities.maxMessageSize) == (5000, 4194304)


def test_offer_has_the_form_that_aiortc_writes() -> None:
    """Apart from random numbers, the offer is line by line the one that aiortc writes, which the service is known to
    accept."""
    text = OFFERED.text(session=7)
    again = str(SessionDescription.parse(text))

    assert text.endswith("\r\n")
    assert sorted(text.splitlines()) == sorted(again.splitlines())


def test_offer_names_the_relay_as_its_default_address() -> None:
    """A far end without ICE gets the address that most likely works (RFC 8839 4.2.1.2)."""
    assert OFFERED.text(7).count("m=audio 50000 ") == OFFERED.text(7).count("m=application 50000 ") == 1
    assert OFFERED.text(7).count("c=IN IP4 198.51.100.7\r\n") == 2


@pytest.mark.parametrize(
    ("candidates", "host", "port"),
    [((), "IP4 0.0.0.0", 9), (("1 1 udp 1 2001:db8::7 40000 typ host",), "IP6 2001:db8::7", 40000)],
)
def test_offer_has_a_default_address_of_either_family(
    candidates: tuple[str, ...], host: str, port: int
) -> None:
    """The default address may be IPv4 or IPv6."""
    text = replace(OFFERED, candidates=candidates).text(7)

    assert f"m=audio {port} UDP/TLS/RTP/SAVPF 96 9 0 8\r\nc=IN {host}\r\n" in text


def test_offer_tells_the_kinds_of_its_candidates_without_addresses() -> None:
    """The kinds of the offer's own candidates are reported once each, without addresses."""
    twice = replace(OFFERED, candidates=(*OFFERED.candidates, *OFFERED.candidates))

    assert twice.kinds == ("host/udp", "relay/udp")


def test_answer_tells_what_was_agreed() -> None:
    """Everything that decides about the connection is read, and the kinds of candidates are reported without
    addresses."""
    answer = sdp.read_answer(ANSWER)

    assert (answer.max_message_bytes, answer.sctp_port) == (1073741823, 5000)
    assert (answer.ice_lite, answer.setup, answer.ice_user, answer.ice_password) == (True, "active", "u", "p")
    assert answer.fingerprints == (("sha-256", "DD"),)
    assert [address.split()[4:6] for address in answer.addresses] == [["192.0.2.9", "3478"]]
    assert answer.candidates == ("host/udp", "host/tcp")


def test_answer_may_describe_its_transport_in_any_section() -> None:
    """The first section has priority, then the session level, then the others; candidates of all sections are used
    once."""
    first = ANSWER.replace("a=fingerprint:sha-256 DD\r\n", "a=ice-ufrag:above\r\na=setup:passive\r\n")
    last = first + "a=fingerprint:sha-256 EE\r\na=fingerprint:sha-512 FF\r\n"
    last += "a=candidate:1 1 udp 2130706431 192.0.2.9 3478 typ host\r\na=candidate:3 1 udp 9 192.0.2.8 9 typ host\r\n"

    answer = sdp.read_answer(last.replace("a=setup:active\r\na=ice-ufrag:u\r\n", ""))

    assert (answer.ice_user, answer.setup) == ("above", "passive")
    assert answer.fingerprints == (("sha-256", "EE"), ("sha-512", "FF"))
    assert [address[0] for address in answer.addresses] == ["1", "3"]


def test_candidates_for_rtcp_are_left_out() -> None:
    """Candidates of the second component, which Pion adds and nothing uses, are ignored."""
    repeated = ANSWER + "a=candidate:1 2 udp 2130706431 192.0.2.9 3478 typ host\r\n"

    assert sdp.read_answer(repeated).addresses == sdp.read_answer(ANSWER).addresses


@pytest.mark.parametrize(
    ("line", "expected"),
    [("", 65536), ("a=max-message-size:0\r\n", None), ("a=max-message-size:many\r\n", 65536)],
)
def test_answer_message_size_follows_rfc_8841(line: str, expected: int | None) -> None:
    """Absent means 64 KiB, zero means any size."""
    text = ANSWER.replace("a=max-message-size:1073741823\r\n", line)

    assert sdp.read_answer(text).max_message_bytes == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("a=max-message-size", "a=sctp-port:5001\r\na=max-message-size", 5001),
        ("UDP/DTLS/SCTP webrtc-datachannel", "DTLS/SCTP 5002", 5002),
        ("a=max-message-size", "a=x\r\na=max-message-size", 5000),
    ],
)
def test_answer_names_its_sctp_port_in_either_form(before: str, after: str, expected: int) -> None:
    """The port is read from the line of RFC 8841, or from the media line's format as in its drafts."""
    assert sdp.read_answer(ANSWER.replace(before, after)).sctp_port == expected


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
        ("a=max-message-size", "a=sctp-port:none\r\na=max-message-size", "SCTP port is 'none'"),
    ],
)
def test_answer_that_makes_no_call_is_refused(before: str, after: str, complaint: str) -> None:
    """An answer without a required part is refused, and the part is named."""
    with pytest.raises(sdp.SdpError, match=complaint):
        sdp.read_answer(ANSWER.replace(before, after))


def test_candidates_of_an_unknown_form_are_told_as_such() -> None:
    """A line that is not a candidate according to RFC 8839 is reported and otherwise ignored."""
    answer = sdp.read_answer(ANSWER + "a=candidate:what\r\na=candidate:1 1 udp 1 192.0.2.1 9 typ\r\n")

    assert answer.candidates[2:] == ("unknown/unknown", "unknown/udp")


def test_m_line_without_a_port_is_left_to_the_parser() -> None:
    """A broken media line does not count as rejected; the parser reports it."""
    assert sdp.read_answer(ANSWER.replace("m=audio 9 ", "m=audio ")).setup == "active"


def test_recorded_answer_is_read_whole(recordings: Path) -> None:
    """The service's own answer is read with its three UDP and three TCP candidates."""
    text = (recordings / "answer.sdp").read_bytes().decode()

    answer = sdp.read_answer(text)

    assert answer.candidates.count("host/udp") == answer.candidates.count("host/tcp") == 3
    assert answer.max_message_bytes == 1073741823
    assert answer.setup == "active"

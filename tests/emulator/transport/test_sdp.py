"""Parsing offers and writing answers, as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.emulator.transport.sdp import (
    DEFAULT_MAX_MESSAGE_SIZE,
    Endpoint,
    OfferError,
    answer_setup,
    parse_offer,
    write_answer,
)

ENDPOINT = Endpoint("abcd/u1/3oxy", "p" * 32, "AA:BB", "passive", (("127.0.0.1", 5), ("10.0.0.1", 6)), 7, 8)
HEAD = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE a d\r\n"
ICE = "a=ice-ufrag:wxyz\r\na=ice-pwd:0123456789012345678901\r\na=fingerprint:sha-256 ab:cd\r\na=setup:actpass\r\n"
AUDIO = "m=audio 9 UDP/TLS/RTP/SAVPF 111 9 0 8\r\na=mid:a\r\na=rtpmap:111 opus/48000/2\r\na=rtpmap:9 G722/8000\r\n"
DATA = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:d\r\na=sctp-port:5000\r\n"
OFFER = HEAD + AUDIO + ICE + DATA + "a=max-message-size:262144\r\n" + ICE
VIDEO = "m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:v\r\na=rtpmap:96 VP8/90000\r\n"
NO_AUDIO = "Invalid SDP offer. Offer did not have an audio media section."
NOT_WHIP = "Invalid SDP offer. Please try again with a WHIP-compliant offer."


def test_offer_is_read() -> None:
    """ICE, DTLS and SCTP parameters are found where browsers write them."""
    offer = parse_offer(OFFER)

    assert offer.ufrag == "wxyz"
    assert offer.fingerprints == (("sha-256", "AB:CD"),)
    assert (offer.setup, offer.max_message_size, offer.sctp_port) == ("actpass", 262144, 5000)


def test_offer_may_keep_its_transport_at_session_level() -> None:
    """Parameters before the first section apply to all sections (RFC 8839 5.4)."""
    offer = parse_offer(HEAD + ICE + AUDIO + DATA)

    assert (offer.ufrag, offer.setup) == ("wxyz", "actpass")
    assert offer.max_message_size == DEFAULT_MAX_MESSAGE_SIZE


def test_unlimited_size_is_what_pion_makes_of_it() -> None:
    """Pion treats a max-message-size of 0 as 65535, so an offer should name a number instead of 0 for "any size"."""
    assert parse_offer(OFFER.replace("262144", "0")).max_message_size == 65535


def test_offer_of_an_old_stack_is_read() -> None:
    """`DTLS/SCTP 5000` with a sctpmap is the form before RFC 8841."""
    data = "m=application 9 DTLS/SCTP 5001\r\na=mid:d\r\na=sctpmap:5001 webrtc-datachannel 1024\r\n"

    assert parse_offer(HEAD + AUDIO + ICE + data + ICE).sctp_port == 5001


def test_offer_with_bare_line_feeds_is_read() -> None:
    """Unix line ends are accepted, as by the service's parser, and empty lines are skipped."""
    assert parse_offer(OFFER.replace("\r\n", "\n")).ufrag == "wxyz"
    assert parse_offer(OFFER.replace("\r\n", "\r\n\r\n")).ufrag == "wxyz"


@pytest.mark.parametrize(
    ("offer", "message"),
    [
        (HEAD + DATA + ICE, NO_AUDIO),
        (HEAD + VIDEO + ICE, NO_AUDIO),
        ("v=0\r\n", NO_AUDIO),
        ("", NOT_WHIP),
        ("hello\r\n", NOT_WHIP),
        (OFFER.rstrip(), NOT_WHIP),
        (OFFER + "nonsense\r\n", NOT_WHIP),
        (OFFER.replace("m=audio 9", "m=audio x"), NOT_WHIP),
        (OFFER.replace("a=ice-ufrag:wxyz\r\n", ""), NOT_WHIP),
        (OFFER.replace("a=ice-pwd:0123456789012345678901\r\n", ""), NOT_WHIP),
        (OFFER.replace("a=fingerprint:sha-256 ab:cd\r\n", ""), NOT_WHIP),
        (OFFER.replace("262144", "many"), NOT_WHIP),
        (OFFER.replace("262144", "9" * 5000), NOT_WHIP),
        (OFFER.replace("111 9 0 8", "9"), NOT_WHIP),
        ("v=0\r\n" + "a=x\r\n" * 100_000, NOT_WHIP),
    ],
)
def test_offer_that_cannot_be_answered_is_refused(offer: str, message: str) -> None:
    """An offer without an audio section has its own error; any other unreadable offer, even one without its last
    line end, has another."""
    with pytest.raises(OfferError) as refused:
        parse_offer(offer)

    assert str(refused.value) == message


@given(st.text(alphabet="vamcosf=:/ 0123456789\r\naudio-icepwd", max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text makes the parser raise anything but its own error."""
    for offer in ("v=0\r\n" + text + "\r\n", OFFER + text + "\r\n"):
        try:
            write_answer(parse_offer(offer), ENDPOINT)
        except OfferError:
            continue


def test_answer_follows_the_order_of_the_offer() -> None:
    """Sections have the offer's order; only the first accepted one has candidates, and refused ones have port 0."""
    answer = write_answer(parse_offer(HEAD + VIDEO + DATA + ICE + AUDIO + ICE), ENDPOINT)
    sections = answer.split("\r\nm=")

    assert [s.split()[0] for s in sections[1:]] == ["video", "application", "audio"]
    assert sections[1].startswith("video 0 ")
    assert [s.count("a=candidate:") for s in sections] == [0, 0, 4, 0]
    assert "a=group:BUNDLE d a\r\n" in answer
    assert "end-of-candidates" not in answer
    assert answer.count("a=fingerprint") == 1


def test_answer_keeps_the_codecs_the_service_knows() -> None:
    """Opus keeps the offer's number, PCMU and PCMA stay, and G722 is removed."""
    answer = write_answer(parse_offer(OFFER), ENDPOINT)

    assert "m=audio 9 UDP/TLS/RTP/SAVPF 111 0 8\r\n" in answer
    assert "a=fmtp:111 minptime=10;useinbandfec=1\r\n" in answer


def test_answer_has_extmap_allow_mixed_only_where_offered() -> None:
    """Browsers offer the attribute, and only then the answer has it."""
    offered = OFFER.replace("t=0 0\r\n", "t=0 0\r\na=extmap-allow-mixed\r\n")

    assert "a=extmap-allow-mixed\r\n" in write_answer(parse_offer(offered), ENDPOINT)
    assert "a=extmap-allow-mixed\r\n" not in write_answer(parse_offer(OFFER), ENDPOINT)


@pytest.mark.parametrize(
    ("offered", "wanted", "setup"),
    [
        ("actpass", "active", "active"),
        ("actpass", "passive", "passive"),
        ("active", "active", "passive"),
        ("passive", "passive", "active"),
    ],
)
def test_role_is_chosen_where_the_offer_leaves_it_open(offered: str, wanted: str, setup: str) -> None:
    """With `actpass` the wanted role is taken; otherwise it is the opposite of the other end's."""
    assert answer_setup(offered, wanted) == setup  # type: ignore[arg-type] # the parameters are plain strings

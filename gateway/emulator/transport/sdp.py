"""Reads an offer and writes the service's answer. No I/O.

It does not know sockets, keys or aiortc. The answer has the shape of recorded ones (2026): ICE-lite, one session-level
sha-256 fingerprint, one UDP and one TCP candidate for each address in the first section only, no end-of-candidates,
BUNDLE, CRLF line ends. The rule that decides most first attempts is here too: an offer without an audio section is
refused.
"""

import re
import zlib
from dataclasses import dataclass
from typing import Literal

Setup = Literal["active", "passive"]

# RFC 8841 6.1: the default maximum message size.
DEFAULT_MAX_MESSAGE_SIZE = 65536
# In RFC 8841 6.1, 0 means "any size". Pion treats it as its own default maximum.
PION_UNLIMITED = 65535
# Pion's default, which the service advertises.
ADVERTISED_MAX_MESSAGE_SIZE = 1073741823
# An offer has a few kilobytes; a browser's offer with video and many interfaces has tens of kilobytes.
MAX_OFFER_CHARACTERS = 256 * 1024

# Up to 64 bits: Python refuses to convert thousands of digits.
_NUMBER = re.compile(r"[0-9]{1,20}")
_M_LINE = re.compile(r"(\S+) (\d+) (\S+) (.+)")
_UDP_PRIORITY = 2130706431
_TCP_PRIORITY = 1671430143
_TCP_PORT = 443


class OfferError(ValueError):
    """An offer that cannot be answered; the text is the service's message."""


@dataclass(frozen=True, slots=True)
class Section:
    """One m-section with its attributes in order."""

    kind: str
    profile: str
    formats: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...]

    def first(self, name: str) -> str | None:
        return next((value for key, value in self.attributes if key == name), None)

    def every(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


@dataclass(frozen=True, slots=True)
class Offer:
    """The parts of an offer that the far end needs."""

    sections: tuple[Section, ...]
    ufrag: str
    fingerprints: tuple[tuple[str, str], ...]
    setup: str
    max_message_size: int
    sctp_port: int
    extmap_allow_mixed: bool

    @property
    def application(self) -> Section | None:
        return next((s for s in self.sections if s.kind == "application"), None)

    @property
    def audio(self) -> Section:
        return next(s for s in self.sections if s.kind == "audio")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The answering side: its ICE and DTLS parameters and its addresses."""

    ufrag: str
    password: str
    fingerprint: str
    setup: Setup
    addresses: tuple[tuple[str, int], ...]
    origin: int
    created: int


def parse_offer(text: str) -> Offer:
    """Read an offer; raises `OfferError` with the service's message."""
    session, sections = _split(text)
    if not any(section.kind == "audio" for section in sections):
        raise OfferError("Invalid SDP offer. Offer did not have an audio media section.")
    bundle = _bundled(sections)
    ufrag = _pick("ice-ufrag", bundle, session)
    password = _pick("ice-pwd", bundle, session)
    fingerprints = tuple(
        (algorithm.lower(), value.upper())
        for algorithm, _, value in (
            line.partition(" ") for line in session.every("fingerprint") + bundle[0].every("fingerprint")
        )
    )
    if not ufrag or not password or not fingerprints:
        raise OfferError(_NOT_WHIP)
    application = next((s for s in sections if s.kind == "application"), None)
    if not _codecs(next(s for s in sections if s.kind == "audio")):
        raise OfferError(_NOT_WHIP)
    return Offer(
        sections=sections,
        ufrag=ufrag,
        fingerprints=fingerprints,
        setup=_pick("setup", bundle, session) or "actpass",
        max_message_size=_number(application, "max-message-size", DEFAULT_MAX_MESSAGE_SIZE) or PION_UNLIMITED,
        sctp_port=_sctp_port(application),
        extmap_allow_mixed=session.first("extmap-allow-mixed") is not None,
    )


def write_answer(offer: Offer, endpoint: Endpoint) -> str:
    """Write the answer to an offer, line by line as recorded."""
    mids = [s.first("mid") or str(i) for i, s in enumerate(offer.sections)]
    taken = {id(s) for s in (offer.audio, offer.application) if s is not None}
    lines = [
        "v=0",
        f"o=- {endpoint.origin} {endpoint.created} IN IP4 0.0.0.0",
        "s=-",
        "t=0 0",
        "a=msid-semantic:WMS *",
        f"a=fingerprint:sha-256 {endpoint.fingerprint}",
        "a=ice-lite",
        *(["a=extmap-allow-mixed"] if offer.extmap_allow_mixed else []),
        "a=group:BUNDLE "
        + " ".join(mid for mid, s in zip(mids, offer.sections, strict=True) if id(s) in taken),
    ]
    candidates = _candidates(endpoint)
    for mid, section in zip(mids, offer.sections, strict=True):
        if id(section) not in taken:
            lines += [f"m={section.kind} 0 {section.profile} {section.formats[0]}", "c=IN IP4 0.0.0.0"]
            lines += [f"a=mid:{mid}", "a=inactive"]
            continue
        lines += _audio(section, mid, endpoint) if section.kind == "audio" else _application(mid, endpoint)
        if candidates:
            # Only the first section has candidates; in the data section they would come before the ICE lines.
            at = len(lines) if section.kind == "audio" else len(lines) - 2
            lines[at:at] = candidates
            candidates = []
    return "\r\n".join(lines) + "\r\n"


def answer_setup(offered: str, wanted: Setup) -> Setup:
    """Choose the DTLS role; the answerer may choose only if the offer leaves it open (RFC 8842 5.3)."""
    if offered == "active":
        return "passive"
    return "active" if offered == "passive" else wanted


_NOT_WHIP = "Invalid SDP offer. Please try again with a WHIP-compliant offer."
_SESSION = ("session", "", ())


def _split(text: str) -> tuple[Section, tuple[Section, ...]]:
    # The service also rejects a missing final line end; `.trim()` in a client is the usual cause.
    if len(text) > MAX_OFFER_CHARACTERS or not text.startswith("v=0") or not text.endswith("\n"):
        raise OfferError(_NOT_WHIP)
    heads: list[tuple[str, str, tuple[str, ...]]] = [_SESSION]
    attributes: list[list[tuple[str, str]]] = [[]]
    for line in text.splitlines():
        if not line:
            continue
        if len(line) < 2 or line[1] != "=":
            raise OfferError(_NOT_WHIP)
        kind, value = line[0], line[2:]
        if kind == "m":
            match = _M_LINE.fullmatch(value)
            if match is None:
                raise OfferError(_NOT_WHIP)
            heads.append((match[1], match[3], tuple(match[4].split())))
            attributes.append([])
        elif kind == "a":
            name, _, rest = value.partition(":")
            attributes[-1].append((name, rest))
    parts = [Section(*head, tuple(held)) for head, held in zip(heads, attributes, strict=True)]
    return parts[0], tuple(parts[1:])


def _bundled(sections: tuple[Section, ...]) -> list[Section]:
    # The first accepted section has the transport of a bundle; the other sections may repeat it or leave it out.
    return [s for s in sections if s.kind in ("audio", "application")]


def _pick(name: str, bundle: list[Section], session: Section) -> str | None:
    return next((v for v in (s.first(name) for s in [*bundle, session]) if v), None)


def _number(section: Section | None, name: str, default: int) -> int:
    value = section.first(name) if section is not None else None
    if value is None:
        return default
    if not _NUMBER.fullmatch(value.strip()):
        raise OfferError(_NOT_WHIP)
    return int(value)


def _sctp_port(application: Section | None) -> int:
    if (
        application is not None
        and application.profile == "DTLS/SCTP"
        and _NUMBER.fullmatch(application.formats[0])
    ):
        return int(application.formats[0])
    return _number(application, "sctp-port", 5000)


def _codecs(audio: Section) -> list[tuple[str, str]]:
    """Return (payload type, encoding) of the accepted codecs: opus, PCMU and PCMA, in the offer's order."""
    named = dict(value.split(" ", 1) for value in audio.every("rtpmap") if " " in value)
    named.setdefault("0", "PCMU/8000")
    named.setdefault("8", "PCMA/8000")
    kept = ("opus/48000/2", "pcmu/8000", "pcma/8000")
    return [(f, named[f]) for f in audio.formats if named.get(f, "").lower() in kept]


def _candidates(endpoint: Endpoint) -> list[str]:
    lines = []
    for address, port in endpoint.addresses:
        tail = f"typ host ufrag {endpoint.ufrag}"
        udp, tcp = (zlib.crc32(f"{protocol}{address}".encode()) for protocol in ("udp", "tcp"))
        lines.append(f"a=candidate:{udp} 1 udp {_UDP_PRIORITY} {address} {port} {tail}")
        tcp_tail = tail.replace("host", "host tcptype passive", 1)
        lines.append(f"a=candidate:{tcp} 1 tcp {_TCP_PRIORITY} {address} {_TCP_PORT} {tcp_tail}")
    return lines


def _audio(section: Section, mid: str, endpoint: Endpoint) -> list[str]:
    codecs = _codecs(section)
    ssrc = zlib.crc32(endpoint.ufrag.encode())
    lines = [
        "m=audio 9 UDP/TLS/RTP/SAVPF " + " ".join(payload for payload, _ in codecs),
        "c=IN IP4 0.0.0.0",
        f"a=setup:{endpoint.setup}",
        f"a=mid:{mid}",
        f"a=ice-ufrag:{endpoint.ufrag}",
        f"a=ice-pwd:{endpoint.password}",
        "a=rtcp-mux",
        "a=rtcp-rsize",
    ]
    for payload, encoding in codecs:
        lines.append(f"a=rtpmap:{payload} {encoding}")
        if encoding.lower().startswith("opus"):
            lines.append(f"a=fmtp:{payload} minptime=10;useinbandfec=1")
    lines += [
        f"a=ssrc:{ssrc} {what}"
        for what in ("cname:realtimeapi", "msid:realtimeapi audio", "mslabel:realtimeapi", "label:audio")
    ]
    return [*lines, "a=msid:realtimeapi audio", "a=sendrecv"]


def _application(mid: str, endpoint: Endpoint) -> list[str]:
    return [
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
        "c=IN IP4 0.0.0.0",
        f"a=setup:{endpoint.setup}",
        f"a=mid:{mid}",
        "a=sendrecv",
        "a=sctp-port:5000",
        f"a=max-message-size:{ADVERTISED_MAX_MESSAGE_SIZE}",
        f"a=ice-ufrag:{endpoint.ufrag}",
        f"a=ice-pwd:{endpoint.password}",
    ]

"""The offer that is sent to the service, and what its answer says. No I/O.

Writes and reads SDP (RFC 8866) as text. Every offer has the same form, so it is a template; of an answer only the lines that
decide about the connection are read.

The offer:

* It has an audio section, which the service requires, though no audio is sent or received. The codecs are those that aiortc
  offers. Both sections share one transport (RFC 9143), so both show the same address, ICE parameters and fingerprint.
* `a=max-message-size` is the largest server event that the gateway takes. Pion drops larger ones silently (RFC 8841 6).
* There is one fingerprint, SHA-256: some stacks read only the last one.
* It ends with CRLF: without it the service refuses the offer ("SDP EOF").

The answer:

* The service gives ICE and DTLS attributes in the first section only, as BUNDLE allows (RFC 9143 7.3.1), or for the session.
* The direction of its audio section does not matter: nothing is started for audio.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# RFC 8841 6: the default of a peer that does not name a size.
DEFAULT_MAX_MESSAGE_BYTES = 65536
# RFC 8841 5: what a peer that names no port uses in practice.
DEFAULT_SCTP_PORT = 5000

_OFFER = """\
v=0
o=- {session} 2 IN IP4 0.0.0.0
s=-
t=0 0
a=group:BUNDLE 0 1
a=msid-semantic:WMS *
m=audio {port} UDP/TLS/RTP/SAVPF 96 9 0 8
c=IN {host}
a=sendrecv
a=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid
a=extmap:2 urn:ietf:params:rtp-hdrext:ssrc-audio-level
a=mid:0
a=msid:{name} {name}
a=rtcp:9 IN IP4 0.0.0.0
a=rtcp-mux
a=ssrc:{source} cname:{name}
a=rtpmap:96 opus/48000/2
a=rtpmap:9 G722/8000
a=rtpmap:0 PCMU/8000
a=rtpmap:8 PCMA/8000
{transport}m=application {port} UDP/DTLS/SCTP webrtc-datachannel
c=IN {host}
a=mid:1
a=sctp-port:5000
a=max-message-size:{max_message_bytes}
{transport}""".replace("\n", "\r\n")

_TRANSPORT = """\
a=end-of-candidates
a=ice-ufrag:{ice_user}
a=ice-pwd:{ice_password}
a=fingerprint:sha-256 {fingerprint}
a=setup:actpass
""".replace("\n", "\r\n")


class SdpError(ValueError):
    """The description is unusable; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What differs between offers. `candidates` have the form of RFC 8839 5.1 without their attribute's name."""

    ice_user: str
    ice_password: str
    fingerprint: str
    candidates: tuple[str, ...]
    max_message_bytes: int

    def text(self, session: int) -> str:
        """Return the offer. `session` is a random number below 2^63 (RFC 9429 5.2.1)."""
        transport = "".join(f"a=candidate:{candidate}\r\n" for candidate in self.candidates)
        transport += _TRANSPORT.format(
            ice_user=self.ice_user, ice_password=self.ice_password, fingerprint=self.fingerprint
        )
        # The default is what most likely works without ICE: a relay's address, else this host's (RFC 8839 4.2.1.2).
        address, port = min(
            ((int(words[3]), words[4], words[5]) for words in map(str.split, self.candidates)),
            default=(0, "0.0.0.0", "9"),
        )[1:]
        return _OFFER.format(
            session=session,
            name=f"{session:016x}",
            source=session & 0xFFFFFFFF,
            host=f"IP6 {address}" if ":" in address else f"IP4 {address}",
            port=port,
            transport=transport,
            max_message_bytes=self.max_message_bytes,
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the candidates, each once, such as `host/udp`."""
        return tuple(dict.fromkeys(map(_kind_of_candidate, self.candidates)))


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that can be applied.

    `max_message_bytes` is the largest message that the far end accepts, None for any size. `addresses` are its candidates
    in the form of RFC 8839 5.1, without those for TCP and for RTCP, which are not used. `candidates` are the kinds of all,
    such as `host/udp`; never an address.
    """

    ice_user: str
    ice_password: str
    ice_lite: bool
    setup: str
    fingerprints: tuple[tuple[str, str], ...]
    sctp_port: int
    max_message_bytes: int | None
    addresses: tuple[str, ...]
    candidates: tuple[str, ...]


def read_answer(text: str) -> Answer:
    """Return what the service's answer says; raises SdpError naming what is missing."""
    if not text.startswith("v=0"):
        raise SdpError("the answer is not a session description: it does not begin with v=0")
    head, sections = _sections(text)
    kinds = [_kind(section) for section in sections]
    for kind, name in (("audio", "audio section"), ("application", "section for the data channel")):
        if kind not in kinds:
            raise SdpError(f"the answer has no {name}")
        if _port(sections[kinds.index(kind)]) == 0:
            raise SdpError(f"the answer rejects the {name} (port 0)")
    data = sections[kinds.index("application")]
    # With BUNDLE the first section describes the transport of all; what it does not say may stand above it, or below.
    order = [sections[0], head, *sections[1:]]

    def first(prefix: str) -> str:
        return next((value for lines in order for value in _values(lines, prefix)), "")

    ice_user, ice_password = first("a=ice-ufrag:"), first("a=ice-pwd:")
    fingerprints = next(
        (found for lines in ([*head, *sections[0]], *sections) if (found := tuple(_fingerprints(lines)))), ()
    )
    for present, name in (
        (bool(ice_user), "ICE user name"),
        (bool(ice_password), "ICE password"),
        (bool(fingerprints), "certificate fingerprint"),
    ):
        if not present:
            raise SdpError(f"the answer has no {name}")
    setup = first("a=setup:")
    if setup not in ("active", "passive"):
        raise SdpError(f"the answer's DTLS role is {setup[:20]!r}, expected 'active' or 'passive'")
    given = tuple(dict.fromkeys(value for lines in order for value in _values(lines, "a=candidate:")))
    candidates = tuple(map(_kind_of_candidate, given))
    if not any(candidate.endswith("/udp") for candidate in candidates):
        raise SdpError("the answer offers no UDP address to connect to")
    return Answer(
        ice_user=ice_user,
        ice_password=ice_password,
        ice_lite=any(line.strip() == "a=ice-lite" for line in head),
        setup=setup,
        fingerprints=fingerprints,
        sctp_port=_sctp_port(data),
        max_message_bytes=_max_message_bytes(data),
        addresses=tuple(
            value
            for value, kind in zip(given, candidates, strict=True)
            if not kind.endswith("/tcp") and value.split()[1:2] != ["2"]
        ),
        candidates=candidates,
    )


def _sections(text: str) -> tuple[list[str], list[list[str]]]:
    """Split a description into its session part and its media sections, in lines without their ends."""
    head: list[str] = []
    sections: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("m="):
            sections.append([])
        (sections[-1] if sections else head).append(line)
    return head, sections


def _kind(section: list[str]) -> str:
    return section[0][2:].partition(" ")[0]


def _port(section: list[str]) -> int | None:
    found = re.match(r"m=\S+ (\d+)", section[0])
    return int(found[1]) if found else None


def _values(lines: list[str], prefix: str) -> list[str]:
    return [line[len(prefix) :].strip() for line in lines if line.startswith(prefix)]


def _fingerprints(lines: list[str]) -> Iterator[tuple[str, str]]:
    for value in _values(lines, "a=fingerprint:"):
        algorithm, _, digest = value.partition(" ")
        yield algorithm, digest.strip()


def _kind_of_candidate(value: str) -> str:
    words = value.split()
    transport = words[2].lower() if len(words) > 2 else "unknown"
    kind = words[words.index("typ") + 1] if "typ" in words[:-1] else "unknown"
    return f"{kind}/{transport}"


def _sctp_port(section: list[str]) -> int:
    """Return the port of RFC 8841 5.1, or of its drafts, whose media line ends with it."""
    given = _values(section, "a=sctp-port:")
    last = section[0].rpartition(" ")[2]
    port = given[0] if given else last if last.isdecimal() else str(DEFAULT_SCTP_PORT)
    if not re.fullmatch(r"\d{1,5}", port):
        raise SdpError(f"the answer's SCTP port is {port[:20]!r}, expected a number")
    return int(port)


def _max_message_bytes(section: list[str]) -> int | None:
    given = _values(section, "a=max-message-size:")
    if not given or not given[0].isdecimal():
        return DEFAULT_MAX_MESSAGE_BYTES
    return int(given[0]) or None

"""Changes to the offer before it is sent and to the answer before it is applied. No I/O.

Handles SDP (RFC 8866) as lines of text, without the library that writes and reads it. Line ends are kept, including the
last one: an offer without its final CRLF is refused by the service ("SDP EOF").

The offer, as sent:

* `a=max-message-size` is raised. aiortc says 262144 and does not enforce it, but Pion does when it sends, and drops a
  larger event silently (RFC 8841 6).
* Of the fingerprints only SHA-256 is kept. aiortc writes three of one certificate; some stacks read only the last.

The answer, as applied:

* Its audio section becomes `a=inactive`. The service answers `a=sendrecv`, which would start a decoder thread and a task
  that wakes fifty times a second, for a session without audio.
* Its candidates are repeated in every section. The service gives them in the first, as BUNDLE allows (RFC 9143 7.3.1);
  if one transport serves two sections, aiortc uses those of the last, and would have none.
"""

import re
from dataclasses import dataclass

# RFC 8841 6: the default of a peer that does not name a size.
DEFAULT_MAX_MESSAGE_BYTES = 65536

_DIRECTIONS = frozenset({"a=sendrecv", "a=sendonly", "a=recvonly", "a=inactive"})
_SHA_256 = "a=fingerprint:sha-256 "


class SdpError(ValueError):
    """The description is unusable; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that can be applied.

    `max_message_bytes` is the largest message that the far end accepts, None for any size. `candidates` are the words that
    follow `typ` and the transport, such as `host/udp`; never an address.
    """

    text: str
    max_message_bytes: int | None
    ice_lite: bool
    setup: str
    candidates: tuple[str, ...]


def offer_to_send(offer: str, max_message_bytes: int) -> str:
    """Return the offer as it is sent to the service; raises SdpError when it has no audio or no data section."""
    head, sections = _sections(offer)
    if not any(_kind(section) == "audio" for section in sections):
        raise SdpError("the offer has no audio section, which the service requires")
    if not any(_kind(section) == "application" for section in sections):
        raise SdpError("the offer has no section for the data channel")
    sent = [_one_fingerprint(head)]
    for section in sections:
        lines = _one_fingerprint(section)
        if _kind(section) == "application":
            lines = _with(lines, "a=max-message-size:", f"a=max-message-size:{max_message_bytes}")
        sent.append(lines)
    return _text(sent)


def answer_to_apply(answer: str) -> Answer:
    """Check the service's answer and return it as it is to be applied; raises SdpError naming what is missing."""
    if not answer.startswith("v=0"):
        raise SdpError("the answer is not a session description: it does not begin with v=0")
    head, sections = _sections(answer)
    kinds = [_kind(section) for section in sections]
    for kind, name in (("audio", "audio section"), ("application", "section for the data channel")):
        if kind not in kinds:
            raise SdpError(f"the answer has no {name}")
        if _port(sections[kinds.index(kind)]) == 0:
            raise SdpError(f"the answer rejects the {name} (port 0)")
    data = sections[kinds.index("application")]
    everything = [*head, *(line for section in sections for line in section)]
    for prefix, name in (
        ("a=ice-ufrag:", "an ICE user name"),
        ("a=ice-pwd:", "an ICE password"),
        ("a=fingerprint:", "a certificate fingerprint"),
    ):
        if not _values(everything, prefix):
            raise SdpError(f"the answer has no {name.partition(' ')[2]}")
    setup = next(iter(_values(data, "a=setup:") or _values(head, "a=setup:")), "")
    if setup not in ("active", "passive"):
        raise SdpError(f"the answer's DTLS role is {setup[:20]!r}, expected 'active' or 'passive'")
    candidates = tuple(_candidate(value) for value in _values(everything, "a=candidate:"))
    if not any(candidate.endswith("/udp") for candidate in candidates):
        raise SdpError("the answer offers no UDP address to connect to")
    addresses = [line for section in sections for line in section if line.startswith("a=candidate:")]
    applied = [head]
    for kind, section in zip(kinds, sections, strict=True):
        if not _values(section, "a=candidate:"):
            section.extend(addresses)
        applied.append(_inactive(section) if kind == "audio" else section)
    return Answer(
        text=_text(applied),
        max_message_bytes=_max_message_bytes(data),
        ice_lite=any(line.strip() == "a=ice-lite" for line in head),
        setup=setup,
        candidates=candidates,
    )


def local_candidates(offer: str) -> tuple[str, ...]:
    """Return the kinds of the offer's own candidates, each once, such as `host/udp`."""
    return tuple(dict.fromkeys(_candidate(value) for value in _values(offer.splitlines(), "a=candidate:")))


def _sections(text: str) -> tuple[list[str], list[list[str]]]:
    """Split a description into its session part and its media sections, in lines that keep their ends."""
    head: list[str] = []
    sections: list[list[str]] = []
    for line in text.splitlines(keepends=True):
        if line.startswith("m="):
            sections.append([])
        # Add a missing final line end, so that text appended later begins on its own line.
        (sections[-1] if sections else head).append(line.rstrip("\r\n") + _end(line))
    return head, sections


def _text(parts: list[list[str]]) -> str:
    return "".join(line for part in parts for line in part)


def _kind(section: list[str]) -> str:
    return section[0][2:].partition(" ")[0]


def _port(section: list[str]) -> int | None:
    found = re.match(r"m=\S+ (\d+)", section[0])
    return int(found[1]) if found else None


def _values(lines: list[str], prefix: str) -> list[str]:
    return [line[len(prefix) :].strip() for line in lines if line.startswith(prefix)]


def _end(line: str) -> str:
    return line[len(line.rstrip("\r\n")) :] or "\r\n"


def _one_fingerprint(lines: list[str]) -> list[str]:
    if not any(line.startswith(_SHA_256) for line in lines):
        return lines
    return [line for line in lines if not line.startswith("a=fingerprint:") or line.startswith(_SHA_256)]


def _with(lines: list[str], prefix: str, replacement: str) -> list[str]:
    """Replace the line with this prefix, or add it at the end of the section."""
    given = [line for line in lines if line.startswith(prefix)]
    if not given:
        return [*lines, replacement + _end(lines[-1])]
    return [replacement + _end(line) if line.startswith(prefix) else line for line in lines]


def _inactive(section: list[str]) -> list[str]:
    kept = [line for line in section if line.strip() not in _DIRECTIONS]
    return [*kept[:1], *kept[1:], "a=inactive" + _end(section[0])]


def _candidate(value: str) -> str:
    words = value.split()
    transport = words[2].lower() if len(words) > 2 else "unknown"
    kind = words[words.index("typ") + 1] if "typ" in words[:-1] else "unknown"
    return f"{kind}/{transport}"


def _max_message_bytes(section: list[str]) -> int | None:
    given = _values(section, "a=max-message-size:")
    if not given or not given[0].isdecimal():
        return DEFAULT_MAX_MESSAGE_BYTES
    return int(given[0]) or None

"""A turn's answer as plain text: its deltas, as they arrive. No I/O.

A delta may end in half of a surrogate pair, because OpenAI splits UTF-16; the next delta then begins with the other half.
Such halves are joined. An unpaired half cannot be encoded in UTF-8 and becomes U+FFFD.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from gateway.downstream.reading.sse import unframe
from gateway.relay.events.eventlog import Entry

DELTA: Final = "response.output_text.delta"


class TextDeltas:
    """A `Rendering` of the delta events of one turn. It keeps an unpaired surrogate until the next delta."""

    media_type = "text/plain; charset=utf-8"

    def __init__(self) -> None:
        self._half = ""

    def opening(self, retry_ms: int, cursor: str | None, members: Mapping[str, object], pad: int) -> bytes:
        return b""

    def entries(self, epoch: str, entries: Sequence[Entry]) -> bytes:
        text = self._half + "".join(map(_delta, entries))
        self._half = ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return well_formed(text).encode()

    def own(self, name: str, members: Mapping[str, object], cursor: str | None = None) -> bytes:
        return b""

    def heartbeat(self, pad: int) -> bytes:
        return b""

    def ending(self, name: str, members: Mapping[str, object], retry_ms: int) -> bytes:
        return b""

    def rest(self) -> bytes:
        """Return the rest that was held back for a delta that did not come."""
        return well_formed(self._half).encode()


def well_formed(text: str) -> str:
    """Join surrogate pairs, and replace unpaired surrogates."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class _Delta(msgspec.Struct):
    delta: str = ""


_decoder: Final = msgspec.json.Decoder(_Delta)


def _delta(entry: Entry) -> str:
    event = unframe(entry.block, entry.start)
    try:
        return _decoder.decode(event).delta
    except msgspec.DecodeError:  # An unpaired surrogate, or not a string.
        delta = json.loads(event).get("delta")
        return delta if isinstance(delta, str) else ""

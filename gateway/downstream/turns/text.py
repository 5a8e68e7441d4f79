"""A turn's answer as plain text: its deltas, as they come. No I/O.

A delta may end in half of a surrogate pair, because the far end counts in UTF-16; the other half begins the next one. Such
halves are joined. A half without its other one cannot be written in UTF-8 and becomes U+FFFD.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from gateway.downstream.reading.sse import unframe
from gateway.relay.eventlog import Entry

DELTA: Final = "response.output_text.delta"


class TextDeltas:
    """A `Rendering` of delta events alone, for one turn: it keeps what the last delta left unfinished."""

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
        """Return what was held back for a delta that did not come."""
        return well_formed(self._half).encode()


def well_formed(text: str) -> str:
    """Join halves of surrogate pairs, and replace those that have no other half."""
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
    except msgspec.DecodeError:  # Half of a surrogate pair, or no text at all.
        delta = json.loads(event).get("delta")
        return delta if isinstance(delta, str) else ""

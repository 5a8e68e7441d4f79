"""A turn's answer as plain text."""

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.downstream.reading.sse import frame
from gateway.downstream.turns.text import DELTA, TextDeltas, well_formed
from gateway.relay.events.eventlog import Entry

UNITS = st.lists(
    st.sampled_from(["a", "é", "\ud83d", "\ude00", "\udbff", "\udfff", "\ufeff", "\u2028"]), max_size=12
)


def delta(text: object) -> Entry:
    """Return a delta as it is in the log."""
    value = json.dumps({"type": DELTA, "delta": text})
    return Entry(1, DELTA, *frame("k-1", None, value), 1, 0.0)


def told(pages: list[list[object]]) -> str:
    """Return the bytes that a client gets for pages of deltas."""
    rendering = TextDeltas()
    parts = [rendering.entries("k", [delta(text) for text in page]) for page in pages]
    return b"".join([*parts, rendering.rest()]).decode()


def utf16(text: str) -> str:
    """Join surrogate pairs and replace lone halves one code unit at a time, as the standard describes (Unicode 3.9,
    D91)."""
    result, index = "", 0
    while index < len(text):
        unit, after = text[index], text[index + 1 : index + 2]
        if "\ud800" <= unit <= "\udbff" and "\udc00" <= after <= "\udfff":
            result += chr(0x10000 + ((ord(unit) - 0xD800) << 10) + ord(after) - 0xDC00)
            index += 2
            continue
        result += "\ufffd" if "\ud800" <= unit <= "\udfff" else unit
        index += 1
    return result


@given(st.lists(st.lists(UNITS.map("".join), max_size=3), max_size=5))
def test_text_is_the_same_wherever_deltas_and_pages_cut_it(pages: list[list[object]]) -> None:
    """Halves of a pair are joined across any split; a lone half becomes U+FFFD; the result is valid UTF-8."""
    whole = "".join(str(text) for page in pages for text in page)

    assert told(pages) == utf16(whole) == well_formed(whole)


def test_a_half_waits_for_the_other_one() -> None:
    """Everything but a half of a pair is written at once."""
    rendering = TextDeltas()
    written = [rendering.entries("k", [delta(text)]) for text in ("a\ud83d", "\ude00", "b")]

    assert written == [b"a", "😀".encode(), b"b"]
    assert rendering.rest() == b""


def test_a_delta_that_is_no_text_says_nothing() -> None:
    """A delta that is not text is ignored, because upstream's data is not trusted."""
    assert told([["a", 1, None, "b"]]) == "ab"


def test_nothing_but_deltas_is_written() -> None:
    """Only deltas are written: plain text cannot carry the gateway's own events."""
    rendering = TextDeltas()

    assert rendering.opening(1, "k-1", {}, 10) == b""
    assert rendering.own("gateway.gap", {}, "k-1") == b""
    assert rendering.heartbeat(10) == b""
    assert rendering.ending("gateway.rotating", {}, 1) == b""

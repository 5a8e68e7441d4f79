"""The event stream format, checked by a parser that was written from the standard and shares no code with the
framing."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.downstream.reading import sse

# White space according to RFC 8259: the only places where JSON may contain a raw line end.
SPACES = st.text(alphabet=" \t\r\n", max_size=4)
IDS = st.from_regex(r"[0-9a-z]{1,4}-[0-9]{1,6}", fullmatch=True)
NAMES = st.sampled_from([None, "gateway.closed", "gateway.recovering"])
# All characters that a string may hold, including those that only Python's splitlines() treats as line ends.
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["\u2028", "\x85", "\x0b\x0c", "data: x", "\n\ndata: forged", ": comment", "id: 7", "\ufeff"]
)


@dataclass
class Dispatched:
    """What a page's listener gets: the event's name, its data, and the last event id at that time."""

    name: str
    data: str
    id: str


@dataclass
class Browser:
    """The parser of an `EventSource`, written after WHATWG HTML 9.2.6, fed with bytes as they arrive."""

    events: list[Dispatched] = field(default_factory=list)
    retry: int | None = None
    last_id: str = ""
    _bytes: bytes = b""
    _data: str = ""
    _name: str = ""

    def feed(self, *chunks: bytes) -> "Browser":
        """Parse chunks; a CR at the end of one waits, because an LF may follow."""
        for chunk in chunks:
            self._bytes += chunk
            while found := re.search(rb"\r\n|\n|\r(?!\Z)", self._bytes):
                line, self._bytes = self._bytes[: found.start()], self._bytes[found.end() :]
                self._line(line.decode())
        return self

    def _line(self, line: str) -> None:
        if not line:
            self._dispatch()
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            self._field(name, value.removeprefix(" "))

    def _field(self, name: str, value: str) -> None:
        if name == "event":
            self._name = value
        elif name == "data":
            self._data += value + "\n"
        elif name == "id":
            self.last_id = value
        elif name == "retry" and value.isdigit():
            self.retry = int(value)

    def _dispatch(self) -> None:
        if self._data:
            self.events.append(
                Dispatched(self._name or "message", self._data.removesuffix("\n"), self.last_id)
            )
        self._data, self._name = "", ""


def spaced(value: str, spaces: Sequence[str]) -> str:
    """Return a JSON object with white space wherever the grammar allows some."""
    before, after_brace, after_colon, after = spaces
    return f'{before}{{{after_brace}"type":{after_colon}{json.dumps(value, ensure_ascii=False)}}}{after}'


JSON = st.builds(spaced, TEXTS, st.lists(SPACES, min_size=4, max_size=4))


def lf(text: str) -> str:
    """Return a text as the framing delivers it: line ends are LF, and other line separators are escapes."""
    for separator in "\x85\u2028\u2029":
        text = text.replace(separator, f"\\u{ord(separator):04x}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


@given(IDS, NAMES, JSON)
def test_frame_gives_the_text_to_a_browser(id: str, name: str | None, text: str) -> None:
    """A browser gets one event with its name, its id and its text; a raw line end of any kind becomes an LF."""
    block, _ = sse.frame(id, name, text)

    assert Browser().feed(block).events == [Dispatched(name or "message", lf(text), id)]


@given(IDS, NAMES, JSON)
def test_unframe_gives_the_text_back_on_one_line(id: str, name: str | None, text: str) -> None:
    """The text is returned on one line: a raw line end of any kind becomes a space, a line separator inside a string
    an escape."""
    block, start = sse.frame(id, name, text)

    assert sse.unframe(block, start).decode() == lf(text).replace("\n", " ")


@given(IDS, JSON)
def test_value_survives_both_ways(id: str, text: str) -> None:
    """Both renderings have the same JSON value as the received text; only white space may change."""
    block, start = sse.frame(id, None, text)
    (event,) = Browser().feed(block).events

    assert json.loads(event.data) == json.loads(sse.unframe(block, start)) == json.loads(text)


@given(st.lists(st.tuples(IDS, NAMES, JSON), min_size=1, max_size=3))
def test_stream_reads_the_same_split_at_every_byte(sent: list[tuple[str, str | None, str]]) -> None:
    """The same events are parsed wherever the network splits the bytes."""
    stream = b"".join(sse.frame(*one)[0] for one in sent)
    whole = Browser().feed(stream).events

    assert len(whole) == len(sent)
    for at in range(len(stream) + 1):
        assert Browser().feed(stream[:at], stream[at:]).events == whole


@given(IDS, NAMES, JSON)
def test_a_block_cut_short_dispatches_nothing(id: str, name: str | None, text: str) -> None:
    """An incomplete block dispatches no event, so a client that is cut off within one resumes before it."""
    block, _ = sse.frame(id, name, text)

    for at in range(len(block)):
        assert Browser().feed(block[:at]).events == []


def test_frame_leaves_text_without_line_ends_as_it_is() -> None:
    """An event without line ends is in its block byte for byte, multi-byte characters included."""
    text = '{"type":"x","delta":"grüß \\n"}'

    block, start = sse.frame("k3f9-42", None, text)

    assert block == b"id: k3f9-42\ndata: " + text.encode() + b"\n\n"
    assert block[start:-2] == text.encode()


@given(st.none() | IDS, st.none() | st.integers(0, 2**31 - 1), JSON)
def test_notice_gives_what_it_has(id: str | None, retry: int | None, text: str) -> None:
    """A notice always has name and data; id and retry are written only if given, so that the client keeps its last
    id."""
    block = sse.notice("gateway.open", text, id=id, retry=retry)
    browser = Browser(last_id="k-1").feed(block)

    assert browser.events == [Dispatched("gateway.open", lf(text), id or "k-1")]
    assert browser.retry == retry


@pytest.mark.parametrize("block", [sse.COMMENT, sse.padding(1), sse.padding(4096), sse.padding(0)])
def test_comment_says_nothing(block: bytes) -> None:
    """Heartbeats and padding reach no listener and do not change the cursor."""
    event = sse.frame("k-2", None, "{}")[0]
    browser = Browser(last_id="k-1").feed(block)

    assert (browser.events, browser.last_id) == ([], "k-1")
    assert len(browser.feed(event).events) == 1


@pytest.mark.parametrize("size", [2, 3, 100, 4096])
def test_padding_has_the_size_asked_for(size: int) -> None:
    """Padding has exactly the requested size."""
    assert len(sse.padding(size)) == size


@given(
    text=st.text(st.sampled_from("a\\\u0085\u2028\u2029é😀\x1c"), max_size=12),
    name=st.sampled_from([None, "x"]),
)
def test_no_line_reader_cuts_an_event(text: str, name: str | None) -> None:
    """Python, which knows the most line ends, and a browser split a block into the same lines."""
    told = json.dumps({"type": "a", "text": text}, ensure_ascii=False)
    block, start = sse.frame("k-1", name, told)
    line = sse.unframe(block, start).decode()

    assert block.decode().splitlines() == block.decode().split("\n")[:-1]
    assert line.splitlines() == [line]
    assert json.loads(line) == {"type": "a", "text": text}
    assert len(sse.notice("x", told).decode().splitlines()) == 3


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u0085\u2028\u2029\r\n")))
def test_other_characters_pass_byte_for_byte(text: str) -> None:
    """Only characters at which line readers split are escaped; the others are unchanged."""
    told = json.dumps({"text": text}, ensure_ascii=False)
    block, start = sse.frame("k-1", None, told)

    assert sse.unframe(block, start).decode() == told


def test_never_retry_fits_a_signed_number() -> None:
    """The retry value for "do not reconnect" is the contract's, and the largest that fits a signed 32-bit number."""
    assert sse.NEVER_RETRY_MS == 2147483647

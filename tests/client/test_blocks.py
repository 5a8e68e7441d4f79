"""The client's event stream parser (WHATWG HTML 9.2.6)."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client import Block, BlockParser

STREAM = (
    b"\xef\xbb\xbfretry: 1830\n: a comment\n\n"
    b'id: k3f9-1\nevent: gateway.open\ndata: {"type":"gateway.open"}\n\n'
    b'id: k3f9-2\r\ndata: {"a":\r\ndata: 1}\r\n\r\n'
    b"id:k3f9-3\rdata:  two spaces\r\r"
    b"data\n\n"
    b"id: bad\0id\nunknown: x\nretry: soon\ndata: \xc3\xa4\xf0\x9f\x98\x80\n\n"
)
BLOCKS = [
    Block(retry=1830),
    Block(id="k3f9-1", name="gateway.open", data='{"type":"gateway.open"}'),
    Block(id="k3f9-2", data='{"a":\n1}'),
    Block(id="k3f9-3", data=" two spaces"),
    Block(data=""),
    Block(data="ä😀"),
]


def parse(*chunks: bytes) -> list[Block]:
    """Feed chunks to one parser."""
    parser = BlockParser()
    return [block for chunk in chunks for block in parser.feed(chunk)]


def test_stream_is_read_whole() -> None:
    """The parser handles all three line ends, a byte order mark, comments and unknown fields."""
    assert parse(STREAM) == BLOCKS


@pytest.mark.parametrize("cut", range(1, len(STREAM)))
def test_any_cut_gives_the_same_blocks(cut: int) -> None:
    """How the network splits the bytes changes nothing."""
    assert parse(STREAM[:cut], STREAM[cut:]) == BLOCKS


def test_single_bytes_give_the_same_blocks() -> None:
    """Feeding one byte at a time gives the same blocks."""
    assert parse(*(STREAM[index : index + 1] for index in range(len(STREAM)))) == BLOCKS


def test_unfinished_block_is_not_given() -> None:
    """A connection cut in the middle of an event yields no half event."""
    assert parse(b"id: k3f9-1\ndata: {}\n") == []


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))))
def test_any_text_survives(texts: list[str]) -> None:
    """JSON with any text, framed as the gateway does it, is parsed unchanged."""
    stream = "".join(f"id: a-1\ndata: {json.dumps(text, ensure_ascii=False)}\n\n" for text in texts)

    assert [json.loads(block.data or "") for block in parse(stream.encode())] == texts

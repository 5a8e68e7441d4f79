"""RESP: encoded commands, and replies parsed however the bytes are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cluster.resp import MAX_REPLY_BYTES, Parser, Reply, ReplyError, WireError, command

REPLIES: list[tuple[bytes, Reply]] = [
    (b"+OK\r\n", b"OK"),
    (b":42\r\n", 42),
    (b"$3\r\na\r\n\r\n", b"a\r\n"),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"*3\r\n$1\r\nx\r\n:1\r\n*1\r\n$-1\r\n", [b"x", 1, [None]]),
]


def test_command_is_an_array_of_bulk_strings() -> None:
    """The bytes are those in the documentation of the protocol."""
    assert command([b"XADD", b"k", b""]) == b"*3\r\n$4\r\nXADD\r\n$1\r\nk\r\n$0\r\n\r\n"


@given(st.lists(st.sampled_from(REPLIES), max_size=6), st.data())
def test_replies_are_found_however_the_bytes_are_cut(
    replies: list[tuple[bytes, Reply]], data: st.DataObject
) -> None:
    """The parser returns the same replies for whole data and for single bytes."""
    sent = b"".join(encoded for encoded, _ in replies)
    parser, found, at = Parser(), [], 0
    while at < len(sent):
        size = data.draw(st.integers(1, len(sent) - at))
        found += parser.feed(sent[at : at + size])
        at += size

    assert found == [reply for _, reply in replies]


def test_error_is_a_value() -> None:
    """An error answers one command; the commands after it are answered as well."""
    error, after = Parser().feed(b"-MOVED 1 host:1\r\n+OK\r\n")

    assert isinstance(error, ReplyError)
    assert str(error).startswith("MOVED")
    assert after == b"OK"


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 400 Bad Request\r\n", b"$x\r\n", b"$99999999\r\n", b"+" + bytes(MAX_REPLY_BYTES + 1)]
)
def test_what_is_no_reply_is_refused(data: bytes) -> None:
    """A server that does not speak RESP, or sends too much, ends the connection."""
    with pytest.raises(WireError):
        Parser().feed(data)

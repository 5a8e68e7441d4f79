"""The far end's SCTP compared with stock aiortc: bundled packets, linear time, and the stock behaviour under another
version."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiortc.rtcsctptransport import (
    SCTP_DATA_FIRST_FRAG,
    SCTP_DATA_LAST_FRAG,
    SCTP_DATA_UNORDERED,
    DataChunk,
)
from hypothesis import given

from gateway.emulator.transport import association
from gateway.emulator.transport.association import _Stream
from gateway.emulator.transport.ice import LiteAgent
from tests.emulator.caller import Caller
from tests.upstream.test_reassembly import check_order, transmissions


def chunk(tsn: int, *, first: bool, last: bool, sequence: int = 0) -> DataChunk:
    """Make one fragment."""
    made = DataChunk(flags=SCTP_DATA_FIRST_FRAG * first | SCTP_DATA_LAST_FRAG * last)
    made.tsn, made.stream_seq, made.protocol, made.user_data = tsn, sequence, 51, b"%d" % tsn
    return made


def test_fragments_become_messages_in_any_order_of_arrival() -> None:
    """Two messages whose fragments arrive mixed are delivered completely, in order, once."""
    stream = _Stream()
    fragments = [
        chunk(5, first=False, last=True, sequence=1),
        chunk(2, first=False, last=False),
        chunk(4, first=True, last=False, sequence=1),
        chunk(1, first=True, last=False),
        chunk(3, first=False, last=True),
    ]
    out = []
    for fragment in fragments:
        stream.add_chunk(fragment)
        out += [data for _, _, data in stream.pop_messages()]

    assert out == [b"123", b"45"]
    assert not any((stream._before, stream._after, stream._whole))


@given(transmissions())
def test_messages_follow_their_sequence_numbers_in_any_interleaving(
    transmission: tuple[list[int], list[Any], int],
) -> None:
    """After each chunk exactly those messages are delivered that are complete and have no unfinished message before
    them."""
    check_order(_Stream(), transmission)


def test_unordered_and_skipped_messages_do_not_wait() -> None:
    """An unordered message is delivered at once, and so is a complete one whose predecessors were given up (RFC 3758
    3.6)."""
    stream = _Stream()
    unordered = chunk(9, first=True, last=True, sequence=4)
    unordered.flags |= SCTP_DATA_UNORDERED
    for fragment in (chunk(3, first=True, last=True, sequence=2), unordered):
        stream.add_chunk(fragment)
    assert [data for _, _, data in stream.pop_messages()] == [b"9"]
    stream.sequence_number = 3

    assert [data for _, _, data in stream.pop_messages()] == [b"3"]


def test_fragments_of_an_unfinished_message_are_kept_while_none_was_given_up() -> None:
    """A message that begins before the given number and extends to it can still be completed."""
    stream = _Stream()
    stream.add_chunk(chunk(1, first=True, last=False))
    assert stream.prune_chunks(1) == 0
    stream.add_chunk(chunk(2, first=False, last=True))

    assert [data for _, _, data in stream.pop_messages()] == [b"12"]


def test_fragments_that_were_given_up_are_forgotten() -> None:
    """Fragments whose first fragment will never arrive are dropped, and later messages are still found."""
    stream = _Stream()
    for fragment in (chunk(1, first=False, last=True), chunk(2, first=True, last=True, sequence=1)):
        stream.add_chunk(fragment)
    stream.prune_chunks(1)
    stream.sequence_number = 1

    assert [data for _, _, data in stream.pop_messages()] == [b"2"]


def test_long_message_is_put_together_in_linear_time() -> None:
    """Four times the fragments take about four times as long, not sixteen: 20,000 of them need at most three seconds
    of CPU."""
    stream = _Stream()
    before = time.thread_time()
    messages = 0
    for tsn in range(20_000):
        stream.add_chunk(chunk(tsn, first=tsn == 0, last=tsn == 19_999))
        messages += len(list(stream.pop_messages()))

    assert messages == 1
    assert time.thread_time() - before < 3.0


async def test_messages_of_one_turn_share_packets(
    emulate: Callable[..., Any], call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small messages at once arrive complete and in order, in far fewer packets than messages."""
    emulator = await emulate()
    caller: Caller = await call(emulator)
    packets = 0
    send = LiteAgent._send

    async def counted(self: LiteAgent, data: bytes) -> None:
        nonlocal packets
        packets += 1
        await send(self, data)

    monkeypatch.setattr(LiteAgent, "_send", counted)
    frames = [f'{{"type":"n{n}"}}' for n in range(200)]
    await caller.tell("send", {"frames": frames})
    await caller.until("n199")

    assert caller.frames[1:] == frames
    assert packets < 50


@pytest.mark.parametrize("tuned", [True, False])
async def test_turn_works_tuned_and_stock(
    tuned: bool, emulate: Callable[..., Any], call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an unknown version of aiortc the far end works without the changes."""
    monkeypatch.setattr(association, "_TUNED", tuned)
    caller: Caller = await call(await emulate())
    answer = await caller.ask("Write 300 words about rain")

    assert len(answer.split()) == 300


async def test_lost_packets_are_sent_again(
    emulate: Callable[..., Any], call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If every seventh datagram is lost, a long answer still arrives complete and in order."""
    caller: Caller = await call(await emulate())
    sent = 0
    send = LiteAgent._send

    async def lossy(self: LiteAgent, data: bytes) -> None:
        nonlocal sent
        sent += 1
        if sent % 7:
            await send(self, data)

    monkeypatch.setattr("aiortc.rtcsctptransport.SCTP_RTO_MIN", 0.02)
    monkeypatch.setattr(LiteAgent, "_send", lossy)
    async with asyncio.timeout(20):
        answer = await caller.ask("Write 200 words about rain")
    monkeypatch.setattr(LiteAgent, "_send", send)

    assert len(answer.split()) == 200
    deltas = [e["delta"] for e in caller.events if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == answer

"""Messages are delivered complete and ordered by SSN, for any order of TSNs and of arrival, duplicates included."""

import itertools
import random
from dataclasses import dataclass
from typing import Any

import pytest
from aiortc.rtcsctptransport import DataChunk, InboundStream
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.reassembly import (
    CHUNK_COST_BYTES,
    FIRST_FRAGMENT,
    LAST_FRAGMENT,
    UNORDERED,
    OrderedStream,
)

TSNS = [0, 1000, 2**31 - 3, 2**32 - 5]


@dataclass
class Chunk:
    """A DATA chunk."""

    tsn: int
    stream_seq: int
    flags: int
    user_data: bytes
    stream_id: int = 1
    protocol: int = 51


def fragments(number: int, tsn: int, count: int, ssn: int | None = None, flags: int = 0) -> list[Chunk]:
    """Return message `number` in `count` fragments, the first of which has `tsn`."""
    return [
        Chunk(
            tsn=(tsn + index) % 2**32,
            stream_seq=(number if ssn is None else ssn) % 2**16,
            flags=flags | FIRST_FRAGMENT * (index == 0) | LAST_FRAGMENT * (index == count - 1),
            user_data=b"%d.%d " % (number, index),
        )
        for index in range(count)
    ]


def text(number: int, count: int) -> bytes:
    """Return the data of a message made by `fragments`."""
    return b"".join(b"%d.%d " % (number, index) for index in range(count))


def take(stream: Any, chunks: list[Chunk]) -> list[bytes]:
    """Add chunks one by one and return what was delivered."""
    out = []
    for chunk in chunks:
        stream.add_chunk(chunk)
        out += [data for _, _, data in stream.pop_messages()]
    return out


@st.composite
def transmissions(draw: st.DrawFn) -> tuple[list[int], list[Chunk], int]:
    """Return the messages' fragment counts in SSN order, all chunks in an order of arrival, and the first SSN.

    Several writers take SSNs one after another and pass their messages to the association in any order, so TSNs are
    any permutation of the messages; the network then permutes the chunks.
    """
    counts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=7))
    first_ssn = draw(st.sampled_from([0, 7, 2**15 - 2, 2**16 - 3]))
    tsn = draw(st.sampled_from(TSNS))
    chunks: list[Chunk] = []
    for number in draw(st.permutations(range(len(counts)))):
        chunks += fragments(number, tsn, counts[number], first_ssn + number)
        tsn += counts[number]
    return counts, draw(st.permutations(chunks)), first_ssn


@given(transmissions())
def test_messages_follow_their_ssns_in_any_interleaving(
    transmission: tuple[list[int], list[Chunk], int],
) -> None:
    """After each chunk exactly those messages are delivered that are complete and have no unfinished message before
    them."""
    stream = OrderedStream()
    check_order(stream, transmission)

    assert stream.held == 0


def check_order(stream: Any, transmission: tuple[list[int], list[Chunk], int]) -> None:
    """Check what an empty stream delivers after each chunk."""
    counts, chunks, first_ssn = transmission
    stream.sequence_number = stream._expected = first_ssn
    missing, out = list(counts), []
    for chunk in chunks:
        out += take(stream, [chunk])
        missing[(chunk.stream_seq - first_ssn) % 2**16] -= 1
        complete = len(list(itertools.takewhile(lambda left: not left, missing)))

        assert out == [text(number, counts[number]) for number in range(complete)]


def test_crossed_pair_is_delivered() -> None:
    """SSN 1 with TSN n and SSN 0 with TSN n + 1, as two writers send them, are both delivered, 0 first. Stock aiortc
    delivers neither."""
    pair = [*fragments(1, 10, 1), *fragments(0, 11, 1)]
    stock: list[Any] = []
    for chunk in pair:
        made = DataChunk(flags=chunk.flags)
        made.tsn, made.stream_seq, made.user_data = chunk.tsn, chunk.stream_seq, chunk.user_data
        made.stream_id, made.protocol = 1, 51
        stock.append(made)

    assert take(OrderedStream(), pair) == [text(0, 1), text(1, 1)]
    assert take(InboundStream(), stock) == []


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=7),
    tsn=st.sampled_from(TSNS),
    seed=st.integers(0, 2**16),
)
def test_unordered_messages_come_when_they_are_whole(counts: list[int], tsn: int, seed: int) -> None:
    """An unordered message waits only for its own fragments (RFC 9260 6.6)."""
    chunks, places = [], []
    for number, count in enumerate(counts):
        chunks += fragments(number, tsn, count, 0, UNORDERED)
        places += [number] * count
        tsn += count
    arrivals = list(zip(chunks, places, strict=True))
    random.Random(seed).shuffle(arrivals)
    stream, missing = OrderedStream(), list(counts)
    for chunk, number in arrivals:
        missing[number] -= 1

        assert take(stream, [chunk]) == ([] if missing[number] else [text(number, counts[number])])
    assert stream.held == 0


def test_message_with_a_number_of_the_past_is_delivered_at_once() -> None:
    """A message with a past SSN is delivered at once, so a sender that counts wrongly loses and blocks nothing."""
    stream = OrderedStream()
    chunks = [*fragments(0, 1, 1), *fragments(1, 2, 1, 0), *fragments(2, 3, 1, 1)]

    assert take(stream, chunks) == [text(0, 1), text(1, 1), text(2, 1)]


def test_message_with_a_number_that_waits_already_is_delivered_at_once() -> None:
    """Of two messages with the same SSN neither replaces the other."""
    stream = OrderedStream()
    chunks = [*fragments(5, 1, 1, 1), *fragments(6, 2, 1, 1), *fragments(7, 3, 1, 0)]

    assert take(stream, chunks) == [text(6, 1), text(7, 1), text(5, 1)]


def test_held_counts_data_and_what_a_chunk_costs() -> None:
    """Each chunk counts with a fixed overhead, so a chunk of one byte is not nearly free."""
    stream = OrderedStream()
    for chunk in fragments(0, 1, 3)[:2]:
        stream.add_chunk(chunk)

    assert stream.held == 2 * CHUNK_COST_BYTES + 8


def test_advance_counts_a_message_that_took_another_way() -> None:
    """After a message that was delivered by another path, the next SSN is expected."""
    stream = OrderedStream()
    stream.advance(1)

    assert take(stream, fragments(1, 2, 1)) == [text(1, 1)]


def test_skipped_messages_that_are_whole_are_delivered_in_order() -> None:
    """A FORWARD TSN advances the number: earlier complete messages are delivered in SSN order, then those that
    follow."""
    stream = OrderedStream()
    assert take(stream, [*fragments(2, 30, 1), *fragments(1, 20, 2), *fragments(4, 50, 1)]) == []
    stream.sequence_number = 4

    assert [data for _, _, data in stream.pop_messages()] == [text(1, 2), text(2, 1), text(4, 1)]
    assert stream.held == 0


@pytest.mark.parametrize(
    ("kept", "tsn", "pruned"),
    [
        ([0, 1], 8, False),  # before the first fragment
        ([0, 1], 9, False),
        ([0, 1], 10, False),  # between the fragments that arrived
        ([0, 1], 11, False),  # the run extends to it
        ([0, 1], 12, True),  # the third fragment was given up
        ([1, 2], 9, False),  # the first may still arrive
        ([1, 2], 10, True),  # the first was given up
        ([1, 2], 14, True),
        ([3], 12, True),
        ([3], 11, False),
    ],
)
@pytest.mark.parametrize("wrap", [0, 2**32 - 11])
def test_pruning_drops_what_can_no_longer_be_completed(
    kept: list[int], tsn: int, pruned: bool, wrap: int
) -> None:
    """A message of TSNs 10 to 13 is dropped if a fragment is missing up to the given TSN; otherwise it can still be
    completed."""
    chunks = fragments(0, 10 + wrap, 4)
    stream = OrderedStream()
    take(stream, [chunks[index] for index in kept])
    size = stream.prune_chunks((tsn + wrap) % 2**32)
    rest = [chunk for index, chunk in enumerate(chunks) if index not in kept]

    assert size == (sum(len(chunks[index].user_data) for index in kept) if pruned else 0)
    assert stream.held == (0 if pruned else len(kept) * (CHUNK_COST_BYTES + 4))
    assert take(stream, rest) == ([] if pruned else [text(0, 4)])


def test_reassembly_looks_at_each_fragment_a_few_times() -> None:
    """The work for a message grows linearly with its size, also when it arrives backwards."""

    class Counting(Chunk):
        looked = 0

        def __getattribute__(self, name: str) -> Any:
            if name == "tsn":
                Counting.looked += 1
            return super().__getattribute__(name)

    for order in (1, -1):
        chunks = [Counting(**vars(chunk)) for chunk in fragments(0, 1, 4000)][::order]
        Counting.looked = 0
        assert len(take(OrderedStream(), list(chunks))) == 1

        assert Counting.looked < 10 * 4000

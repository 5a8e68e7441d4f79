"""One inbound stream of an SCTP association: fragments become messages, and messages are put in order. No I/O.

Two kinds of numbers are involved (RFC 9260 1.3). A transmission sequence number (TSN) counts the DATA chunks of an
association; the fragments of a message have consecutive ones. A stream sequence number (SSN) counts the ordered messages of
a stream. A sender with two writers may assign SSNs in another order than TSNs, so the order of TSNs says nothing about the
order of messages: RFC 9260 6.6 orders messages by SSN alone.

A run is a series of fragments with consecutive TSNs. Each new fragment extends the run before it, the run after it, or joins
both, in constant time. A run from a first to a last fragment is a message. An ordered message then waits for its SSN.

The interface is that of aiortc's `InboundStream`, which this class replaces.
"""

from collections.abc import Iterator
from typing import Protocol

LAST_FRAGMENT, FIRST_FRAGMENT, UNORDERED = 0x01, 0x02, 0x04
"""The flags of a DATA chunk (RFC 9260 3.3.1)."""

CHUNK_COST_BYTES = 256
"""What a chunk costs in memory beside its data. It is counted because a chunk may hold a single byte."""

_TSN_MASK = 0xFFFFFFFF
_SSN_MASK = 0xFFFF
_TSN_HALF = 1 << 31
_SSN_HALF = 1 << 15


class Fragment(Protocol):
    """A DATA chunk."""

    flags: int
    tsn: int
    stream_id: int
    stream_seq: int
    protocol: int
    user_data: bytes


Message = tuple[int, int, bytes]
"""Stream identifier, payload protocol identifier, data."""


class OrderedStream:
    """Reassemble the messages of one stream and deliver them by SSN."""

    def __init__(self) -> None:
        self.sequence_number = 0
        """The SSN of the next ordered message to deliver. A FORWARD TSN sets it, too (RFC 3758 3.6)."""
        self.held = 0
        """Bytes of memory that undelivered chunks take."""
        self._expected = 0
        # A run is found by the TSN of its first fragment unless that begins a message, and by the TSN of its last
        # fragment unless that ends one: at such a border nothing can be added.
        self._by_first: dict[int, list[Fragment]] = {}
        self._by_last: dict[int, list[Fragment]] = {}
        self.waiting: dict[int, list[Fragment]] = {}
        """Whole messages that wait for an earlier one, by SSN."""
        self._deliverable: list[list[Fragment]] = []

    def add_chunk(self, chunk: Fragment) -> None:
        """Add a chunk. The caller has dropped duplicates."""
        self.held += CHUNK_COST_BYTES + len(chunk.user_data)
        message = self._joined(chunk)
        if message is None:
            return
        number = message[0].stream_seq
        behind = (number - self.sequence_number) & _SSN_MASK >= _SSN_HALF
        if message[0].flags & UNORDERED or behind or number in self.waiting:
            # A repeated number is a mistake of the sender. Its message is delivered rather than lost.
            self._deliverable.append(message)
        else:
            self.waiting[number] = message

    def advance(self, messages: int) -> None:
        """Count messages that were delivered past this object. To be called only while nothing is held."""
        self.sequence_number = self._expected = (self.sequence_number + messages) & _SSN_MASK

    def pop_messages(self) -> Iterator[Message]:
        """Yield every message that is next in order."""
        waiting = self.waiting
        if self._expected != self.sequence_number:
            skipped = sorted(
                (number for number in waiting if (number - self.sequence_number) & _SSN_MASK >= _SSN_HALF),
                key=lambda number: (number - self.sequence_number) & _SSN_MASK,
            )
            self._deliverable += [waiting.pop(number) for number in skipped]
        while self.sequence_number in waiting:
            self._deliverable.append(waiting.pop(self.sequence_number))
            self.sequence_number = (self.sequence_number + 1) & _SSN_MASK
        self._expected = self.sequence_number
        messages, self._deliverable = self._deliverable, []
        for message in messages:
            self.held -= _cost(message)
            data = message[0].user_data if len(message) == 1 else b"".join([c.user_data for c in message])
            yield message[0].stream_id, message[0].protocol, data

    def prune_chunks(self, tsn: int) -> int:
        """Drop the fragments of messages that miss a fragment up to `tsn`, and return the size of their data.

        The sender abandoned those messages (RFC 3758 3.6).
        """
        size = 0
        for run in {id(run): run for run in (*self._by_first.values(), *self._by_last.values())}.values():
            first, last = run[0], run[-1]
            # A fragment up to `tsn` + 1 that does not begin a message belongs to one whose beginning was abandoned.
            begun = (
                first.tsn - tsn - 1 - (0 if first.flags & FIRST_FRAGMENT else 1)
            ) & _TSN_MASK >= _TSN_HALF
            reaches = (last.tsn - tsn) & _TSN_MASK < _TSN_HALF
            if not begun or (first.flags & FIRST_FRAGMENT and reaches):
                continue
            self._by_first.pop(first.tsn, None)
            self._by_last.pop(last.tsn, None)
            self.held -= _cost(run)
            size += sum(len(fragment.user_data) for fragment in run)
        return size

    def _joined(self, chunk: Fragment) -> list[Fragment] | None:
        """Add a chunk to the runs around it. Return the run if that completes a message."""
        begins, ends = chunk.flags & FIRST_FRAGMENT, chunk.flags & LAST_FRAGMENT
        if begins and ends:
            return [chunk]
        run = None if begins else self._by_last.pop((chunk.tsn - 1) & _TSN_MASK, None)
        if run is None:
            run = [chunk]
        else:
            run.append(chunk)
        following = None if ends else self._by_first.pop((chunk.tsn + 1) & _TSN_MASK, None)
        if following is not None:
            run += following
        first, last = run[0], run[-1]
        if first.flags & FIRST_FRAGMENT and last.flags & LAST_FRAGMENT:
            return run
        if not first.flags & FIRST_FRAGMENT:
            self._by_first[first.tsn] = run
        if not last.flags & LAST_FRAGMENT:
            self._by_last[last.tsn] = run
        return None


def _cost(message: list[Fragment]) -> int:
    return sum(CHUNK_COST_BYTES + len(fragment.user_data) for fragment in message)

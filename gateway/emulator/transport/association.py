"""SCTP for a far end with many calls: aiortc's association with bundling, linear reassembly and input checks.

It does not know the content of the messages. Three things are changed, each by overriding a method of aiortc 1.16. With
another version the association is aiortc's own, except for the guards:

* Messages sent in one turn of the loop are bundled into as few packets as possible (RFC 9260 6.10), as in Pion. aiortc uses
  a task per message and a packet per chunk, which costs both ends CPU for each delta.
* A message is reassembled in linear time, and messages are ordered by stream sequence number. aiortc scans all fragments
  again for each new one, and never delivers a message that has a lower TSN but a later sequence number than another.
* Invalid input (text that is not UTF-8, a second OPEN, an INIT bundled with other chunks) does not end the call.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from struct import pack

from aiortc import RTCDataChannel, RTCSctpTransport
from aiortc.rtcsctptransport import (
    SCTP_COMMON_HEADER_LENGTH,
    SCTP_DATA_FIRST_FRAG,
    SCTP_DATA_LAST_FRAG,
    SCTP_DATA_UNORDERED,
    SCTP_MAX_PACKET_LENGTH,
    USERDATA_MAX_LENGTH,
    DataChunk,
    InboundStream,
    tsn_minus_one,
    tsn_plus_one,
)
from aiortc.utils import uint16_add, uint16_gt, uint32_gt, uint32_gte
from google_crc32c import value as crc32c

_TUNED = version("aiortc").startswith("1.16.")
# RFC 8831 8: payload protocol identifiers.
_DCEP, _TEXT, _EMPTY_TEXT = 50, 51, 56
# Chunks taken from the channel's queue at a time; those that still wait count as `bufferedAmount`.
_MAX_QUEUED_CHUNKS = 64
_PACKET_ROOM = SCTP_MAX_PACKET_LENGTH - SCTP_COMMON_HEADER_LENGTH


class _Stream(InboundStream):
    """An inbound stream that joins each fragment in constant time and orders messages by stream sequence number.

    RFC 9260 6.6 orders messages by that number alone. A client with two writers may send a later one with an earlier TSN.
    """

    def __init__(self) -> None:
        super().__init__()
        self._expected = 0
        # Unfinished messages: by the TSN before their first fragment present, and by the TSN after their last one.
        self._before: dict[int, list[DataChunk]] = {}
        self._after: dict[int, list[DataChunk]] = {}
        self._whole: dict[int, list[DataChunk]] = {}
        self._due: list[list[DataChunk]] = []

    def add_chunk(self, chunk: DataChunk) -> None:
        message = self._joined(chunk)
        if message is None:
            return
        number = message[0].stream_seq
        ordered = not message[0].flags & SCTP_DATA_UNORDERED
        if ordered and not uint16_gt(self.sequence_number, number) and number not in self._whole:
            self._whole[number] = message
        else:
            self._due.append(message)

    def pop_messages(self) -> Iterator[tuple[int, int, bytes]]:
        if self._expected != self.sequence_number:  # a FORWARD TSN skipped some
            skipped = [number for number in self._whole if uint16_gt(self.sequence_number, number)]
            skipped.sort(key=lambda number: (number - self.sequence_number) % 2**16)
            self._due += [self._whole.pop(number) for number in skipped]
        while self.sequence_number in self._whole:
            self._due.append(self._whole.pop(self.sequence_number))
            self.sequence_number = uint16_add(self.sequence_number, 1)
        self._expected = self.sequence_number
        messages, self._due = self._due, []
        for message in messages:
            data = b"".join([fragment.user_data for fragment in message])
            yield message[0].stream_id, message[0].protocol, data

    def prune_chunks(self, tsn: int) -> int:
        size = 0
        for run in list({id(run): run for run in (*self._before.values(), *self._after.values())}.values()):
            begins = bool(run[0].flags & SCTP_DATA_FIRST_FRAG)
            missing = tsn if begins else tsn_plus_one(tsn)
            if uint32_gt(run[0].tsn, missing) or (begins and uint32_gte(run[-1].tsn, tsn)):
                continue  # no fragment of it has been lost so far
            self._before.pop(tsn_minus_one(run[0].tsn), None)
            self._after.pop(tsn_plus_one(run[-1].tsn), None)
            size += sum(len(fragment.user_data) for fragment in run)
        return size

    def _joined(self, chunk: DataChunk) -> list[DataChunk] | None:
        """Add a chunk to the fragments around it; return them if that completes a message."""
        first, last = chunk.flags & SCTP_DATA_FIRST_FRAG, chunk.flags & SCTP_DATA_LAST_FRAG
        run = [] if first else self._after.pop(chunk.tsn, [])
        run.append(chunk)
        if not last:
            run += self._before.pop(chunk.tsn, [])
        begins = run[0].flags & SCTP_DATA_FIRST_FRAG
        ends = run[-1].flags & SCTP_DATA_LAST_FRAG
        if begins and ends:
            return run
        if not begins:
            self._before[tsn_minus_one(run[0].tsn)] = run
        if not ends:
            self._after[tsn_plus_one(run[-1].tsn)] = run
        return None


class Association(RTCSctpTransport):
    """One association; `on_garbled` is called with a text message that is not UTF-8."""

    on_garbled: Callable[[bytes], None] | None = None
    _corked = False
    _flush_due = False

    def widen(self, window: int) -> None:
        """Set the receive window, before the association begins."""
        self._advertised_rwnd = window

    def enqueue(self, channel: RTCDataChannel, frame: bytes) -> None:
        """Send bytes as one text message, valid UTF-8 or not, at the end of this turn of the loop."""
        # SCTP cannot send an empty message: one byte is sent, and the protocol identifier marks it as empty (RFC 8831 6.6).
        protocol, frame = (_TEXT, frame) if frame else (_EMPTY_TEXT, b"\0")
        channel._addBufferedAmount(len(frame))  # noqa: SLF001 - the public send takes no bytes as text
        self._data_channel_queue.append((channel, protocol, frame))
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_due = False
        # The flush never suspends (sendto is synchronous), so it is driven here instead of by a task.
        step = self._data_channel_flush()
        with contextlib.suppress(StopIteration, ConnectionError):
            step.send(None)
            raise RuntimeError("the flush of a data channel suspended")

    async def _data_channel_flush(self) -> None:
        if not _TUNED:
            await super()._data_channel_flush()
            return
        if self._association_state != self.State.ESTABLISHED:
            return
        if not (self._data_channel_queue or self._outbound_queue or self._reconfig_queue or self._sent_queue):
            # aiortc flushes after every acknowledgement; mostly there is nothing left to send.
            return
        self._corked = True
        try:
            while self._data_channel_queue and len(self._outbound_queue) < _MAX_QUEUED_CHUNKS:
                channel, protocol, data = self._data_channel_queue.popleft()
                # The far end opens no channel of its own, so every channel has its id.
                await self._send(
                    channel.id or 0, protocol, data, ordered=protocol == _DCEP or channel.ordered
                )
                if protocol != _DCEP:
                    channel._addBufferedAmount(-len(data))  # noqa: SLF001 - as aiortc's own flush does
        finally:
            self._corked = False
        await self._transmit()
        await self._transmit_reconfig()

    async def _transmit(self) -> None:
        if self._corked:
            return
        repairing: bool = self._fast_recovery_exit is not None or self._forward_tsn_chunk is not None  # type: ignore[redundant-expr] # aiortc types the first as None
        if not _TUNED or repairing or any(chunk._retransmit for chunk in self._sent_queue):  # noqa: SLF001 - aiortc's mark
            # aiortc does retransmissions: they are rare, and bundling gains nothing there.
            await super()._transmit()
            return
        window = min(self._flight_size + 4 * USERDATA_MAX_LENGTH, self._cwnd)
        now = time.time()
        packet: list[bytes] = []
        room = _PACKET_ROOM
        while self._outbound_queue and self._flight_size < window:
            chunk = self._outbound_queue.popleft()
            self._sent_queue.append(chunk)
            self._flight_size_increase(chunk)
            chunk._sent_count += 1  # noqa: SLF001 - see above
            chunk._sent_time = now  # noqa: SLF001 - see above
            data = bytes(chunk)
            if len(data) > room:
                await self._send_packet(packet)
                packet, room = [], _PACKET_ROOM
            packet.append(data)
            room -= len(data)
        if packet:
            await self._send_packet(packet)
            if not self._t3_handle:
                self._t3_start()

    async def _send_packet(self, chunks: list[bytes]) -> None:
        header = pack("!HHL", self._local_port, self._remote_port, self._remote_verification_tag)
        body = b"".join(chunks)
        checksum = crc32c(header + b"\x00\x00\x00\x00" + body)
        await self.transport._send_data(header + pack("<L", checksum) + body)  # noqa: SLF001 - as aiortc itself

    def _get_inbound_stream(self, stream_id: int) -> InboundStream:
        if _TUNED and stream_id not in self._inbound_streams:
            self._inbound_streams[stream_id] = _Stream()
        return super()._get_inbound_stream(stream_id)

    async def _handle_data(self, data: bytes) -> None:
        # In aiortc a bundled INIT, or a second OPEN on an open stream, is an AssertionError that would end the call.
        with contextlib.suppress(AssertionError):
            await super()._handle_data(data)

    async def _data_channel_receive(self, stream_id: int, pp_id: int, data: bytes) -> None:
        try:
            await super()._data_channel_receive(stream_id, pp_id, data)
        except UnicodeDecodeError:
            if self.on_garbled is not None:
                self.on_garbled(data)

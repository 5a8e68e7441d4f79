"""SCTP and data channels as the gateway needs them: what is changed in aiortc's transport, one class an idea.

`tuning` gives these classes to a transport before it starts. Refuses to know SDP, the service, and what a message says.
"""

import asyncio
import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from struct import Struct
from typing import cast

from aiortc import RTCDataChannel, RTCSctpTransport
from aiortc.rtcsctptransport import (
    CHUNK_TYPES,
    SCTP_DATA_FIRST_FRAG,
    SCTP_DATA_LAST_FRAG,
    SCTP_DATA_UNORDERED,
    SCTP_RTO_ALPHA,
    SCTP_RTO_BETA,
    SCTP_RTO_MAX,
    SCTP_TSN_MODULO,
    WEBRTC_STRING,
    Chunk,
    DataChunk,
    InboundStream,
    SackChunk,
    serialize_packet,
    tsn_plus_one,
)
from aiortc.utils import uint16_add, uint16_gt, uint32_gt, uint32_gte
from google_crc32c import value as crc32c

from gateway.upstream.dtls import DirectRecords, step

# RFC 9260 16 proposes 1 s for both, aiortc has 3 and 1. A lost last packet costs one RTO, so the floor is felt by people;
# below Pion's delayed acknowledgement of 200 ms it would only send twice.
RTO_INITIAL_SECONDS = 1.0
RTO_MIN_SECONDS = 0.3

# RFC 9260 6.2 allows 500 ms and proposes 200. Well below any peer's retransmission time-out, and longer than the pause
# between two deltas of a model that streams fast.
ACK_DELAY_SECONDS = 0.02

# What one acknowledgement reports at most. More would not fit a packet, and the next one tells the rest.
MAX_GAPS = 64
MAX_DUPLICATES = 16
# With more packets than this waiting behind a gap, one acknowledgement says little more than the last: every eighth.
MISORDERED_MANY = 64

_HALF = SCTP_TSN_MODULO // 2
_TAG = Struct("!L")
_CHECKSUM = Struct("<L")
_CHUNK = Struct("!BBH")
_DATA = Struct("!LHHL")
_WHOLE = SCTP_DATA_FIRST_FRAG | SCTP_DATA_LAST_FRAG


class QuickRetransmission(RTCSctpTransport):
    """Retransmission time-outs that fit interactive use."""

    def _update_rto(self, R: float) -> None:  # noqa: N803 - RFC 9260's name
        if self._srtt is None or self._rttvar is None:
            self._srtt, self._rttvar = R, R / 2
        else:
            self._rttvar += SCTP_RTO_BETA * (abs(self._srtt - R) - self._rttvar)
            self._srtt += SCTP_RTO_ALPHA * (R - self._srtt)
        self._rto = max(RTO_MIN_SECONDS, min(self._srtt + 4 * self._rttvar, SCTP_RTO_MAX))


class LinearStream(InboundStream):
    """Reassembly in time linear in the number of fragments.

    aiortc starts at the first fragment again with each that comes: 1 MiB took 52 ms of the loop, 5 MiB 1.3 s. Here
    `whole` counts the fragments from the head that are known to belong to one unfinished message.
    """

    whole = 0

    def add_chunk(self, chunk: DataChunk) -> None:
        """Put a fragment in its place, which is nearly always the end."""
        chunks = self.reassembly
        if not chunks or uint32_gt(chunk.tsn, chunks[-1].tsn):
            chunks.append(chunk)
            return
        # Serial numbers wrap (RFC 1982); measured from half a circle below the new one they do not.
        below = chunk.tsn - _HALF
        position = bisect_left(chunks, _HALF, key=lambda other: (other.tsn - below) % SCTP_TSN_MODULO)
        chunks.insert(position, chunk)
        if position < self.whole:
            self.whole = 0

    def pop_messages(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield every message that is complete at the head."""
        while self.reassembly:
            head = self.reassembly[0]
            if head.flags & SCTP_DATA_UNORDERED:
                # Nobody sends these on an ordered channel; they go the old way.
                self.whole = 0
                yield from super().pop_messages()
                return
            if not head.flags & SCTP_DATA_FIRST_FRAG or uint16_gt(head.stream_seq, self.sequence_number):
                return
            end = self._end_of_message()
            if end is None:
                return
            message = b"".join([chunk.user_data for chunk in self.reassembly[:end]])
            del self.reassembly[:end]
            self.whole = 0
            if head.stream_seq == self.sequence_number:
                self.sequence_number = uint16_add(self.sequence_number, 1)
            yield (head.stream_id, head.protocol, message)

    def prune_chunks(self, tsn: int) -> int:
        """Forget fragments up to a TSN that the sender gave up."""
        self.whole = 0
        return super().prune_chunks(tsn)

    def _end_of_message(self) -> int | None:
        """Give the number of fragments of the message at the head, or None while some are missing."""
        chunks = self.reassembly
        position = self.whole
        while position < len(chunks):
            chunk = chunks[position]
            if position and chunk.tsn != tsn_plus_one(chunks[position - 1].tsn):
                break
            position += 1
            if chunk.flags & SCTP_DATA_LAST_FRAG:
                return position
        self.whole = position
        return None


class LinearReassembly(RTCSctpTransport):
    """An association that takes large messages without standing still, within a bound."""

    window = 1024 * 1024
    """What was advertised; a peer that sends twice as much into one unfinished message is cut off."""

    def _get_inbound_stream(self, stream_id: int) -> InboundStream:
        stream = self._inbound_streams.get(stream_id)
        if stream is None:
            stream = self._inbound_streams[stream_id] = LinearStream()
        return stream

    def _mark_received(self, tsn: int) -> bool:
        last = cast(int, self._last_received_tsn)
        if uint32_gte(last, tsn) or tsn in self._sack_misordered:
            if len(self._sack_duplicates) < MAX_DUPLICATES:
                self._sack_duplicates.append(tsn)
            return True
        if tsn != tsn_plus_one(last):
            self._sack_misordered.add(tsn)
            return False
        misordered = self._sack_misordered
        while (following := tsn_plus_one(tsn)) in misordered:
            misordered.discard(following)
            tsn = following
        self._last_received_tsn = tsn
        return False

    async def _receive_data_chunk(self, chunk: DataChunk) -> None:
        await super()._receive_data_chunk(chunk)
        if self._advertised_rwnd < -self.window:
            raise BufferError("the peer sends more than it was allowed to")


class TolerantFrames(RTCSctpTransport):
    """An association that survives what a peer should not send.

    A text message that is not UTF-8 comes out as bytes instead of ending the connection. An INIT in company or a second
    OPEN of a live stream, on which aiortc asserts, is dropped.
    """

    async def _handle_data(self, data: bytes) -> None:
        with contextlib.suppress(AssertionError):
            await super()._handle_data(data)

    async def _data_channel_receive(self, stream_id: int, pp_id: int, data: bytes) -> None:
        try:
            await super()._data_channel_receive(stream_id, pp_id, data)
        except UnicodeDecodeError:
            channel = self._data_channels.get(stream_id)
            if channel is not None:
                channel.emit("message", data)


class DirectSend(RTCSctpTransport):
    """Sending without a task for each message: nothing in the flush of a channel ever waits."""

    async def _send_chunk(self, chunk: Chunk) -> None:
        self._put(chunk)

    def _put(self, chunk: Chunk) -> None:
        cast(DirectRecords, self.transport).put(
            serialize_packet(
                self._local_port, cast(int, self._remote_port), self._remote_verification_tag, chunk
            )
        )

    def _data_channel_send(self, channel: RTCDataChannel, data: bytes | str) -> None:
        if not isinstance(data, str) or not data:
            super()._data_channel_send(channel, data)
            return
        user_data = data.encode("utf8")
        channel._addBufferedAmount(len(user_data))  # noqa: SLF001 - a file of private hooks
        self._data_channel_queue.append((channel, WEBRTC_STRING, user_data))
        if len(self._data_channel_queue) == 1:
            # With more in the queue a flush is under way or waits for an acknowledgement, and takes this along.
            with contextlib.suppress(ConnectionError):  # the connection is going; its close event tells
                step(self._data_channel_flush())


class DirectReceive(RTCSctpTransport):
    """Receiving in plain calls, with a short way for what a text session consists of.

    The short way takes a DATA chunk that is the next expected one and a whole message. Everything else is made a chunk
    object and goes aiortc's way. Both ways advance the same members, so they may alternate freely.
    """

    received: Callable[[str], None] | None = None
    """Takes the texts of `channel`, past the emitter; everything else is emitted."""
    channel: RTCDataChannel | None = None

    def receive_packet(self, packet: bytes) -> None:
        """Take one SCTP packet (RFC 9260 3)."""
        if len(packet) < 16:
            return
        (tag,) = _TAG.unpack_from(packet, 4)
        (checksum,) = _CHECKSUM.unpack_from(packet, 8)
        if tag != self._local_verification_tag or checksum != crc32c(
            packet[:8] + b"\x00\x00\x00\x00" + packet[12:]
        ):
            # An INIT carries tag 0. Whatever it is, the long way judges it.
            step(self._handle_data(packet))
            return
        end = len(packet)
        position = 12
        while position <= end - 4:
            kind, flags, length = _CHUNK.unpack_from(packet, position)
            if length < 4 or position + length > end:
                break
            if not (kind == 0 and flags & 0x7 == _WHOLE and self._take_whole(packet, position, length)):
                chunk = CHUNK_TYPES.get(kind)
                if chunk is not None:
                    step(
                        self._receive_chunk(chunk(flags=flags, body=packet[position + 4 : position + length]))
                    )
            position += (length + 3) & ~3
        if self._sack_needed:
            step(self._send_sack())

    def _take_whole(self, packet: bytes, position: int, length: int) -> bool:
        tsn, stream_id, stream_seq, protocol = _DATA.unpack_from(packet, position + 4)
        stream = self._inbound_streams.get(stream_id)
        if (
            stream is None
            or protocol != WEBRTC_STRING
            or length <= 16
            or self._last_received_tsn is None
            or tsn != (self._last_received_tsn + 1) % SCTP_TSN_MODULO
            or self._sack_misordered
            or stream.reassembly
            or stream.sequence_number != stream_seq
            or self._reconfig_deferred is not None
        ):
            return False
        self._last_received_tsn = tsn
        stream.sequence_number = (stream_seq + 1) & 0xFFFF
        self._sack_needed = True
        user_data = packet[position + 16 : position + length]
        if self.received is not None and self._data_channels.get(stream_id) is self.channel:
            with contextlib.suppress(UnicodeDecodeError):
                self.received(user_data.decode())
                return True
        step(self._data_channel_receive(stream_id, protocol, user_data))
        return True


class SparseAcks(RTCSctpTransport):
    """Acknowledgements as RFC 9260 6.2 has them: for every second packet, or after a delay.

    aiortc sends one for each packet at once, which costs as much as receiving the event did. Whatever is unusual is
    acknowledged at once: a gap, a duplicate.
    """

    _unacked = 0
    _ack_soon = False
    _ack_timer: asyncio.Handle | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    """Asked for once: before Python 3.12 each asking is a system call, a tenth of what an event costs."""

    async def _send_sack(self) -> None:
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        self._unacked += 1
        misordered = len(self._sack_misordered)
        if self._sack_duplicates or (misordered and (misordered < MISORDERED_MANY or self._unacked >= 8)):
            await self._acknowledge_now()
        elif self._unacked == 1 or misordered:
            if self._ack_timer is None:
                self._ack_timer = loop.call_later(ACK_DELAY_SECONDS, self._acknowledge)
        elif not self._ack_soon:
            # One for all packets that this turn of the loop brings.
            if self._ack_timer is not None:
                self._ack_timer.cancel()
            self._ack_soon = True
            self._ack_timer = loop.call_soon(self._acknowledge)

    def _acknowledge(self) -> None:
        self._ack_timer = None
        self._ack_soon = False
        if self._sack_needed and self._association_state != self.State.CLOSED:
            with contextlib.suppress(ConnectionError):
                step(self._acknowledge_now())

    async def _acknowledge_now(self) -> None:
        self._unacked = 0
        self._ack_soon = False
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        last = self._last_received_tsn
        assert last is not None
        sack = SackChunk()
        sack.cumulative_tsn = last
        sack.advertised_rwnd = max(0, self._advertised_rwnd)
        sack.duplicates = self._sack_duplicates[:MAX_DUPLICATES]
        if self._sack_misordered:
            sack.gaps = _gaps(sorted((tsn - last) % SCTP_TSN_MODULO for tsn in self._sack_misordered))
        self._sack_duplicates.clear()
        self._sack_needed = False
        await self._send_chunk(sack)

    def _set_state(self, state: RTCSctpTransport.State) -> None:
        if state == self.State.CLOSED and self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        super()._set_state(state)


def _gaps(offsets: list[int]) -> list[tuple[int, int]]:
    """Give the blocks of consecutive offsets as first and last (RFC 9260 3.3.4), the first `MAX_GAPS` of them."""
    gaps: list[tuple[int, int]] = []
    first = last = offsets[0]
    for offset in offsets[1:]:
        if offset != last + 1:
            gaps.append((first, last))
            if len(gaps) == MAX_GAPS:
                return gaps
            first = offset
        last = offset
    return [*gaps, (first, last)] if last <= 0xFFFF else gaps

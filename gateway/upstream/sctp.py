"""How an SCTP association sends: messages, acknowledgements, retransmissions. `inbound` is the other direction.

Each class overrides one part of aiortc's transport; `tuning` composes them and gives them to a transport before it starts.
This file knows nothing of SDP or the service, and does not interpret messages.
"""

# ruff: noqa: SLF001 - aiortc's private members are its interface here

import contextlib
import time
from collections import deque
from struct import Struct
from typing import cast

from aiortc import RTCDataChannel, RTCSctpTransport
from aiortc.rtcsctptransport import (
    SCTP_DATA_FIRST_FRAG,
    SCTP_DATA_LAST_FRAG,
    SCTP_RTO_ALPHA,
    SCTP_RTO_BETA,
    SCTP_RTO_MAX,
    SCTP_TSN_MODULO,
    USERDATA_MAX_LENGTH,
    WEBRTC_STRING,
    WEBRTC_STRING_EMPTY,
    Chunk,
    DataChunk,
    SackChunk,
    serialize_packet,
    tsn_plus_one,
)
from aiortc.utils import uint32_gte
from google_crc32c import value as crc32c

from gateway.upstream.acktimer import AckTimer
from gateway.upstream.dtls import DirectRecords, step
from gateway.upstream.inbound import MAX_DUPLICATES
from gateway.upstream.loopturn import LoopTurn

# RFC 9260 16 proposes 1 s for both, aiortc has 3 and 1. A lost last packet costs one RTO, so people notice the minimum;
# below Pion's delayed acknowledgement of 200 ms it would cause needless retransmissions.
RTO_INITIAL_SECONDS = 1.0
RTO_MIN_SECONDS = 0.3

# A packet of about this size, or several smaller ones that make as much, count as full (RFC 9260 6.2, RFC 1122 4.2.3.2).
FULL_PACKET_BYTES = 1200

_HEADER = Struct("!HHL")
_CHECKSUM = Struct("<L")
_NO_CHECKSUM = b"\0\0\0\0"
_SACK = Struct("!BBHLLHH")
_SACK_BYTES = _SACK.size
_WHOLE = SCTP_DATA_FIRST_FRAG | SCTP_DATA_LAST_FRAG

# Maximum in one acknowledgement. More would not fit a packet, and the next one reports the rest.
MAX_GAPS = 64
# Above this many packets behind a gap only every eighth is acknowledged: each says little more than the one before.
MISORDERED_MANY = 64


class QuickRetransmission(RTCSctpTransport):
    """Retransmission time-outs that fit interactive use."""

    def _update_rto(self, R: float) -> None:  # noqa: N803 - RFC 9260's name
        if self._srtt is None or self._rttvar is None:
            self._srtt, self._rttvar = R, R / 2
        else:
            self._rttvar += SCTP_RTO_BETA * (abs(self._srtt - R) - self._rttvar)
            self._srtt += SCTP_RTO_ALPHA * (R - self._srtt)
        self._rto = max(RTO_MIN_SECONDS, min(self._srtt + 4 * self._rttvar, SCTP_RTO_MAX))


class CountedSends(RTCSctpTransport):
    """Count the text messages that the peer's SCTP has acknowledged.

    A message counts when the cumulative TSN (RFC 9260 3.3.4) has reached its last fragment: the peer then has all of it, and
    everything that was sent before it.
    """

    acknowledged = 0
    _unacknowledged: deque[int]
    """The last TSN of each message that was sent and not acknowledged, in the order of sending."""

    def count_sends(self) -> None:
        """Begin to count. Call before the association starts."""
        self._unacknowledged = deque()

    def count_send(self, tsn: int) -> None:
        """Count a message that ends with this TSN."""
        self._unacknowledged.append(tsn)

    async def _send(
        self,
        stream_id: int,
        pp_id: int,
        user_data: bytes,
        expiry: float | None = None,
        max_retransmits: int | None = None,
        ordered: bool = True,
    ) -> None:
        if pp_id in (WEBRTC_STRING, WEBRTC_STRING_EMPTY):
            fragments = -(-len(user_data) // USERDATA_MAX_LENGTH)
            self.count_send((self._local_tsn + fragments - 1) % SCTP_TSN_MODULO)
        await super()._send(stream_id, pp_id, user_data, expiry, max_retransmits, ordered)

    async def _receive_sack_chunk(self, chunk: SackChunk) -> None:
        waiting = self._unacknowledged
        while waiting and uint32_gte(chunk.cumulative_tsn, waiting[0]):
            waiting.popleft()
            self.acknowledged += 1
        await super()._receive_sack_chunk(chunk)


class DirectSend(RTCSctpTransport):
    """Sending without a task for each message, and in plain calls where a message leaves at once in one packet.

    Nothing in the flush of a channel ever waits. A small text on a channel where nothing waits, which is nearly every event,
    passes five coroutines of aiortc only to be put into a packet. Such a text is put into it here. All that aiortc keeps of
    a sent chunk is kept as well, so acknowledgements, retransmissions and later messages take aiortc's path.
    """

    async def _send_chunk(self, chunk: Chunk) -> None:
        # aiortc also sends from timers, in tasks that are not awaited. A packet that cannot be sent is a lost packet: the
        # connection is going, and its close event says so.
        with contextlib.suppress(ConnectionError):
            self._put(chunk)

    def _put(self, chunk: Chunk) -> None:
        cast(DirectRecords, self.transport).put(
            serialize_packet(
                self._local_port, cast(int, self._remote_port), self._remote_verification_tag, chunk
            )
        )

    def put_chunks(self, chunks: bytes) -> None:
        """Send serialised chunks in one packet."""
        header = _HEADER.pack(self._local_port, self._remote_port, self._remote_verification_tag)
        checksum = _CHECKSUM.pack(crc32c(header + _NO_CHECKSUM + chunks))
        transport: DirectRecords = self.transport  # type: ignore[assignment]  # the class that `tuning` gives it
        transport.put(header + checksum + chunks)

    def _data_channel_send(self, channel: RTCDataChannel, data: bytes | str) -> None:
        if not isinstance(data, str) or not data:
            super()._data_channel_send(channel, data)
            return
        user_data = data.encode("utf8")
        if self._leaves_at_once(channel, len(user_data)):
            self._send_at_once(channel, user_data)
            return
        channel._addBufferedAmount(len(user_data))
        self._data_channel_queue.append((channel, WEBRTC_STRING, user_data))
        if len(self._data_channel_queue) == 1:
            # With more in the queue, a flush is running or waits for an acknowledgement, and sends this as well.
            with contextlib.suppress(
                ConnectionError
            ):  # the connection is closing; its close event reports that
                step(self._data_channel_flush())

    def _leaves_at_once(self, channel: RTCDataChannel, size: int) -> bool:
        """Return whether aiortc would send a text of this size now, in one packet, and nothing else before or after it."""
        return (
            size <= USERDATA_MAX_LENGTH
            and self._flight_size < self._cwnd
            and self._association_state is self.State.ESTABLISHED
            and not self._data_channel_queue
            and not self._outbound_queue
            and not self._reconfig_queue
            and self._forward_tsn_chunk is None
            and channel.id is not None
            and channel.ordered
            and channel.maxRetransmits is None
            and channel.maxPacketLifeTime is None
            and not any(chunk._retransmit for chunk in self._sent_queue)
        )

    def _send_at_once(self, channel: RTCDataChannel, user_data: bytes) -> None:
        stream_id: int = channel.id  # type: ignore[assignment]  # it has one, see above
        tsn, size = self._local_tsn, len(user_data)
        number = self._outbound_stream_seq.get(stream_id, 0)
        chunk = DataChunk(_WHOLE)
        chunk.tsn, chunk.stream_id, chunk.stream_seq = tsn, stream_id, number
        chunk.protocol, chunk.user_data = WEBRTC_STRING, user_data
        chunk._abandoned = chunk._acked = chunk._retransmit = False
        chunk._expiry = chunk._max_retransmits = None
        chunk._book_size, chunk._misses, chunk._sent_count = size, 0, 1
        chunk._in_flight, chunk._sent_time = True, time.time()
        self._flight_size += size
        self._local_tsn = tsn_plus_one(tsn)
        self._outbound_stream_seq[stream_id] = number + 1 & 0xFFFF
        self._sent_queue.append(chunk)
        if isinstance(self, CountedSends):
            self.count_send(tsn)
        before = b""
        if isinstance(self, SparseAcks) and size <= USERDATA_MAX_LENGTH - _SACK_BYTES:
            before = self.due_acknowledgement()
        with contextlib.suppress(
            ConnectionError
        ):  # A packet that cannot be sent is a lost packet, see above.
            self.put_chunks(before + bytes(chunk))
        if self._t3_handle is None:
            self._t3_start()


class SparseAcks(RTCSctpTransport):
    """Acknowledgements for every second full packet, or after a delay.

    aiortc sends one for each packet at once, which costs more than receiving the event did. RFC 9260 6.2 proposes one for every
    second packet. That keeps a sender's window growing, which in slow start takes one acknowledgement for each full packet's
    worth of data (7.2.1). Packets with one small event each are counted by their size, as in TCP (RFC 1122 4.2.3.2). Gaps and
    duplicates are acknowledged at once.
    """

    _unacked = 0
    _unacked_bytes = 0
    _ack_soon = False
    _ack_waits = False
    turn: LoopTurn
    acks: AckTimer

    async def _send_sack(self) -> None:
        # For a packet of an unusual form, or a window that has opened again, for which the sender waits.
        self._acknowledge_in_this_turn()

    def acknowledge_soon(self, size: int) -> None:
        """Acknowledge a packet of this size: now, at the end of this turn of the loop, or after a delay."""
        self._unacked += 1
        self._unacked_bytes += size
        misordered = len(self._sack_misordered)
        if self._sack_duplicates or (misordered and (misordered < MISORDERED_MANY or self._unacked >= 8)):
            self._acknowledge_now()
        elif self._unacked > 1 and self._unacked_bytes >= FULL_PACKET_BYTES and not misordered:
            self._acknowledge_in_this_turn()
        elif not self._ack_waits:
            self._ack_waits = True
            self.acks.soon(self._delayed)

    def _acknowledge_in_this_turn(self) -> None:
        """Acknowledge all packets of this turn of the loop at its end."""
        if not self._ack_soon:
            self._ack_soon = True
            self.turn.at_end(self._acknowledge)

    def _delayed(self) -> None:
        self._ack_waits = False
        if not self._ack_soon:
            self._acknowledge()

    def _acknowledge(self) -> None:
        self._ack_soon = False
        if self._sack_needed and self._association_state != self.State.CLOSED:
            with contextlib.suppress(ConnectionError):
                self._acknowledge_now()

    def due_acknowledgement(self) -> bytes:
        """Return the acknowledgement that waits to be sent, as a chunk for a packet that leaves now (RFC 9260 6.2). Empty if
        there is none, and for one with gaps or duplicates."""
        if not self._sack_needed or self._sack_misordered or self._sack_duplicates:
            return b""
        # A callback that waits for the timer is not withdrawn, and may find nothing to do.
        self._unacked = self._unacked_bytes = 0
        self._sack_needed = False
        window = max(0, self._advertised_rwnd)
        return _SACK.pack(SackChunk.type, 0, _SACK_BYTES, self._last_received_tsn, window, 0, 0)

    def _acknowledge_now(self) -> None:
        if isinstance(self, DirectSend) and (sack := self.due_acknowledgement()):
            self.put_chunks(sack)
            return
        self._unacked = self._unacked_bytes = 0
        last = self._last_received_tsn
        assert last is not None
        self._sack_needed = False
        chunk = SackChunk()
        chunk.cumulative_tsn = last
        chunk.advertised_rwnd = max(0, self._advertised_rwnd)
        chunk.duplicates = self._sack_duplicates[:MAX_DUPLICATES]
        if self._sack_misordered:
            chunk.gaps = _gaps(sorted((tsn - last) % SCTP_TSN_MODULO for tsn in self._sack_misordered))
        self._sack_duplicates.clear()
        step(self._send_chunk(chunk))


def _gaps(offsets: list[int]) -> list[tuple[int, int]]:
    """Return the blocks of consecutive offsets as first and last (RFC 9260 3.3.4), the first `MAX_GAPS` of them."""
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

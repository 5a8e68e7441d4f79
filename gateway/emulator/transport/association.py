"""SCTP for a far end that speaks to many: aiortc's association, bundled, linear and hard to break.

Refuses to know what the messages say. Three things are changed, each by overriding a method of aiortc 1.16; under another
version the association is stock but for its guards:

* Messages sent in one turn of the loop leave in as few packets as they fit in (RFC 9260 6.10), as Pion's do. aiortc makes
  one task a message and one packet a chunk, so both ends pay for each delta.
* A large message is put together in linear time. aiortc looks at all its fragments again for each one that comes.
* What a broken client sends (a text that is no UTF-8, a second OPEN, an INIT in company) does not end the call.
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
    SCTP_DATA_LAST_FRAG,
    SCTP_MAX_PACKET_LENGTH,
    USERDATA_MAX_LENGTH,
    DataChunk,
    InboundStream,
)
from google_crc32c import value as crc32c

_TUNED = version("aiortc").startswith("1.16.")
# RFC 8831 8: payload protocol identifiers.
_DCEP, _TEXT, _EMPTY_TEXT = 50, 51, 56
# Chunks taken from the channel's queue at a time; what waits beyond them still counts as `bufferedAmount`.
_MAX_QUEUED_CHUNKS = 64
_PACKET_ROOM = SCTP_MAX_PACKET_LENGTH - SCTP_COMMON_HEADER_LENGTH


class _Stream(InboundStream):
    """An inbound stream that looks for messages only when the end of one is there."""

    def __init__(self) -> None:
        super().__init__()
        self._ends = 0

    def add_chunk(self, chunk: DataChunk) -> None:
        super().add_chunk(chunk)
        self._ends += bool(chunk.flags & SCTP_DATA_LAST_FRAG)

    def pop_messages(self) -> Iterator[tuple[int, int, bytes]]:
        if self._ends:
            for message in super().pop_messages():
                self._ends -= 1
                yield message

    def prune_chunks(self, tsn: int) -> int:
        size = super().prune_chunks(tsn)
        self._ends = sum(bool(chunk.flags & SCTP_DATA_LAST_FRAG) for chunk in self.reassembly)
        return size


class Association(RTCSctpTransport):
    """One association; `on_garbled` is called with a text message that is no UTF-8."""

    on_garbled: Callable[[bytes], None] | None = None
    _corked = False
    _flush_due = False

    def widen(self, window: int) -> None:
        """Set the receive window, before the association begins."""
        self._advertised_rwnd = window

    def enqueue(self, channel: RTCDataChannel, frame: bytes) -> None:
        """Send bytes as one text message, valid UTF-8 or not, at the end of this turn of the loop."""
        # SCTP cannot send nothing: an empty text is one byte that its protocol identifier takes back (RFC 8831 6.6).
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
            # Repair is left to aiortc: it is rare, and bundling gains nothing there.
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
        # An INIT in company, or a second OPEN on a live stream, is an AssertionError in aiortc and would end the call.
        with contextlib.suppress(AssertionError):
            await super()._handle_data(data)

    async def _data_channel_receive(self, stream_id: int, pp_id: int, data: bytes) -> None:
        try:
            await super()._data_channel_receive(stream_id, pp_id, data)
        except UnicodeDecodeError:
            if self.on_garbled is not None:
                self.on_garbled(data)

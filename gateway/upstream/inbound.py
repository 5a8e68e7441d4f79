"""How an SCTP association receives: packets become messages, and messages are delivered within the time of a loop turn.

Each class overrides one part of aiortc's transport; `tuning` composes them and gives them to a transport before it starts.
This file knows nothing of SDP or the service, and does not interpret messages.

The receive window (RFC 9260 6.2.1) is what makes a sender wait. It shrinks by all that is held: fragments of unfinished
messages, messages that wait for an earlier one, and messages that wait for the loop. So a call that sends faster than it is
served is slowed by its own window.

A large text is taken in steps, in several turns of the loop. Until the last step it stays the first of the messages that wait
for the loop, so all that came after it waits, the window counts it, and the call is not judged lost before it is delivered.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from struct import Struct
from typing import cast

from aiortc import RTCDataChannel, RTCSctpTransport
from aiortc.rtcsctptransport import (
    CHUNK_TYPES,
    SCTP_DATA_FIRST_FRAG,
    SCTP_DATA_LAST_FRAG,
    SCTP_DATA_UNORDERED,
    WEBRTC_STRING,
    DataChunk,
    ForwardTsnChunk,
    InboundStream,
    tsn_plus_one,
)
from aiortc.utils import uint32_gt, uint32_gte
from google_crc32c import value as crc32c

from gateway.relay.events.jsontext import LARGE_BYTES
from gateway.upstream.dtls import step
from gateway.upstream.loopturn import SLICE_MESSAGES, LoopTurn
from gateway.upstream.reassembly import CHUNK_COST_BYTES, Message, OrderedStream

# Maximum in one acknowledgement. More would not fit a packet, and the next one reports the rest.
MAX_DUPLICATES = 16

# Stream sequence numbers are compared within half of their range (RFC 1982), so fewer messages than that may wait.
MAX_WAITING_MESSAGES = 1 << 14

_TAG = Struct("!L")
_CHECKSUM = Struct("<L")
_CHUNK = Struct("!BBH")
# Kind and flags, length, TSN, stream and its sequence number, protocol (RFC 9260 3.3.1).
_DATA = Struct("!HHLLL")
_WHOLE = SCTP_DATA_FIRST_FRAG | SCTP_DATA_LAST_FRAG
_KIND_AND_FLAGS = 0xFF00 | _WHOLE | SCTP_DATA_UNORDERED
_TSN_MASK = 0xFFFFFFFF
_SSN_MASK = 0xFFFF

# Bytes of the messages that are delivered together before the time is looked at again.
_TOGETHER_BYTES = 64 * 1024


class TolerantFrames(RTCSctpTransport):
    """An association that tolerates malformed input.

    A text message that is not UTF-8 comes out as bytes instead of ending the connection. An INIT bundled
    with other chunks, or a second OPEN of a live stream, on which aiortc asserts, is dropped.
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
        except AssertionError:
            return


class PacedReassembly(RTCSctpTransport):
    """An association that puts messages together in linear time, orders them by SSN, and delivers them in slices.

    aiortc scans all fragments again for each new one: 1 MiB took 52 ms of the loop, 5 MiB 1.3 s. And it orders
    messages by TSN, so that a message whose SSN and TSN cross with another's is never delivered.
    """

    window = 1024 * 1024
    """The advertised window; a peer that sends twice as much for one unfinished message is disconnected."""
    turn: LoopTurn
    channel: RTCDataChannel | None = None
    received: Callable[[list[str]], None] | None = None
    """Takes the texts of `channel` that came together, past the emitter; everything else is emitted."""
    in_steps: Callable[[str], Iterator[None]] | None = None
    """Returns the work of taking a large text of `channel`. Does not raise, nor do its steps."""
    _steps: Iterator[None] | None = None
    _ready: deque[Message]
    _ready_bytes = 0
    _waits_for_turn = False
    _highest_tsn = 0
    _was_shut = False

    def prepare(self, window: int, turn: LoopTurn) -> None:
        """Set the receive window and the loop turn to share. To be called before the association starts."""
        self.window = self._advertised_rwnd = window
        self.turn = turn
        self._ready = deque()

    @property
    def held(self) -> int:
        """Bytes of memory that received and undelivered data takes."""
        return self._ready_bytes + sum(
            cast(OrderedStream, stream).held for stream in self._inbound_streams.values()
        )

    @property
    def delivering(self) -> bool:
        """Complete messages wait only for a turn of the loop."""
        return bool(self._ready)

    def deliver_slice(self, messages: int) -> bool:
        """Deliver up to `messages` messages and return whether more wait (loopturn.Backlog)."""
        ready = self._ready
        try:
            while ready and messages > 0 and not self._next_is_large() and self.turn.has_time():
                messages -= self._deliver_some(messages)
            self._account()
            if ready and self._next_is_large():
                self.turn.work(self._take_step)
                return False
            if ready:
                return True
            self._waits_for_turn = False
            step(self._reset_deferred_streams())
            if self._was_shut:
                # The peer stopped sending and would find out by a probe, one round trip or time-out later.
                self._was_shut = False
                self._sack_needed = True
                step(self._send_sack())
        except ConnectionError:
            self._waits_for_turn = False  # It closed while answering; `_ready` is empty or of no use.
            ready.clear()
        return False

    def _get_inbound_stream(self, stream_id: int) -> InboundStream:
        stream = self._inbound_streams.get(stream_id)
        if stream is None:
            # It has the interface of aiortc's class, but not its internals.
            stream = self._inbound_streams[stream_id] = cast(InboundStream, OrderedStream())
        return stream

    def _mark_received(self, tsn: int) -> bool:
        last = cast(int, self._last_received_tsn)
        misordered = self._sack_misordered
        if uint32_gte(last, tsn) or tsn in misordered:
            if len(self._sack_duplicates) < MAX_DUPLICATES:
                self._sack_duplicates.append(tsn)
            return True
        if tsn != tsn_plus_one(last):
            if not misordered or uint32_gt(tsn, self._highest_tsn):
                self._highest_tsn = tsn
            misordered.add(tsn)
            return False
        while (following := tsn_plus_one(tsn)) in misordered:
            misordered.discard(following)
            tsn = following
        self._last_received_tsn = tsn
        return False

    async def _receive_data_chunk(self, chunk: DataChunk) -> None:
        self._sack_needed = True
        stream = cast(OrderedStream, self._get_inbound_stream(chunk.stream_id))
        if self._refuses(chunk.tsn, stream) or self._mark_received(chunk.tsn):
            return
        stream.add_chunk(chunk)
        for message in stream.pop_messages():
            self._queue(message)
        self._account()
        if self._advertised_rwnd < -self.window:
            raise BufferError("the peer sends more than it was allowed to")
        self._deliver_now()
        await self._reset_deferred_streams()

    async def _receive_forward_tsn_chunk(self, chunk: ForwardTsnChunk) -> None:
        await super()._receive_forward_tsn_chunk(chunk)
        self._account()
        self._deliver_now()
        await self._reset_deferred_streams()

    async def _receive(self, stream_id: int, pp_id: int, data: bytes) -> None:
        self._queue((stream_id, pp_id, data))

    async def _reset_deferred_streams(self) -> None:
        if not self._ready:
            await super()._reset_deferred_streams()

    def _refuses(self, tsn: int, stream: OrderedStream) -> bool:
        """Return whether a chunk is dropped because the window is shut (RFC 9260 6.2).

        A chunk that fills a gap is accepted. So is the next chunk, unless it would only join those that wait for the loop.
        """
        if self._advertised_rwnd > 0 and len(stream.waiting) < MAX_WAITING_MESSAGES:
            return False
        self._was_shut = True
        if tsn == tsn_plus_one(cast(int, self._last_received_tsn)):
            return bool(self._ready)
        return not self._sack_misordered or uint32_gt(tsn, self._highest_tsn)

    def _account(self) -> None:
        self._advertised_rwnd = self.window - self.held

    def _queue(self, message: Message) -> None:
        self._ready.append(message)
        self._ready_bytes += len(message[2]) + CHUNK_COST_BYTES

    def _deliver_now(self) -> None:
        """Deliver as much as this turn has time for. The rest is served in the next turns."""
        if self._waits_for_turn or not self._ready:
            return
        ready = self._ready
        while ready:
            large = self._next_is_large()
            if large or not self.turn.has_time():
                self._waits_for_turn = True
                if large:
                    self.turn.work(self._take_step)
                else:
                    self.turn.wait(self)
                break
            self._deliver_some(SLICE_MESSAGES)
        self._account()

    def _next_is_large(self) -> bool:
        """Return whether the next message is a text that is taken in steps."""
        stream_id, protocol, data = self._ready[0]
        return (
            len(data) > LARGE_BYTES
            and protocol == WEBRTC_STRING
            and self.in_steps is not None
            and self.channel is not None
            and stream_id == self.channel.id
        )

    def _take_step(self) -> bool:
        """Take the next step with the large text that is next, and return whether another follows (LoopTurn.work)."""
        if self._steps is None:
            self._steps = self._take_large()
        try:
            next(self._steps)
        except StopIteration:
            self._steps = None
        else:
            return True
        if self.deliver_slice(0):
            self.turn.wait(self)
        return False

    def _take_large(self) -> Iterator[None]:
        stream_id, protocol, data = self._ready[0]
        in_steps = self.in_steps
        try:
            text = data.decode()
        except UnicodeDecodeError:
            with contextlib.suppress(ConnectionError):
                step(self._data_channel_receive(stream_id, protocol, data))
        else:
            yield
            if in_steps is not None:
                yield from in_steps(text)
        self._ready.popleft()
        self._ready_bytes -= len(data) + CHUNK_COST_BYTES

    def _deliver_some(self, most: int) -> int:
        """Deliver the texts of the channel that are next, up to `most` and about `_TOGETHER_BYTES`, or one other message.
        Return how many messages were delivered."""
        ready, received, channel = self._ready, self.received, self.channel
        texts: list[str] = []
        size = 0
        # By its identifier: what was received before the association closed is still delivered.
        if received is not None and channel is not None:
            while ready and len(texts) < most and size < _TOGETHER_BYTES:
                stream_id, protocol, data = ready[0]
                if protocol != WEBRTC_STRING or stream_id != channel.id or len(data) > LARGE_BYTES:
                    break
                try:
                    texts.append(data.decode())
                except UnicodeDecodeError:
                    break
                size += len(data)
                ready.popleft()
            if texts:
                self._ready_bytes -= size + CHUNK_COST_BYTES * len(texts)
                received(texts)
                return len(texts)
        stream_id, protocol, data = ready.popleft()
        self._ready_bytes -= len(data) + CHUNK_COST_BYTES
        step(self._data_channel_receive(stream_id, protocol, data))
        return 1


class DirectReceive(PacedReassembly):
    """Receiving in plain calls, with a fast path for text sessions.

    The fast path handles texts of the channel that arrive whole and in order. Everything else becomes a chunk object
    and takes aiortc's path. Both paths update the same members, so they may alternate freely.
    """

    def receive_packet(self, packet: bytes) -> None:
        """Process one SCTP packet (RFC 9260 3)."""
        end = len(packet)
        if end < 16:
            return
        tag, checksum = _TAG.unpack_from(packet, 4)[0], _CHECKSUM.unpack_from(packet, 8)[0]
        if tag != self._local_verification_tag or checksum != crc32c(
            packet[:8] + b"\x00\x00\x00\x00" + packet[12:]
        ):
            # An INIT carries tag 0. The slow path checks it.
            step(self._handle_data(packet))
            return
        position = self._take_texts(packet, 12, end)
        while position <= end - 4:
            kind, flags, length = _CHUNK.unpack_from(packet, position)
            if length < 4 or position + length > end:
                break
            chunk = CHUNK_TYPES.get(kind)
            if chunk is not None:
                step(self._receive_chunk(chunk(flags=flags, body=packet[position + 4 : position + length])))
            position = self._take_texts(packet, position + (length + 3 & ~3), end)
        if self._sack_needed:
            self.acknowledge_soon(end)

    def acknowledge_soon(self, size: int) -> None:
        """Acknowledge what was received in a packet of this size."""
        step(self._send_sack())

    def _take_texts(self, packet: bytes, position: int, end: int) -> int:
        """Take texts from `position` on, as long as they are next in order; return where the first other chunk begins.

        They are delivered at once, or queued where this turn of the loop has no time left.
        """
        last, received, channel = self._last_received_tsn, self.received, self.channel
        if (
            position + 16 >= end
            or last is None
            or received is None
            or channel is None
            or self._sack_misordered
            or self._advertised_rwnd <= 0
            or self._reconfig_deferred is not None
        ):
            return position
        stream_id: int = channel.id  # type: ignore[assignment]  # it is open
        stream: OrderedStream | None = self._inbound_streams.get(stream_id)  # type: ignore[assignment]  # see _get_inbound_stream
        if stream is None or stream.held or stream_id not in self._data_channels:
            return position
        number, first = stream.sequence_number, stream_id << 16
        datas: list[bytes] = []
        while position + 16 < end:
            kind, length, tsn, order, protocol = _DATA.unpack_from(packet, position)
            if (
                kind & _KIND_AND_FLAGS != _WHOLE
                or order != first | number
                or protocol != WEBRTC_STRING
                or length <= 16
                or position + length > end
                or tsn != last + 1 & _TSN_MASK
            ):
                break
            datas.append(packet[position + 16 : position + length])
            last, number = tsn, number + 1 & _SSN_MASK
            position += length + 3 & ~3
        if not datas:
            return position
        self._last_received_tsn = last
        stream.advance(len(datas))
        self._sack_needed = True
        if not self._ready and self.turn.has_time():
            try:
                texts = [data.decode() for data in datas]
            except UnicodeDecodeError:
                pass  # It takes the usual way, and those before it go first.
            else:
                received(texts)
                return position
        for data in datas:
            self._queue((stream_id, WEBRTC_STRING, data))
        self._account()
        self._deliver_now()
        return position

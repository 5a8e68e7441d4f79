"""gateway/upstream/sctp.py: when it acknowledges, and sending while the connection closes."""

import asyncio
from collections.abc import Callable
from typing import Any

from aiortc import RTCDataChannel, RTCDataChannelParameters, RTCSctpTransport
from aiortc.rtcsctptransport import (
    USERDATA_MAX_LENGTH,
    CookieAckChunk,
    DataChunk,
    SackChunk,
    parse_packet,
)
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.acktimer import AckTimer
from gateway.upstream.dtls import step
from gateway.upstream.loopturn import LoopTurn
from gateway.upstream.sctp import FULL_PACKET_BYTES, CountedSends, DirectSend, SparseAcks
from tests.upstream.test_inbound import Receiving, chunk, receiving


class Gone:
    """A DTLS transport that is no longer connected."""

    def put(self, data: bytes) -> None:
        raise ConnectionError("Cannot send encrypted data, not connected")


async def test_a_packet_that_cannot_be_sent_is_a_lost_packet() -> None:
    """Aiortc sends from timers, in tasks whose exceptions are never read, so a failed send counts as a lost packet."""
    association: Any = DirectSend.__new__(DirectSend)
    association._RTCSctpTransport__transport = Gone()
    association._local_port = association._remote_port = 5000
    association._remote_verification_tag = 1

    assert await association._send_chunk(CookieAckChunk()) is None


# --- sending at once


class Wire:
    """A connected DTLS transport that records packets."""

    state = "connected"
    _role = "server"

    def __init__(self) -> None:
        self.packets: list[bytes] = []

    def put(self, data: bytes) -> None:
        self.packets.append(data)


class AtOnce(DirectSend, CountedSends):
    """An association that sends small texts at once."""

    at_once = 0

    def _send_at_once(self, channel: RTCDataChannel, user_data: bytes) -> None:
        self.at_once += 1
        super()._send_at_once(channel, user_data)


class ByFlush(AtOnce):
    """An association that sends everything as aiortc does."""

    def _leaves_at_once(self, channel: RTCDataChannel, size: int) -> bool:
        return False


def sending(
    kind: type[RTCSctpTransport], tsn: int = 2**32 - 3, number: int = 2**16 - 2
) -> tuple[Any, Any, Wire]:
    """Return an established association whose numbers are about to wrap, an open channel of it, and its wire."""
    wire = Wire()
    association: Any = RTCSctpTransport(wire)  # type: ignore[arg-type]
    association.__class__ = kind
    association._association_state = association.State.ESTABLISHED
    association._remote_port, association._remote_verification_tag = 5000, 7
    association._local_tsn, association._outbound_stream_seq = tsn, {1: number}
    association._last_sacked_tsn = association._advanced_peer_ack_tsn = tsn - 1
    association._ssthresh = 131072
    association.count_sends()
    channel = RTCDataChannel(association, RTCDataChannelParameters(label="events", negotiated=True, id=1))
    channel._setReadyState("open")
    return association, channel, wire


def state(association: Any, channel: Any) -> list[Any]:
    """Return everything that sending changes, except the times of sending."""
    known = [
        {name: value for name, value in vars(sent).items() if name != "_sent_time"}
        for queue in (association._sent_queue, association._outbound_queue)
        for sent in queue
    ]
    names = (
        *("_local_tsn", "_outbound_stream_seq", "_flight_size", "_cwnd", "_ssthresh", "_partial_bytes_acked"),
        *("_fast_recovery_exit", "_unacknowledged", "acknowledged", "_advanced_peer_ack_tsn"),
    )
    waiting = [data for _, _, data in association._data_channel_queue]
    timed = association._t3_handle is not None
    return [known, waiting, timed, channel.bufferedAmount, *(getattr(association, name) for name in names)]


EVENTS = st.one_of(
    st.text(min_size=1, max_size=8),
    st.integers(USERDATA_MAX_LENGTH - 3, USERDATA_MAX_LENGTH + 2).map("x".__mul__),
    st.integers(1, 4).map(lambda packets: "x" * packets * USERDATA_MAX_LENGTH),
    st.tuples(st.just("sack"), st.integers(0, 4), st.booleans()),
    st.sampled_from(["time-out", "turn"]),
)


async def happen(association: Any, channel: Any, what: Any) -> None:
    """Send a text, receive an acknowledgement of some packets, or let the retransmission time pass; what that begins goes on
    in the next turn of the loop."""
    if isinstance(what, tuple):
        _, packets, gap = what
        sack = SackChunk()
        sack.cumulative_tsn = (association._last_sacked_tsn + packets) % 2**32
        sack.gaps = [(2, 2)] if gap else []
        step(association._receive_sack_chunk(sack))
    elif what == "time-out":
        if association._t3_handle is not None:
            association._t3_handle.cancel()
            association._t3_expired()
    elif what == "turn":
        await asyncio.sleep(0)
    else:
        channel.send(what)


@given(st.lists(EVENTS, max_size=12))
def test_text_that_is_sent_at_once_leaves_the_same_packets_and_state(events: list[Any]) -> None:
    """Whatever is sent, acknowledged and lost, a text sent at once gives the packets and the state of aiortc's path."""

    async def both() -> None:
        direct, usual = sending(AtOnce), sending(ByFlush)
        for what in events:
            sent = (direct[0]._local_tsn - 1 - direct[0]._last_sacked_tsn) % 2**32
            if isinstance(what, tuple) and what[1] + 2 * what[2] > sent:
                continue  # Only what was sent can be acknowledged.
            for association, channel, _ in (direct, usual):
                await happen(association, channel, what)
            assert direct[2].packets == usual[2].packets
            assert state(*direct[:2]) == state(*usual[:2])
        for association, _, _ in (direct, usual):
            association._t3_cancel()

    asyncio.run(both())


async def test_small_text_is_sent_at_once_until_the_window_is_full() -> None:
    """Texts of a packet each leave at once. What the congestion window does not take waits, and the next ones behind it."""
    association, channel, wire = sending(AtOnce)
    association._cwnd = 2 * USERDATA_MAX_LENGTH
    for _ in range(4):
        channel.send("x" * USERDATA_MAX_LENGTH)
    association._t3_cancel()

    assert association.at_once == len(wire.packets) == 2
    assert channel.bufferedAmount == USERDATA_MAX_LENGTH  # of four, one is in SCTP's own queue


class Answering(SparseAcks, AtOnce, Receiving):
    """An association that sends at once and acknowledges."""


async def test_text_takes_the_acknowledgement_that_waits_along() -> None:
    """RFC 9260 6.2: an acknowledgement that is due leaves in the packet of the next text, before it, and not again."""
    association, channel, wire = sending(Answering)
    association.turn, association.acks = Turn(), Delay()
    association._sack_needed, association._last_received_tsn = True, 41
    association.acknowledge_soon(100)
    channel.send("x")
    association.acks.over()
    association._t3_cancel()

    (packet,) = wire.packets
    sack, data = parse_packet(packet)[3]
    assert isinstance(sack, SackChunk)
    assert sack.cumulative_tsn == 41
    assert isinstance(data, DataChunk)
    assert data.user_data == b"x"


async def test_acknowledgement_that_does_not_fit_the_packet_waits() -> None:
    """A packet stays within the size that aiortc uses. Gaps and duplicates are told in a packet of their own."""
    association, channel, wire = sending(Answering)
    association.turn, association.acks = Turn(), Delay()
    association._sack_needed, association._last_received_tsn = True, 41
    channel.send("x" * USERDATA_MAX_LENGTH)
    association._sack_misordered = {43}
    channel.send("x")
    association._t3_cancel()

    assert [len(parse_packet(packet)[3]) for packet in wire.packets] == [1, 1]
    assert association._sack_needed


# --- acknowledgements


class Acknowledging(SparseAcks, Receiving):
    """An association that receives, and records its acknowledgements."""


class Turn(LoopTurn):
    """A turn that ends when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.time = True
        self.due: list[Callable[[], None]] = []

    def has_time(self) -> bool:
        return self.time

    def wait(self, backlog: Any) -> None:
        return None

    def at_end(self, callback: Callable[[], None]) -> None:
        self.due.append(callback)

    def end(self) -> None:
        """End the turn."""
        due, self.due = self.due, []
        for callback in due:
            callback()


class Delay(AckTimer):
    """A delay that is over when the test says so."""

    def soon(self, callback: Callable[[], None]) -> None:
        self._due.append(callback)

    def over(self) -> None:
        """End the delay."""
        due, self._due = self._due, []
        for callback in due:
            callback()


def acknowledging(window: int = 1 << 20) -> tuple[Any, Turn, Delay]:
    """Return an association that expects TSN 1, its turn and its delay."""
    turn, delay = Turn(), Delay()
    association: Any = receiving(window=window, turn=turn)[0]
    association.__class__ = Acknowledging
    association._association_state = association.State.ESTABLISHED
    association.turn, association.acks = turn, delay
    return association, turn, delay


def take(association: Any, tsn: int, size: int) -> None:
    """Receive a packet with one chunk."""
    step(association._receive_data_chunk(chunk(tsn, tsn - 1)))
    association.acknowledge_soon(size)


def acknowledged(association: Any) -> list[int]:
    """Return the TSNs of the acknowledgements sent."""
    return [said.cumulative_tsn for said in association.said if isinstance(said, SackChunk)]


def test_second_full_packet_is_acknowledged_in_its_turn() -> None:
    """RFC 9260 6.2: one acknowledgement covers everything that a turn of the loop received."""
    association, turn, _ = acknowledging()
    take(association, 1, FULL_PACKET_BYTES)
    turn.end()
    assert acknowledged(association) == []
    for tsn in (2, 3):
        take(association, tsn, FULL_PACKET_BYTES)
    turn.end()

    assert acknowledged(association) == [3]


def test_small_packets_are_acknowledged_together() -> None:
    """Small packets are acknowledged when together they fill a packet, or after the delay."""
    association, turn, delay = acknowledging()
    small = FULL_PACKET_BYTES // 4
    for tsn in (1, 2, 3):
        take(association, tsn, small)
        turn.end()
    assert acknowledged(association) == []
    take(association, 4, small)
    turn.end()
    assert acknowledged(association) == [4]

    take(association, 5, small)
    delay.over()
    assert acknowledged(association) == [4, 5]
    delay.over()
    assert acknowledged(association) == [4, 5]


def test_gap_is_acknowledged_at_once() -> None:
    """Every packet after a gap is acknowledged, whatever its size, so that the sender retransmits fast (RFC 9260
    7.2.4)."""
    association, _, _ = acknowledging()
    take(association, 1, 100)
    for tsn in (3, 4, 5):
        take(association, tsn, 100)

    assert acknowledged(association) == [1, 1, 1]
    assert association.said[-1].gaps == [(2, 4)]


def test_closed_association_acknowledges_nothing() -> None:
    """A delay that ends after the close has no effect."""
    association, _, delay = acknowledging()
    take(association, 1, 100)
    association._association_state = association.State.CLOSED
    delay.over()

    assert acknowledged(association) == []


def test_sender_learns_at_once_that_a_shut_window_is_open() -> None:
    """The sender is told even if everything received is already acknowledged: otherwise only its probe after a
    time-out would show it."""
    association, turn, delay = acknowledging(window=1000)
    turn.time = False
    for tsn in range(1, 20):
        take(association, tsn, 100)
    turn.end()
    delay.over()
    assert association.said[-1].advertised_rwnd == 0

    turn.time = True
    while association.deliver_slice(16):
        pass
    turn.end()

    assert association.said[-1].advertised_rwnd == 1000

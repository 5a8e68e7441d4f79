"""gateway/upstream/sctp.py: when it acknowledges, and sending while the connection closes."""

from collections.abc import Callable
from typing import Any

from aiortc.rtcsctptransport import CookieAckChunk, SackChunk

from gateway.upstream.acktimer import AckTimer
from gateway.upstream.dtls import step
from gateway.upstream.loopturn import LoopTurn
from gateway.upstream.sctp import FULL_PACKET_BYTES, DirectSend, SparseAcks
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

"""How an association processes chunks: order, duplicates, slices, and a full window."""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from struct import pack
from typing import Any

import pytest
from aiortc import RTCSctpTransport
from aiortc.rtcsctptransport import DataChunk, ForwardTsnChunk, SackChunk
from google_crc32c import value as crc32c
from hypothesis import given
from hypothesis import strategies as st

from gateway.relay.events.jsontext import LARGE_BYTES
from gateway.upstream import inbound, tuning
from gateway.upstream.dtls import step
from gateway.upstream.loopturn import SLICE_MESSAGES, LoopTurn
from tests.upstream.kit import REQUEST, Remembering, dialling, order
from tests.upstream.test_reassembly import text, transmissions

TEXT = 51


class _Channel:
    id = 1


class _Transport:
    state = "connected"
    _role = "server"


class Receiving(inbound.DirectReceive):
    """An association that only receives."""

    async def _send_chunk(self, chunk: Any) -> None:
        self.said.append(chunk)

    said: list[Any]


def receiving(*, window: int = 1 << 20, turn: LoopTurn | None = None) -> tuple[Receiving, list[str]]:
    """Return an association that expects TSN 1 and the list of what it delivers."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        association: Any = RTCSctpTransport(_Transport())  # type: ignore[arg-type]
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    association.__class__ = Receiving
    association.prepare(window, turn or _Patient())
    association.said = []
    association._last_received_tsn = 0
    association.channel = _Channel()
    texts: list[str] = []
    association.received = texts.extend
    return association, texts


class _Patient(LoopTurn):
    """A turn that always has time left."""

    def has_time(self) -> bool:
        return True


class _Spent(LoopTurn):
    """A turn that never has time left, and records what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.backlogs: list[Any] = []
        self.time = False

    def has_time(self) -> bool:
        return self.time

    def wait(self, backlog: Any) -> None:
        self.backlogs.append(backlog)


def chunk(tsn: int, ssn: int, data: bytes = b"x", flags: int = 3) -> DataChunk:
    """Return a DATA chunk of stream 1."""
    made = DataChunk(flags=flags)
    made.tsn, made.stream_seq, made.user_data = tsn % 2**32, ssn % 2**16, data
    made.stream_id, made.protocol = 1, TEXT
    return made


@given(transmission=transmissions(), seed=st.integers(0, 2**16), share=st.floats(0, 0.6))
def test_every_message_comes_once_and_in_order_over_a_bad_path(
    transmission: tuple[list[int], list[Any], int], seed: int, share: float
) -> None:
    """Whatever the network drops, repeats and reorders, retransmission delivers each message once, in SSN order."""
    counts, chunks, first_ssn = transmission
    dice = random.Random(seed)
    association, texts = receiving()
    tsns = {chunk.tsn for chunk in chunks}
    association._last_received_tsn = next((tsn - 1) % 2**32 for tsn in tsns if (tsn - 1) % 2**32 not in tsns)
    stream: Any = association._get_inbound_stream(1)
    stream.sequence_number = stream._expected = first_ssn
    missing = list(chunks)
    while missing:
        for sent in [*missing, *dice.sample(chunks, len(chunks) // 2)]:
            if dice.random() >= share:
                step(association._receive_data_chunk(sent))
                missing = [other for other in missing if other is not sent]
        dice.shuffle(missing)

    assert texts == [text(number, count).decode() for number, count in enumerate(counts)]
    assert association.held == 0
    assert association._advertised_rwnd == association.window


async def test_crossed_messages_of_a_real_far_end_are_delivered(far_end: str) -> None:
    """400 crossed pairs of short and fragmented messages arrive complete and in order over DTLS and UDP."""
    async with dialling(far_end) as dialer:
        sink = Remembering()
        call = await dialer.dial(REQUEST, sink)
        await sink.until(lambda sink: sink.texts)
        for size in (10, 3000):
            begin = len(sink.texts)
            call.send([order("cross", count=400, size=size)])
            await sink.until(lambda sink, end=begin + 400: len(sink.texts) == end)  # type: ignore[misc]

            assert [int(text.split(" ", 1)[0]) for text in sink.texts[begin:]] == list(range(400))
    assert not call.undelivered


async def test_messages_behind_a_gap_are_delivered_in_slices() -> None:
    """5,000 messages wait for one chunk; when it arrives they are delivered over many turns, each within its time
    limit."""

    class Clock:
        now = 0.0

        def __call__(self) -> float:
            self.now += 0.0001 * SLICE_MESSAGES  # the time is looked at once for so many
            return self.now

    turn = LoopTurn(clock=Clock())
    association, texts = receiving(window=1 << 24, turn=turn)
    for tsn in range(2, 5001):
        await association._receive_data_chunk(chunk(tsn, tsn - 1))
    assert texts == []
    await association._receive_data_chunk(chunk(1, 0))
    turns = [len(texts)]
    while association.delivering:
        assert association._advertised_rwnd < association.window
        await asyncio.sleep(0)
        turns.append(len(texts))

    assert len(texts) == 5000
    assert max(after - before for before, after in itertools.pairwise(turns)) <= 112
    assert len(turns) > 40
    assert association._advertised_rwnd == association.window


async def test_short_way_waits_behind_what_waits() -> None:
    """A packet that could be delivered at once does not overtake messages that wait for the loop."""
    turn = _Spent()
    association, texts = receiving(turn=turn)
    for tsn in (1, 2):
        await association._receive_data_chunk(chunk(tsn, tsn - 1, b"%d" % tsn))
    turn.time = True
    await association._receive_data_chunk(chunk(3, 2, b"3"))
    assert texts == []
    assert turn.backlogs == [association]

    assert association.deliver_slice(2)
    assert not association.deliver_slice(16)
    assert texts == ["1", "2", "3"]


async def test_shut_window_drops_what_would_only_wait() -> None:
    """If messages that wait for the loop use up the window, further chunks are neither accepted nor acknowledged."""
    turn = _Spent()
    association, texts = receiving(window=1000, turn=turn)
    for tsn in range(1, 20):
        await association._receive_data_chunk(chunk(tsn, tsn - 1))
    taken = association._last_received_tsn
    assert taken is not None
    assert 3 <= taken <= 5
    assert association._advertised_rwnd <= 0

    turn.time = True
    association.deliver_slice(100)
    assert len(texts) == taken
    # The sender is told that the window is open again.
    assert [said.advertised_rwnd for said in association.said if isinstance(said, SackChunk)] == [1000]
    await association._receive_data_chunk(chunk(taken + 1, taken))
    assert len(texts) == taken + 1


async def test_shut_window_takes_what_lets_messages_out() -> None:
    """With a full window, the next chunk and one that fills a gap are accepted; one beyond all others is not."""
    association, texts = receiving(window=1000)
    for tsn in (3, 4, 6, 7):
        await association._receive_data_chunk(chunk(tsn, tsn - 1))
    assert association._advertised_rwnd <= 0

    await association._receive_data_chunk(chunk(9, 8))
    assert 9 not in association._sack_misordered
    await association._receive_data_chunk(chunk(5, 4))
    await association._receive_data_chunk(chunk(1, 0))
    await association._receive_data_chunk(chunk(2, 1))
    assert len(texts) == 7


async def test_number_of_waiting_messages_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stream sequence numbers are 16 bits wide, so a wide window must not let more messages wait than can be distinguished."""
    monkeypatch.setattr(inbound, "MAX_WAITING_MESSAGES", 5)
    association, texts = receiving(window=1 << 30)
    for tsn in range(2, 20):
        await association._receive_data_chunk(chunk(tsn, tsn - 1))

    assert sorted(association._sack_misordered) == [2, 3, 4, 5, 6]
    await association._receive_data_chunk(chunk(1, 0))
    assert len(texts) == 6


async def test_abandoned_messages_let_the_later_ones_out() -> None:
    """A FORWARD TSN (RFC 3758) skips what the sender gave up."""
    association, texts = receiving()
    await association._receive_data_chunk(chunk(3, 2))
    forward = ForwardTsnChunk()
    forward.cumulative_tsn, forward.streams = 2, [(1, 1)]
    await association._receive_forward_tsn_chunk(forward)

    assert texts == ["x"]
    assert association.held == 0


async def test_connection_that_ends_while_a_slice_is_delivered_ends_the_slice() -> None:
    """A backlog never raises an error into the loop."""
    turn = _Spent()
    association: Any
    association, _ = receiving(turn=turn)
    await association._receive_data_chunk(chunk(1, 0))

    async def gone() -> None:
        raise ConnectionError

    association._reset_deferred_streams = gone
    turn.time = True

    assert not association.deliver_slice(5)


def test_undelivered_is_unknown_to_a_stock_connection() -> None:
    """A stock connection, without the hook, reports nothing as undelivered."""

    class Stock:
        sctp = None

    pc: Any = Stock()
    assert not tuning.undelivered(pc)
    assert not tuning.delivering(pc)


@pytest.mark.parametrize("do", ["stream", "binary-flood"])
async def test_flooding_call_holds_neither_the_loop_nor_its_neighbour(far_end: str, do: str) -> None:
    """With 600 events that each cost the relay a millisecond, the loop is blocked for less than 100 ms, and another
    call's events are answered meanwhile."""

    class Slow(Remembering):
        def received(self, generation: int, text: str) -> None:
            _work()
            super().received(generation, text)

        def unreadable(self, generation: int, size: int) -> None:
            _work()
            super().unreadable(generation, size)

    async with dialling(far_end) as dialer:
        slow, other = Slow(), Remembering()
        flooding, neighbour = await dialer.dial(REQUEST, slow), await dialer.dial(REQUEST, other)
        flooding.send([order(do, count=600, size=30, burst=600, pause=0)])
        late, answered = [], 0
        while len(slow.texts) + len(slow.sizes) < 600:
            begun = time.thread_time()  # other load on the machine is not the relay's fault
            await asyncio.sleep(0.005)
            late.append(time.thread_time() - begun)
            if len(other.texts) > answered:
                answered = len(other.texts)
                neighbour.send([f"still here {answered}"])

    assert sorted(late)[int(len(late) * 0.95)] < 0.1
    assert answered > 10


def _work() -> None:
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass


def packet(association: Receiving, *chunks: DataChunk) -> bytes:
    """Return a packet with these chunks for an association."""
    header = pack("!HHL", 5000, 5000, association._local_verification_tag)
    body = b"".join(map(bytes, chunks))
    return header + pack("<L", crc32c(header + b"\0\0\0\0" + body)) + body


async def test_texts_of_a_packet_wait_in_order_where_the_turn_has_no_time() -> None:
    """Packets that arrive while messages wait are queued behind them, count against the window, and are delivered in
    order."""
    turn = _Spent()
    association, texts = receiving(turn=turn)
    association._data_channels[1] = association.channel  # type: ignore[assignment]
    association._get_inbound_stream(1)
    association.receive_packet(packet(association, chunk(1, 0, b"1"), chunk(2, 1, b"2")))
    turn.time = True
    association.receive_packet(packet(association, chunk(3, 2, b"3")))

    assert texts == []
    assert association._last_received_tsn == 3
    assert association._advertised_rwnd < association.window
    assert turn.backlogs == [association]
    association.deliver_slice(16)
    association.receive_packet(packet(association, chunk(4, 3, b"4"), chunk(5, 4, b"5")))
    assert texts == ["1", "2", "3", "4", "5"]
    assert association._advertised_rwnd == association.window


class _Working(LoopTurn):
    """A turn that always has time left, and records the work that is to be done in steps."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Any] = []
        self.backlogs: list[Any] = []

    def has_time(self) -> bool:
        return True

    def wait(self, backlog: Any) -> None:
        self.backlogs.append(backlog)

    def work(self, step: Any) -> None:
        self.steps.append(step)


def in_steps(texts: list[str]) -> Any:
    """Return what takes a large text in three steps, the last of which delivers it."""

    def taken(text: str) -> Iterator[None]:
        yield
        yield
        texts.append(text[:1])

    return taken


LARGE = b"L" * (LARGE_BYTES + 1)


async def test_what_follows_a_large_text_waits_until_it_is_taken() -> None:
    """The last step delivers a large text; what came after it follows in order, and the window counts all of it until
    then."""
    turn = _Working()
    association, texts = receiving(turn=turn)
    association.in_steps = in_steps(texts)
    association._data_channels[1] = association.channel  # type: ignore[assignment]
    association._get_inbound_stream(1)
    await association._receive_data_chunk(chunk(1, 0, b"1"))
    await association._receive_data_chunk(chunk(2, 1, LARGE))
    association.receive_packet(packet(association, chunk(3, 2, b"3"), chunk(4, 3, b"4")))
    (take,) = turn.steps

    assert texts == ["1"]
    for _ in range(3):
        assert take()
        assert association.delivering
        assert association._advertised_rwnd < association.window - len(LARGE)
    assert texts == ["1"]
    assert not take()
    assert texts == ["1", "L"]
    assert turn.backlogs == [association]
    assert not association.deliver_slice(16)
    assert texts == ["1", "L", "3", "4"]
    assert (association.held, association.delivering) == (0, False)


async def test_large_texts_are_taken_one_after_the_other() -> None:
    """A large text behind another begins when that one is delivered, small ones between them included."""
    turn = _Working()
    association, texts = receiving(turn=turn)
    association.in_steps = in_steps(texts)
    for tsn, data in enumerate((LARGE, LARGE, b"2", LARGE), start=1):
        await association._receive_data_chunk(chunk(tsn, tsn - 1, data))

    while turn.steps or turn.backlogs:
        if turn.steps:
            take = turn.steps.pop()
            while take():
                assert not turn.steps
        while turn.backlogs and turn.backlogs.pop().deliver_slice(16):
            pass
    assert texts == ["L", "L", "2", "L"]
    assert association.held == 0


async def test_a_large_text_that_is_not_utf8_is_emitted_as_bytes() -> None:
    """It is one for the channel's listener, as a small one is."""
    turn = _Working()
    association, texts = receiving(turn=turn)
    association.in_steps = in_steps(texts)
    emitted: list[tuple[int, int, bytes]] = []

    async def emit(stream_id: int, pp_id: int, data: bytes) -> None:
        emitted.append((stream_id, pp_id, data))

    association._data_channel_receive = emit  # type: ignore[method-assign]
    await association._receive_data_chunk(chunk(1, 0, LARGE + b"\xff"))

    assert not turn.steps[0]()
    assert emitted == [(1, TEXT, LARGE + b"\xff")]
    assert association.held == 0

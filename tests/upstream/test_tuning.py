"""The private hooks one by one: what each changes, that each can be left out, and that other connections stay stock."""

import asyncio
import random
from itertools import pairwise
from struct import pack
from typing import Any

import aioice
import aioice.ice
import pytest
from aioice import stun
from aiortc import (
    RTCConfiguration,
    RTCDtlsTransport,
    RTCIceTransportPolicy,
    RTCPeerConnection,
    RTCSctpTransport,
    rtcdtlstransport,
)
from aiortc.rtcsctptransport import SackChunk
from google_crc32c import value
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream import acktimer, dtls, ice, inbound, resources, sctp, tuning
from gateway.upstream.acktimer import AckTimer
from gateway.upstream.connection import Connection
from gateway.upstream.loopturn import LoopTurn
from gateway.upstream.tuning import ALL_HOOKS, Hook
from tests.upstream.farend import Farend, answering
from tests.upstream.kit import REQUEST, Remembering, dialling, order
from tests.waiting import until

OPTIONS = tuning.ConnectionOptions(
    addresses=("127.0.0.1",),
    consent_timeout=9.0,
    max_message_bytes=4 * 1024 * 1024,
    turn=LoopTurn(),
    acks=AckTimer(),
)


def _peer(hooks: frozenset[Hook]) -> Connection:
    certificate = tuning.certificate(hooks, tuning.Certificates(lambda: 0.0))
    pc = Connection([], RTCIceTransportPolicy.ALL, certificate, "oai-events")
    tuning.tune(pc, hooks, OPTIONS)
    return pc


# --- versions and switches


def test_hooks_fit_the_pinned_versions() -> None:
    """With the pinned versions every hook is used."""
    assert tuning.usable() == ALL_HOOKS
    assert tuning.missing() == ()


@pytest.mark.parametrize("library", ["aiortc", "aioice"])
def test_hooks_are_left_out_with_an_untested_version(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release may have changed the internals that the hooks use, so none is used, and `missing` lists them."""
    monkeypatch.setattr(
        tuning, "_version", lambda name: "99.0" if name == library else tuning.TESTED[name] + "0"
    )

    assert tuning.usable() == frozenset()
    assert set(tuning.missing()) == ALL_HOOKS


def test_raw_records_are_left_out_with_an_untested_pyopenssl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the hook that uses pyOpenSSL's internals depends on its version."""
    monkeypatch.setattr(tuning, "_version", lambda name: "99" if name == "pyOpenSSL" else tuning.TESTED[name])

    assert tuning.missing() == (Hook.RAW_RECORDS,)


def test_a_library_that_is_not_installed_has_no_version() -> None:
    """Missing metadata does not make the check fail."""
    assert tuning._version("no-such-distribution") == ""


@pytest.mark.parametrize("hook", sorted(ALL_HOOKS))
async def test_call_works_without_any_one_hook(hook: Hook) -> None:
    """Each hook can be switched off; small and large messages still pass."""
    async with answering(Farend()) as url, dialling(url, hooks=ALL_HOOKS - {hook}) as dialer:
        sink = Remembering()
        call = await dialer.dial(REQUEST, sink)
        call.send(["hello", order("text", size=300_000)])
        await sink.until(lambda sink: len(sink.texts) == 3)

    assert hook not in call.diagnostics["hooks"]  # type: ignore[operator]
    assert [len(text) for text in sink.texts[1:]] == [5, 300_000]


@pytest.mark.parametrize("hook", sorted(ALL_HOOKS))
async def test_call_works_with_only_one_hook(hook: Hook) -> None:
    """No hook depends on another, or it is left out together with it."""
    async with answering(Farend()) as url, dialling(url, hooks=frozenset({hook})) as dialer:
        sink = Remembering()
        call = await dialer.dial(REQUEST, sink)
        call.send(["hello", order("text", size=300_000)])
        await sink.until(lambda sink: len(sink.texts) == 3)

    assert [len(text) for text in sink.texts[1:]] == [5, 300_000]


async def test_other_connections_stay_stock() -> None:
    """Hooks apply only to this package's connections; the libraries' classes are unchanged."""
    before = (aioice.ice.CONSENT_INTERVAL, aioice.ice.Connection.connect, RTCSctpTransport._send_sack)
    tuned, plain = _peer(ALL_HOOKS), RTCPeerConnection(RTCConfiguration(iceServers=[]))
    plain.createDataChannel("x")

    assert type(plain.sctp) is RTCSctpTransport
    assert type(plain.sctp.transport) is RTCDtlsTransport
    assert isinstance(tuned.sctp, sctp.SparseAcks)
    assert before == (aioice.ice.CONSENT_INTERVAL, aioice.ice.Connection.connect, RTCSctpTransport._send_sack)
    await asyncio.gather(tuned.close(), plain.close())


# --- certificate


def test_certificate_is_shared_for_a_day() -> None:
    """Calls of one day have the same fingerprint and OpenSSL context; those of the next day have new ones."""
    now = 0.0
    certificates = tuning.Certificates(lambda: now)
    first = certificates.current()
    context = first._create_ssl_context(rtcdtlstransport.SRTP_PROFILES)

    assert certificates.current() is first
    assert first._create_ssl_context(rtcdtlstransport.SRTP_PROFILES) is context
    assert [f.algorithm for f in first.getFingerprints()] == ["sha-256"]

    now = tuning.CERTIFICATE_SECONDS
    assert certificates.current() is not first


# --- ICE


async def test_consent_checks_are_nominated() -> None:
    """A consent check has USE-CANDIDATE, which a strict ICE-lite far end requires."""
    sent: list[stun.Message] = []

    class Protocol:
        async def request(self, request: stun.Message, *_: object, **__: object) -> None:
            sent.append(request)

    class Pair:
        component = 1
        protocol = Protocol()
        remote_addr = ("127.0.0.1", 9)

    connection = aioice.ice.Connection(ice_controlling=True)
    connection.__class__ = ice.NominatedConsent
    connection.consent_timeout = 15.0  # type: ignore[attr-defined]
    connection.remote_username = connection.remote_password = "x" * 22
    connection._nominated[1] = Pair()  # type: ignore[assignment]
    checking = asyncio.create_task(_with_interval(connection, 0.0))
    async with asyncio.timeout(10):
        while not sent:
            await asyncio.sleep(0)
    checking.cancel()
    await asyncio.wait({checking})

    assert "USE-CANDIDATE" in sent[0].attributes


async def _with_interval(connection: aioice.ice.Connection, seconds: float) -> None:
    original = ice.CONSENT_INTERVAL_SECONDS
    ice.CONSENT_INTERVAL_SECONDS = seconds
    try:
        await connection.query_consent()
    finally:
        ice.CONSENT_INTERVAL_SECONDS = original


async def test_handshake_takes_no_pace_tick(far_end: str) -> None:
    """With checks that run during the wait, ICE on loopback finishes before the first 20 ms tick; the best of five
    attempts counts."""
    async with dialling(far_end) as dialer:
        best = 1.0
        for _ in range(5):
            call = await dialer.dial(REQUEST, Remembering())
            best = min(best, call._phases["ice"])
            await call.close(hang_up=False)

    assert best < ice.PACE_SECONDS


async def test_unanswered_checks_are_repeated_at_an_even_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that gets no answer is repeated evenly, not after ever longer pauses, so a set-up goes on soon after an outage."""
    monkeypatch.setattr(ice, "REPEAT_SECONDS", 0.01)
    received: list[bytes] = []

    class Silent(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, _: object) -> None:
            received.append(data)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Silent, local_addr=("127.0.0.1", 0))
    connection = aioice.ice.Connection(ice_controlling=True)
    connection.__class__ = tuning._composed(aioice.ice.Connection, tuple(tuning._ICE.values()))
    connection.addresses = ("127.0.0.1",)  # type: ignore[attr-defined]
    await connection.gather_candidates()
    connection.remote_username = connection.remote_password = "x" * 22
    port = transport.get_extra_info("sockname")[1]
    candidate = aioice.Candidate("1", 1, "udp", 1, "127.0.0.1", port, "host")
    await connection.add_remote_candidate(candidate)
    await connection.add_remote_candidate(None)
    connecting = asyncio.create_task(connection.connect())
    # aioice alone sends the sixth after 15 s.
    await until(lambda: len(received) >= 6)
    await connection.close()
    with pytest.raises(ConnectionError):
        await connecting
    transport.close()

    assert len(set(received)) == 1


async def test_error_of_the_pace_fails_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error between two checks is the cause that `connect` raises, and is not lost with its task."""
    monkeypatch.setattr(ice, "REPEAT_SECONDS", 0.01)
    failed = asyncio.Event()

    def repeat(_: object) -> None:
        failed.set()
        raise ValueError("a bug")

    monkeypatch.setattr(ice.PromptChecks, "_repeat", repeat)
    connection = aioice.ice.Connection(ice_controlling=True)
    connection.__class__ = tuning._composed(aioice.ice.Connection, (ice.PromptChecks, ice.ChosenAddresses))
    connection.addresses = ("127.0.0.1",)  # type: ignore[attr-defined]
    await connection.gather_candidates()
    connection.remote_username = connection.remote_password = "x" * 22
    await connection.add_remote_candidate(aioice.Candidate("1", 1, "udp", 1, "127.0.0.1", 9, "host"))
    await connection.add_remote_candidate(None)
    connecting = asyncio.create_task(connection.connect())
    async with asyncio.timeout(10):
        await failed.wait()
    await connection.close()

    with pytest.raises(ConnectionError) as raised:
        await connecting
    assert isinstance(raised.value.__cause__, ValueError)


def _checking(patience: float) -> Any:
    """Return a controlling connection that checks promptly and gathers on loopback."""
    connection: Any = aioice.ice.Connection(ice_controlling=True)
    connection.__class__ = tuning._composed(aioice.ice.Connection, (ice.PromptChecks, ice.ChosenAddresses))
    connection.addresses, connection.patience = ("127.0.0.1",), patience
    return connection


async def test_handshake_without_candidates_fails_after_its_patience() -> None:
    """Without candidates, and with none to come, ICE fails before the time-outs of checks, which take a minute."""
    connection = _checking(patience=0.05)
    await connection.gather_candidates()
    await connection.gather_candidates()
    connection.remote_username = connection.remote_password = "x" * 22
    await connection.add_remote_candidate(None)

    async with asyncio.timeout(10):
        with pytest.raises(ConnectionError):
            await connection.connect()
    await connection.close()


async def test_handshake_that_failed_is_saved_by_a_late_check_of_the_far_end() -> None:
    """The pair of the far end's candidate has failed, and its own check comes afterwards, from another address."""
    connection, peer = _checking(patience=10), aioice.ice.Connection(ice_controlling=False)
    peer.__class__ = ice.ChosenAddresses
    peer.addresses = ("127.0.0.1",)  # type: ignore[attr-defined]
    for one, other in ((connection, peer), (peer, connection)):
        await one.gather_candidates()
        other.remote_username, other.remote_password = one.local_username, one.local_password
    for candidate in connection.local_candidates:
        await peer.add_remote_candidate(candidate)
    await peer.add_remote_candidate(None)
    nobody = aioice.Candidate.from_sdp("1 1 udp 1 127.0.0.1 9 typ host")
    await connection.add_remote_candidate(nobody)
    await connection.add_remote_candidate(None)
    async with asyncio.timeout(10):
        connecting = asyncio.create_task(connection.connect())
        await asyncio.sleep(0.05)
        (pair,) = connection._check_list
        pair.task.cancel()
        connection.check_state(pair, aioice.ice.CandidatePair.State.FAILED)
        connection.check_complete(pair)
        await asyncio.sleep(0.05)
        assert not connecting.done()
        await asyncio.gather(connecting, peer.connect())
    await asyncio.gather(connection.close(), peer.close())


async def test_handshake_that_failed_ends_when_it_is_closed() -> None:
    """Its patience does not keep a call that nobody wants any more."""
    connection = _checking(patience=60)
    await connection.gather_candidates()
    connection.remote_username = connection.remote_password = "x" * 22
    await connection.add_remote_candidate(None)
    connecting = asyncio.create_task(connection.connect())
    await asyncio.sleep(0.05)
    await connection.close()

    async with asyncio.timeout(10):
        with pytest.raises(ConnectionError):
            await connecting


@pytest.mark.parametrize("missing", ["gathering", "credentials"])
async def test_handshake_out_of_order_is_refused(missing: str) -> None:
    """As in stock aioice, connecting fails without gathering or without the remote side's credentials."""
    connection = aioice.ice.Connection(ice_controlling=True)
    connection.__class__ = ice.PromptChecks
    connection._local_candidates_end = missing != "gathering"

    with pytest.raises(ConnectionError):
        await connection.connect()


async def test_addresses_are_gathered_as_given() -> None:
    """Only the given address is offered, loopback included."""
    pc = _peer(ALL_HOOKS)
    await pc.gather()

    assert {candidate.split()[4] for candidate in pc.offer(1).candidates} == {"127.0.0.1"}
    await pc.close()


async def test_addresses_follow_the_route() -> None:
    """For a loopback host the address is loopback, for an address its own route, for a name the default route."""
    for url, expected in (
        ("http://127.0.0.1:9/v1", ("127.0.0.1",)),
        ("http://localhost:9/v1", ("127.0.0.1",)),
        ("http://[::1]:9/v1", ("::1", "127.0.0.1")),
        ("https://api.openai.com/v1", resources._route_to("203.0.113.1")),
    ):
        async with dialling(url) as dialer:
            assert dialer.addresses() == expected

    assert resources._route_to("127.0.0.9") == ("127.0.0.1",) or resources._route_to("127.0.0.9") == (
        "127.0.0.9",
    )
    assert resources._route_to("a.name") == ()


# --- SCTP: time-outs


async def test_retransmission_time_outs_fit_interactive_use() -> None:
    """The first time-out is 1 s; after a sample of a fast path it falls to 0.3 s, not below."""
    pc = _peer(ALL_HOOKS)
    association = pc.sctp
    assert association._rto == 1.0

    association._update_rto(0.001)
    association._update_rto(0.001)
    assert association._rto == sctp.RTO_MIN_SECONDS
    association._update_rto(2.0)
    assert association._rto > 0.3
    await pc.close()


# --- SCTP: receiving


@given(arrivals=st.lists(st.integers(1, 60), min_size=1, max_size=80), start=st.sampled_from([0, 2**32 - 20]))
def test_marking_knows_what_is_new_whatever_the_order(arrivals: list[int], start: int) -> None:
    """What counts as received, out of order or repeated follows from the set of received numbers, also when numbers
    wrap.

    Stock sorts by value there and lags behind until more arrives, so the rule is the reference, not stock.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        association = RTCSctpTransport(_Transport())  # type: ignore[arg-type]
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    association.__class__ = inbound.PacedReassembly
    association._last_received_tsn = start
    came: set[int] = set()
    for arrival in arrivals:
        again = association._mark_received((start + arrival) % 2**32)
        assert again == (arrival in came)
        came.add(arrival)
        whole = next(number for number in range(61) if number + 1 not in came)
        assert association._last_received_tsn == (start + whole) % 2**32
        assert association._sack_misordered == {(start + n) % 2**32 for n in came if n > whole}

    assert len(association._sack_duplicates) <= inbound.MAX_DUPLICATES


class _Transport:
    state = "new"
    _role = "server"


async def test_peer_that_overruns_the_window_is_cut_off() -> None:
    """A message without an end is not collected for ever: at twice the window the call ends."""
    async with answering(Farend()) as url, dialling(url) as dialer:
        sink = Remembering()
        call = await dialer.dial(REQUEST, sink)
        assert call._pc is not None
        association = call._pc.sctp
        assert isinstance(association, inbound.PacedReassembly)
        association.prepare(50_000, dialer.turn)
        call.send([order("text", size=300_000)])
        await sink.until(lambda sink: sink.losses or len(sink.texts) > 1)

    assert sink.losses
    assert len(sink.texts) == 1


# --- SCTP: acknowledgements


@given(st.sets(st.integers(1, 400), min_size=1, max_size=200))
def test_gaps_are_the_blocks_of_what_came(offsets: set[int]) -> None:
    """The blocks are exactly the received numbers, ascending and separate, up to the limit."""
    gaps = sctp._gaps(sorted(offsets))
    told = [offset for first, last in gaps for offset in range(first, last + 1)]

    assert told == sorted(offsets)[: len(told)]
    assert len(gaps) <= sctp.MAX_GAPS
    assert len(gaps) == sctp.MAX_GAPS or len(told) == len(offsets)
    assert all(after[0] > before[1] + 1 for before, after in pairwise(gaps))


def test_gaps_beyond_sixteen_bits_are_left_for_later() -> None:
    """A block's end must fit its field (RFC 9260 3.3.4)."""
    assert sctp._gaps([3, 70_000]) == [(3, 3)]


async def test_slow_stream_is_acknowledged_after_a_delay_or_a_full_packet(far_end: str) -> None:
    """Of single small packets with pauses, every sixth is acknowledged, or all of 40 ms, and none is left
    unacknowledged."""
    counts: dict[bool, int] = {}
    for sparse in (True, False):
        hooks = ALL_HOOKS if sparse else ALL_HOOKS - {Hook.SPARSE_ACKS}
        async with dialling(far_end, hooks=hooks) as dialer:
            sink = Remembering()
            call = await dialer.dial(REQUEST, sink)
            assert call._pc is not None
            association: Any = call._pc.sctp
            sacks = 0
            send_chunk = association._send_chunk

            async def counting(chunk: Any, send_chunk: Any = send_chunk) -> None:
                nonlocal sacks
                sacks += isinstance(chunk, SackChunk)
                await send_chunk(chunk)

            association._send_chunk = counting
            call.send([order("stream", count=100, size=100, burst=1, pause=0.003)])
            await sink.until(lambda sink: len(sink.texts) == 101)
            await asyncio.sleep(3 * acktimer.ACK_DELAY_SECONDS)
            assert not association._sack_needed
            counts[sparse] = sacks

    assert counts[False] >= 95
    assert counts[True] <= 65


@pytest.mark.parametrize("share", [0.02, pytest.param(0.2, marks=pytest.mark.slow)])
async def test_stream_over_a_lossy_path_arrives_whole(share: float, far_end: str) -> None:
    """With packets lost in both directions, every message arrives once and in order."""
    dice = random.Random(7)
    async with dialling(far_end) as dialer:
        sink = Remembering()
        call = await dialer.dial(REQUEST, sink)
        assert call._pc is not None
        connection: Any = call._pc.sctp.transport.transport._connection
        take, put = connection.direct, connection.put
        connection.direct = lambda data: None if dice.random() < share else take(data)
        connection.put = lambda data: None if dice.random() < share else put(data)
        call.send([order("stream", count=60, size=3000, burst=5, pause=0.001)])
        await sink.until(lambda sink: len(sink.texts) == 61, seconds=60)

    assert [int(text.split(" ", 1)[0]) for text in sink.texts[1:]] == list(range(60))


# --- DTLS


async def test_datagram_with_two_records_gives_both() -> None:
    """All records of a datagram are read at once, not when the next datagram arrives."""
    async with answering(Farend()) as url, dialling(url) as dialer:
        sink = Remembering()
        call = await dialer.dial(REQUEST, sink)
        assert call._pc is not None
        transport: Any = call._pc.sctp.transport
        joined: list[bytes] = []
        take = transport.connection.direct
        transport.connection.direct = joined.append
        call.send(["one"])
        call.send(["two"])
        async with asyncio.timeout(10):
            while len(joined) < 2 or not all(joined):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        transport.connection.direct = take
        take(b"".join(joined))
        await sink.until(lambda sink: len(sink.texts) == 3)

    assert sink.texts[1:] == ["one", "two"]


async def test_forged_datagrams_are_dropped() -> None:
    """Foreign datagrams on the socket do not disturb the call."""
    async with answering(Farend()) as url, dialling(url) as dialer:
        sink = Remembering()
        call = await dialer.dial(REQUEST, sink)
        assert call._pc is not None
        transport: Any = call._pc.sctp.transport
        protocol = transport.connection._protocols[0]
        dice = random.Random(3)
        for first in (0, 1, 3, 19, 20, 22, 23, 23, 23, 40, 63, 64, 128, 200, 255):
            for length in (0, 1, 12, 13, 60, 1400):
                data = bytes([first]) + dice.randbytes(length)
                protocol.datagram_received(data, ("127.0.0.1", 9))
                # Let queued messages go first, so that the next one takes the short path.
                await asyncio.sleep(0.001)
        protocol.datagram_received(b"", ("127.0.0.1", 9))
        genuine: list[bytes] = []
        take = transport.connection.direct
        transport.connection.direct = genuine.append
        call.send(["once"])
        await until(lambda: len(genuine) >= 2)
        transport.connection.direct = take
        for data in [*genuine, *genuine, *(each[:-1] + bytes([each[-1] ^ 1]) for each in genuine)]:
            take(data)
        call.send(["still here"])
        await sink.until(lambda sink: "still here" in sink.texts)

    assert sink.texts.count("once") == 1
    assert sink.losses == []


async def test_broken_packets_inside_the_association_are_dropped() -> None:
    """Encrypted data that is not SCTP of this association, or a bundled INIT, has no effect."""
    async with answering(Farend()) as url, dialling(url) as dialer:
        sink = Remembering()
        call = await dialer.dial(REQUEST, sink)
        assert call._pc is not None
        association: Any = call._pc.sctp
        tag = association._local_verification_tag
        for packet in (
            b"",
            b"x" * 15,
            b"x" * 40,
            _packet(0, b"\x01\x00\x00\x14" + b"\x00" * 16 + b"\x00\x03\x00\x04"),
            _packet(tag, b"\x00\x03\x00\x03"),
            _packet(tag, b"\x00\x03\xff\xff" + b"\x00" * 16),
            _packet(tag, b"\xee\x00\x00\x04"),
        ):
            association.receive_packet(packet)
        call.send(["still here"])
        await sink.until(lambda sink: "still here" in sink.texts)

    assert sink.losses == []


def _packet(tag: int, chunks: bytes) -> bytes:
    header = pack("!HHL", 5000, 5000, tag)
    return header + pack("<L", value(header + b"\0\0\0\0" + chunks)) + chunks


async def test_step_refuses_to_wait() -> None:
    """A coroutine that waits is a bug that must raise an error."""

    async def waits() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError):
        dtls.step(waits())

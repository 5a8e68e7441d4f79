"""Every use of aiortc and aioice beyond their public interface, in one table.

Nothing is patched: a connection that this package makes is given a subclass before it starts, composed of the hooks that are
switched on. So other connections in the interpreter stay as they were, and each hook can be switched by itself.

The hooks were read against the versions named in `TESTED`. With any other version they are left out, and the stock
libraries do the work: slower, with a limit of 1 MiB on server events, and a strict ICE-lite peer ends the call after half
a minute; `missing` lists them for the operator.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import aioice
from aiortc import RTCCertificate, RTCDtlsTransport, RTCSctpTransport
from OpenSSL import SSL

from gateway.upstream import dtls, ice, inbound, sctp
from gateway.upstream.acktimer import AckTimer
from gateway.upstream.connection import Connection
from gateway.upstream.loopturn import LoopTurn

TESTED: Mapping[str, str] = {"aiortc": "1.16.", "aioice": "0.13.", "pyOpenSSL": "26."}

# One day bounds the calls that a stolen key affects. No session lasts longer.
CERTIFICATE_SECONDS = 24 * 3600.0

# A window of two of the largest messages lets a sender continue while one is reassembled.
MESSAGES_IN_WINDOW = 2
STOCK_MESSAGE_BYTES = 1024 * 1024

# Three checks in 3.5 s: a path of 0.5 s, or one that loses every tenth packet, still has time to answer.
PROBE_RETRANSMISSIONS = 2


class Hook(StrEnum):
    """One change to the libraries, described by its class in `_CLASSES`."""

    SHARED_CERTIFICATE = "shared-certificate"
    WITHOUT_SRTP = "without-srtp"
    CHOSEN_ADDRESSES = "chosen-addresses"
    PROMPT_CHECKS = "prompt-checks"
    NOMINATED_CONSENT = "nominated-consent"
    QUICK_RETRANSMISSION = "quick-retransmission"
    PACED_REASSEMBLY = "paced-reassembly"
    COUNTED_SENDS = "counted-sends"
    TOLERANT_FRAMES = "tolerant-frames"
    DIRECT = "direct"
    RAW_RECORDS = "raw-records"
    SPARSE_ACKS = "sparse-acks"
    BRIEF_HANDSHAKE = "brief-handshake"


ALL_HOOKS = frozenset(Hook)

# In the order of inheritance: earlier classes override later ones.
_ICE: Mapping[Hook, type[aioice.Connection]] = {
    Hook.DIRECT: ice.DirectDatagrams,
    Hook.CHOSEN_ADDRESSES: ice.ChosenAddresses,
    Hook.PROMPT_CHECKS: ice.PromptChecks,
    Hook.NOMINATED_CONSENT: ice.NominatedConsent,
}
_DTLS: Mapping[Hook, type[RTCDtlsTransport]] = {
    Hook.WITHOUT_SRTP: dtls.WithoutSrtp,
    Hook.RAW_RECORDS: dtls.RawRecords,
    Hook.DIRECT: dtls.DirectRecords,
}
_SCTP: Mapping[Hook, tuple[type[RTCSctpTransport], ...]] = {
    Hook.TOLERANT_FRAMES: (inbound.TolerantFrames,),
    Hook.SPARSE_ACKS: (sctp.SparseAcks,),
    Hook.DIRECT: (sctp.DirectSend, inbound.DirectReceive),
    Hook.QUICK_RETRANSMISSION: (sctp.QuickRetransmission,),
    Hook.COUNTED_SENDS: (sctp.CountedSends,),
    Hook.PACED_REASSEMBLY: (inbound.PacedReassembly,),
}


def missing(wanted: frozenset[Hook] = ALL_HOOKS) -> tuple[Hook, ...]:
    """Return the hooks that cannot be used with the installed versions."""
    return tuple(sorted(wanted - usable(wanted)))


def usable(wanted: frozenset[Hook] = ALL_HOOKS) -> frozenset[Hook]:
    """Return those of the wanted hooks that were tested with the installed versions."""
    tested = {name for name, prefix in TESTED.items() if _version(name).startswith(prefix)}
    if not {"aiortc", "aioice"} <= tested:
        return frozenset()
    # DIRECT needs PACED_REASSEMBLY; RAW_RECORDS needs DIRECT and pyOpenSSL's internals.
    if Hook.PACED_REASSEMBLY not in wanted:
        wanted -= {Hook.DIRECT}
    if "pyOpenSSL" not in tested or Hook.DIRECT not in wanted:
        return wanted - {Hook.RAW_RECORDS}
    return wanted


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """The hooks' parameters for one connection."""

    addresses: tuple[str, ...]
    consent_timeout: float
    max_message_bytes: int
    turn: LoopTurn
    acks: AckTimer


class Certificates:
    """The certificate of today."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._current: dtls.SharedCertificate | None = None
        self._made = 0.0

    def current(self) -> dtls.SharedCertificate:
        """Return the certificate for a new call, renewed once a day."""
        now = self._monotonic()
        if self._current is None or now - self._made >= CERTIFICATE_SECONDS:
            self._current, self._made = dtls.SharedCertificate.generateCertificate(), now
        return self._current


def certificate(hooks: frozenset[Hook], certificates: Certificates) -> RTCCertificate:
    """Return the certificate for a call: with SHARED_CERTIFICATE the one that all calls share."""
    return (
        certificates.current() if Hook.SHARED_CERTIFICATE in hooks else RTCCertificate.generateCertificate()
    )


def tune(pc: Connection, hooks: frozenset[Hook], options: ConnectionOptions) -> None:
    """Apply the hooks to the connection. Call before it gathers."""
    association, transport = pc.sctp, pc.dtls
    connection = pc.ice._connection
    connection.__class__ = _composed(aioice.Connection, tuple(_ICE[hook] for hook in _ICE if hook in hooks))
    transport.__class__ = _composed(RTCDtlsTransport, tuple(_DTLS[hook] for hook in _DTLS if hook in hooks))
    association.__class__ = _composed(
        RTCSctpTransport, tuple(part for hook in _SCTP if hook in hooks for part in _SCTP[hook])
    )
    if isinstance(connection, ice.ChosenAddresses):
        connection.addresses = options.addresses
    if isinstance(connection, ice.NominatedConsent):
        connection.consent_timeout = options.consent_timeout
    if isinstance(association, sctp.QuickRetransmission):
        association._rto = sctp.RTO_INITIAL_SECONDS
    if isinstance(association, sctp.SparseAcks):
        association.turn, association.acks = options.turn, options.acks
    if isinstance(association, sctp.CountedSends):
        association.count_sends()
    if isinstance(association, inbound.PacedReassembly):
        window = MESSAGES_IN_WINDOW * max(options.max_message_bytes, STOCK_MESSAGE_BYTES)
        association.prepare(window, options.turn)


def go_direct(
    pc: Connection, received: Callable[[list[str]], None], in_steps: Callable[[str], Iterator[None]]
) -> None:
    """Use the fast path for data from now on; call when DTLS is connected.

    Texts of the channel then go to `received`, those of a packet together, and large ones to `in_steps`; everything else, or
    without the hook all messages, arrives as its `message` event.
    """
    association, transport = pc.sctp, pc.dtls
    connection = pc.ice._connection
    if (
        isinstance(connection, ice.DirectDatagrams)
        and isinstance(transport, dtls.DirectRecords)
        and isinstance(association, inbound.DirectReceive)
    ):
        association.channel = pc.channel
        association.received, association.in_steps = received, in_steps
        transport.go_direct(connection, association.receive_packet)


def forget_handshake(pc: Connection, hooks: frozenset[Hook]) -> None:
    """Free what only the set-up needed; call when the channel is open. An empty queue takes 3 KiB, an event one."""
    if Hook.BRIEF_HANDSHAKE not in hooks:
        return
    pc.connecting = None
    # aioice reads them until a pair is nominated, aiortc when a transport is started a second time.
    for part, name in (
        (pc.ice._connection, "_check_list_state"),
        (pc.ice._connection, "_early_checks"),
        (pc.ice, "_RTCIceTransport__start"),
    ):
        vars(part).pop(name, None)


def undelivered(pc: Connection) -> bool:
    """Return whether chunks were acknowledged whose messages were not delivered. Without the hook: False."""
    association = pc.sctp
    return isinstance(association, inbound.PacedReassembly) and association.held > 0


def delivering(pc: Connection) -> bool:
    """Return whether complete messages wait for a turn of the loop."""
    association = pc.sctp
    return isinstance(association, inbound.PacedReassembly) and association.delivering


def acknowledged(pc: Connection, sent: int) -> int:
    """Return how many of the texts sent the far end's SCTP has acknowledged.

    Without the hook that is known only when nothing is on its way: otherwise 0.
    """
    association = pc.sctp
    if isinstance(association, sctp.CountedSends):
        return association.acknowledged
    waiting = association._data_channel_queue or association._outbound_queue or association._sent_queue
    return 0 if waiting else sent


def consent_expired(pc: Connection) -> bool:
    """Return whether a connection that was open ended because consent checks went unanswered.

    aioice forgets the task that checks when consent expires, and keeps it when closed for any other reason. Its state
    `failed` would say the same, but is at times overtaken by `closed`.
    """
    connection = pc.ice._connection
    return connection._closing and connection._query_consent_task is None


def farewell_heard(pc: Connection) -> bool:
    """Return whether the far end ended the association, or the whole connection (close_notify)."""
    transport = pc.dtls
    if getattr(transport, "failed", None) is not None:
        return False
    ended_by_peer = transport._ssl is not None and transport._ssl.get_shutdown() & SSL.RECEIVED_SHUTDOWN
    return transport.state == "connected" or bool(ended_by_peer)


def largest_message(hooks: frozenset[Hook], wanted: int) -> int:
    """Return the largest server event to ask for: stock reassembly stalls the loop above a megabyte."""
    return wanted if Hook.PACED_REASSEMBLY in hooks else min(wanted, STOCK_MESSAGE_BYTES)


async def alive(pc: Connection) -> bool:
    """Check whether the far end answers; False after 3.5 s. Always True with stock consent, which cannot be triggered."""
    connection = pc.ice._connection
    return not isinstance(connection, ice.NominatedConsent) or await connection.answers(PROBE_RETRANSMISSIONS)


def selected_pair(pc: Connection) -> tuple[str, str] | None:
    """Return the kinds of the nominated pair's candidates, local and remote, such as ("host", "host")."""
    for pair in pc.ice._connection._nominated.values():
        return pair.local_candidate.type, pair.remote_candidate.type
    return None


async def reap(pc: Connection, timeout: float) -> None:
    """End what a closed connection may have left running.

    A stock handshake that has found its pair sleeps out its 20 ms, and then starts consent checks on a connection that was
    closed meanwhile; they would never end.
    """
    if pc.connecting is not None and not pc.connecting.done():
        await asyncio.wait({pc.connecting}, timeout=timeout)
    checks = pc.ice._connection._query_consent_task
    if checks is not None and not checks.done():
        checks.cancel()
        await asyncio.wait({checks})


def dismantle(pc: Connection) -> None:
    """Remove the references by which the parts of a closed connection keep each other alive.

    They are then freed at once, in a tenth of a millisecond. Left to a garbage collection, those of hundreds of calls that ended
    together would hold the loop together.
    """
    if pc.connecting is not None and not pc.connecting.done():
        return  # It did not end in time, and still uses them.
    connection, transport, association = pc.ice._connection, pc.dtls, pc.sctp
    for pair in connection._check_list:
        pair.protocol.transport = pair.protocol.receiver = None  # type: ignore[assignment]  # it is closed
        pair.task = None
    connection._check_list.clear()
    if isinstance(connection, ice.DirectDatagrams):
        connection.direct = None
    if isinstance(transport, dtls.DirectRecords):
        transport.connection = transport.packet = None
    if isinstance(association, inbound.PacedReassembly):
        association.channel = association.received = association.in_steps = None
    for part in (pc.ice, pc.dtls, pc.channel, association):
        part.remove_all_listeners()
    pc.connecting = None


def abandon(pc: Connection) -> None:
    """Free the sockets of a connection whose orderly close did not end."""
    connection = pc.ice._connection
    if connection._query_consent_task is not None:
        connection._query_consent_task.cancel()
    for protocol in connection._protocols:
        # A TURN allocation cannot be aborted; its close is sent and not awaited.
        getattr(protocol.transport, "abort", protocol.transport.close)()
    connection._queue.put_nowait(None)


@cache
def _composed(base: type[Any], parts: tuple[type[Any], ...]) -> type[Any]:  # Any: one of three families
    return type(f"Tuned{base.__name__}", (*parts, base), {}) if parts else base

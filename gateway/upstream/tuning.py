"""Every use of aiortc and aioice beyond their public interface, in one table.

Nothing is patched: a connection that this package makes is given a subclass before it starts, composed of the hooks that are
switched on. So other connections in the interpreter stay as they were, and each hook can be switched by itself.

The hooks were read against the versions named in `TESTED`. With any other version they are left out, and the stock
libraries do the work: slower, with a limit of 1 MiB on server events, and a strict ICE-lite peer ends the call after half
a minute; `missing` says which, so that the operator is told.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

from aioice.ice import Connection
from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCDtlsTransport,
    RTCPeerConnection,
    RTCSctpTransport,
    rtcpeerconnection,
)
from OpenSSL import SSL

from gateway.upstream import dtls, ice, inbound, sctp
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
    BRIEF_NEGOTIATION = "brief-negotiation"


ALL_HOOKS = frozenset(Hook)

# In the order of inheritance: earlier classes override later ones.
_ICE: Mapping[Hook, type[Connection]] = {
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

    # RTCPeerConnection.__init__ asks its class for a certificate; for the length of that call this object stands in.
    def generateCertificate(self) -> dtls.SharedCertificate:  # noqa: N802 - aiortc's name
        """Stand in for aiortc's class method."""
        return self.current()


def new_peer_connection(
    configuration: RTCConfiguration, hooks: frozenset[Hook], certificates: Certificates
) -> "PeerConnection":
    """Make a peer connection; with SHARED_CERTIFICATE it has the certificate all calls share."""
    if Hook.SHARED_CERTIFICATE not in hooks:
        return PeerConnection(configuration)
    module = cast(Any, rtcpeerconnection)  # Any: an object stands in for a class
    stock = module.RTCCertificate
    module.RTCCertificate = certificates
    try:
        return PeerConnection(configuration)
    finally:
        module.RTCCertificate = stock


class PeerConnection(RTCPeerConnection):
    """Reports what ends aiortc's task that connects, which nobody awaits."""

    failed: Callable[[BaseException], None] | None = None
    """None once the connection is closed: what fails then is of no interest."""

    async def _RTCPeerConnection__connect(self) -> None:  # noqa: N802  # aiortc's private method, under its mangled name
        try:
            await super()._RTCPeerConnection__connect()  # type: ignore[misc]  # as above
        except Exception as error:  # noqa: BLE001  # whatever it is, the call that owns the connection decides
            if self.failed is not None:
                self.failed(error)


def tune(pc: RTCPeerConnection, hooks: frozenset[Hook], options: ConnectionOptions) -> None:
    """Apply the hooks to the connection. Call once it has its channel and before it gathers."""
    association = pc.sctp
    assert association is not None
    transport = association.transport
    ice_transport = transport.transport
    connection = ice_transport._connection
    connection.__class__ = _composed(Connection, tuple(_ICE[hook] for hook in _ICE if hook in hooks))
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
        association.turn = options.turn
    if isinstance(association, sctp.CountedSends):
        association.count_sends()
    if isinstance(association, inbound.PacedReassembly):
        window = MESSAGES_IN_WINDOW * max(options.max_message_bytes, STOCK_MESSAGE_BYTES)
        association.prepare(window, options.turn)


def go_direct(pc: RTCPeerConnection, channel: RTCDataChannel, received: Callable[[str], None]) -> None:
    """Use the fast path for data from now on; call when DTLS is connected.

    Texts of `channel` then go to `received`; everything else, or without the hook all messages, arrives as its `message` event.
    """
    association = pc.sctp
    assert association is not None
    transport = association.transport
    connection = transport.transport._connection
    if (
        isinstance(connection, ice.DirectDatagrams)
        and isinstance(transport, dtls.DirectRecords)
        and isinstance(association, inbound.DirectReceive)
    ):
        association.channel = channel
        association.received = received
        transport.go_direct(connection, association.receive_packet)


def forget_negotiation(pc: RTCPeerConnection, hooks: frozenset[Hook]) -> None:
    """Free what only another offer or answer would need; call when the channel is open.

    That is both descriptions and the audio transceiver, whose sender and receiver never ran: 25 KiB a call. Closing the
    connection needs only the association.
    """
    if Hook.BRIEF_NEGOTIATION not in hooks:
        return
    inside = cast(Any, pc)  # Any: the attributes are private by name
    for transceiver in pc.getTransceivers():
        # They reference each other; cleared, they are freed now and not by the garbage collector.
        for part in (transceiver.sender, transceiver.receiver, transceiver):
            vars(part).clear()
    inside._RTCPeerConnection__transceivers = []
    inside._RTCPeerConnection__remoteDtls = {}
    inside._RTCPeerConnection__remoteIce = {}
    for name in ("currentLocal", "currentRemote", "pendingLocal", "pendingRemote"):
        setattr(inside, f"_RTCPeerConnection__{name}Description", None)


def undelivered(pc: RTCPeerConnection) -> bool:
    """Return whether chunks were acknowledged whose messages were not delivered. Without the hook: False."""
    association = pc.sctp
    return isinstance(association, inbound.PacedReassembly) and association.held > 0


def delivering(pc: RTCPeerConnection) -> bool:
    """Return whether complete messages wait for a turn of the loop."""
    association = pc.sctp
    return isinstance(association, inbound.PacedReassembly) and association.delivering


def acknowledged(pc: RTCPeerConnection, sent: int) -> int:
    """Return how many of the texts sent the far end's SCTP has acknowledged.

    Without the hook that is known only when nothing is on its way: otherwise 0.
    """
    association = pc.sctp
    assert association is not None
    if isinstance(association, sctp.CountedSends):
        return association.acknowledged
    waiting = association._data_channel_queue or association._outbound_queue or association._sent_queue
    return 0 if waiting else sent


def consent_expired(pc: RTCPeerConnection) -> bool:
    """Return whether a connection that was open ended because consent checks went unanswered.

    aioice forgets the task that checks when consent expires, and keeps it when closed for any other reason. Its state
    `failed` would say the same, but is at times overtaken by `closed`.
    """
    assert pc.sctp is not None
    connection = pc.sctp.transport.transport._connection
    return connection._closing and connection._query_consent_task is None


def farewell_heard(pc: RTCPeerConnection) -> bool:
    """Return whether the far end ended the association, or the whole connection (close_notify)."""
    assert pc.sctp is not None
    transport = pc.sctp.transport
    if getattr(transport, "failed", None) is not None:
        return False
    ended_by_peer = transport._ssl is not None and transport._ssl.get_shutdown() & SSL.RECEIVED_SHUTDOWN
    return transport.state == "connected" or bool(ended_by_peer)


def largest_message(hooks: frozenset[Hook], wanted: int) -> int:
    """Return the largest server event to ask for: stock reassembly stalls the loop above a megabyte."""
    return wanted if Hook.PACED_REASSEMBLY in hooks else min(wanted, STOCK_MESSAGE_BYTES)


async def alive(pc: RTCPeerConnection) -> bool:
    """Check whether the far end answers; False after 3.5 s. Always True with stock consent, which cannot be triggered."""
    assert pc.sctp is not None
    connection = pc.sctp.transport.transport._connection
    return not isinstance(connection, ice.NominatedConsent) or await connection.answers(PROBE_RETRANSMISSIONS)


def selected_pair(pc: RTCPeerConnection) -> tuple[str, str] | None:
    """Return the kinds of the nominated pair's candidates, local and remote, such as ("host", "host")."""
    assert pc.sctp is not None
    for pair in pc.sctp.transport.transport._connection._nominated.values():
        return pair.local_candidate.type, pair.remote_candidate.type
    return None


async def reap(pc: RTCPeerConnection, timeout: float) -> None:
    """End what a closed connection may have left running.

    A stock handshake that has found its pair sleeps out its 20 ms, and then starts consent checks on a connection that was
    closed meanwhile; they would never end.
    """
    assert pc.sctp is not None
    transport = pc.sctp.transport.transport
    started: asyncio.Event | None = getattr(transport, "_RTCIceTransport__start", None)
    if started is not None and not started.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(started.wait(), timeout)
    checks = transport._connection._query_consent_task
    if checks is not None and not checks.done():
        checks.cancel()
        await asyncio.wait({checks})


def abandon(pc: RTCPeerConnection) -> None:
    """Free the sockets of a connection whose orderly close did not end."""
    assert pc.sctp is not None
    connection = pc.sctp.transport.transport._connection
    if connection._query_consent_task is not None:
        connection._query_consent_task.cancel()
    for protocol in connection._protocols:
        # A TURN allocation cannot be aborted; its close is sent and not awaited.
        getattr(protocol.transport, "abort", protocol.transport.close)()
    connection._queue.put_nowait(None)


@cache
def _composed(base: type[Any], parts: tuple[type[Any], ...]) -> type[Any]:  # Any: one of three families
    return type(f"Tuned{base.__name__}", (*parts, base), {}) if parts else base

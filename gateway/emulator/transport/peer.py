"""The far end of one call: ICE-lite, DTLS and SCTP under one data channel.

It does not know the events on the channel. It is built of aiortc's transports without its `RTCPeerConnection`: the
answer is written by `sdp`, audio is answered and then ignored (no RTP task, no decoder thread), so a call costs one
socket and one task. Messages above the offer's `max-message-size` are dropped silently and counted, as Pion does.
"""

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any, cast

from aiortc import (
    RTCCertificate,
    RTCDataChannel,
    RTCDataChannelParameters,
    RTCDtlsTransport,
)
from aiortc.rtcdtlstransport import RTCDtlsFingerprint, RTCDtlsParameters
from aiortc.rtcicetransport import RTCIceTransport
from aiortc.rtcsctptransport import RTCSctpCapabilities
from OpenSSL import SSL

from gateway.emulator.faults import Faults, SocketsEnd
from gateway.emulator.transport.association import Association
from gateway.emulator.transport.ice import LiteAgent
from gateway.emulator.transport.sdp import Offer

# Deadline for opening the association after the answer was sent.
CONNECT_SECONDS = 30.0
# A lite agent sends no checks, so it can only detect silence; a live peer sends consent checks every 5 s (RFC 7675).
SILENCE_SECONDS = 40.0
# With more bytes unsent than this, `writable` waits, so that an unpaced stream does not fill memory.
HIGH_WATER = 256 * 1024
# Messages of one call in one turn of the loop: enough to fill a few packets, but other calls do not wait long.
_MESSAGES_A_TURN = 16
# aiortc's default of one megabyte would stall larger client events.
_RECEIVE_WINDOW = 16 * 1024 * 1024


_logger = logging.getLogger(__name__)


class SharedCertificate(RTCCertificate):
    """One certificate and one OpenSSL context for every call of a process.

    A context for each call would cost 0.2 ms, and the service also uses one identity for many calls.
    """

    _context: SSL.Context | None = None

    def _create_ssl_context(self, srtp_profiles: Any) -> SSL.Context:  # aiortc's own type is not exported
        if self._context is None:
            self._context = super()._create_ssl_context(srtp_profiles)
        return self._context

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha-256 fingerprint, as SDP writes it."""
        return next(f.value for f in self.getFingerprints() if f.algorithm == "sha-256")


class _Dtls(RTCDtlsTransport):
    """DTLS without SRTP: RTP is dropped earlier, and a peer without media need not offer use_srtp."""

    def _setup_srtp(self) -> None:
        return None

    def take_role(self, role: str) -> None:
        """Set the DTLS role that the answer names in `a=setup`."""
        self._set_role(role)

    @property
    def reader(self) -> asyncio.Future[None] | None:
        return self._task


class FarPeer:
    """One call's connection.

    `on_open()`, `on_message(str | bytes)` and `on_lost(reason)` are called from the loop; `on_lost` once, and not after
    `close`. The owner must await `close` in any case.
    """

    def __init__(
        self, offer: Offer, agent: LiteAgent, certificate: SharedCertificate, *, client: bool
    ) -> None:
        self.on_open: Callable[[], None] = lambda: None
        self.on_message: Callable[[str | bytes], None] = lambda _: None
        self.on_lost: Callable[[str], None] = lambda _: None
        self.agent = agent
        self.channel: RTCDataChannel | None = None
        self.oversized = 0
        self.sent = 0
        self._asked = 0
        self.enforce_size = True
        self._offer = offer
        # RTCDtlsTransport takes any object with the four members that LiteAgent has.
        self._dtls = _Dtls(cast(RTCIceTransport, agent), [certificate])
        self._dtls.take_role("client" if client else "server")
        self._dtls.on("statechange", self._dtls_changed)
        self._sctp = Association(self._dtls)
        self._sctp.widen(_RECEIVE_WINDOW)
        self._sctp.on_garbled = self._heard
        self._sctp.on("datachannel", self._adopt)
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self, negotiated_id: int | None) -> None:
        """Begin waiting for the client; `negotiated_id` is the channel agreed on outside the connection (`?dcid=`)."""
        if negotiated_id is not None:
            parameters = RTCDataChannelParameters(label="oai-events", negotiated=True, id=negotiated_id)
            channel = RTCDataChannel(self._sctp, parameters)
            channel.once("open", lambda: self._adopt(channel))
        self._task = asyncio.create_task(self._run())

    @property
    def buffered(self) -> int:
        return self.channel.bufferedAmount if self.channel is not None else 0

    async def writable(self) -> None:
        """Wait until the channel has room; sometimes yield to other calls even if it has."""
        if self.buffered > HIGH_WATER:
            self._writable.clear()
            await self._writable.wait()
            return
        self._asked += 1
        if self._asked % _MESSAGES_A_TURN == 0:
            await asyncio.sleep(0)

    def send(self, text: str) -> None:
        """Send one text message, unless it is larger than the peer accepts."""
        # A lone surrogate cannot be encoded as UTF-8, but its JSON escape can.
        self.send_frame(text.encode("utf-8", "backslashreplace"))

    def send_frame(self, frame: bytes) -> None:
        """Send bytes as a *text* message, valid UTF-8 or not."""
        channel = self.channel
        if channel is None or channel.readyState != "open":
            return
        if self.enforce_size and len(frame) > self._offer.max_message_size:
            self.oversized += 1
            return
        self.sent += 1
        self._sctp.enqueue(channel, frame)

    def describe(self) -> dict[str, Any]:
        """Return the connection's status."""
        return {
            "transport": "webrtc",
            "ice": self.agent.state,
            "sent": self.sent,
            "oversized": self.oversized,
            "checks_ignored": self.agent.checks_ignored,
            "buffered": self.buffered,
        }

    def apply(self, faults: Faults) -> None:
        """Set or clear the connection's faults."""
        self.agent.deaf, self.agent.consenting = faults.deaf, faults.consent
        self.enforce_size = faults.oversize == "drop"

    def vanish(self) -> None:
        """Stop receiving and sending."""
        self.agent.vanished = True

    def stop_consent(self) -> None:
        """Stop answering checks; data continues."""
        self.agent.consenting = False

    def finish(self, code: int, reason: str, how: SocketsEnd | None) -> None:
        """Do nothing: a peer connection ends without a last message, in `close`."""

    def close_channel(self) -> None:
        """Close the data channel and keep the connection."""
        if self.channel is not None:
            self.channel.close()

    async def close(self) -> None:
        """End the connection; may be called again."""
        self._closed = True
        self._writable.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        reader = self._dtls.reader
        await self._sctp.stop()
        await self._dtls.stop()
        await self.agent.close()
        if reader is not None:
            await asyncio.wait({reader})
        self._dtls.remove_all_listeners()
        self._sctp.remove_all_listeners()

    async def _run(self) -> None:
        reason = "failed"
        try:
            reason = await self._live()
        finally:
            self._lose(reason)

    async def _live(self) -> str:
        """Connect, wait for the end, and return its reason."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self.agent.connected.wait()
                fingerprints = [RTCDtlsFingerprint(a, v) for a, v in self._offer.fingerprints]
                await self._dtls.start(RTCDtlsParameters(fingerprints=fingerprints))
                if self._dtls.state != "connected":
                    return "dtls failed"
                if self._offer.application is not None:
                    # Sizes are checked in send_frame; 0 keeps aiortc from raising.
                    await self._sctp.start(RTCSctpCapabilities(maxMessageSize=0), self._offer.sctp_port)
        except TimeoutError:
            return "never connected"
        loop = asyncio.get_running_loop()
        while (silent := loop.time() - self.agent.last_heard) < SILENCE_SECONDS:
            await asyncio.sleep(SILENCE_SECONDS - silent)
        return "silent"

    def _adopt(self, channel: RTCDataChannel) -> None:
        channel.on("message", self._heard)
        # Without a listener a handler that raises would end the whole connection.
        channel.on("error", _report)
        if self.channel is not None:
            return
        self.channel = channel
        channel.bufferedAmountLowThreshold = HIGH_WATER // 2
        channel.on("bufferedamountlow", self._writable.set)
        channel.on("close", lambda: self._lose("channel closed"))
        self.on_open()

    def _heard(self, frame: str | bytes) -> None:
        self.on_message(frame)

    def _dtls_changed(self) -> None:
        if self._dtls.state == "closed":
            self._lose("peer closed")

    def _lose(self, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self._writable.set()
            self.on_lost(reason)


def _report(error: BaseException) -> None:
    _logger.error("message_handler_failed", exc_info=error)

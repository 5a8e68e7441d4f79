"""One call's peer connection: ICE, DTLS, SCTP and a data channel, without aiortc's `RTCPeerConnection`.

`RTCPeerConnection` negotiates any media. It writes, parses and checks each description several times, and creates senders,
receivers and codecs for audio that this gateway never carries. Every call here negotiates the same thing, so `sdp` writes the
offer from a template and reads the answer, and this file starts aiortc's transports (W3C ORTC) with what was agreed. That
saves 1.5 ms of CPU for each call, and the 25 KiB that a negotiation leaves behind.

The hooks of `tuning` are applied between the constructor and `gather`.
"""

# ruff: noqa: SLF001 - the roles that an offer and an answer decide have no public setter in aiortc

import asyncio

from aiortc import (
    RTCCertificate,
    RTCDataChannel,
    RTCDataChannelParameters,
    RTCDtlsFingerprint,
    RTCDtlsParameters,
    RTCDtlsTransport,
    RTCIceGatherer,
    RTCIceParameters,
    RTCIceServer,
    RTCIceTransport,
    RTCIceTransportPolicy,
    RTCSctpCapabilities,
    RTCSctpTransport,
)
from aiortc.sdp import candidate_from_sdp, candidate_to_sdp

from gateway.relay.clock import random_word
from gateway.upstream import sdp

# RFC 8445 5.3: at least 24 and 128 bits, in letters and digits of 5.95 bits each.
ICE_USER_LENGTH = 5
ICE_PASSWORD_LENGTH = 22


class Connection:
    """A peer connection that made an offer. Owns the task that connects it."""

    def __init__(
        self,
        ice_servers: list[RTCIceServer],
        policy: RTCIceTransportPolicy,
        certificate: RTCCertificate,
        label: str,
    ) -> None:
        """Create the transports without using the network. `label` names the data channel."""
        user, password = random_word(ICE_USER_LENGTH), random_word(ICE_PASSWORD_LENGTH)
        self._gatherer = RTCIceGatherer(ice_servers, policy, user, password)
        self.ice = RTCIceTransport(self._gatherer)
        # The side that offers controls (RFC 8445 6.1.1).
        self.ice._connection.ice_controlling = True
        self.ice._role_set = True
        self.dtls = RTCDtlsTransport(self.ice, [certificate])
        self.sctp = RTCSctpTransport(self.dtls)
        self.channel = RTCDataChannel(self.sctp, RTCDataChannelParameters(label=label, ordered=True))
        self.connecting: asyncio.Task[None] | None = None

    async def gather(self) -> None:
        """Gather the local candidates. Must not be cancelled: aioice would leak the sockets it has just opened."""
        await self._gatherer.gather()

    def offer(self, max_message_bytes: int) -> sdp.Offer:
        """Return what the offer says. Call after `gather`."""
        parameters = self._gatherer.getLocalParameters()
        fingerprints = self.dtls.getLocalParameters().fingerprints
        return sdp.Offer(
            ice_user=parameters.usernameFragment or "",
            ice_password=parameters.password or "",
            fingerprint=next(each.value for each in fingerprints if each.algorithm == "sha-256"),
            candidates=tuple(map(candidate_to_sdp, self._gatherer.getLocalCandidates())),
            max_message_bytes=max_message_bytes,
        )

    def apply(self, answer: sdp.Answer) -> asyncio.Task[None]:
        """Begin to connect; return the task that does so. Raises ValueError for a candidate that cannot be read."""
        candidates = list(map(candidate_from_sdp, answer.addresses))
        self.dtls._set_role("server" if answer.setup == "active" else "client")

        async def connect() -> None:
            for candidate in candidates:
                await self.ice.addRemoteCandidate(candidate)
            # The service sends no end-of-candidates; without it, ICE could not fail.
            await self.ice.addRemoteCandidate(None)
            await self.ice.start(RTCIceParameters(answer.ice_user, answer.ice_password, answer.ice_lite))
            if self.ice.state == "completed":
                fingerprints = [RTCDtlsFingerprint(*each) for each in answer.fingerprints]
                await self.dtls.start(RTCDtlsParameters(fingerprints))
            if self.dtls.state == "connected":
                await self.sctp.start(RTCSctpCapabilities(answer.max_message_bytes or 0), answer.sctp_port)

        self.connecting = asyncio.create_task(connect())
        return self.connecting

    async def close(self) -> None:
        """Close all transports. What still connects ends by itself, shortly after; see `tuning.reap`."""
        await self.sctp.stop()
        await self.dtls.stop()
        await self.ice.stop()

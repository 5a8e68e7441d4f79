"""Calls over WebRTC: the relay's `Dialer`, and what all calls share.

A peer connection is closed by a task that the dialer owns and never cancels: aiortc's `close`, cancelled once, hangs
every later caller. One call is in `call`.
"""

import asyncio
import logging
import socket
from collections.abc import Coroutine
from typing import Any

from aiortc import RTCIceServer, RTCIceTransportPolicy

from gateway.errors import GatewayError, UpstreamError
from gateway.relay.clock import Clock
from gateway.relay.ports import CallRequest, Sink
from gateway.relay.tasks import Tasks
from gateway.relay.telemetry import UpstreamTelemetry
from gateway.upstream import signalling, tuning
from gateway.upstream.call import WebRTCUpstream
from gateway.upstream.config import UpstreamConfig
from gateway.upstream.connection import Connection
from gateway.upstream.descriptors import exhausted, no_descriptor
from gateway.upstream.gate import Gate
from gateway.upstream.loopturn import LoopTurn

_CHATTY = ("aioice", "aiortc")

# An unused address (RFC 5737), so it is reached by the default route. Connecting a UDP socket sends nothing.
_ANYWHERE = "203.0.113.1"


class WebRTCDialer:
    """Creates calls, and owns what outlives their requests: HTTP connections and closing tasks."""

    def __init__(self, config: UpstreamConfig, telemetry: UpstreamTelemetry, clock: Clock) -> None:
        self.config = config
        self.telemetry = telemetry
        self.clock = clock
        self.hooks = tuning.usable(config.hooks)
        self.signaller = signalling.Signaller(config, clock)
        self.certificates = tuning.Certificates(clock.monotonic)
        self.turn = LoopTurn()
        self._gate = Gate()
        self._calls: set[WebRTCUpstream] = set()
        self._tasks = Tasks(lambda error: telemetry.relay_failed("", error))

    async def start(self) -> None:
        """Prepare to dial; nothing is sent yet."""
        # Both libraries log every check and packet, with addresses, which our logs must not contain.
        for library in _CHATTY:
            logger = logging.getLogger(library)
            logger.setLevel(max(logger.level, logging.WARNING))
        await self.signaller.open()

    async def close(self) -> None:
        """Close all remaining calls without hanging up, and wait until they are closed."""
        for call in list(self._calls):
            _ = call.begin_close()
        await self._tasks.ended()
        await self.signaller.close()

    async def dial(self, request: CallRequest, sink: Sink) -> "WebRTCUpstream":
        """Create a call and wait until its data channel is open (ports.Dialer)."""
        async with self._gate.admitted(self.config.connect_timeout_seconds):
            call = WebRTCUpstream(self, request, sink)
            self._calls.add(call)
            try:
                await call.open()
            except BaseException:
                # A call that the service created and that will not be used is also ended there, without waiting.
                closing = call.begin_close()
                call.begin_hang_up()
                await asyncio.shield(closing)
                raise
            return call

    async def hang_up(self, call_id: str, bearer: str | None) -> None:
        """End a call that this process holds no connection to (ports.Dialer)."""
        try:
            await self.signaller.hang_up(call_id, bearer)
        except (GatewayError, TimeoutError) as error:
            self.telemetry.close_failed("hang-up", error)

    def forget(self, call: "WebRTCUpstream") -> None:
        """Remove a closed call."""
        self._calls.discard(call)

    def own(
        self, work: Coroutine[Any, Any, None]
    ) -> "asyncio.Task[None]":  # Any: what a coroutine yields is asyncio's
        """Run something to its end, even if its waiter is cancelled."""
        return self._tasks.run(work)

    def connection(self, label: str) -> Connection:
        """Return a connection for a call. `label` names its data channel."""
        config = self.config
        return Connection(
            # An empty list, not None: with None aiortc asks a public STUN server for up to five seconds.
            [
                RTCIceServer(urls=list(server.urls), username=server.username, credential=server.credential)
                for server in config.ice_servers
            ],
            RTCIceTransportPolicy(config.ice_transport_policy),
            tuning.certificate(self.hooks, self.certificates),
            label,
        )

    def no_address(self, turn_failed: bool) -> GatewayError:
        """Return why a connection found no local address. The libraries only log that a socket could not be opened."""
        try:
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
        except OSError as error:
            if exhausted(error):
                return no_descriptor()
        lacking = "The TURN server gave" if turn_failed else "This machine has"
        return UpstreamError("upstream-failed", f"{lacking} no network address for the connection to OpenAI.")

    def addresses(self) -> tuple[str, ...]:
        """Return the local addresses to gather from; none means every interface.

        The media server is not known yet, so the route to it is guessed: loopback to a service on loopback, an address's
        own route to an address, the default route otherwise.
        """
        host = signalling.host_of(self.config.base_url)
        if signalling.is_loopback(host):
            return ("127.0.0.1",) if host != "::1" else ("::1", "127.0.0.1")
        return _route_to(host) or _route_to(_ANYWHERE)


def _route_to(host: str) -> tuple[str, ...]:
    """Return the local address used for packets to a literal address; empty for a name or without a route."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return (str(probe.getsockname()[0]),)
    except OSError:
        return ()

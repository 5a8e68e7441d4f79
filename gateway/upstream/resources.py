"""What the calls of one process share: settings, the HTTP connection, the certificate, and tasks that outlive their request.

A peer connection is closed by a task that is owned here and that nobody cancels: aiortc's `close`, cancelled once, blocks
every later caller.
"""

import asyncio
import socket
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, Final

from aiortc import RTCIceServer, RTCIceTransportPolicy

from gateway.errors import GatewayError, UpstreamError
from gateway.relay.clock import Clock
from gateway.relay.ports import LossCause, Sink
from gateway.relay.tasks import Tasks
from gateway.relay.telemetry import UpstreamTelemetry
from gateway.upstream import signalling, tuning
from gateway.upstream.acktimer import AckTimer
from gateway.upstream.config import UpstreamConfig
from gateway.upstream.connection import Connection
from gateway.upstream.descriptors import exhausted, no_descriptor
from gateway.upstream.loopturn import LoopTurn

# An unused address (RFC 5737), so it is reached by the default route. Connecting a UDP socket sends nothing.
_ANYWHERE = "203.0.113.1"


class CallResources:
    """Shared by the WebRTC calls of one process."""

    def __init__(self, config: UpstreamConfig, telemetry: UpstreamTelemetry, clock: Clock) -> None:
        self.config = config
        self.telemetry = telemetry
        self.clock = clock
        self.hooks = tuning.usable(config.hooks)
        self.signaller = signalling.Signaller(config, clock)
        self.certificates = tuning.Certificates(clock.monotonic)
        self.turn = LoopTurn()
        self.acks = AckTimer()
        self._tasks = Tasks(lambda error: telemetry.relay_failed("", error))

    async def hang_up(self, call_id: str, bearer: str | None) -> None:
        """End a call that this process holds no connection to (ports.Dialer)."""
        try:
            await self.signaller.hang_up(call_id, bearer)
        except (GatewayError, TimeoutError) as error:
            self.telemetry.close_failed("hang-up", error)

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


class _Unheard:
    def received(self, generation: int, text: str) -> None: ...
    def received_together(self, generation: int, texts: Sequence[str]) -> None: ...
    def received_in_steps(self, generation: int, text: str) -> Iterator[None]:
        return iter(())

    def unreadable(self, generation: int, size: int) -> None: ...
    def lost(self, generation: int, cause: LossCause) -> None: ...


UNHEARD: Final[Sink] = _Unheard()
"""The sink of a closed call. Its session, which keeps the call, is then freed without a garbage collection."""


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

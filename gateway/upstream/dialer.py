"""The relay's `Dialer`: calls are created over WebRTC and attached to over their sideband."""

from gateway.relay.clock import Clock
from gateway.relay.ports import CallRequest, Sink, Upstream
from gateway.relay.telemetry import UpstreamTelemetry
from gateway.upstream.config import UpstreamConfig
from gateway.upstream.sideband import SidebandDialer
from gateway.upstream.webrtc import WebRTCDialer


class CallDialer:
    """Combines both kinds of upstream in one port."""

    def __init__(self, config: UpstreamConfig, telemetry: UpstreamTelemetry, clock: Clock) -> None:
        self.config = config
        self._webrtc = WebRTCDialer(config, telemetry, clock)
        self._sideband = SidebandDialer(config, self._webrtc.signaller, telemetry, clock)

    async def start(self) -> None:
        """Prepare to dial; nothing is sent yet."""
        await self._webrtc.start()

    async def close(self) -> None:
        """Close all remaining calls without hanging up, and wait until they are closed."""
        # The sideband first: it uses the HTTP connections of the WebRTC dialer.
        await self._sideband.close()
        await self._webrtc.close()

    async def dial(self, request: CallRequest, sink: Sink) -> Upstream:
        """Create a call, or attach to one (ports.Dialer)."""
        if request.attach_to is not None:
            return await self._sideband.dial(request, sink)
        return await self._webrtc.dial(request, sink)

    async def hang_up(self, call_id: str, bearer: str | None) -> None:
        """End a call that this process holds no connection to (ports.Dialer)."""
        await self._webrtc.hang_up(call_id, bearer)

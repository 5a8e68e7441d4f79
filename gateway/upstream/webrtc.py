"""Calls over WebRTC: the relay's `Dialer`. One call is in `call`, what all calls share in `resources`."""

import asyncio
import logging

from gateway.relay.clock import Clock
from gateway.relay.ports import CallRequest, Sink
from gateway.relay.telemetry import UpstreamTelemetry
from gateway.upstream.call import WebRTCUpstream
from gateway.upstream.config import UpstreamConfig
from gateway.upstream.gate import Gate
from gateway.upstream.resources import CallResources

_CHATTY = ("aioice", "aiortc")


class WebRTCDialer(CallResources):
    """Creates calls."""

    def __init__(self, config: UpstreamConfig, telemetry: UpstreamTelemetry, clock: Clock) -> None:
        super().__init__(config, telemetry, clock)
        self._gate = Gate()
        self._calls: set[WebRTCUpstream] = set()

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
            call = WebRTCUpstream(self, request, sink, self._calls.discard)
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

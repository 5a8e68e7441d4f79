"""One call: a peer, the session spoken over it, and its end."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.emulator.errors import Refusal
from gateway.emulator.peer import FarPeer
from gateway.emulator.realtime import Realtime


@dataclass(frozen=True, slots=True)
class CallTimes:
    """When a call began and when it must end, as seconds since the epoch."""

    created_at: int
    expires_at: float


class Call:
    """A peer and its session, closed together.

    `on_end(call)` is called when the far side is gone or the time is up; the owner then awaits `close`.
    """

    def __init__(
        self,
        call_id: str,
        peer: FarPeer,
        realtime: Realtime,
        times: CallTimes,
        on_end: Callable[["Call"], None],
    ) -> None:
        self.id = call_id
        self.peer = peer
        self.realtime = realtime
        self.times = times
        self.end_reason: str | None = None
        self._on_end = on_end
        peer.on_open = realtime.opened
        peer.on_message = realtime.receive
        peer.on_lost = self._lost
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_later(max(0.0, times.expires_at - time.time()), self._expire)

    async def close(self) -> None:
        """End the call: the session first, so that nothing is said on a closing channel."""
        self._expiry.cancel()
        await self.realtime.close()
        await self.peer.close()

    def _expire(self) -> None:
        minutes = max(1, round((self.times.expires_at - self.times.created_at) / 60))
        self.realtime.refuse(
            Refusal("session_expired", f"Your session hit the maximum duration of {minutes} minutes.")
        )
        # The error must reach the client before the peer is dropped.
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_later(_LAST_WORDS_SECONDS, self._lost, "expired")

    def _lost(self, reason: str) -> None:
        if self.end_reason is None:
            self.end_reason = reason
            self._on_end(self)


_LAST_WORDS_SECONDS = 0.2

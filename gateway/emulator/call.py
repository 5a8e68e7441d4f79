"""One call: a peer, what is spoken over it, and its end.

Refuses to know HTTP. It keeps a record of what reached it, verbatim and bounded, so that a test can ask afterwards.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.emulator.faults import Faults
from gateway.emulator.protocol.errors import Refusal
from gateway.emulator.protocol.writing import Line
from gateway.emulator.transport.peer import FarPeer

# The record of a call: the oldest frames go first, and are counted.
MAX_RECORD_FRAMES = 10_000
MAX_RECORD_BYTES = 32 * 1024 * 1024
# Between the last words (`session_expired`) and the end of the connection.
_LAST_WORDS_SECONDS = 0.2


class Voice(Protocol):
    """What is spoken over a call: the protocol, or a recording of it."""

    faults: Faults

    def opened(self) -> None: ...
    def receive(self, frame: str | bytes) -> None: ...
    def refuse(self, refusal: Refusal, client_id: str | None = None) -> None: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CallTimes:
    """When a call began and when it must end, in seconds since the epoch."""

    created_at: int
    expires_at: float


class Record:
    """The client's frames, newest kept."""

    __slots__ = ("_bytes", "_frames", "dropped", "total")

    def __init__(self) -> None:
        self._frames: deque[str | bytes] = deque()
        self._bytes = 0
        self.dropped = 0
        self.total = 0

    def add(self, frame: str | bytes) -> None:
        self._frames.append(frame)
        self._bytes += len(frame)
        self.total += 1
        while len(self._frames) > MAX_RECORD_FRAMES or self._bytes > MAX_RECORD_BYTES:
            self._bytes -= len(self._frames.popleft())
            self.dropped += 1

    def frames(self) -> list[str | bytes]:
        return list(self._frames)


class Call:
    """A peer and its voice, closed together.

    `on_end(call)` is called when the far side is gone or the time is up; the owner then awaits `close`.
    """

    def __init__(
        self,
        call_id: str,
        peer: FarPeer,
        voice: Callable[[Line], Voice],
        times: CallTimes,
        on_end: Callable[["Call"], None],
    ) -> None:
        self.id = call_id
        self.peer = peer
        self.times = times
        self.received = Record()
        self.end_reason: str | None = None
        self.opened_at: float | None = None
        self.silent = False
        # Sidebands: called with every event, and with None at the end.
        self.listeners: set[Callable[[str | None], None]] = set()
        self.owner: str | None = None
        self._on_end = on_end
        self.voice = voice(Line(self._send, self._send_frame, peer.writable, self.fail))
        peer.on_open = self._opened
        peer.on_message = self.hear
        peer.on_lost = self.end
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_later(max(0.0, times.expires_at - time.time()), self.expire)

    def describe(self) -> dict[str, Any]:
        """Say how the call stands."""
        return {
            "id": self.id,
            "created_at": self.times.created_at,
            "expires_at": int(self.times.expires_at),
            "ice": self.peer.agent.state,
            "open": self.opened_at is not None and self.end_reason is None,
            "end_reason": self.end_reason,
            "received": self.received.total,
            "sent": self.peer.sent,
            "oversized": self.peer.oversized,
            "checks_ignored": self.peer.agent.checks_ignored,
            "buffered": self.peer.buffered,
        }

    def hear(self, frame: str | bytes) -> None:
        """Take one client event, from the channel or a sideband."""
        self.received.add(frame)
        self.voice.receive(frame)

    def send_frames(self, frames: list[bytes]) -> None:
        """Send frames as they are, as text messages, even where the call is told to be silent; the offered size holds."""
        for frame in frames:
            self.peer.send_frame(frame)

    def set_faults(self, faults: Faults) -> None:
        """Replace the call's faults."""
        self.voice.faults = faults
        agent = self.peer.agent
        agent.deaf, agent.consenting = faults.deaf, faults.consent
        self.peer.enforce_size = faults.oversize == "drop"

    def fail(self, how: str) -> None:
        """Go wrong in one of the ways of `faults.Failure`, now."""
        if how == "silence":
            self.silent = True
        elif how == "vanish":
            self.peer.agent.vanished = True
        elif how == "close_channel":
            self.peer.close_channel()
        elif how == "hang_up":
            self.end("hung up")

    def expire(self) -> None:
        """Say that the time is up, then end."""
        minutes = max(1, round((self.times.expires_at - self.times.created_at) / 60))
        self.voice.refuse(
            Refusal("session_expired", f"Your session hit the maximum duration of {minutes} minutes.")
        )
        self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, self.end, "expired")

    def end(self, reason: str) -> None:
        """Report the end, once."""
        if self.end_reason is None:
            self.end_reason = reason
            for listen in tuple(self.listeners):
                listen(None)
            self._on_end(self)

    async def close(self) -> None:
        """End the call: the voice first, so that nothing is said on a closing channel."""
        if self.end_reason is None:
            self.end_reason = "hung up"
        self._expiry.cancel()
        await self.voice.close()
        await self.peer.close()

    def _opened(self) -> None:
        self.opened_at = time.time()
        self.voice.opened()

    def _send(self, text: str) -> None:
        if self.silent:
            return
        self.peer.send(text)
        if self.listeners:
            for listen in tuple(self.listeners):
                listen(text)

    def _send_frame(self, frame: bytes) -> None:
        if not self.silent:
            self.peer.send_frame(frame)

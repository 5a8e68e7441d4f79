"""One call, or one WebSocket session: its connection, its protocol, and its end.

It does not know HTTP. It keeps a verbatim, bounded record of the frames it received, so that a test can read them afterwards.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.emulator.faults import Faults, SocketsEnd
from gateway.emulator.protocol.errors import Refusal
from gateway.emulator.protocol.writing import Line

# Bounds of a call's record: the oldest frames are dropped first, and counted.
MAX_RECORD_FRAMES = 10_000
MAX_RECORD_BYTES = 32 * 1024 * 1024
# Between the last event (`session_expired`) and the end of the connection.
_LAST_WORDS_SECONDS = 0.2


class Connection(Protocol):
    """What a call runs over: a peer connection (`transport.peer`), or a WebSocket (`http.websocket`)."""

    on_open: Callable[[], None]
    on_message: Callable[[str | bytes], None]
    on_lost: Callable[[str], None]

    def describe(self) -> dict[str, Any]: ...
    def apply(self, faults: Faults) -> None: ...
    def send(self, text: str) -> None: ...
    def send_frame(self, frame: bytes) -> None: ...
    async def writable(self) -> None: ...
    def vanish(self) -> None: ...
    def stop_consent(self) -> None: ...
    def close_channel(self) -> None: ...
    def finish(self, code: int, reason: str, how: SocketsEnd | None) -> None: ...
    async def close(self) -> None: ...


class Sideband(Protocol):
    """A second connection to a call."""

    def send(self, text: str) -> None: ...
    def finish(self, code: int, reason: str, how: SocketsEnd | None) -> None: ...


class Voice(Protocol):
    """What answers on a call: the protocol, or a recording of it."""

    faults: Faults

    def opened(self) -> None: ...
    def receive(self, frame: str | bytes) -> None: ...
    def refuse(self, refusal: Refusal, client_id: str | None = None) -> None: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CallTimes:
    """When a call began and when it must end, in seconds since the epoch; `created_at` is what the service shows."""

    began: float
    expires_at: float

    @property
    def created_at(self) -> int:
        return int(self.began)


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
    """A connection and its voice, closed together.

    `on_end(call)` is called when the far side is gone or the time is up; the owner then awaits `close`.
    """

    def __init__(
        self,
        call_id: str,
        peer: Connection,
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
        self.sidebands: set[Sideband] = set()
        # The key that created the call, and that key's project. Other projects cannot find the call.
        self.owner: str | None = None
        self.project: str | None = None
        self._on_end = on_end
        self.voice = voice(Line(self._send, self._send_frame, peer.writable, self.fail))
        peer.on_open = self._opened
        peer.on_message = self.hear
        peer.on_lost = self.end
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_later(max(0.0, times.expires_at - time.time()), self.expire)

    def describe(self) -> dict[str, Any]:
        """Return the call's status."""
        return {
            "id": self.id,
            "created_at": self.times.created_at,
            "expires_at": int(self.times.expires_at),
            "open": self.opened_at is not None and self.end_reason is None,
            "end_reason": self.end_reason,
            "received": self.received.total,
            "sidebands": len(self.sidebands),
            **self.peer.describe(),
        }

    @property
    def can_be_joined(self) -> bool:
        """Whether a sideband finds it: a WebSocket session is not a call, and a fault may hide a new call."""
        age = time.time() - self.times.began
        return self.id.startswith("rtc_") and age >= self.voice.faults.sideband_delay_seconds

    def hear(self, frame: str | bytes) -> None:
        """Process one client event from the channel or a sideband. One that comes while the call closes is only recorded."""
        self.received.add(frame)
        if self.end_reason is None:
            self.voice.receive(frame)

    def send_frames(self, frames: list[bytes]) -> None:
        """Send frames as text messages, even if a fault makes the call silent; the offer's maximum message size applies.

        Sidebands get them too, with invalid UTF-8 replaced.
        """
        for frame in frames:
            self.peer.send_frame(frame)
            text = frame.decode("utf-8", "replace")
            for sideband in tuple(self.sidebands):
                sideband.send(text)

    def set_faults(self, faults: Faults) -> None:
        """Replace the call's faults."""
        self.voice.faults = faults
        self.peer.apply(faults)

    def fail(self, how: str) -> None:
        """Trigger one of `faults.Failure` now."""
        if how == "silence":
            self.silent = True
        elif how == "vanish":
            self.peer.vanish()
        elif how == "cut_sockets":
            self._finish_sockets(0, "", "eof")
        elif how == "close_channel":
            self.peer.close_channel()
        elif how == "hang_up":
            self.end("hung up")

    def expire(self) -> None:
        """Send `session_expired`, then end."""
        self.voice.refuse(Refusal("session_expired", self._too_long()))
        self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, self.end, "expired")

    def end(self, reason: str) -> None:
        """Report the end, once."""
        if self.end_reason is None:
            self.end_reason = reason
            self._close_sockets(reason)
            self._on_end(self)

    async def close(self) -> None:
        """End the call: the voice first, so that nothing is sent on a closing channel."""
        if self.end_reason is None:
            self.end_reason = "hung up"
        self._expiry.cancel()
        await self.voice.close()
        await self.peer.close()

    def _too_long(self) -> str:
        minutes = max(1, round((self.times.expires_at - self.times.created_at) / 60))
        return f"Your session hit the maximum duration of {minutes} minutes."

    def _close_sockets(self, reason: str) -> None:
        """Close the WebSockets of the call, as the service does: 1001 with a reason when the time is up, 1000 otherwise."""
        words = {"expired": self._too_long(), "stopped": "The server is shutting down."}.get(reason, "")
        self._finish_sockets(1001 if words else 1000, words, self.voice.faults.sockets_end)

    def _finish_sockets(self, code: int, reason: str, how: SocketsEnd | None) -> None:
        self.peer.finish(code, reason, how)
        for sideband in tuple(self.sidebands):
            sideband.finish(code, reason, how)

    def _opened(self) -> None:
        self.opened_at = time.time()
        self.voice.opened()

    @property
    def _mute(self) -> bool:
        """Whether nothing more is sent. Closing takes a few turns of the loop, in which a response would go on."""
        return self.silent or self.end_reason is not None

    def _send(self, text: str) -> None:
        if self._mute:
            return
        self.peer.send(text)
        for sideband in tuple(self.sidebands):
            sideband.send(text)

    def _send_frame(self, frame: bytes) -> None:
        if not self._mute:
            self.peer.send_frame(frame)

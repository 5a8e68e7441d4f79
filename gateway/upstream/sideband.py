"""A call that another application made, over its sideband WebSocket: the second `Upstream` besides WebRTC.

`GET {base_url}/realtime?call_id=…` joins a call (Realtime: server controls). There is no peer connection, no greeting and
no audio; events come from the moment of attaching. This file does not interpret events.

The close code shows what happened to the call:

```
   1001                    the call's maximum duration is over
   1000                    a hang-up or a proxy's rotation: attach again; 404 means that the call has ended
   anything else, or none  the connection failed: the relay attaches again; 404 means that the call has ended
```

Pings follow what is sent. The far end answers them in order, so an answered ping acknowledges every text before it.
"""

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

import aiohttp
from aiohttp import WSMsgType

from gateway.errors import GatewayError, OverloadError, UpstreamError
from gateway.relay.clock import Clock
from gateway.relay.events.jsontext import LARGE_BYTES
from gateway.relay.ports import CallRequest, Json, LossCause, Sink
from gateway.relay.tasks import Tasks
from gateway.relay.telemetry import UpstreamTelemetry
from gateway.upstream.config import UpstreamConfig
from gateway.upstream.resources import UNHEARD
from gateway.upstream.signalling import Signaller

# The service knows a call only a moment after the answer that names it; clients report up to some seconds.
NEW_CALL_SECONDS = 5.0
_NEW_CALL_DELAYS = (0.15, 0.35, 0.5)
# Bytes handed over and not written yet. The relay's own bound is far lower; this one holds regardless of it.
MAX_QUEUED_BYTES = 32 * 1024 * 1024
# Silence after which a ping is sent, and after which the connection is considered dead.
PING_SECONDS = 10.0
SILENCE_SECONDS = 25.0

_GOING_AWAY = 1001
_COUNT = struct.Struct("!Q")
_GONE = frozenset({WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR})


class SidebandDialer:
    """Attaches to calls, and owns the tasks that read, write and close."""

    def __init__(
        self, config: UpstreamConfig, signaller: Signaller, telemetry: UpstreamTelemetry, clock: Clock
    ) -> None:
        """`signaller` is open while this is used; its HTTP connections serve both."""
        self.config = config
        self.signaller = signaller
        self.telemetry = telemetry
        self.clock = clock
        self._calls: set[SidebandUpstream] = set()
        self.taking = asyncio.Lock()
        """Held while a large text is taken, so that the memory for one is enough."""
        self._tasks = Tasks(lambda error: telemetry.relay_failed("", error))

    async def close(self) -> None:
        """Close every remaining connection, and wait until all are closed."""
        for call in list(self._calls):
            _ = call.begin_close()
        await self._tasks.ended()

    async def dial(self, request: CallRequest, sink: Sink) -> "SidebandUpstream":
        """Attach to `request.attach_to` (ports.Dialer). Raises UpstreamError, `call-unknown` among them."""
        assert request.attach_to is not None
        began, seconds = self.clock.monotonic(), self.config.connect_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                socket = await self._find(request.attach_to, request.bearer, fresh=request.generation == 0)
        except TimeoutError as error:
            failure = UpstreamError(
                "upstream-timeout",
                f"No connection to the call within {seconds:g} s.",
                members={"phase": "signalling"},
            )
            self.telemetry.upstream_error(failure.code)
            raise failure from error
        except UpstreamError as error:
            self.telemetry.upstream_error("call_id_not_found" if error.code == "call-unknown" else error.code)
            raise
        taken = self.clock.monotonic() - began
        for phase in ("signalling", "total"):
            self.telemetry.connect_phase(phase, taken)
        call = SidebandUpstream(self, request, sink, socket, taken)
        self._calls.add(call)
        return call

    async def has_ended(self, request: CallRequest) -> bool:
        """Attach again to check whether the call still exists. False if that is unknown."""
        assert request.attach_to is not None
        try:
            async with asyncio.timeout(self.config.connect_timeout_seconds):
                socket = await self.signaller.attach(request.attach_to, request.bearer)
                await socket.close()
        except GatewayError as error:
            return error.code == "call-unknown"
        except TimeoutError:
            pass
        return False

    async def _find(
        self, call_id: str, bearer: str | None, *, fresh: bool
    ) -> aiohttp.ClientWebSocketResponse:
        """Attach; retry on 404 for a while if the call may be new."""
        ends = self.clock.monotonic() + NEW_CALL_SECONDS
        tries = 0
        while True:
            try:
                return await self.signaller.attach(call_id, bearer)
            except UpstreamError as error:
                delay = _NEW_CALL_DELAYS[min(tries, len(_NEW_CALL_DELAYS) - 1)]
                if error.code != "call-unknown" or not fresh or self.clock.monotonic() + delay > ends:
                    raise
            tries += 1
            await asyncio.sleep(delay)

    def forget(self, call: "SidebandUpstream") -> None:
        """Remove a closed connection."""
        self._calls.discard(call)

    def own(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":  # Any: what a coroutine yields
        """Run something to its end, even if its waiter is cancelled."""
        return self._tasks.run(work)


class SidebandUpstream:
    """One attached call (ports.Upstream)."""

    undelivered = False
    """A WebSocket delivers whole messages in order."""

    def __init__(
        self,
        dialer: SidebandDialer,
        request: CallRequest,
        sink: Sink,
        socket: aiohttp.ClientWebSocketResponse,
        seconds: float,
    ) -> None:
        self.call_id: str | None = request.attach_to
        self.acknowledged = 0
        self.max_message_bytes: int | None = None
        self._dialer = dialer
        self._request = request
        self._sink = sink
        self._socket = socket
        self._seconds = seconds
        self._queue: deque[tuple[str, int]] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._flushed = asyncio.Event()
        self._flushed.set()
        self._heard = asyncio.Event()
        self._heard_at = dialer.clock.monotonic()
        self._pinged_at, self._asked = float("-inf"), 0
        self._frames = {"received": 0, "sent": 0, "unreadable": 0}
        self._open = True
        self._closing: asyncio.Task[None] | None = None
        self._hanging_up: asyncio.Task[None] | None = None
        self._running = dialer.own(self._run())

    # --- ports.Upstream

    @property
    def buffered(self) -> int:
        return self._queued_bytes

    @property
    def diagnostics(self) -> Json:
        return {
            "transport": "websocket",
            "phases": {"signalling": round(self._seconds, 6), "total": round(self._seconds, 6)},
            "frames": dict(self._frames),
            "buffered": self.buffered,
        }

    def send(self, batch: Sequence[str]) -> None:
        """Queue all of `batch`, or nothing (ports.Upstream)."""
        if not self._open or self._closing is not None:
            raise UpstreamError("upstream-failed", "The connection to the call is not open.")
        sized = [(text, len(text) if text.isascii() else len(text.encode())) for text in batch]
        size = sum(size for _, size in sized)
        if self._queued_bytes and self._queued_bytes + size > MAX_QUEUED_BYTES:
            detail = (
                f"{self._queued_bytes} bytes are waiting for OpenAI to read them; the batch was not accepted."
            )
            raise OverloadError("upstream-backpressure", detail, retry_after=1)
        self._queue.extend(sized)
        self._queued_bytes += size
        self._flushed.clear()
        self._wake.set()

    async def probe(self, timeout: float) -> bool:
        """Send a ping and wait for any frame (ports.Upstream)."""
        if not self._open:
            return False
        self._heard.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._ping()
                await self._heard.wait()
        except (TimeoutError, ConnectionError):
            return False
        return True

    async def close(self, hang_up: bool) -> None:
        """Close the connection, after what was handed over is written (ports.Upstream)."""
        work = [self.begin_close()]
        if hang_up:
            if self._hanging_up is None:
                self._hanging_up = self._dialer.own(self._hang_up())
            work.append(self._hanging_up)
        await asyncio.wait(work)

    def begin_close(self) -> "asyncio.Task[None]":
        """Start closing, once; return the task, which the dialer owns."""
        if self._closing is None:
            self._closing = self._dialer.own(self._close())
        return self._closing

    # --- tasks, owned by the dialer

    async def _run(self) -> None:
        """Read and write until the connection ends, then notify the sink, unless the gateway closed it."""
        writing, reading = self._dialer.own(self._write()), self._dialer.own(self._read())
        try:
            await asyncio.wait({writing, reading}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writing, reading):
                task.cancel()
            await asyncio.wait({writing, reading})
            self._open = False
            self._flushed.set()
            self._dialer.forget(self)
        if self._closing is None:
            cause = await self._cause()
            # It may still be open, and silent.
            _ = self._dialer.own(self._shut())
            if self._closing is None:
                self._sink.lost(self._request.generation, cause)

    async def _read(self) -> None:
        socket, generation = self._socket, self._request.generation
        while (message := await socket.receive()).type not in _GONE:
            self._heard_at = self._dialer.clock.monotonic()
            self._heard.set()
            try:
                if message.type is WSMsgType.TEXT:
                    self._frames["received"] += 1
                    if len(message.data) > LARGE_BYTES:
                        await self._take_large(message.data)
                    else:
                        self._sink.received(generation, message.data)
                elif message.type is WSMsgType.BINARY:
                    self._frames["unreadable"] += 1
                    self._sink.unreadable(generation, len(message.data))
                elif message.type is WSMsgType.PING:
                    await socket.pong(message.data)
                elif message.type is WSMsgType.PONG:
                    self._answered(message.data)
            except ConnectionError:
                return
            except Exception as error:  # noqa: BLE001 - a sink never raises; if one does, the call must not pay for it
                self._dialer.telemetry.relay_failed(self.call_id or "", error)

    async def _take_large(self, text: str) -> None:
        """Take a large text in steps, each in its own turn of the loop. One that was received before the connection ended is
        taken to the end."""
        steps = self._sink.received_in_steps(self._request.generation, text)
        try:
            async with self._dialer.taking:
                for _ in steps:
                    await asyncio.sleep(0)
        finally:
            if self._closing is None:
                for _ in steps:
                    pass

    async def _write(self) -> None:
        """Write what is queued, then ask for an acknowledgement; ping in silence; end when that is not answered."""
        clock = self._dialer.clock
        try:
            while (now := clock.monotonic()) - self._heard_at < SILENCE_SECONDS:
                if self._queue:
                    await self._flush()
                    continue
                self._wake.clear()
                # One ping at a time asks for acknowledgement: a client that streams audio writes fifty times a second.
                asks = self._asked < self._frames["sent"] and self.acknowledged == self._asked
                left = self._pinged_at + PING_SECONDS - now
                if asks or left <= 0:
                    await self._ping()
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._wake.wait()
        except ConnectionError:
            return

    async def _flush(self) -> None:
        while self._queue:
            text, size = self._queue[0]
            await self._socket.send_str(text)
            self._queue.popleft()
            self._queued_bytes -= size
            self._frames["sent"] += 1
        self._flushed.set()

    async def _ping(self) -> None:
        self._pinged_at, self._asked = self._dialer.clock.monotonic(), self._frames["sent"]
        await self._socket.ping(_COUNT.pack(self._asked))

    def _answered(self, data: bytes) -> None:
        if len(data) == _COUNT.size:
            # Never more than was sent, even if the far end reports more.
            count = min(_COUNT.unpack(data)[0], self._frames["sent"])
            self.acknowledged = max(self.acknowledged, count)
            self._wake.set()

    async def _cause(self) -> LossCause:
        """Return the cause of the connection's end; ask the service if the close code is ambiguous."""
        code = self._socket.close_code
        if code == _GOING_AWAY or (
            code == aiohttp.WSCloseCode.OK and await self._dialer.has_ended(self._request)
        ):
            return LossCause.CHANNEL_CLOSED
        return LossCause.CONNECTION_FAILED

    async def _close(self) -> None:
        seconds = self._dialer.config.close_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._flushed.wait()
        except TimeoutError as error:
            self._dialer.telemetry.close_failed("sideband", error)
        self._running.cancel()
        await asyncio.wait({self._running})
        await self._shut()
        self._sink = UNHEARD

    async def _shut(self) -> None:
        # Bounded by the timeout that the socket was opened with.
        await self._socket.close()

    async def _hang_up(self) -> None:
        assert self._request.attach_to is not None
        # Write what was handed over first: it may be the answer that the call was waiting for.
        await asyncio.wait({self.begin_close()})
        try:
            await self._dialer.signaller.hang_up(self._request.attach_to, self._request.bearer)
        except (GatewayError, TimeoutError) as error:
            self._dialer.telemetry.close_failed("hang-up", error)

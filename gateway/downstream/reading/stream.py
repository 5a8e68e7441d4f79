"""The one reader loop: a cursor over a session's log, written to one client as it grows.

First connect, reconnect and late joiner are the same code: read what follows the cursor, write it, wait to be woken.
One write per wake-up takes all that is there. Nothing is queued for a client: what it has not taken yet stands in the
log, and a client too slow for the log is told of a gap.

A stream is one handler's coroutine. Whatever has to do with time (heartbeats, rotation, the write deadline) comes from
the one `Ticker` of the process, so that ten thousand idle streams cost one timer.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from aiohttp import hdrs, web

from gateway.downstream.http.wire import UNBUFFERED, watch_loss
from gateway.downstream.reading.parameters import Reading
from gateway.downstream.reading.rendering import Rendering
from gateway.downstream.reading.sse import NEVER_RETRY_MS
from gateway.downstream.reading.ticker import Ticker
from gateway.relay.eventlog import Entry, EventId, Page
from gateway.relay.ports import Handle
from gateway.relay.telemetry import DownstreamTelemetry

Ended = Literal["client", "rotated", "superseded", "slow", "closed", "done", "gap", "shutdown", "error"]
"""Why a stream ended (label `reason` of `streams_closed_total`)."""

_LABELS: Final[Mapping[str, str]] = {"done": "closed", "gap": "error"}
"""Reasons that the metric does not tell apart."""

PAGE_EVENTS: Final = 1024
PAGE_BYTES: Final = 256 * 1024
"""Most that one write takes: enough to catch up fast, little enough that one reader does not hold the others up."""

NO_HEADERS: Final[Mapping[str, str]] = {}

RETRY_MS: Final = (1000, 3000)
"""Drawn per connection, so that the clients of a restarted gateway do not come back in one moment."""
ROTATE_RETRY_MS: Final = (50, 500)
ROTATE_EARLIEST: Final = 0.8
ROTATE_PATIENCE_SECONDS: Final = 30.0
"""How long a rotation waits for a pause between responses."""
_LOOK_BACK: Final = 256


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """The operator's limits of open reads, in seconds."""

    heartbeat_seconds: float = 15
    max_age_seconds: float = 300
    write_seconds: float = 10


STREAM: Final = web.AppKey("stream", StreamLimits)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every stream of a server shares."""

    ticker: Ticker
    limits: StreamLimits
    telemetry: DownstreamTelemetry
    monotonic: Callable[[], float]


class Turned(Protocol):
    """What a stream of one turn asks of it."""

    number: int
    last: EventId | None
    finished: bool


class Stream:
    """One open read: a `Receiver` for its session, `Ticking` for the server."""

    def __init__(
        self,
        request: web.Request,
        handle: Handle,
        rendering: Rendering,
        reading: Reading,
        around: Surroundings,
        turn: Turned | None = None,
    ) -> None:
        """With a `turn`, only its events are given, and the stream ends after the last of them."""
        self._request = request
        self._handle = handle
        self._reader = handle.reader
        self._rendering = rendering
        self._reading = reading
        self._around = around
        self._turn = turn
        self._filtered = turn is not None or reading.filter is not None
        limits = around.limits
        self._heartbeat = reading.heartbeat or limits.heartbeat_seconds
        self._max_age = (reading.max_age or limits.max_age_seconds) * random.uniform(ROTATE_EARLIEST, 1.0)  # noqa: S311  # spread, not secrecy
        now = around.monotonic()
        self._opened_at = self._wrote_at = self._silent_since = now
        self._writing_since: float | None = None
        self._left = 0
        """Bytes the client had not taken when it was last looked at."""
        # Asked for once: before Python 3.12 each asking is a system call.
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._awake = True
        self._beat_due = False
        self._rotate_due = False
        self._ended: Ended | None = None
        self._protocol = request.protocol
        self._writer = request.writer
        self._chunked = False

    # --- what others call ---------------------------------------------------------------------------------------------

    @property
    def silent_since(self) -> float:
        return self._silent_since

    def supersede(self) -> None:
        self._end("superseded")
        self._hurry()

    def shut(self) -> None:
        self._end("shutdown")
        self._hurry()

    def wake(self) -> None:
        """Look at the log again."""
        self._awake = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def tick(self, now: float) -> None:
        if self._writing_since is not None:
            self._watch_writing(self._writing_since, now)
            return
        if now - self._wrote_at >= self._heartbeat:
            self._beat_due = True
            self.wake()
        if self._turn is None and now - self._opened_at >= self._max_age:
            self._rotate_due = True
            self.wake()

    def _watch_writing(self, since: float, now: float) -> None:
        """Cut off a client that takes nothing. Slow is not dead: one that took some has as long again for the rest."""
        left = self._unsent()
        if left < self._left:
            self._left, self._writing_since = left, now
        elif now - since >= self._around.limits.write_seconds:
            self._end("slow")
            self._abort()

    def _unsent(self) -> int:
        transport = self._protocol.transport
        return 0 if transport is None else transport.get_write_buffer_size()

    def _end(self, reason: Ended) -> None:
        if self._ended is None:
            self._ended = reason
            self.wake()

    def _leave(self) -> None:
        self._end("client")

    def _hurry(self) -> None:
        if self._writing_since is not None:
            self._abort()  # It takes nothing: it would be told at the write deadline, if ever.

    def _abort(self) -> None:
        transport = self._protocol.transport
        if transport is not None:
            transport.abort()

    # --- the read -----------------------------------------------------------------------------------------------------

    async def run(
        self, after: EventId, requested: str, headers: Mapping[str, str] = NO_HEADERS
    ) -> web.StreamResponse:
        """Serve the read until it ends. `requested` is the cursor in the client's words."""
        telemetry, ticker = self._around.telemetry, self._around.ticker
        request = self._request
        response = web.StreamResponse(
            headers={"Content-Type": self._rendering.media_type, **UNBUFFERED, **headers}
        )
        await response.prepare(request)
        self._chunked = response.headers.get(hdrs.TRANSFER_ENCODING) == "chunked"
        ignore_loss = watch_loss(request, self._leave)
        unsubscribe = self._reader.subscribe(self.wake)
        head = self._reader.head
        replay = after != head
        format_ = self._reading.format
        telemetry.stream_opened(format_, replay)
        if self._turn is None:
            self._handle.attach(self)
        ticker.add(self)
        count, delivered = ticker.delivered.get(self._session_id, (0, head.sequence))
        ticker.delivered[self._session_id] = (count + 1, delivered)
        reason: Ended = "error"
        try:
            reason = await self._serve(after, requested, head)
        except ConnectionError:
            reason = self._ended or "client"
        finally:
            unsubscribe()
            ignore_loss()
            ticker.remove(self)
            self._forget_delivered()
            self._handle.detach(self)
            telemetry.stream_closed(format_, _LABELS.get(reason, reason))
        return response

    async def _serve(self, after: EventId, requested: str, head: EventId) -> Ended:
        await self._write(self._opening(after, requested, head))
        cursor, ended = after, None
        while ended is None:
            self._awake = False
            page = self._reader.read(cursor, PAGE_EVENTS, PAGE_BYTES)
            if page.gap is not None:
                await self._tell_gap(page)
                if self._reading.fail_on_gap:
                    return "gap"
            if page.entries:
                self._put_entries(page, head)
                if self._protocol.writing_paused:
                    await self._drain()
            cursor = page.cursor
            ended = self._ended or self._over(page)
            if ended is None and self._rotate_due and self._may_rotate():
                ended = "rotated"
            if ended is None and not self._awake and cursor == self._reader.head:
                await self._idle(cursor)
        await self._say_goodbye(ended, cursor)
        return ended

    def _over(self, page: Page) -> Ended | None:
        """Tell whether the read has reached its own end."""
        turn = self._turn
        if (
            turn is not None
            and turn.finished
            and (turn.last is None or page.cursor.sequence >= turn.last.sequence)
        ):
            return "done"
        return "closed" if page.sealed else None

    async def _idle(self, cursor: EventId) -> None:
        """Nothing to write: send a heartbeat if one is due, then wait to be woken."""
        if self._beat_due:
            self._beat_due = False
            await self._write(self._beat(cursor))
        if self._awake:
            return
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _opening(self, after: EventId, requested: str, head: EventId) -> bytes:
        gap = self._reader.read(after, 1, 1).gap
        members = {
            "session_id": self._session_id,
            "requested": requested,
            "resumed": requested not in ("earliest", "now") and gap is None,
            "missed": gap.missed if gap else 0,
            "oldest": str(self._reader.oldest),
            "head": str(head),
            "heartbeat_seconds": self._heartbeat,
            "max_age_seconds": round(self._max_age),
        }
        # No id before a gap: a connection that breaks right here must not make the client forget where it was.
        cursor = None if gap else str(after)
        return self._rendering.opening(random.randint(*RETRY_MS), cursor, members, self._reading.pad)  # noqa: S311  # spread, not secrecy

    def _beat(self, cursor: EventId) -> bytes:
        # A filtered stream's cursor would age while events pass it by, so its heartbeat carries how far it has read.
        if self._filtered or self._reading.heartbeat_as_event:
            return self._rendering.own("gateway.ping", {"cursor": str(cursor)}, str(cursor))
        return self._rendering.heartbeat(self._reading.pad)

    async def _tell_gap(self, page: Page) -> None:
        gap = page.gap
        assert gap is not None  # asked by the caller
        self._around.telemetry.gap(gap.reason, gap.missed)
        await self._write(self._rendering.own("gateway.gap", gap_members(page), str(gap.oldest.before)))

    def _put_entries(self, page: Page, head: EventId) -> None:
        entries = [entry for entry in page.entries if self._wants(entry)] if self._filtered else page.entries
        if entries:
            self._put(self._rendering.entries(page.cursor.epoch, entries))
            self._measure(entries, head)

    def _wants(self, entry: Entry) -> bool:
        if self._turn is not None and entry.turn != self._turn.number:
            return False
        return self._reading.filter is None or self._reading.filter.passes(entry.type)

    def _measure(self, entries: Sequence[Entry], head: EventId) -> None:
        """Count replayed events, and for live ones the time from the channel to the first socket write by any stream."""
        telemetry, delivered = self._around.telemetry, self._around.ticker.delivered
        if entries[0].sequence <= head.sequence:
            telemetry.replayed(sum(entry.sequence <= head.sequence for entry in entries))
        last = entries[-1].sequence
        count, written = delivered[self._session_id]
        if last <= written:
            return
        now = self._wrote_at
        for entry in entries:
            if entry.sequence > written:
                telemetry.relayed_down(now - entry.at)
        delivered[self._session_id] = (count, last)

    def _forget_delivered(self) -> None:
        count, written = self._around.ticker.delivered.pop(self._session_id)
        if count > 1:
            self._around.ticker.delivered[self._session_id] = (count - 1, written)

    def _may_rotate(self) -> bool:
        """A rotation is least felt between responses; it waits a while for such a pause."""
        overdue = self._around.monotonic() - self._opened_at - self._max_age
        return overdue >= ROTATE_PATIENCE_SECONDS or not answering(self._handle)

    async def _say_goodbye(self, ended: Ended, cursor: EventId) -> None:
        if ended == "rotated":
            retry = random.randint(*ROTATE_RETRY_MS)  # noqa: S311  # spread, not secrecy
            await self._write(self._rendering.ending("gateway.rotating", {"cursor": str(cursor)}, retry))
        elif ended == "superseded":
            await self._write(self._rendering.ending("gateway.superseded", {}, NEVER_RETRY_MS))

    async def _write(self, data: bytes) -> None:
        self._put(data)
        if self._protocol.writing_paused:
            await self._drain()

    def _put(self, data: bytes) -> None:
        """Hand bytes to the transport in the chunk that HTTP/1.1 wants. aiohttp's own write costs a coroutine or two
        for each, 5 µs, and waits for slow readers where nobody sees it wait."""
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        self._wrote_at = self._around.monotonic()
        self._beat_due = False

    async def _drain(self) -> None:
        """Wait until the client has taken most of what was put; the ticker watches how long that takes."""
        self._writing_since, self._left = self._around.monotonic(), self._unsent()
        try:
            await self._writer.drain()
            self._silent_since = self._around.monotonic()  # It took bytes from a full socket: a sign of life.
        finally:
            self._writing_since = None

    @property
    def _session_id(self) -> str:
        return self._handle.id


def gap_members(page: Page) -> Mapping[str, object]:
    """Give what a client is told about a gap, in a stream or as 410."""
    gap = page.gap
    assert gap is not None  # asked by the caller
    return {
        "requested": str(gap.requested),
        "oldest": str(gap.oldest),
        "missed": gap.missed,
        "reason": gap.reason,
    }


def answering(handle: Handle) -> bool:
    """Tell from the newest events whether a response is in flight."""
    reader = handle.reader
    head = reader.head
    after = EventId(head.epoch, max(reader.oldest.sequence - 1, head.sequence - _LOOK_BACK))
    for entry in reversed(reader.read(after, _LOOK_BACK, PAGE_BYTES * 16).entries):
        if entry.type in ("response.done", "gateway.recovering"):
            return False
        if entry.type.startswith("response."):
            return True
    return False

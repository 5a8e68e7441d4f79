"""One open stream: writes a cursor's pages to one client as they come, until either side ends it.

A stream is one handler's coroutine. One `Ticker` per process causes heartbeats and rotation, so ten thousand idle streams
need one timer. If a client reads nothing for the write deadline, its connection is aborted (`http.protocol`) and the
stream ends.
"""

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from aiohttp import web

from gateway.downstream.http.answers import plain
from gateway.downstream.http.app_keys import PEER_REQUEST
from gateway.downstream.http.wire import UNBUFFERED, cut_off, half_closed, watch_loss
from gateway.downstream.reading.cursor import Cursor
from gateway.downstream.reading.latency import Deliveries, Delivery
from gateway.downstream.reading.parameters import Format
from gateway.downstream.reading.rendering import Rendering
from gateway.downstream.reading.sse import NEVER_RETRY_MS
from gateway.downstream.reading.ticker import Ticker
from gateway.downstream.reading.writer import Writer
from gateway.relay.events.eventlog import Page
from gateway.relay.ports import Handle
from gateway.relay.telemetry import DownstreamTelemetry

Ended = Literal["client", "rotated", "superseded", "slow", "closed", "gap", "shutdown", "error"]
"""Why a stream ended (label `reason` of `streams_closed_total`; a gap counts as an error)."""

NO_HEADERS: Final[Mapping[str, str]] = {}

RETRY_MS: Final = (1000, 3000)
"""Chosen at random per connection, so that the clients of a restarted gateway do not reconnect all at once."""
ROTATE_RETRY_MS: Final = (50, 500)
ROTATE_EARLIEST: Final = 0.8
ROTATE_PATIENCE_SECONDS: Final = 30.0
"""Maximum time that a rotation waits for a pause between responses."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """The operator's limits for open reads, in seconds."""

    heartbeat_seconds: float
    max_age_seconds: float


STREAM: Final = web.AppKey("stream", StreamLimits)


@dataclass(frozen=True, slots=True)
class OpenReads:
    """Shared by the open reads of one server: limits, one timer, and telemetry."""

    limits: StreamLimits
    telemetry: DownstreamTelemetry
    monotonic: Callable[[], float]
    ticker: Ticker
    deliveries: Deliveries


@dataclass(frozen=True, slots=True)
class Terms:
    """The settings of one stream. Times are in seconds, the padding in bytes."""

    heartbeat: float
    max_age: float
    """Age at which it rotates: random per stream, so that the streams of a restarted gateway do not rotate together."""
    rotates: bool = True
    heartbeat_as_event: bool = False
    pad: int = 0
    fail_on_gap: bool = False


HALF_CLOSED_BEAT_SECONDS: Final = 1.0
"""When a client that closed its sending side gets its first heartbeat: only a write shows whether it has left."""


def drawn_age(max_age: float) -> float:
    """Return the age at which one stream rotates."""
    return max_age * random.uniform(ROTATE_EARLIEST, 1.0)  # noqa: S311  # spread, not secrecy


class Stream:
    """One open stream. Implements `Receiver` for its session and `Ticking` for the server."""

    def __init__(
        self,
        request: web.Request,
        handle: Handle,
        cursor: Cursor,
        rendering: Rendering,
        terms: Terms,
        reads: OpenReads,
        format: Format,
    ) -> None:
        self._request = request
        self._handle = handle
        self._cursor = cursor
        self._rendering = rendering
        self._terms = terms
        self._reads = reads
        self._format = format
        self._opened_at = self._silent_since = reads.monotonic()
        self._writer: Writer | None = None
        self._beat_due = False
        self._checked = False
        """A heartbeat was sent since the client closed its sending side: one that has left answers it with a reset."""
        self._rotate_due = False
        self._told: Ended | None = None
        """Why it was ended, if not by the log."""
        self.ended: Ended = "error"
        """Why it ended; set at the end."""

    # --- what others call ---------------------------------------------------------------------------------------------

    @property
    def peer_request(self) -> str | None:
        return self._request.get(PEER_REQUEST) if self._terms.rotates else None

    @property
    def silent_since(self) -> float:
        return self._silent_since if self._writer is None else self._writer.taken_at

    def wake(self) -> None:
        """Check the log again, and whether the read is done."""
        self._cursor.wake()

    def supersede(self) -> None:
        self._end("superseded")
        self._hurry()

    def shut(self) -> None:
        self._end("shutdown")
        self._hurry()

    def tick(self, now: float) -> None:
        writer = self._writer
        if writer is None or writer.waiting:
            return
        due = self._terms.heartbeat
        if not self._checked and half_closed(self._request):
            due = min(due, HALF_CLOSED_BEAT_SECONDS)
        if now - writer.wrote_at >= due:
            self._checked = half_closed(self._request)
            self._beat_due = True
            self._cursor.wake()
        if self._terms.rotates and now - self._opened_at >= self._terms.max_age:
            self._rotate_due = True
            self._cursor.wake()

    def rotate(self) -> None:
        """See ports.Receiver: another node has the session now."""
        self._end("rotated")
        self._hurry()

    def _end(self, reason: Ended) -> None:
        if self._told is None:
            self._told = reason
            self._cursor.wake()

    def _leave(self) -> None:
        self._end("slow" if cut_off(self._request) else "client")

    def _hurry(self) -> None:
        if self._writer is not None and self._writer.waiting:
            self._writer.abort()  # The client is not reading, so a last event would not reach it.

    # --- the read -----------------------------------------------------------------------------------------------------

    async def run(
        self, requested: str, headers: Mapping[str, str] = NO_HEADERS, *, receives: bool = True
    ) -> web.StreamResponse:
        """Write the stream until it ends. `requested` is the cursor as the client sent it; `receives`: the stream counts
        as one of the session's receivers."""
        reads, request, handle = self._reads, self._request, self._handle
        response = web.StreamResponse(
            headers={"Content-Type": self._rendering.media_type, **UNBUFFERED, **headers}
        )
        response.force_close()  # For clients that notice only the end of the connection.
        # The headers wait for the first events: one packet, and one write, instead of three.
        response._send_headers_immediately = False  # noqa: SLF001  # as in aiohttp's own responses
        await response.prepare(request)
        writer = self._writer = Writer(request, response, reads.monotonic, begun=False)
        ignore_loss = watch_loss(request, self._leave)
        reads.telemetry.stream_opened(self._format, self._cursor.position != handle.reader.head)
        if receives:
            handle.attach(self)
        reads.ticker.add(self)
        delivery = reads.deliveries.open(handle.id, handle.reader.head.sequence)
        try:
            self.ended = await self._serve(writer, delivery, requested)
        except ConnectionError:
            self.ended = self._told or "client"
        finally:
            ignore_loss()
            reads.ticker.remove(self)
            delivery.close()
            handle.detach(self)
            reads.telemetry.stream_closed(self._format, "error" if self.ended == "gap" else self.ended)
        return response

    async def _serve(self, writer: Writer, delivery: Delivery, requested: str) -> Ended:
        data = self._opening(requested)
        cursor = self._cursor

        def put_directly(page: Page) -> bool:
            if writer.full or self._rotate_due or self._told is not None:
                return False
            try:
                writer.put(self._rendering.entries(page.cursor.epoch, page.entries))
                self._beat_due = False
                delivery.wrote(page.entries, writer.wrote_at)
            except Exception:  # noqa: BLE001  # The iteration gets the page again, and the error with it.
                return False
            if writer.full:
                cursor.wake()  # to wait until the client has read
            return True

        cursor.direct = put_directly
        async for page in cursor:
            if page.gap is not None:
                data += self._gap(page)
                if self._terms.fail_on_gap:
                    await writer.write(data)
                    return "gap"
            if page.entries:
                data += self._rendering.entries(page.cursor.epoch, page.entries)
                self._beat_due = False
            elif self._beat_due and not page.more:
                data += self._beat()
                self._beat_due = False
            if data:
                await writer.write(data)
                data = b""
            if page.entries:
                delivery.wrote(page.entries, writer.wrote_at)
            if self._told is not None or (self._rotate_due and self._may_rotate()):
                break
        else:
            return "closed"
        return await self._say_goodbye(writer)

    def _opening(self, requested: str) -> bytes:
        reader, after = self._handle.reader, self._cursor.position
        gap = reader.read(after, 1, 1).gap
        members = {
            "session_id": self._handle.id,
            "requested": requested,
            "resumed": requested not in ("earliest", "now") and gap is None,
            "missed": gap.missed if gap else 0,
            "oldest": str(reader.oldest),
            "head": str(reader.head),
            "heartbeat_seconds": plain(self._terms.heartbeat),
            "max_age_seconds": round(self._terms.max_age),
        }
        # No ID before a gap: if the connection breaks here, the client must keep its old cursor.
        cursor = None if gap else str(after)
        return self._rendering.opening(random.randint(*RETRY_MS), cursor, members, self._terms.pad)  # noqa: S311  # spread, not secrecy

    def _beat(self) -> bytes:
        # A filtered stream's cursor would become stale while events are skipped, so its heartbeat carries the position.
        if self._cursor.filtered or self._terms.heartbeat_as_event:
            position = str(self._cursor.position)
            return self._rendering.own("gateway.ping", {"cursor": position}, position)
        return self._rendering.heartbeat(self._terms.pad)

    def _gap(self, page: Page) -> bytes:
        gap = page.gap
        assert gap is not None  # checked by the caller
        self._reads.telemetry.gap(gap.reason, gap.missed)
        return self._rendering.own("gateway.gap", gap_members(page), str(gap.oldest.before))

    def _may_rotate(self) -> bool:
        """Return whether to rotate now. A rotation waits a limited time for a pause between responses."""
        overdue = self._reads.monotonic() - self._opened_at - self._terms.max_age
        return overdue >= ROTATE_PATIENCE_SECONDS or not self._handle.busy

    async def _say_goodbye(self, writer: Writer) -> Ended:
        if self._told is None or self._told == "rotated":
            await writer.write(self._rotating())
            return "rotated"
        if self._told == "superseded":
            await writer.write(self._rendering.ending("gateway.superseded", {}, NEVER_RETRY_MS))
        return self._told

    def _rotating(self) -> bytes:
        position = str(self._cursor.position)
        retry = random.randint(*ROTATE_RETRY_MS)  # noqa: S311  # spread, not secrecy
        return self._rendering.ending("gateway.rotating", {"cursor": position}, retry)

    # --- after the read -----------------------------------------------------------------------------------------------

    async def add(self, data: bytes) -> None:
        """Write data after the last page of a stream that has ended."""
        if self._writer is not None:
            with suppress(ConnectionError):
                await self._writer.write(data)

    async def rotated(self) -> None:
        """Ask the client of a stream that has ended to reconnect: another node goes on with it."""
        await self.add(self._rotating())

    async def cut(self) -> None:
        """Close the connection, so that the client does not take the response for complete."""
        if self._writer is not None:
            await self._writer.cut()


def gap_members(page: Page) -> Mapping[str, object]:
    """Return the members that describe a gap, in a stream or in a 410."""
    gap = page.gap
    assert gap is not None  # checked by the caller
    return {
        "requested": str(gap.requested),
        "oldest": str(gap.oldest),
        "missed": gap.missed,
        "reason": gap.reason,
    }

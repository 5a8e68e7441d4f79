"""One client connection: aiohttp's handler with additional rules.

* A request head is limited in time and size, even if it is pipelined behind another request.
* A client that closes its sending side after its request still gets the response (RFC 9112 9.6).
* A response that is not read is aborted: little is buffered between it and the socket, and a client that reads nothing
  for the write deadline loses its connection. This applies to every response, not only to streams.
* Requests that never reach the application are answered with problem objects, see `parser`.

A FIN is the same from a half-closed client and from one that has left. The client counts as half-closed if the FIN comes
right after the request, or if the request said `Connection: close`. Otherwise, or if the next write is answered by a
reset, the client has left. A response that creates something only for this client is therefore watched until it is
acknowledged.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from aiohttp import web

from gateway.downstream.http import problem, tcp
from gateway.downstream.http.answers import SERVER_NAME
from gateway.downstream.http.app_keys import PRINCIPAL
from gateway.downstream.http.connections import RETRY_SECONDS, Connections
from gateway.downstream.http.limits import ServerLimits
from gateway.downstream.http.parser import RequestParser
from gateway.errors import CallerError, GatewayError, OverloadError
from gateway.relay.memory import UNKNOWN

WRITE_BUFFER_BYTES: Final = 8 * 1024
"""Bytes that asyncio buffers before a write waits. The default is 64 KiB."""

CHARGED_BODY_BYTES: Final = 16 * 1024
"""Answers up to this size are not charged to the memory budget: they are short-lived, and charging costs time."""

RESET_POLL_SECONDS: Final = 1.0
"""How often a half-closed connection is checked. asyncio no longer reads from it, so it reports no reset."""

TAKEN_POLL_SECONDS: Final = 0.01
"""How often a response to a half-closed client is checked until it is acknowledged or reset."""


class Connection(web.RequestHandler):
    """Speaks HTTP with one client."""

    __slots__ = (
        "_answered",
        "_connections",
        "_half_closed",
        "_head_late",
        "_head_timer",
        "_left",
        "_limits",
        "_on_lost",
        "_received_at",
        "_refused",
        "_requests",
        "_reset_timer",
        "_sent_all",
        "_undo",
        "_unread",
        "_wire",
        "_write_timer",
        "cut_off",
    )

    def __init__(
        self,
        server: web.Server,
        limits: ServerLimits,
        loop: asyncio.AbstractEventLoop,
        connections: Connections,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=limits.keepalive_seconds,
            lingering_time=limits.linger_seconds,
            max_line_size=limits.max_line_bytes,
            max_field_size=limits.max_header_bytes,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]  # aiohttp's own way to say "none", missing in its annotation
        )
        self._limits = limits
        self._connections = connections
        self._requests = RequestParser(
            self._parser, max_line_bytes=limits.max_line_bytes, max_head_bytes=limits.max_head_bytes
        )
        self._parser = self._requests  # type: ignore[assignment]  # it has the methods that aiohttp calls
        self._wire: asyncio.Transport | None = None
        """The transport until it is lost; `transport` is None once it is closing."""
        self._unread = b""
        """Data that waits for its turn. Nothing is read from the socket meanwhile."""
        self._answered = 0
        self._received_at = 0.0
        self._half_closed = False
        self._sent_all: asyncio.Future[None] | None = None
        self._refused: GatewayError | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_late = False
        self._write_timer: asyncio.TimerHandle | None = None
        self._left = 0
        self._reset_timer: asyncio.TimerHandle | None = None
        self.cut_off = False
        """The client read nothing for the write deadline."""
        self._on_lost: list[Callable[[], None]] = []
        self._undo: Callable[[], Awaitable[None]] | None = None

    # --- what handlers ask --------------------------------------------------------------------------------------------

    def on_lost(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call when the connection is lost, until the returned function is called.

        aiohttp reports the loss to a handler only at its next write, and cancelling handlers would interrupt their work.
        """
        self._on_lost.append(call)
        return lambda: self._on_lost.remove(call) if call in self._on_lost else None

    def undo_unless_taken(self, undo: Callable[[], Awaitable[None]]) -> None:
        """Call `undo` if the client does not get the next response: it closed its connection, or there is no memory."""
        self._undo = undo

    def refusal(self, request: web.BaseRequest) -> GatewayError | None:
        """Return the error for a request that must not be handled, else None."""
        return self._refused or self._requests.refusal(request._message)  # noqa: SLF001  # it has no public name

    # --- opening and losing -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # uvloop's transports are not instances of asyncio's classes.
        self._wire = wire = cast("asyncio.Transport", transport)
        wire.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        if not self._connections.opened(self):
            self._refused = OverloadError(
                "capacity", "All connections are in use.", retry_after=RETRY_SECONDS
            )
        self._head_timer = self._loop.call_later(self._limits.header_seconds, self._head_overdue)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._wire is not None:
            self._wire = None
            self._connections.lost(self)
            self._connections.head_grew(-self._requests.unfinished)
        for timer in (self._head_timer, self._write_timer, self._reset_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._write_timer = self._reset_timer = None
        self._finish_lingering()
        super().connection_lost(exc)
        for call in list(self._on_lost):
            call()

    async def start(self) -> None:
        """Serve requests until the connection ends."""
        try:
            await super().start()
        except Exception as error:  # noqa: BLE001  # nobody awaits this task
            # aiohttp fails if the connection is lost between two of its steps. There is no client left to answer.
            if self._manager is not None:
                self._connections.telemetry.http_failed("", error)
                self.force_close()

    def close_idle(self) -> None:
        """Close a connection that has no request in progress."""
        self.force_close()

    # --- reading ------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._unread or not self._connections.intake.admits(self):
            self._unread += data
            if self._wire is not None:
                self._wire.pause_reading()
        else:
            self._receive(data)

    def read_on(self) -> None:
        """Handle data that had to wait (intake.Reading)."""
        data, self._unread = self._unread, b""
        if self._wire is None:
            return
        # aiohttp may have paused reading for its own reasons: then it also resumes it.
        if not self._reading_paused and not self._wire.is_closing():
            self._wire.resume_reading()
        self._receive(data)

    def _receive(self, data: bytes) -> None:
        if self._force_close or self._close:
            return
        requests, count = self._requests, self._request_count
        before = requests.unfinished
        super().data_received(data)
        self._received_at = self._loop.time()
        if self._request_count != count:
            self._connections.busy(self)
            if not self._owed:
                self._connections.idle(self)
        grown = requests.unfinished - before
        if grown and not self._connections.head_grew(grown):
            self._end(OverloadError("capacity", "Too many requests are arriving.", retry_after=RETRY_SECONDS))
            return
        if requests.unfinished:
            if not before or self._head_timer is None:
                self._restart_head_timer()
        elif self._head_timer is not None and self._request_count:
            self._head_timer.cancel()
            self._head_timer = None
            self._head_late = False
        if requests.broken and not self._owed:
            self.close()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Resume reading if it was paused. aiohttp calls this at every read of a body, and parses again."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's returns None, which closes
        """Keep a half-closed connection open for the pending responses. asyncio closes it if this returns False."""
        requests = self._requests
        self._finish_lingering()
        if not self._owed or requests.reads_body or requests.unfinished:
            return False
        since = self._loop.time() - self._received_at
        if not (requests.says_close or since < self._limits.half_close_seconds):
            return False
        self._half_closed = True
        self._reset_timer = self._loop.call_later(RESET_POLL_SECONDS, self._look_for_reset)
        return True

    @property
    def half_closed(self) -> bool:
        """The client has closed its sending side while a response was pending."""
        return self._half_closed

    @property
    def _owed(self) -> int:
        """Return the number of requests that have arrived and are not answered yet."""
        return self._request_count - self._answered

    def _look_for_reset(self) -> None:
        self._reset_timer = None
        if (wire := self._wire) is None:
            return
        if tcp.was_reset(wire):
            wire.abort()
        else:
            self._reset_timer = self._loop.call_later(RESET_POLL_SECONDS, self._look_for_reset)

    def _restart_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = self._loop.call_later(self._limits.header_seconds, self._head_overdue)

    def _head_overdue(self) -> None:
        self._head_timer = None
        if self._owed:
            self._head_late = True  # Earlier requests are answered first.
        elif self._requests.unfinished:
            detail = f"The request's head did not arrive within {self._limits.header_seconds:g} seconds."
            self._end(CallerError("request-timeout", detail))
        else:
            self.force_close()

    # --- answering ----------------------------------------------------------------------------------------------------

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response, or the rest of it, and close the connection if no request can follow."""
        last = self._owed <= 1 and (self._half_closed or self._head_late or self._requests.broken)
        if last and not getattr(resp, "prepared", True):
            resp.force_close()
        body = resp.body if isinstance(resp, web.Response) else None
        undo, self._undo = self._undo, None
        try:
            if isinstance(body, bytes) and len(body) > CHARGED_BODY_BYTES:
                finished = await self._finish_large(request, resp, len(body), start_time)
            else:
                finished = await super().finish_response(request, resp, start_time)
            if undo is not None and (finished[0] is not resp or not await self._taken()):
                await undo()
            return finished
        finally:
            self._answered += 1
            if self._requests.broken and not self._owed:
                await self._linger()
            if not self._owed:
                if self._half_closed or self._head_late:
                    self.close()
                elif self._wire is not None:
                    self._connections.idle(self)

    async def _finish_large(
        self, request: web.BaseRequest, resp: web.StreamResponse, size: int, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response that is charged to the memory budget until it is sent, or refuse it."""
        principal, connections = request.get(PRINCIPAL, UNKNOWN), self._connections
        with connections.budget.open(principal) as held:
            try:
                held.take(size)
                connections.answering(principal, size)
            except GatewayError as error:
                resp = problem.response(error, request.rel_url.raw_path)
                return await super().finish_response(request, resp, start_time)
            try:
                return await super().finish_response(request, resp, start_time)
            finally:
                connections.answered(principal, size)

    async def _taken(self) -> bool:
        """Return whether the client got the written data. A client that closed its connection answers with a reset. A
        client whose acknowledgement is late counts as present."""
        deadline = self._loop.time() + self._limits.linger_seconds
        while (wire := self._wire) is not None and self._half_closed:
            unsent = tcp.unsent(wire)  # Before the state: a reset empties the kernel's buffer.
            if tcp.was_reset(wire):
                wire.abort()
                return False
            if not unsent or self._loop.time() > deadline:
                return True
            await asyncio.sleep(TAKEN_POLL_SECONDS)
        return wire is not None

    async def _linger(self) -> None:
        """Let the client finish sending data that cannot be parsed. Closing now would reset the connection, and the
        client would lose the response (RFC 9112 9.6)."""
        if (wire := self._wire) is None or not wire.can_write_eof():
            return
        wire.write_eof()
        self._sent_all = self._loop.create_future()
        timer = self._loop.call_later(self._limits.linger_seconds, self._finish_lingering)
        try:
            await self._sent_all
        finally:
            timer.cancel()
            self._sent_all = None

    def _finish_lingering(self) -> None:
        if self._sent_all is not None and not self._sent_all.done():
            self._sent_all.set_result(None)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._wire is None:
            return
        self._left = tcp.unsent(self._wire)
        # Linux counts the user timeout from the first probe of a closed window, and keeps counting while a slow client
        # reads a little now and then. This deadline is stricter and restarts whenever the client reads.
        tcp.set_user_timeout(self._wire, 0)
        self._write_timer = self._loop.call_later(self._limits.write_seconds, self._writing_overdue)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._wire is not None:
            tcp.set_user_timeout(self._wire, self._limits.write_seconds * 2)
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _writing_overdue(self) -> None:
        """Abort the connection of a client that reads nothing. If it read something, the deadline starts again."""
        self._write_timer = None
        if self._wire is None:
            return
        left = tcp.unsent(self._wire)
        if left < self._left:
            self._left = left
            self._write_timer = self._loop.call_later(self._limits.write_seconds, self._writing_overdue)
        else:
            self.cut_off = True
            tcp.abort(self._wire)

    def handle_error(
        self,
        request: Any,  # BaseRequest, which is not in aiohttp.web's public interface
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that never reached the application."""
        if status < 500:
            answer = web.Response(status=status, headers={"Server": SERVER_NAME})
        else:
            self.log_exception("Error handling request", exc_info=exc)
            answer = problem.response(problem.internal("-"), "/")
        answer.force_close()
        return answer

    def _end(self, error: GatewayError) -> None:
        """Answer a request that has arrived only in part, and close."""
        if self.transport is None:
            return
        request_id, status = secrets.token_hex(12), error.kind.status
        self.transport.write(problem.closing(error, request_id))
        self.force_close()
        telemetry = self._connections.telemetry
        telemetry.http_request("other", "other", status, 0.0)
        telemetry.http_answered(request_id, {"route": "other", "status": status, "code": error.code})

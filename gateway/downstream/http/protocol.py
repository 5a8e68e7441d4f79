"""One client connection: aiohttp's handler with the two things that it lacks.

It cuts a connection whose request head does not arrive in time (aiohttp waits as long as a byte drips now and then),
and it answers in the gateway's form where no application was reached: a bare 400 to bytes that are not HTTP, a
problem object to the rest.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from gateway.downstream.http import problem
from gateway.downstream.http.answers import SERVER_NAME, compact
from gateway.downstream.http.limits import ServerLimits
from gateway.errors import CallerError


class Connection(web.RequestHandler):
    """Speaks HTTP with one client."""

    __slots__ = ("_head_seconds", "_head_timer", "_on_lost")

    def __init__(self, server: web.Server, limits: ServerLimits, loop: asyncio.AbstractEventLoop) -> None:
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
        self._head_seconds = limits.header_seconds
        self._head_timer: asyncio.TimerHandle | None = None
        self._on_lost: list[Callable[[], None]] = []

    def on_lost(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call when the connection is lost, until the returned function is called.

        aiohttp tells a handler only at its next write, and cancelling handlers would leave their work half done.
        """
        self._on_lost.append(call)
        return lambda: self._on_lost.remove(call) if call in self._on_lost else None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waits_for_head():
            if self._head_timer is None:
                self._head_timer = self._loop.call_later(self._head_seconds, self._cut)
        elif self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().connection_lost(exc)
        for call in list(self._on_lost):
            call()

    def handle_error(
        self,
        request: Any,  # BaseRequest, which aiohttp.web does not name in its stable interface
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what never reached the application."""
        if status < 500:
            answer = web.Response(status=status, headers={"Server": SERVER_NAME})
        else:
            self.log_exception("Error handling request", exc_info=exc)
            answer = problem.response(problem.internal("-"), "/")
        answer.force_close()
        return answer

    def _waits_for_head(self) -> bool:
        """Tell whether bytes came that make no request yet: nothing is queued and nothing is being answered."""
        waiter = self._waiter
        return not self._messages and waiter is not None and not waiter.done()

    def _cut(self) -> None:
        self._head_timer = None
        if not self._waits_for_head() or self.transport is None:
            return
        error = CallerError(
            "request-timeout", f"The request's head did not arrive within {self._head_seconds:g} seconds."
        )
        body = compact(problem.document(error, "/"))
        head = (
            "HTTP/1.1 408 Request Timeout\r\n"
            f"Content-Type: {problem.MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\n"
            "Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.force_close()

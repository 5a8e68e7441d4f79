"""Handles a request in the call that received its last byte.

For each request, aiohttp wakes the connection's task, which starts another task, resolves the route, and writes the response
through a writer. For a POST of events that takes about as long as everything else. So if a request of a direct route arrived
complete, it is handled at once, by the same middlewares and the same handler, and a short response is written with one call.
If the handler waits, as that of a stream does, or the response cannot be written like that, aiohttp's task goes on from there.

Before it waits for the first time, the handler of a direct route must not use anything that needs a task, such as
`asyncio.timeout`.

Many clients send the head and the body of a request separately, Python's `http.client` among them. The head of such a request is
kept for a moment until the body is there, as if the network had delivered both together.
"""

import asyncio
import re
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, Final

from aiohttp import HttpVersion11, StreamReader, hdrs, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.http_writer import _serialize_headers
from aiohttp.web_urldispatcher import UrlMappingMatchInfo

from gateway.downstream.http.answers import SERVER_NAME
from gateway.downstream.http.protocol import CHARGED_BODY_BYTES, Connection
from gateway.downstream.http.request import Request

Handling = Coroutine[Any, Any, web.StreamResponse]
Handler = Callable[[web.Request], Handling]
Complete = Callable[[web.Request, web.StreamResponse], None]

BODY_SECONDS: Final = 0.05
"""How long a head is kept until its body arrives. A client that sends both without a pause needs less than a millisecond."""

MAX_HEAD_BYTES: Final = 4 * 1024
"""Larger heads are not kept, and neither are those of bodies above `CHARGED_BODY_BYTES`."""

_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]{1,5})\r\n", re.IGNORECASE)
_EXPECT: Final = re.compile(rb"\r\nexpect:", re.IGNORECASE)

_PART: Final = r"(?P<\1>[A-Za-z0-9_-]{1,128})"
"""A variable part of a path. Requests with other characters in it are left to the router, which decodes them."""


class DirectRoutes:
    """The routes of an application whose requests are handled at once."""

    def __init__(self, app: web.Application, complete: Complete) -> None:
        """`complete` adds the headers that every response has."""
        self.complete = complete
        self.app = app
        self._direct: list[tuple[re.Pattern[str], web.AbstractRoute, Handler]] = []

    def add(self, route: web.AbstractRoute) -> None:
        """Handle the requests of a route at once."""
        assert route.resource is not None
        path = re.sub(r"\\\{(\w+)\\\}", _PART, re.escape(route.resource.canonical))
        handler: Any = route.handler
        for middleware in reversed(self.app.middlewares):
            handler = partial(middleware, handler=handler)
        self._direct.append((re.compile(path + r"(?:\?.*)?\Z"), route, handler))

    def serves(self, method: str, path: str) -> bool:
        """Return whether requests with this path are handled at once."""
        return any(
            route.method == method and pattern.match(path) is not None for pattern, route, _ in self._direct
        )

    def find(self, message: RawRequestMessage) -> tuple[Handler, UrlMappingMatchInfo] | None:
        """Return the handler of a request with its middlewares, and what the router would find; None for other requests."""
        for pattern, route, handler in self._direct:
            found = pattern.match(message.path)
            if found is not None and route.method == message.method:
                match = UrlMappingMatchInfo(found.groupdict(), route)
                match.add_app(self.app)
                match.freeze()
                return handler, match
        return None


class DirectConnection(Connection):
    """A connection that handles the requests of direct routes at once."""

    __slots__ = ("_begun", "_early", "_early_timer", "_routes")

    def __init__(self, routes: DirectRoutes, *args: Any) -> None:  # Any: the arguments of Connection
        super().__init__(*args)
        self._routes = routes
        self._begun: tuple[Request, Awaitable[web.StreamResponse]] | None = None
        """A request that aiohttp's task has to go on with, and the rest of its handling."""
        self._early = b""
        """A head that is kept until its body arrives, and the part of the body that has."""
        self._early_timer: asyncio.TimerHandle | None = None
        self._requests.direct = self._answered_at_once
        self._request_factory = self._next_request

    def connection_lost(self, exc: BaseException | None) -> None:
        _ = self._kept()
        super().connection_lost(exc)
        self._requests.direct = self._begun = None

    # --- a body that comes after its head -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._early:
            data = self._kept() + data
        if self._awaits_body(data):
            self._early = data
            self._early_timer = self._loop.call_later(BODY_SECONDS, self._go_on)
        else:
            super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # as the base class
        if not self._early:
            return super().eof_received()
        # The head is handled first, as if the end had come a turn of the loop later.
        self._go_on()
        self._loop.call_soon(self._ended)
        return True

    def _ended(self) -> None:
        if self._wire is not None and not super().eof_received():
            self._wire.close()

    def _go_on(self) -> None:
        """Handle what was kept, without its body."""
        if self._early:
            super().data_received(self._kept())

    def _kept(self) -> bytes:
        """Return what was kept."""
        if self._early_timer is not None:
            self._early_timer.cancel()
            self._early_timer = None
        data, self._early = self._early, b""
        return data

    def _awaits_body(self, data: bytes) -> bool:
        """Return whether data is the head of a request that would be handled at once if its small body were there. If this
        is wrong, a request is handled a moment later, or at a higher cost."""
        head = data.find(_HEAD_END, 0, MAX_HEAD_BYTES) + len(_HEAD_END)
        if not data.startswith(b"POST ") or head < len(_HEAD_END):
            return False
        if self._unread or self._requests.unfinished or self._requests.reads_body:
            return False  # It is a part of something that has begun.
        length = _LENGTH.search(data, 0, head)
        if length is None or _EXPECT.search(data, 0, head) is not None:
            return False
        if not len(data) < head + int(length[1]) <= head + CHARGED_BODY_BYTES:
            return False
        path = data[len(b"POST ") : data.find(b" ", len(b"POST "))].decode("latin-1")
        return self._routes.serves("POST", path)

    # --- handling at once ---------------------------------------------------------------------------------------------

    def _answered_at_once(self, message: RawRequestMessage, payload: StreamReader) -> bool:
        """Begin to handle a request, and return whether it is answered."""
        waiter, manager = self._waiter, self._manager
        if waiter is None or waiter.done() or self._paused or manager is None:
            return False  # Another request is first, or its response has not left yet.
        if message.should_close or message.version != HttpVersion11 or hdrs.EXPECT in message.headers:
            return False
        found = self._routes.find(message)
        if found is None:
            return False
        handler, match = found
        writer = StreamWriter(self, self._loop)
        task: Any = self._task_handler  # set while it is connected
        request = Request(self._routes.app, message, payload, self, writer, task, self._loop)
        request._match_info = match  # noqa: SLF001  # as aiohttp's Application does
        handling = handler(request)
        try:
            awaited = handling.send(None)
        except StopIteration as done:
            if self._write_at_once(request, done.value):
                self._request_count += 1
                self._answered += 1
                manager.requests_count += 1
                return True
            self._begun = request, _result(done.value)
        except Exception as error:  # noqa: BLE001  # aiohttp's task answers it
            self._begun = request, _result(error)
        else:
            self._begun = request, _continued(handling, awaited)
        return False

    def _write_at_once(self, request: Request, response: web.StreamResponse) -> bool:
        """Write a response as aiohttp would, if it is short. Return whether it is written."""
        transport = self.transport
        if type(response) is not web.Response or transport is None or transport.is_closing():
            return False
        body = response.body
        if not isinstance(body, bytes) or len(body) > CHARGED_BODY_BYTES:
            return False
        headers = response.headers
        # In the order in which aiohttp sets them.
        headers[hdrs.CONTENT_LENGTH] = str(len(body))
        headers[hdrs.DATE] = rfc822_formatted_time()
        headers[hdrs.SERVER] = SERVER_NAME
        if response.keep_alive is False:
            headers[hdrs.CONNECTION] = "close"
        self._routes.complete(request, response)
        transport.write(_serialize_headers(f"HTTP/1.1 {response.status} {response.reason}", headers) + body)
        if response.keep_alive is False:
            self.force_close()
        else:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        return True

    def _next_request(self, *args: Any) -> web.BaseRequest:
        """Return the request that was begun, or make one, for aiohttp's task."""
        if self._begun is not None:
            return self._begun[0]
        assert self._manager is not None
        return self._manager.request_factory(*args)

    async def _handle_request(
        self, request: web.BaseRequest, start_time: float | None, request_handler: Any
    ) -> tuple[web.StreamResponse, bool]:
        """Handle a request, or go on with the one that was begun."""
        begun, self._begun = self._begun, None
        if begun is None:
            return await super()._handle_request(request, start_time, request_handler)
        return await super()._handle_request(request, start_time, lambda _: begun[1])


async def _result(result: web.StreamResponse | Exception) -> web.StreamResponse:
    """Return, or raise, what a handler that did not wait has returned or raised."""
    if isinstance(result, Exception):
        raise result
    return result


@types.coroutine
def _continued(handling: Handling, awaited: Any) -> Generator[Any, Any, web.StreamResponse]:
    """Go on, as `yield from` does, with a coroutine that was started outside of a task and waits for `awaited`."""
    try:
        while True:
            try:
                result = yield awaited
            except GeneratorExit:
                handling.close()
                raise
            except BaseException as error:  # noqa: BLE001  # the coroutine handles it, a cancellation as well
                awaited = handling.throw(error)
            else:
                awaited = handling.send(result)
    except StopIteration as done:
        response: web.StreamResponse = done.value
        return response

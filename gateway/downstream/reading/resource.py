"""`GET /v1/sessions/{id}/events` and its POST twin: a session's events on their way down (api.md, 3 Receiving).

Three renderings of one read: an event stream, JSON lines, or one page after a wait. Which it is, and from where, says
`reading`; how a stream is kept going, `stream`.
"""

import asyncio
import random
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from gateway.downstream.auth.access import session_grant
from gateway.downstream.http import problem
from gateway.downstream.http.app_keys import CLOCK, TELEMETRY
from gateway.downstream.http.body import FORM, JSON, TEXT, media_type, read_body
from gateway.downstream.http.wire import UNBUFFERED, accepted, watch_loss
from gateway.downstream.reading import parameters as reading
from gateway.downstream.reading import sse
from gateway.downstream.reading.parameters import MEDIA_TYPES, Reading
from gateway.downstream.reading.rendering import EventStream, JsonLines, own_json, wrapped
from gateway.downstream.reading.stream import RETRY_MS, STREAM, Stream, Surroundings, gap_members
from gateway.downstream.reading.ticker import Ticker
from gateway.errors import CallerError, GatewayError, OverloadError
from gateway.relay.envelope import parse_object
from gateway.relay.eventlog import EventId, Page
from gateway.relay.ports import Handle

TICKER: Final = web.AppKey("ticker", Ticker)

_MAX_PARAMETER_BYTES: Final = 16 * 1024
ERROR: Final = "gateway.error"

DRAINING_RETRY_SECONDS: Final = 2.0
"""Another node behind the same address is likely to take the next try."""

_CURSOR_ERRORS: Final = frozenset({"invalid-cursor", "cursor-expired"})
_TOLD_IN_STREAM: Final = _CURSOR_ERRORS | {"draining", "capacity", "recovering", "rate-limited"}
"""What an `EventSource` is told inside a stream: it gives up for ever on any status but 200."""


def add_routes(app: web.Application) -> None:
    """Put this file's handlers in place, and the ticker that all streams share."""
    path = "/v1/sessions/{id}/events"
    app.router.add_get(path, get_events, allow_head=False)
    app.router.add_head(path, head_events)
    app.router.add_post(f"{path}/stream", post_stream)
    app[TICKER] = Ticker(app[CLOCK].monotonic)
    app.on_startup.append(_start)
    app.on_shutdown.append(_close)


async def get_events(request: web.Request) -> web.StreamResponse:
    """Give what follows the cursor, in the format asked for."""
    return await _read(request, request.query)


async def post_stream(request: web.Request) -> web.StreamResponse:
    """The same with its parameters in a JSON body, for clients and tunnels that hold a GET back."""
    body = await read_body(request, _MAX_PARAMETER_BYTES)
    wanted: Mapping[str, str] = {}
    if body.strip():
        media_type(request, (JSON, TEXT, FORM))
        wanted = reading.from_body(parse_object(body))
    return await _read(request, {**request.query, **wanted})


async def head_events(request: web.Request) -> web.StreamResponse:
    """Give a stream's headers and open no receiver."""
    session_grant(request, "read")
    format_ = _parse(request, request.query).format
    if format_ == "json":
        return web.Response(content_type=MEDIA_TYPES[format_])
    rendering = EventStream() if format_ == "sse" else JsonLines()
    return web.StreamResponse(headers={"Content-Type": rendering.media_type, **UNBUFFERED})


async def _read(request: web.Request, query: Mapping[str, str]) -> web.StreamResponse:
    caller, handle = session_grant(request, "read")
    by_ticket = caller.credential == "ticket" and query.get("errors") != "status"
    try:
        if request.app[TICKER].closing:
            raise OverloadError(
                "draining", "The gateway is shutting down.", retry_after=DRAINING_RETRY_SECONDS
            )
        wanted = _parse(request, query)
        after = reading.start(wanted.cursor, handle.reader)
        page = handle.reader.read(after, 1, 1)
        if page.gap is not None and (wanted.fail_on_gap or wanted.format == "json"):
            raise expired(page)
    except GatewayError as error:
        if by_ticket and error.code in _TOLD_IN_STREAM and _asks_for_stream(request, query):
            return _error_in_stream(request, handle, error)
        raise
    if page.sealed and not page.entries and page.gap is None:
        if wanted.format == "sse":
            return web.Response(status=204)  # The one status that makes an EventSource stop for good reason.
        reason = handle.view().close_reason
        raise CallerError(
            "session-closed", "The session is closed and read to its end.", members={"reason": reason}
        )
    if wanted.format == "json":
        return await _long_poll(request, handle, wanted, after)
    rendering = EventStream() if wanted.format == "sse" else JsonLines()
    return await Stream(request, handle, rendering, wanted, surroundings(request)).run(after, wanted.cursor)


def surroundings(request: web.Request) -> Surroundings:
    """Give what every stream of this server shares."""
    app = request.app
    return Surroundings(app[TICKER], app[STREAM], app[TELEMETRY], app[CLOCK].monotonic)


def expired(page: Page) -> CallerError:
    """Make the 410 for a cursor whose events are gone, with the numbers that a stream would have told."""
    return CallerError(
        "cursor-expired", "Events after this cursor are no longer kept.", members=gap_members(page)
    )


class _Poll:
    """One waiting long-poll: a `Receiver` for its session, `Ticking` for the server."""

    def __init__(self, now: float, deadline: float) -> None:
        self.silent_since = now
        self.over = False
        self._deadline = deadline
        self._woken = asyncio.Event()

    def supersede(self) -> None:
        self.shut()

    def shut(self) -> None:
        self.over = True
        self._woken.set()

    def wake(self) -> None:
        self._woken.set()

    def tick(self, now: float) -> None:
        if now >= self._deadline:
            self.shut()

    async def wait(self) -> None:
        await self._woken.wait()
        self._woken.clear()


async def _long_poll(
    request: web.Request, handle: Handle, wanted: Reading, after: EventId
) -> web.StreamResponse:
    """Wait until there is something, or until the wait is over, and give it as one page."""
    app, reader = request.app, handle.reader
    now = app[CLOCK].monotonic()
    poll = _Poll(now, now + wanted.wait)
    lost = False

    def lose() -> None:
        nonlocal lost
        lost = True
        poll.shut()

    # The ticker's grain is too coarse for the last moments of a wait, and for waits that are short.
    timer = asyncio.get_running_loop().call_later(wanted.wait, poll.shut)
    unsubscribe, ignore_loss = reader.subscribe(poll.wake), watch_loss(request, lose)
    app[TELEMETRY].stream_opened("json", after != reader.head)
    app[TICKER].add(poll)
    handle.attach(poll)
    try:
        while True:
            page = reader.read(after, wanted.limit, wanted.max_bytes)
            if page.gap is not None:
                raise expired(page)
            events = [
                wrapped(page.cursor.epoch, entry)
                for entry in page.entries
                if wanted.filter is None or wanted.filter.passes(entry.type)
            ]
            after = page.cursor
            if events or page.sealed or poll.over:
                break
            if (
                not page.entries
            ):  # A page that holds only what is filtered out may have another one behind it.
                await poll.wait()
    finally:
        timer.cancel()
        unsubscribe()
        ignore_loss()
        app[TICKER].remove(poll)
        handle.detach(poll)
        app[TELEMETRY].stream_closed("json", "client" if lost else "closed")
    body = b'{"events":[%s],"cursor":"%s"}' % (b",".join(events), str(after).encode())
    return web.Response(body=body, content_type="application/json")


def _parse(request: web.Request, query: Mapping[str, str]) -> Reading:
    return reading.parse(query, accepted(request), request.headers.get("Last-Event-ID"))


def _asks_for_stream(request: web.Request, query: Mapping[str, str]) -> bool:
    return reading.parse_format(query.get("format"), accepted(request)) == "sse"


def _error_in_stream(request: web.Request, handle: Handle, error: GatewayError) -> web.Response:
    """Answer 200 with the error as an event, and an end. After a cursor that cannot be read from, its id is one that
    can, for the next try; any other error leaves the client where it is."""
    cursor = str(handle.reader.oldest.before) if error.code in _CURSOR_ERRORS else None
    retry = random.randint(*RETRY_MS)  # noqa: S311  # spread, not secrecy
    if error.retry_after is not None:
        retry += problem.retry_after(error.retry_after) * 1000
    text = own_json(ERROR, error_members(error, request.rel_url.raw_path))
    block = sse.notice(ERROR, text, id=cursor, retry=retry)
    return web.Response(body=block, content_type=sse.MEDIA_TYPE, charset="utf-8", headers=UNBUFFERED)


def error_members(error: GatewayError, path: str) -> dict[str, object]:
    """Give a problem object as the members of an event, whose own `type` takes the place of the problem's: the code
    says as much."""
    return {name: value for name, value in problem.document(error, path).items() if name != "type"}


async def _start(app: web.Application) -> None:
    app[TICKER].start()


async def _close(app: web.Application) -> None:
    await app[TICKER].close()

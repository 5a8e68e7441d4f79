"""`GET /v1/sessions/{id}/events` and its POST form: reading a session's events (api.md, 3 Receiving).

A read is answered as an event stream, as JSON lines, or as one page after a wait. `parameters` determines the format and
the position; `stream` and `longpoll` serve the read.
"""

import random
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from aiohttp import hdrs, web

from gateway.downstream.auth.access import by_ticket, session_grant
from gateway.downstream.http import problem
from gateway.downstream.http.app_keys import CLOCK, TELEMETRY
from gateway.downstream.http.body import FORM, JSON, TEXT, media_type, read_body
from gateway.downstream.http.wire import UNBUFFERED, accepted, write_soon
from gateway.downstream.peers.elsewhere import REFUSED_READ, ROTATE
from gateway.downstream.reading import parameters, sse
from gateway.downstream.reading.cursor import Cursor
from gateway.downstream.reading.latency import Deliveries
from gateway.downstream.reading.longpoll import LongPoll, expired
from gateway.downstream.reading.parameters import MEDIA_TYPES, ReadRequest
from gateway.downstream.reading.rendering import EventStream, JsonLines, own_json
from gateway.downstream.reading.stream import RETRY_MS, STREAM, OpenReads, Stream, Terms, drawn_age
from gateway.downstream.reading.ticker import Ticker
from gateway.errors import CallerError, GatewayError, OverloadError
from gateway.relay.events.envelope import parse_object
from gateway.relay.events.eventlog import Entry, EventId, GapReason
from gateway.relay.ports import Handle

READS: Final = web.AppKey("reads", OpenReads)

RENDERINGS: Final[Mapping[str, type[EventStream | JsonLines]]] = {"sse": EventStream, "ndjson": JsonLines}

_MAX_PARAMETER_BYTES: Final = 16 * 1024
ERROR: Final = "gateway.error"

DRAINING_RETRY_SECONDS: Final = 2.0
RECOVERING_RETRY_SECONDS: Final = 1.0
"""Short, because another node behind the same address probably accepts the next attempt."""

_CURSOR_ERRORS: Final = frozenset({"invalid-cursor", "cursor-expired"})
_TOLD_IN_STREAM: Final = _CURSOR_ERRORS | {"draining", "capacity", "recovering", "rate-limited"}
"""Errors that an `EventSource` gets as an event in a stream, since it stops reconnecting on any status but 200."""


def add_routes(app: web.Application) -> None:
    """Add the routes, and the ticker that all reads share."""
    path = "/v1/sessions/{id}/events"
    app.router.add_get(path, get_events, allow_head=False)
    app.router.add_head(path, head_events)
    app.router.add_post(f"{path}/stream", post_stream)
    app[REFUSED_READ] = refused_elsewhere
    app[READS] = OpenReads(
        app[STREAM],
        app[TELEMETRY],
        app[CLOCK].monotonic,
        Ticker(app[CLOCK].monotonic, lambda error: app[TELEMETRY].http_failed("", error)),
        Deliveries(app[TELEMETRY]),
    )
    app.on_startup.append(_start)
    app.on_shutdown.append(_close)


def add_internal_routes(app: web.Application) -> None:
    """Add the route that only nodes call."""
    app.router.add_post(ROTATE, rotate)


async def get_events(request: web.Request) -> web.StreamResponse:
    """Answer with the events after the cursor, in the requested format."""
    return await _read(request, request.query)


async def post_stream(request: web.Request) -> web.StreamResponse:
    """Do the same with the parameters in a JSON body, for clients and tunnels that buffer a GET."""
    body = await read_body(request, _MAX_PARAMETER_BYTES)
    wanted: Mapping[str, str] = {}
    if body.strip():
        media_type(request, (JSON, TEXT, FORM))
        wanted = parameters.from_body(parse_object(body))
    return await _read(request, {**request.query, **wanted})


async def head_events(request: web.Request) -> web.StreamResponse:
    """Answer with the status and headers of a GET, without opening a receiver."""
    begun = await _begin(request, request.query)
    if isinstance(begun, web.Response):
        return begun
    format_ = begun.wanted.format
    if format_ == "json":
        return web.Response(content_type=MEDIA_TYPES[format_])
    return web.StreamResponse(headers={"Content-Type": RENDERINGS[format_].media_type, **UNBUFFERED})


async def _read(request: web.Request, query: Mapping[str, str]) -> web.StreamResponse:
    begun = await _begin(request, query)
    if isinstance(begun, web.Response):
        return begun
    handle, wanted = begun.handle, begun.wanted
    reads = request.app[READS]
    soon = write_soon(request)
    with closing(Cursor(handle.reader, begun.after, selects=_selects(wanted), soon=soon)) as cursor:
        if wanted.format == "json":
            return await LongPoll(request, handle, cursor, wanted, reads).run()
        rendering = RENDERINGS[wanted.format]()
        terms = _terms(wanted, reads)
        stream = Stream(request, handle, cursor, rendering, terms, reads, wanted.format)
        return await stream.run(wanted.cursor)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A read that can be served."""

    handle: Handle
    wanted: ReadRequest
    after: EventId


async def _begin(request: web.Request, query: Mapping[str, str]) -> _Begun | web.Response:
    """Return the read, or the response if there is nothing to read. Raises the errors of a GET."""
    caller, handle = session_grant(request, "read")
    ticket = caller.credential == "ticket" and query.get("errors") != "status"
    try:
        if request.app[READS].ticker.closing:
            raise OverloadError(
                "draining", "The gateway is shutting down.", retry_after=DRAINING_RETRY_SECONDS
            )
        wanted = _parse(request, query)
        after = parameters.start(wanted.cursor, handle.reader)
        page = handle.reader.read(after, 1, 1)
        if page.gap is not None and page.gap.reason is not GapReason.OVERRUN and not await handle.owned():
            # The cursor may be of a node that has taken the session over while this one was paused, or is cut off from Redis.
            detail = "This node cannot tell now whether another one has the session."
            raise OverloadError("recovering", detail, retry_after=RECOVERING_RETRY_SECONDS)
        if page.gap is not None and (wanted.fail_on_gap or wanted.format == "json"):
            raise expired(page)
    except GatewayError as error:
        if ticket and error.code in _TOLD_IN_STREAM and _asks_for_stream(request, query):
            return _error_in_stream(request, handle, error)
        raise
    if page.sealed and not page.entries and page.gap is None:
        if wanted.format == "sse":
            return web.Response(status=204)  # Tells an EventSource to stop reconnecting.
        reason = handle.view().close_reason
        raise CallerError(
            "session-closed",
            "The session is closed, and you have read all of its events.",
            members={"reason": reason},
        )
    return _Begun(handle, wanted, after)


def _selects(wanted: ReadRequest) -> Callable[[Entry], bool] | None:
    if wanted.filter is None:
        return None
    passes = wanted.filter.passes
    return lambda entry: passes(entry.type)


def _terms(wanted: ReadRequest, reads: OpenReads) -> Terms:
    return Terms(
        heartbeat=wanted.heartbeat or reads.limits.heartbeat_seconds,
        max_age=drawn_age(wanted.max_age or reads.limits.max_age_seconds),
        heartbeat_as_event=wanted.heartbeat_as_event,
        pad=wanted.pad,
        fail_on_gap=wanted.fail_on_gap,
    )


def _parse(request: web.Request, query: Mapping[str, str]) -> ReadRequest:
    return parameters.parse(query, accepted(request), request.headers.get("Last-Event-ID"))


def _asks_for_stream(request: web.Request, query: Mapping[str, str]) -> bool:
    return parameters.parse_format(query, accepted(request)) == "sse"


def refused_elsewhere(request: web.Request, error: GatewayError) -> web.Response | None:
    """Return the answer to a read that could not be forwarded, if it is to be told in a stream; else None."""
    reads = request.method == hdrs.METH_GET or request.path.endswith("/events/stream")
    if not (reads and "/events" in request.path and error.code in _TOLD_IN_STREAM and by_ticket(request)):
        return None
    if request.query.get("errors") == "status" or not _asks_for_stream(request, request.query):
        return None
    return _error_in_stream(request, None, error)


def _error_in_stream(request: web.Request, handle: Handle | None, error: GatewayError) -> web.Response:
    """Answer 200 with the error as an event, and end. If the cursor is not readable, the event's ID is a readable one for
    the next attempt. Other errors leave the client's cursor unchanged."""
    unreadable = handle is not None and error.code in _CURSOR_ERRORS
    cursor = str(handle.reader.oldest.before) if handle is not None and unreadable else None
    retry = random.randint(*RETRY_MS)  # noqa: S311  # spread, not secrecy
    if error.retry_after is not None:
        retry += problem.retry_after(error.retry_after) * 1000
    text = own_json(ERROR, error_members(error, request.rel_url.raw_path))
    block = sse.notice(ERROR, text, id=cursor, retry=retry)
    answer = web.Response(body=block, content_type=sse.MEDIA_TYPE, charset="utf-8", headers=UNBUFFERED)
    answer.force_close()
    return answer


def error_members(error: GatewayError, path: str) -> dict[str, object]:
    """Return a problem object as the members of an event. The event's `type` replaces the problem's, since the code has
    the same meaning."""
    return {name: value for name, value in problem.document(error, path).items() if name != "type"}


async def rotate(request: web.Request) -> web.Response:
    """End reads that another node forwarded, because that node is about to end."""
    requests = parse_object(await read_body(request)).get("requests")
    request.app[READS].ticker.rotate({str(one) for one in requests} if isinstance(requests, list) else ())
    return web.Response(status=204)


async def _start(app: web.Application) -> None:
    app[READS].ticker.start()


async def _close(app: web.Application) -> None:
    await app[READS].ticker.close()

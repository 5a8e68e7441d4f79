"""The middlewares around every handler: request id, host and origin, errors, headers, one log line.

A request first gets its id. A page that may not call is refused before anything else is done, and a preflight is answered
before credentials are checked. Exceptions of the handler become problem objects. Headers are added when a response is
prepared, so that streams carry them as well.
"""

import random
import re
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import HttpVersion11, hdrs, web
from multidict import CIMultiDict, istr

from gateway.downstream.auth.access import ACCESS, AccessRules, bearer_word
from gateway.downstream.auth.origins import (
    cors_headers,
    host_name,
    is_loopback_name,
    normal_origin,
    preflight_headers,
)
from gateway.downstream.auth.peer import client_address, scheme
from gateway.downstream.http import problem, tcp
from gateway.downstream.http.answers import SERVER_NAME
from gateway.downstream.http.app_keys import (
    ANSWERED_AT,
    CHECKS_HOST,
    CLOCK,
    ERROR_CODE,
    HOLDING,
    OPEN_TO_PAGES,
    PRINCIPAL,
    REQUEST_ID,
    SESSION,
    SESSIONS,
    TELEMETRY,
)
from gateway.downstream.http.protocol import Connection
from gateway.downstream.peers.elsewhere import REFUSED_READ
from gateway.errors import CallerError, GatewayError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CORS: Final = web.RequestKey("cors", dict)

# aiohttp has no constants for these. A plain string would be lowered for each response.
_REQUEST_ID: Final = istr("X-Request-Id")
_CONTENT_TYPE_OPTIONS: Final = istr("X-Content-Type-Options")
_REFERRER_POLICY: Final = istr("Referrer-Policy")

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")

_KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_MAX_SHOWN: Final = 200
"""Characters of a header that a refusal may quote."""

CLIENT_LEFT: Final = 499
"""Status in logs and metrics if the client left, or the server closed, before the response. nginx uses the same number."""

PROBES: Final = frozenset({"/livez", "/readyz", "/metrics"})
"""Paths that machines request under any host name. Their responses are no use to a page that uses DNS rebinding."""

_TOLD_WHERE_KNOWN: Final = (("session", SESSION), ("principal", PRINCIPAL), ("code", ERROR_CODE))

STREAMED: Final = frozenset({"text/event-stream", "application/x-ndjson"})


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Assign an id to the request, and report its response to the metrics at its headers and to the log at its end."""
    app = request.app
    clock, telemetry = app[CLOCK].monotonic, app[TELEMETRY]
    began = clock()
    client = client_address(request)  # read now: it is unknown once the connection is lost
    wanted = request.headers.get(_REQUEST_ID, "")
    # An id is not secret; it only has to be unique.
    request_id = wanted if wanted and _SANE_ID.match(wanted) else f"{random.getrandbits(96):024x}"
    request[REQUEST_ID] = request_id
    status = CLIENT_LEFT
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        holding = request.get(HOLDING)
        if holding is not None:
            holding.release()
        ended = clock()
        method = request.method if request.method in _KNOWN_METHODS else "other"
        route = route_of(request)
        telemetry.http_request(route, method, status, request.get(ANSWERED_AT, ended) - began)
        fields = {"method": method, "route": route, "status": status, "seconds": ended - began}
        if client is not None:
            fields["client"] = client
        for name, key in _TOLD_WHERE_KNOWN:
            value = request.get(key)
            if value is not None:
                fields[name] = value
        telemetry.http_answered(request_id, fields)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn exceptions into problem objects. If the response has begun, cut it short instead."""
    try:
        return await handler(request)
    except GatewayError as error:
        if ANSWERED_AT in request:
            return await _cut(request, error)
        return _problem(request, error)
    except web.HTTPException as error:
        known = problem.translated(error)
        if known is None:
            raise
        return _problem(request, known)
    except Exception as error:  # noqa: BLE001  # the last place that knows the request's id
        if isinstance(error, ConnectionError) and _client_left(request):
            # The client has left; raising would be logged as a failure.
            return web.Response(status=CLIENT_LEFT)
        if ANSWERED_AT in request:
            return await _cut(request, error)
        request.app[TELEMETRY].http_failed(request[REQUEST_ID], error)
        return _problem(request, problem.internal(request[REQUEST_ID]))


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests that web pages are not allowed to make, and answer preflights."""
    rules = request.app[ACCESS].rules
    refusal = _refusal(request)
    if refusal is None and request.app[CHECKS_HOST]:
        _require_host(request, rules)
    origins = request.headers.getall(hdrs.ORIGIN, [])
    if not origins:
        return await handler(request) if refusal is None else _refused(request, refusal)
    # Browsers send one. If something in between added another, it is unclear which one is the page's.
    origin = origins[0] if len(origins) == 1 else "null"
    if request.app[OPEN_TO_PAGES] and _is_listed(origin, rules):
        request[_CORS] = cors_headers(origin, any_origin="*" in rules.cors_origins)
    elif not _is_own(request, origin, rules):
        raise CallerError("origin-not-allowed", _origin_refusal(request, origin))
    if refusal is not None:
        return _refused(request, refusal)
    if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
        return web.Response(status=204, headers=_preflight(request))
    return await handler(request)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers of every response; a signal handler for `on_response_prepare`."""
    complete(request, response)


def complete(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers of every response."""
    headers = response.headers
    request[ANSWERED_AT] = request.app[CLOCK].monotonic()
    request_id = request.get(REQUEST_ID)
    if request_id is not None:
        headers[_REQUEST_ID] = request_id
    headers[hdrs.SERVER] = SERVER_NAME
    headers[_CONTENT_TYPE_OPTIONS] = "nosniff"
    if request.path.startswith("/v1/"):
        headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
        headers.setdefault(hdrs.VARY, "Accept, Origin")
        headers[_REFERRER_POLICY] = "no-referrer"
    else:
        headers.setdefault(hdrs.VARY, "Origin")
    if request.app[SESSIONS].draining or type(response) is web.StreamResponse or _is_streamed(headers):
        # A proxy must not send a request over a connection that is about to be closed: it would answer 502. At the end of a
        # stream the connection is closed because some clients notice no other end.
        response.force_close()
        headers[hdrs.CONNECTION] = "close"
    cors = request.get(_CORS)
    if cors is not None:
        headers.update(cors)


def _is_streamed(headers: CIMultiDict[str]) -> bool:
    return headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0] in STREAMED


def route_of(request: web.Request) -> str:
    """Return the path's template, or `other`: never a path that a client invented."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "other"


def _refusal(request: web.Request) -> GatewayError | None:
    """Return the error that the connection found in the request before any handler ran."""
    protocol = request.protocol
    return protocol.refusal(request) if isinstance(protocol, Connection) else None


def _refused(request: web.Request, refusal: GatewayError) -> web.Response:
    """Return the answer of an `EventSource`, which would never try again after a status. Raise the error for all others."""
    read = request.app.get(REFUSED_READ)
    told = None if read is None else read(request, refusal)
    if told is None:
        raise refusal
    return told


def _client_left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _problem(request: web.Request, error: GatewayError) -> web.Response:
    request[ERROR_CODE] = error.code
    answer = problem.response(error, request.rel_url.raw_path)
    if error is _refusal(request):
        answer.force_close()
    return answer


async def _cut(request: web.Request, error: Exception) -> web.Response:
    """Abort the connection in the middle of a response, so that the client does not take it for complete.

    A second response on the same connection would be read as part of the first.
    """
    request.app[TELEMETRY].http_failed(request[REQUEST_ID], error)
    transport = request.transport
    if transport is not None:
        if request.version < HttpVersion11:  # Not chunked.
            await tcp.reset(transport)
        transport.abort()
    return web.Response(status=CLIENT_LEFT)


def _require_host(request: web.Request, rules: AccessRules) -> None:
    """Refuse requests that a page may have sent by DNS rebinding: its own host name points at this machine.

    Such a page has no API key, so the name is checked only for callers without a key.
    """
    if not rules.serves_anonymous or request.path in PROBES:
        return
    if rules.keyed and bearer_word(request) is not None:
        return
    name = host_name(request.headers.get(hdrs.HOST, ""))
    if name is None or not (is_loopback_name(name) or name in rules.hosts):
        named = f"not {name!r}" if name else "and the Host header has none"
        raise CallerError(
            "forbidden",
            f"Callers without an API key must use a loopback host name, {named}. "
            "The operator can allow the name in server.allowed_hosts, or as server.public_url.",
        )


def _origin_refusal(request: web.Request, origin: str) -> str:
    if not request.app[OPEN_TO_PAGES]:
        return "Pages of other origins may call the operator's listener only if an admin token is configured."
    if normal_origin(origin) is None:
        return (
            f"Pages of the origin {origin[:_MAX_SHOWN]!r} may not call this gateway, and cannot be allowed to. "
            "Serve the page over HTTP."
        )
    return (
        f"Pages of the origin {origin[:_MAX_SHOWN]!r} may not call this gateway. "
        "The operator can allow them in access.cors_origins."
    )


def _preflight(request: web.Request) -> dict[str, str]:
    asked = request.headers.getall(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, [])
    return preflight_headers(",".join(asked))


def _is_listed(origin: str, rules: AccessRules) -> bool:
    normal = normal_origin(origin)
    return normal is not None and ("*" in rules.cors_origins or normal in rules.cors_origins)


def _is_own(request: web.Request, origin: str, rules: AccessRules) -> bool:
    normal = normal_origin(origin)
    if normal is None:
        return False
    own = normal_origin(f"{scheme(request)}://{request.headers.get(hdrs.HOST, '')}")
    return normal == own or normal in rules.own_origins

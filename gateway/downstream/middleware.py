"""What happens to every request before and after its handler: id, host and origin, errors, headers, one log line.

The order is: the request gets its id; a page that may not call is turned away before anything is done; a preflight is
answered before any credential is asked for; what the handler raises becomes a problem object. Headers are added when
an answer is prepared, so that streams carry them, too.
"""

import random
import re
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import hdrs, web

from gateway.downstream.auth.access import ACCESS, AccessRules, bearer_word
from gateway.downstream.auth.origins import (
    cors_headers,
    host_name,
    is_loopback_name,
    normal_origin,
    preflight_headers,
)
from gateway.downstream.auth.peer import client_address, scheme
from gateway.downstream.http import problem
from gateway.downstream.http.answers import SERVER_NAME
from gateway.downstream.http.app_keys import (
    ANSWERED_AT,
    CLOCK,
    ERROR_CODE,
    HOLDING,
    OPEN_TO_PAGES,
    PRINCIPAL,
    REQUEST_ID,
    SESSION,
    TELEMETRY,
)
from gateway.downstream.http.protocol import Connection
from gateway.errors import CallerError, GatewayError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CORS: Final = web.RequestKey("cors", dict)

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")

_KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_MAX_SHOWN: Final = 200
"""Characters of a header that are repeated in a refusal."""

CLIENT_LEFT: Final = 499
"""The status told of a request whose client left, or whose server was closed, before the answer; nginx's word for it."""

PROBES: Final = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked by machines under whatever address they know; they show nothing that a rebinding page could use."""

_TOLD_WHERE_KNOWN: Final = (("session", SESSION), ("principal", PRINCIPAL), ("code", ERROR_CODE))

STREAMED: Final = frozenset({"text/event-stream", "application/x-ndjson"})


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id, and report its answer: to the metrics when its headers are sent, to the log at its end."""
    app = request.app
    clock, telemetry = app[CLOCK].monotonic, app[TELEMETRY]
    began = clock()
    client = client_address(request)  # asked now: a connection that is gone cannot tell
    wanted = request.headers.get("X-Request-Id", "")
    # An id is no secret: it only has to be another one each time.
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
    """Turn what is raised into a problem object; an answer that has begun is cut short instead."""
    try:
        return await handler(request)
    except GatewayError as error:
        if ANSWERED_AT in request:
            return _cut(request, error)
        return _problem(request, error)
    except web.HTTPException as error:
        known = problem.translated(error)
        if known is None:
            raise
        return _problem(request, known)
    except Exception as error:  # noqa: BLE001  # the last place where it can be caught and told under the request's id
        if isinstance(error, ConnectionError) and _client_left(request):
            # Nobody will see it; raising would be logged as a failure.
            return web.Response(status=CLIENT_LEFT)
        if ANSWERED_AT in request:
            return _cut(request, error)
        request.app[TELEMETRY].http_failed(request[REQUEST_ID], error)
        return _problem(request, problem.internal(request[REQUEST_ID]))


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn away what no page may do, and answer preflights."""
    rules = request.app[ACCESS].rules
    refusal = _refusal(request)
    if refusal is None:
        _require_host(request, rules)
    origins = request.headers.getall(hdrs.ORIGIN, [])
    if not origins:
        if refusal is not None:
            raise refusal
        return await handler(request)
    # No browser sends two; where one comes between that adds another, which of them is the page's cannot be told.
    origin = origins[0] if len(origins) == 1 else "null"
    if request.app[OPEN_TO_PAGES] and _is_listed(origin, rules):
        request[_CORS] = cors_headers(origin, any_origin="*" in rules.cors_origins)
    elif not _is_own(request, origin, rules):
        raise CallerError("origin-not-allowed", _origin_refusal(request, origin))
    if refusal is not None:
        raise refusal
    if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
        return web.Response(status=204, headers=_preflight(request))
    return await handler(request)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add what every answer carries; a signal handler of `on_response_prepare`."""
    headers = response.headers
    request[ANSWERED_AT] = request.app[CLOCK].monotonic()
    request_id = request.get(REQUEST_ID)
    if request_id is not None:
        headers["X-Request-Id"] = request_id
    headers["Server"] = SERVER_NAME
    headers["X-Content-Type-Options"] = "nosniff"
    if request.path.startswith("/v1/"):
        headers.setdefault("Cache-Control", "no-store")
        headers.setdefault("Vary", "Accept, Origin")
        headers["Referrer-Policy"] = "no-referrer"
    else:
        headers.setdefault("Vary", "Origin")
    if type(response) is web.StreamResponse or response.content_type in STREAMED:
        # The end of a stream is the end of its connection: readers below HTTP see no other end.
        response.force_close()
        headers[hdrs.CONNECTION] = "close"
    cors = request.get(_CORS)
    if cors is not None:
        headers.update(cors)


def route_of(request: web.Request) -> str:
    """Give the path's template, or `other`: never what a client made up."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "other"


def _refusal(request: web.Request) -> GatewayError | None:
    """Return what the connection found wrong with the request before any handler saw it."""
    protocol = request.protocol
    return protocol.refusal(request) if isinstance(protocol, Connection) else None


def _client_left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _problem(request: web.Request, error: GatewayError) -> web.Response:
    request[ERROR_CODE] = error.code
    answer = problem.response(error, request.rel_url.raw_path)
    if error is _refusal(request):
        answer.force_close()
    return answer


def _cut(request: web.Request, error: Exception) -> web.Response:
    """End the connection in the middle of an answer, so that the client takes no half for the whole.

    A second answer on the same connection would be read as a part of the first.
    """
    request.app[TELEMETRY].http_failed(request[REQUEST_ID], error)
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=CLIENT_LEFT)


def _require_host(request: web.Request, rules: AccessRules) -> None:
    """Refuse what a page may have sent that had its own name pointed at this machine (DNS rebinding).

    Such a page has no key. So the name counts where callers without a key are let in, and only for them.
    """
    if not rules.serves_anonymous or request.path in PROBES:
        return
    if rules.keyed and bearer_word(request) is not None:
        return
    name = host_name(request.headers.get(hdrs.HOST, ""))
    if name is None or not (is_loopback_name(name) or name in rules.hosts):
        raise CallerError(
            "forbidden",
            f"Callers without an API key must call this gateway by a loopback name, and not as {name or 'this'!r}. "
            "Its operator can allow the name in server.allowed_hosts, or as server.public_url.",
        )


def _origin_refusal(request: web.Request, origin: str) -> str:
    if not request.app[OPEN_TO_PAGES]:
        return "Pages of other origins may call the operator's listener only where an admin token is set."
    if normal_origin(origin) is None:
        return (
            f"Pages of the origin {origin[:_MAX_SHOWN]!r} may not call this gateway, and cannot be allowed to: "
            "serve the page over HTTP."
        )
    return (
        f"Pages of the origin {origin[:_MAX_SHOWN]!r} may not call this gateway. "
        "Its operator can allow them in access.cors_origins."
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

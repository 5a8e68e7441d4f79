"""Errors as problem objects (RFC 9457).

All errors of the API, the router's included, are formatted here. The text of an unexpected exception is not sent: it is
logged with the request's id, and the client gets only the id.
"""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web

from gateway.downstream.http.answers import SERVER_NAME, compact
from gateway.errors import Code, Flaw, GatewayError

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:realtime-gateway:error:"
"""A URN rather than a URL: RFC 9457 3.1.1 allows types that cannot be dereferenced, so no host is needed."""

_CODES_BY_STATUS: Final[Mapping[int, Code]] = {
    HTTPStatus.NOT_FOUND: "not-found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method-not-allowed",
    HTTPStatus.REQUEST_TIMEOUT: "request-timeout",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too-large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported-media-type",
}

UNTOLD_WAIT_SECONDS: Final = 10
"""The default of Retry-After."""

_BODY_UNREAD: Final = frozenset({"request-timeout", "too-large", "unsupported-media-type"})
"""Errors raised before the whole body was read. The connection is closed after them."""


def document(error: GatewayError, instance: str) -> dict[str, object]:
    """Return the problem object: type, title, status, detail, instance, code, retryable, and the error's own members.

    `instance` is the request's path as it was sent, without its query, which may contain a ticket.
    """
    problem: dict[str, object] = {
        "type": f"{TYPE_PREFIX}{error.code}",
        "title": error.kind.title,
        "status": error.kind.status,
        "detail": error.detail,
        "instance": instance,
        "code": error.code,
        "retryable": error.retryable,
    }
    if error.flaws:
        problem["errors"] = [_flaw(flaw) for flaw in error.flaws]
    wait = _wait(error)
    if wait is not None:
        problem["retry_after"] = wait
    return problem | {name: value for name, value in error.members.items() if name not in problem}


def response(error: GatewayError, instance: str) -> web.Response:
    """Return the response for an error."""
    headers = {}
    wait = _wait(error)
    if wait is not None:
        headers["Retry-After"] = str(wait)
    if error.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    allow = error.members.get("allow")
    if error.code == "method-not-allowed" and isinstance(allow, list):
        headers["Allow"] = ", ".join(allow)
    body = compact(document(error, instance))
    answer = web.Response(status=error.kind.status, body=body, content_type=MEDIA_TYPE, headers=headers)
    if error.code in _BODY_UNREAD:
        answer.force_close()
    return answer


def closing(error: GatewayError, request_id: str) -> bytes:
    """Return the response for an error as bytes, for a request that never reached the application."""
    body = compact(document(error, "/"))
    head = (
        f"HTTP/1.1 {error.kind.status} {HTTPStatus(error.kind.status).phrase}\r\n"
        f"Content-Type: {MEDIA_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"X-Request-Id: {request_id}\r\n"
        f"Server: {SERVER_NAME}\r\n"
        "Cache-Control: no-store\r\n"
        "Vary: Accept, Origin\r\n"
        "Referrer-Policy: no-referrer\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


def translated(error: web.HTTPException) -> GatewayError | None:
    """Return an error of the router or the parser as a GatewayError; None for other exceptions."""
    code = _CODES_BY_STATUS.get(error.status)
    if code is None:
        return None
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = sorted(error.allowed_methods)
        detail = f"{error.method} is not allowed for this path; allowed: {', '.join(allowed)}."
        return GatewayError(code, detail, members={"allow": allowed})
    return GatewayError(code, "This path does not exist." if code == "not-found" else str(error.reason))


def internal(request_id: str) -> GatewayError:
    """Return the error for a bug in the gateway."""
    return GatewayError("internal", f"The gateway failed; see its log for request ID '{request_id}'.")


def _wait(error: GatewayError) -> int | None:
    """Return the seconds of Retry-After. Every 429 and 503 has one, even if OpenAI refused without naming it."""
    if error.retry_after is not None:
        return retry_after(error.retry_after)
    return UNTOLD_WAIT_SECONDS if error.kind.status in (429, 503) else None


def retry_after(seconds: float) -> int:
    """Return whole seconds, as RFC 9110 10.2.3 requires, and never 0, at which clients would retry at once."""
    return max(1, math.ceil(seconds))


def _flaw(flaw: Flaw) -> dict[str, object]:
    members = {"detail": flaw.detail, "pointer": flaw.pointer, "line": flaw.line}
    return {name: value for name, value in members.items() if value is not None}

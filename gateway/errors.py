"""All errors that the gateway reports, in one table.

A `GatewayError` carries a `code` of docs/api.md, 5 Errors. The code decides the HTTP status, the title
and whether the same request may succeed later. The exception's class says whose fault it was. `downstream` renders errors
as problem objects (RFC 9457).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Code = Literal[
    "invalid-json",
    "invalid-event",
    "invalid-parameter",
    "invalid-cursor",
    "unauthorized",
    "forbidden",
    "origin-not-allowed",
    "member-locked",
    "event-not-allowed",
    "not-found",
    "session-unknown",
    "call-unknown",
    "session-closed",
    "cursor-expired",
    "method-not-allowed",
    "not-acceptable",
    "no-text-output",
    "request-timeout",
    "too-large",
    "uri-too-long",
    "unsupported-media-type",
    "idempotency-in-progress",
    "idempotency-key-reused",
    "header-too-large",
    "rate-limited",
    "session-limit",
    "turn-queue-full",
    "upstream-rate-limited",
    "upstream-rejected",
    "upstream-failed",
    "draining",
    "capacity",
    "upstream-backpressure",
    "recovering",
    "upstream-timeout",
    "not-implemented",
    "http-version-not-supported",
    "internal",
]

Phase = Literal["signalling", "ice", "dtls", "channel", "response"]
"""Where an upstream deadline passed (docs/api.md, 5 Errors: status 504)."""


@dataclass(frozen=True, slots=True)
class Kind:
    """The status, title and retry rule of a code."""

    status: int
    title: str
    retryable: bool = False


KINDS: Mapping[Code, Kind] = {
    "invalid-json": Kind(400, "The body is not valid JSON"),
    "invalid-event": Kind(400, "Not a client event"),
    "invalid-parameter": Kind(400, "A parameter is not valid"),
    "invalid-cursor": Kind(400, "Not an event ID"),
    "unauthorized": Kind(401, "A credential is needed"),
    "forbidden": Kind(403, "The credential does not allow this"),
    "origin-not-allowed": Kind(403, "Requests from this origin are not allowed"),
    "member-locked": Kind(403, "The operator has locked this member"),
    "event-not-allowed": Kind(403, "The credential does not allow this event"),
    "not-found": Kind(404, "Not found"),
    "session-unknown": Kind(404, "No such session"),
    "call-unknown": Kind(404, "No such call"),
    "method-not-allowed": Kind(405, "The method is not allowed"),
    "not-acceptable": Kind(406, "No acceptable media type"),
    "no-text-output": Kind(406, "The response has no text"),
    "request-timeout": Kind(408, "The request took too long to arrive", retryable=True),
    "idempotency-in-progress": Kind(409, "The first request with this key is still running", retryable=True),
    "session-closed": Kind(410, "The session is closed"),
    "cursor-expired": Kind(410, "The events after this cursor are no longer kept"),
    "too-large": Kind(413, "The request is too large"),
    "uri-too-long": Kind(414, "The URL is too long"),
    "unsupported-media-type": Kind(415, "The media type is not supported"),
    "idempotency-key-reused": Kind(422, "The key was used with another request"),
    "header-too-large": Kind(431, "The headers are too large"),
    "rate-limited": Kind(429, "Too many requests", retryable=True),
    "session-limit": Kind(429, "Too many sessions", retryable=True),
    "turn-queue-full": Kind(429, "Too many turns are waiting", retryable=True),
    "upstream-rate-limited": Kind(429, "OpenAI's rate limit was reached", retryable=True),
    "internal": Kind(500, "The gateway failed"),
    "not-implemented": Kind(501, "The request needs a feature that is not implemented"),
    "http-version-not-supported": Kind(505, "The HTTP version is not supported"),
    "upstream-rejected": Kind(502, "OpenAI rejected the request"),
    "upstream-failed": Kind(502, "The connection to OpenAI failed", retryable=True),
    "draining": Kind(503, "The gateway is shutting down", retryable=True),
    "capacity": Kind(503, "The gateway is full", retryable=True),
    "upstream-backpressure": Kind(503, "OpenAI is not reading fast enough", retryable=True),
    "recovering": Kind(503, "The session is being recovered", retryable=True),
    "upstream-timeout": Kind(504, "OpenAI did not answer in time", retryable=True),
}


@dataclass(frozen=True, slots=True)
class Flaw:
    """One mistake in a request: its position (RFC 6901 pointer, or NDJSON line from 1) and a description."""

    detail: str
    pointer: str | None = None
    line: int | None = None


class GatewayError(Exception):
    """An error with a code of the table.

    `detail` addresses the author of the request; it names the field, and never contains a secret. `retry_after` is in seconds.
    `members` are additional members of the problem object, such as `limit` or `upstream`.
    """

    def __init__(
        self,
        code: Code,
        detail: str,
        *,
        retry_after: float | None = None,
        flaws: tuple[Flaw, ...] = (),
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code: Code = code
        self.detail = detail
        self.retry_after = retry_after
        self.flaws = flaws
        self.members: Mapping[str, object] = members or {}

    @property
    def kind(self) -> Kind:
        return KINDS[self.code]

    @property
    def retryable(self) -> bool:
        return self.kind.retryable


class CallerError(GatewayError):
    """The request was wrong, or not allowed."""


def invalid_parameter(name: str, what: str) -> CallerError:
    """Return the error of a parameter, or of a member of the body: `what` says what it must be."""
    return CallerError("invalid-parameter", f"'{name}' {what}.", flaws=(Flaw(what, pointer=f"/{name}"),))


class OverloadError(GatewayError):
    """The gateway cannot take this now: a limit, a drain, a recovery, back-pressure."""


class UpstreamError(GatewayError):
    """OpenAI refused, failed or did not answer."""

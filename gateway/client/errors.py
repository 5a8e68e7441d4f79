"""The client's errors. Each type says whose fault the error is and what to do.

The gateway's errors are problem objects (RFC 9457). `problem_error` chooses the type by `code`, then by status.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import aiohttp


class ClientError(Exception):
    """The base class of all errors of this package."""


class UnreachableError(ClientError, aiohttp.ClientError):
    """No server answered at the URL, or the connection was lost and retries failed."""

    def __init__(self, url: str, cause: Exception) -> None:
        self.url = url
        self.os_error = getattr(cause, "os_error", cause)
        super().__init__(f"{url} does not answer: {str(cause) or 'time-out'}")


class SupersededError(ClientError):
    """The session has too many readers, and another one replaced this stream. Do not reconnect."""


class ProblemError(ClientError):
    """The gateway answered with an error.

    `status` is the HTTP status. `problem` is the problem object, or `{}` if another server answered. `code` identifies the
    error, `retry_after` is the number of seconds that the gateway asked to wait.
    """

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.status = status
        self.problem = problem
        self.code: str = str(problem.get("code", ""))
        self.retry_after = retry_after
        super().__init__(
            f"{status} {self.code}: {problem.get('detail') or problem.get('title') or ''}".strip()
        )

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later without a change."""
        return bool(self.problem.get("retryable", self.status in (429, 502, 503, 504)))


class InvalidRequestError(ProblemError):
    """The request is invalid: see `problem["errors"]`."""


class UnauthorizedError(ProblemError):
    """The credential is missing, invalid, or does not permit the request."""


class SessionGoneError(ProblemError):
    """The session has ended, or none has this ID: open another one."""


class CursorExpiredError(ProblemError):
    """The events after the cursor are gone: read from `EARLIEST`."""


class RateLimitedError(ProblemError):
    """A limit of the key or of OpenAI was exceeded: try again after `retry_after` seconds."""


class UnavailableError(ProblemError):
    """The gateway is full, is shutting down, or is waiting for a new call: try again."""


class UpstreamError(ProblemError):
    """OpenAI refused, failed, or took too long: see `problem["upstream"]`."""


_BY_CODE: Final[Mapping[str, type[ProblemError]]] = {
    "session-unknown": SessionGoneError,
    "session-closed": SessionGoneError,
    "cursor-expired": CursorExpiredError,
    "internal": ProblemError,
}
_BY_STATUS: Final[Mapping[int, type[ProblemError]]] = {
    401: UnauthorizedError,
    403: UnauthorizedError,
    429: RateLimitedError,
    502: UpstreamError,
    503: UnavailableError,
    504: UpstreamError,
}


def problem_error(status: int, problem: Mapping[str, Any], retry_after: float | None = None) -> ProblemError:
    """Return the error for a problem object."""
    kind = _BY_CODE.get(str(problem.get("code", ""))) or _BY_STATUS.get(status)
    if kind is None:
        kind = InvalidRequestError if 400 <= status < 500 else ProblemError
    return kind(status, problem, retry_after)


async def raise_for_problem(answer: aiohttp.ClientResponse) -> None:
    """Raise a ProblemError if the response is an error."""
    if answer.status < 400:
        return
    try:
        problem = json.loads(await answer.read())
    except ValueError:
        problem = {}
    retry_after = answer.headers.get("Retry-After", "")
    seconds = float(retry_after) if retry_after.replace(".", "", 1).isdigit() else None
    raise problem_error(answer.status, problem if isinstance(problem, dict) else {}, seconds)

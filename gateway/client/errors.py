"""What can go wrong, as types: each says whose fault it is and what to do.

The gateway's refusals are problem objects (RFC 9457). `problem_error` chooses the type by `code`, then by status.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import aiohttp


class ClientError(Exception):
    """The base of all errors of this package."""


class UnreachableError(ClientError, aiohttp.ClientError):
    """Nothing answered at the URL, or the connection was lost and repeating did not help."""

    def __init__(self, url: str, cause: Exception) -> None:
        self.url = url
        self.os_error = getattr(cause, "os_error", cause)
        super().__init__(f"{url} does not answer: {str(cause) or 'time-out'}")


class SupersededError(ClientError):
    """Too many readers of the session: another one took this stream's place. Do not come back."""


class ProblemError(ClientError):
    """The gateway refused.

    `status` is the answer's. `problem` is the problem object, or `{}` where something else answered. `code` is the word to
    decide by, `retry_after` the seconds that the gateway asked to wait.
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
        """Whether the same request may succeed later without anything else being done."""
        return bool(self.problem.get("retryable", self.status in (429, 502, 503, 504)))


class InvalidRequestError(ProblemError):
    """The request is wrong as it stands: see `problem["errors"]`."""


class UnauthorizedError(ProblemError):
    """The credential is missing, not valid, or not for this."""


class SessionGoneError(ProblemError):
    """The session has ended, or there is none of that ID: open another one."""


class CursorExpiredError(ProblemError):
    """The events after the cursor are gone: read from `EARLIEST`."""


class RateLimitedError(ProblemError):
    """A limit of the key or of OpenAI: try again after `retry_after` seconds."""


class UnavailableError(ProblemError):
    """The gateway has no room, shuts down, or waits for a new call: try again."""


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
    """Return the error for a refusal."""
    kind = _BY_CODE.get(str(problem.get("code", ""))) or _BY_STATUS.get(status)
    if kind is None:
        kind = InvalidRequestError if 400 <= status < 500 else ProblemError
    return kind(status, problem, retry_after)


async def raise_for_problem(answer: aiohttp.ClientResponse) -> None:
    """Raise the ProblemError that an answer is, if it is one."""
    if answer.status < 400:
        return
    try:
        problem = json.loads(await answer.read())
    except ValueError:
        problem = {}
    retry_after = answer.headers.get("Retry-After", "")
    seconds = float(retry_after) if retry_after.replace(".", "", 1).isdigit() else None
    raise problem_error(answer.status, problem if isinstance(problem, dict) else {}, seconds)

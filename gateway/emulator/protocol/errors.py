"""The service's errors: over HTTP, and as an `error` event.

Both forms share message, type, param and code; only the envelope differs.
"""

from typing import Any

_INVALID_REQUEST = "invalid_request_error"


class Refusal(Exception):
    """A request or a client event that is refused, in the service's own words.

    `param` names the member (`session.foo`), or is None; `code` is the machine-readable reason.
    """

    def __init__(
        self, code: str | None, message: str, *, param: str | None = None, kind: str = _INVALID_REQUEST
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.kind = kind

    def event(self, client_id: str | None) -> dict[str, Any]:
        """Return the `error` event, without its ID. `client_id` is the `event_id` of the client event that was refused."""
        error = {
            "type": self.kind,
            "code": self.code,
            "message": self.message,
            "param": self.param,
            "event_id": client_id,
        }
        return {"type": "error", "error": error}


class HttpRefusal(Exception):
    """A refusal with an HTTP status; `body` is the `error` object of the answer."""

    def __init__(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{status} {body.get('code')}")
        self.status = status
        self.body = body
        self.headers = headers or {}


def http_refusal(status: int, refusal: Refusal) -> HttpRefusal:
    """Put a refusal in the HTTP envelope; its four members are always there."""
    return HttpRefusal(
        status,
        {
            "message": refusal.message,
            "type": refusal.kind,
            "param": refusal.param,
            "code": refusal.code,
        },
    )

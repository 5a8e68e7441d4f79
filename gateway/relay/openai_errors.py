"""What OpenAI's error codes mean to the gateway, in one table. No I/O.

Such a code comes in three ways: in the answer to a request (a call that is refused), in an `error` event, and in the
`status_details` of a response that failed. It means the same in each of them, and all layers read this table: signalling
for the problem of a refused create, turns for theirs, telemetry for the labels of `upstream_errors_total`. A code that
is not listed is counted as `other` and means what its HTTP status means.

| blame | what the gateway does |
|---|---|
| `operator` | refuses the create or turn for good; ends a session if it occurs while the session's call is being replaced |
| `caller` | passes it on as the answer to the request; the session continues |
| `passing` | tells the caller to try again, and when if known; a lost call is replaced |
| `harmless` | passes the event on and counts it; no request waits for it |

This file does not know HTTP or the caller.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.errors import Code
from gateway.relay.states import CloseReason


class Blame(StrEnum):
    """Who can fix an error."""

    OPERATOR = "operator"
    CALLER = "caller"
    PASSING = "passing"
    HARMLESS = "harmless"


@dataclass(frozen=True, slots=True)
class Meaning:
    """The meaning of a code.

    `code` is the problem of a request that fails with it; its HTTP status is in `errors.KINDS`. `reason` is the close
    reason of a session that cannot continue because of it: while a call is replaced, or, with `relay.continuity` off,
    when the call ends after it. None if it never ends a session.
    """

    blame: Blame
    code: Code
    reason: CloseReason | None = None


_FATAL = Meaning(Blame.OPERATOR, "upstream-rejected", CloseReason.UPSTREAM_REJECTED)
_MISTAKE = Meaning(Blame.CALLER, "upstream-rejected")
_LIMIT = Meaning(Blame.PASSING, "upstream-rate-limited", CloseReason.UPSTREAM_LOST)
_FAILURE = Meaning(Blame.PASSING, "upstream-failed", CloseReason.UPSTREAM_LOST)
_HARMLESS = Meaning(Blame.HARMLESS, "upstream-rejected")

MEANINGS: Final[Mapping[str, Meaning]] = {
    # The key, its permissions, its billing, and what callers cannot change.
    "invalid_api_key": _FATAL,
    "missing_scope": _FATAL,
    "insufficient_permissions": _FATAL,
    "insufficient_quota": _FATAL,  # comes with status 429, but waiting does not help
    "billing_hard_limit_reached": _FATAL,
    "billing_not_active": _FATAL,
    "model_not_found": _FATAL,
    "beta_api_shape_disabled": _FATAL,
    "invalid_offer": _FATAL,
    # Mistakes in an event or a session object.
    "invalid_request_error": _MISTAKE,
    "invalid_event": _MISTAKE,
    "invalid_value": _MISTAKE,
    "unknown_parameter": _MISTAKE,
    "missing_required_parameter": _MISTAKE,
    "cannot_update_voice": _MISTAKE,
    "item_truncate_invalid_item_id": _MISTAKE,
    # Two responses at once: a client handles its own; a turn waits and asks again.
    "conversation_already_has_active_response": _MISTAKE,
    "content_filter": _MISTAKE,
    # Temporary errors.
    "rate_limit_exceeded": _LIMIT,
    "inference_rate_limit_exceeded": _LIMIT,
    "server_error": _FAILURE,
    "session_expired": Meaning(Blame.PASSING, "upstream-failed", CloseReason.UPSTREAM_CLOSED),
    # Events that arrived after the response or item had ended.
    "response_cancel_not_active": _HARMLESS,
    "input_audio_buffer_commit_empty": _HARMLESS,
    "call_id_not_found": _HARMLESS,
}

RATE_LIMITS: Final = frozenset(code for code, meaning in MEANINGS.items() if meaning is _LIMIT)

_BY_STATUS: Final[tuple[tuple[range, Code], ...]] = (
    (range(408, 409), "upstream-failed"),
    (range(425, 426), "upstream-failed"),
    (range(429, 430), "upstream-rate-limited"),
    (range(400, 500), "upstream-rejected"),
)


def code_of(status: int, code: object) -> Code:
    """Return the problem code of a refused call: permanent errors first, then by status."""
    meaning = MEANINGS.get(code) if isinstance(code, str) else None
    if meaning is not None and meaning.blame is Blame.OPERATOR and status < 500:
        return meaning.code
    return next((problem for statuses, problem in _BY_STATUS if status in statuses), "upstream-failed")

"""How a session ends, and the error its waiters receive. No I/O, no clock."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.errors import CallerError, GatewayError, UpstreamError
from gateway.relay.events.envelope import ClientEvent, client_event
from gateway.relay.ports import Json
from gateway.relay.states import CloseReason


@dataclass(frozen=True, slots=True)
class End:
    """Why the session ends, with OpenAI's error if there was one."""

    reason: CloseReason
    upstream: Json | None = None
    hang_up: bool = True


UPSTREAM_REASONS = frozenset(
    {CloseReason.UPSTREAM_LOST, CloseReason.UPSTREAM_CLOSED, CloseReason.UPSTREAM_REJECTED}
)


def failure_of(end: End, session_id: str) -> GatewayError:
    """Return the error for requests that are waiting on the session."""
    if end.reason is CloseReason.INTERNAL:
        return GatewayError("internal", f"The gateway failed; see its log for session '{session_id}'.")
    detail = f"The session ended: {end.reason}."
    if end.reason not in UPSTREAM_REASONS:
        return CallerError("session-closed", detail, members={"reason": end.reason})
    members: Mapping[str, object] = {"upstream": end.upstream} if end.upstream else {}
    return UpstreamError("upstream-failed", detail, members=members)


def cancelling(response_id: str | None) -> ClientEvent:
    """Return the event that cancels a response, or the active one."""
    value: dict[str, object] = {"type": "response.cancel"}
    if response_id is not None:
        value["response_id"] = response_id
    return client_event(json.dumps(value, separators=(",", ":")), "response.cancel", None, value)

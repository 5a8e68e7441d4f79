"""Session states and close reasons, as clients, operators and metrics see them. No I/O, no clock.

Which state follows which is in `lifecycle`. A session is closed for exactly one reason, and the reason is the same word in
the last event of the log, in the log line and in the metric.
"""

from enum import StrEnum


class State(StrEnum):
    """A session's state, as its owner sees it."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    RECOVERING = "recovering"
    CLOSED = "closed"


class CloseReason(StrEnum):
    """Why a session ended (docs/api.md, 1 Sessions)."""

    CLIENT = "client"
    DETACHED = "detached"
    IDLE = "idle"
    EXPIRED = "expired"
    UPSTREAM_REJECTED = "upstream_rejected"
    UPSTREAM_LOST = "upstream_lost"
    UPSTREAM_CLOSED = "upstream_closed"
    LIMIT = "limit"
    DRAINED = "drained"
    INTERNAL = "internal"

    @property
    def retryable(self) -> bool:
        """Whether opening another session can help."""
        return self not in _FINAL


_FINAL = frozenset({CloseReason.CLIENT, CloseReason.UPSTREAM_REJECTED, CloseReason.LIMIT})

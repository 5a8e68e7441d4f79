"""The life of a session as a table. No I/O, no clock.

```
                 opened                 lost                    recovered
   connecting ───────────▶ connected ─────────▶ recovering ───────────────▶ connected
       │ closed                │ closed              │ closed
       └──────────────▶ closed ◀──────────────┴──────────────┘
```

`closed` is final: it has no row, so whatever comes later is refused. A session is closed for exactly one reason, and
the reason is the same word in the last event of the log, in the log line and in the metric.
"""

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """Where a session is in its life, as its owner is told."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    RECOVERING = "recovering"
    CLOSED = "closed"


class Input(StrEnum):
    """What happens to a session."""

    OPENED = "opened"
    LOST = "lost"
    RECOVERED = "recovered"
    CLOSED = "closed"


TRANSITIONS: Mapping[tuple[State, Input], State] = {
    (State.CONNECTING, Input.OPENED): State.CONNECTED,
    (State.CONNECTING, Input.CLOSED): State.CLOSED,
    (State.CONNECTED, Input.LOST): State.RECOVERING,
    (State.CONNECTED, Input.CLOSED): State.CLOSED,
    (State.RECOVERING, Input.RECOVERED): State.CONNECTED,
    (State.RECOVERING, Input.CLOSED): State.CLOSED,
}


class IllegalTransition(Exception):
    """An input that the state has no row for: a mistake of the gateway, not of a caller."""


def advance(state: State, happened: Input) -> State:
    """Give the next state; raises IllegalTransition where the table has no row."""
    try:
        return TRANSITIONS[state, happened]
    except KeyError:
        raise IllegalTransition(f"{happened} in state {state}") from None


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

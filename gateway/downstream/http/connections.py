"""The open connections of one listener: their number, which are idle, and the size of their unfinished heads.

A connection uses a descriptor and some memory even while idle. At the limit, the connection that has been idle longest
is closed to make room. If none is idle, a new connection gets 503 `capacity` for its first request and is closed.
`REFUSALS` connections can be refused like this at once; any more are closed without a response.

Unfinished request heads are buffered before the caller is authenticated, so their total size is bounded.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from gateway.downstream.http.intake import Intake
from gateway.errors import OverloadError
from gateway.relay.memory import UNKNOWN, Budget, Holding
from gateway.relay.telemetry import DownstreamTelemetry

REFUSALS: Final = 32
"""Connections above the limit that are kept open until they have got their 503."""

ANSWER_SHARE: Final = 0.125
"""The share of a principal's memory that its unread responses may use. Few clients request large pages, and the rest is
needed for data that must be kept."""

RETRY_SECONDS: Final = 5.0

TELL_SECONDS: Final = 60.0
"""Minimum time between two log lines about refused connections."""


class Idle(Protocol):
    """The interface of a connection that this file uses."""

    def close_idle(self) -> None:
        """Close the connection, which has no request in progress."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits for all connections of one listener together."""

    max_connections: int = 10_000
    max_idle: int = 1024
    """Maximum number of idle connections. Above it, the one that has been idle longest is closed."""
    max_head_bytes: int = 16 * 1024 * 1024


class Connections:
    """Counts the connections of one listener and closes idle ones when it is full."""

    def __init__(
        self,
        limits: ConnectionLimits,
        telemetry: DownstreamTelemetry,
        budget: Budget,
        monotonic: Callable[[], float],
    ) -> None:
        self.limits = limits
        self.telemetry = telemetry
        self.budget = budget
        self._monotonic = monotonic
        self._untold = 0
        self._told_at = -math.inf
        self.intake = Intake()
        self._heads: Holding = budget.open(UNKNOWN)
        self._open = 0
        # Bounded by the configured principals' names.
        self._answers: dict[str, int] = {}
        # Ordered by when they became idle, the longest idle first.
        self._idle: dict[Idle, None] = {}

    def __len__(self) -> int:
        return self._open

    @property
    def idle_count(self) -> int:
        """How many have no request in progress."""
        return len(self._idle)

    @property
    def room(self) -> bool:
        """Whether one more connection can be accepted, even if only to be refused with 503."""
        return self._open < self.limits.max_connections + REFUSALS

    def opened(self, connection: Idle) -> bool:
        """Count a new connection, which is idle at first. Return whether it may be served."""
        self._open += 1
        served = self._open <= self.limits.max_connections or self._close_longest_idle()
        if not served:
            self.refused("connections")
        self.idle(connection)
        return served

    def lost(self, connection: Idle) -> None:
        self._open -= 1
        self._idle.pop(connection, None)

    def busy(self, connection: Idle) -> None:
        self._idle.pop(connection, None)

    def idle(self, connection: Idle) -> None:
        self._idle[connection] = None
        if len(self._idle) > self.limits.max_idle:
            self._close_longest_idle()

    def refused(self, reason: Literal["connections", "descriptors"]) -> None:
        """Count a refused connection. Logged at most once a minute."""
        self._untold += 1
        now = self._monotonic()
        if now - self._told_at >= TELL_SECONDS:
            self.telemetry.connections_refused(self._untold, reason)
            self._untold, self._told_at = 0, now

    def head_grew(self, size: int) -> bool:
        """Charge `size` bytes of an unfinished head; a negative size releases them. Return whether they fit."""
        self._heads.grow(size)
        return size <= 0 or self._heads.size <= self.limits.max_head_bytes

    def answering(self, principal: str, size: int) -> None:
        """Count a response that a principal's client has not read yet. Raises `capacity` above its share."""
        held = self._answers.get(principal, 0)
        if held + size > self.budget.principal_bytes * ANSWER_SHARE:
            raise OverloadError(
                "capacity", "Too many answers wait for their clients to read them.", retry_after=RETRY_SECONDS
            )
        self._answers[principal] = held + size

    def answered(self, principal: str, size: int) -> None:
        """Stop counting a response that was read or abandoned."""
        left = self._answers.pop(principal) - size
        if left:
            self._answers[principal] = left

    def _close_longest_idle(self) -> bool:
        longest = next(iter(self._idle), None)
        if longest is None:
            return False
        del self._idle[longest]
        longest.close_idle()
        return True

"""The open connections of one listener: how many there are, which are idle, and what their unfinished heads hold.

A connection costs a descriptor and some memory whether or not it is used. When as many are open as may be, the one that
has been idle for the longest is closed to make room. When none is idle, a new one gets 503 `capacity` for its first
request and is closed. Beyond that reserve connections are closed unanswered.

Unfinished request heads are held before anybody is authenticated, so they are bounded for all connections together.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from gateway.errors import OverloadError
from gateway.relay.budget import UNKNOWN, Budget, Holding
from gateway.relay.telemetry import DownstreamTelemetry

REFUSALS: Final = 32
"""Connections beyond the bound that are kept open for the moment that telling them 503 takes."""

ANSWER_SHARE: Final = 0.125
"""The part of a principal's memory that its unread answers may take. Large pages are asked for by few; the rest is for
what has to be kept."""

RETRY_SECONDS: Final = 5.0

TELL_SECONDS: Final = 60.0
"""At most one log line in this time says that connections are refused."""


class Idle(Protocol):
    """A connection as this file needs it."""

    def close_idle(self) -> None:
        """Close it; no request is under way."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What all connections of one listener may take together."""

    max_connections: int = 10_000
    max_idle: int = 1024
    """Idle connections kept. One more closes the one that has been idle for the longest."""
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
        self._heads: Holding = budget.open(UNKNOWN)
        self._open = 0
        # Bounded by the configured principals' names.
        self._answers: dict[str, int] = {}
        # In the order in which they became idle, the longest idle first.
        self._idle: dict[Idle, None] = {}

    def __len__(self) -> int:
        return self._open

    @property
    def room(self) -> bool:
        """Whether one more connection may be opened, if only to be told that there is no room."""
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
        """Note that a connection was refused; the log is told once a minute."""
        self._untold += 1
        now = self._monotonic()
        if now - self._told_at >= TELL_SECONDS:
            self.telemetry.connections_refused(self._untold, reason)
            self._untold, self._told_at = 0, now

    def head_grew(self, size: int) -> bool:
        """Charge `size` bytes of an unfinished head, negative when it is finished. Return whether they fit."""
        self._heads.grow(size)
        return size <= 0 or self._heads.size <= self.limits.max_head_bytes

    def answering(self, principal: str, size: int) -> None:
        """Count an answer that a principal's client has not taken yet. Raises `capacity` beyond its share."""
        held = self._answers.get(principal, 0)
        if held + size > self.budget.principal_bytes * ANSWER_SHARE:
            raise OverloadError(
                "capacity", "Too many answers wait for their clients to read them.", retry_after=RETRY_SECONDS
            )
        self._answers[principal] = held + size

    def answered(self, principal: str, size: int) -> None:
        """Count an answer off that was taken or given up."""
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

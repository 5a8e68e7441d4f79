"""What every session of a process shares."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from gateway.relay.clock import Clock
from gateway.relay.dialgate import DialGate
from gateway.relay.limits import RelayLimits
from gateway.relay.memory import Budget
from gateway.relay.ports import Dialer
from gateway.relay.spending import Allowance
from gateway.relay.telemetry import RelayTelemetry


class Gate(Protocol):
    """Spreads the calls of sessions that were taken over together."""

    def dial(self, urgent: Callable[[], bool]) -> AbstractAsyncContextManager[None]:
        """Wait for permission to dial, hold it for as long as the dial takes, and release it. Urgent sessions come
        first."""


@dataclass(frozen=True, slots=True)
class Services:
    """The ports and limits that sessions use."""

    dialer: Dialer
    telemetry: RelayTelemetry
    limits: RelayLimits
    clock: Clock
    allowance: Allowance = field(default_factory=Allowance)
    budget: Budget = field(default_factory=Budget)
    gate: Gate | None = None
    dial_gate: DialGate = field(default_factory=DialGate)
    """Spreads the calls that replace lost ones."""
    seeding_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a few items are sent to a new call."""

"""The relay's limits as one frozen value; every buffer and wait of this package is bounded by a line here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.relay.usage import PriceList

KIB, MIB = 1024, 1024 * 1024


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """The operator's limits. Times are in seconds, sizes in bytes."""

    template: Mapping[str, object] = field(default_factory=dict)
    """The OpenAI session object that every create is merged over."""
    session_locked: tuple[str, ...] = ()
    """Members of it that a caller may not set; dots lead into objects, as in `audio.input.turn_detection`."""
    prices: PriceList = field(default_factory=PriceList)
    """What tokens cost, for the session's usage and for budgets in dollars."""
    max_sessions: int = 2000
    max_loop_lag_seconds: float = 0.25
    """Delay of the event loop above which no new sessions are opened; 0 for no limit."""
    max_event_bytes: int = MIB
    high_water_bytes: int = MIB
    """A batch that would lift `bufferedAmount` above this is refused, unless nothing is buffered."""
    log_max_events: int = 10_000
    log_max_bytes: int = 8 * MIB
    log_total_bytes: int = 1024 * MIB
    log_retention_seconds: float = 120
    detach_grace_seconds: int = 600
    idle_timeout_seconds: float = 0
    """0 for never."""
    max_session_seconds: float = 0
    """0 for no limit."""
    turn_timeout_seconds: float = 300
    max_waiting_turns: int = 8
    max_receivers: int = 8
    greeting_seconds: float = 1.0
    """How long an opening waits for session.created once the channel is open; the service sends it at once."""
    parting_seconds: float = 1.0
    """How long a closing waits for a cancelled response's response.done, which carries the usage to be billed."""
    expiring_seconds: float = 120
    """How long before the call's end it is replaced or, without continuity, its session is told `gateway.expiring`."""
    replace_latest_seconds: float = 30
    """How long before the call's end it is replaced even in the middle of a response."""
    continuity: bool = True
    """Replace a call that is lost or about to end, and go on."""
    recovery_timeout_seconds: float = 60
    """How long a session without a call tries for another one. A call that is open by then may take the conversation for
    as long again."""
    stall_timeout_seconds: float = 30
    """A call that owes an answer, acknowledges what is sent, and delivers nothing for so long is replaced."""
    seeding_seconds: float = 15
    """An attempt to seed a new call is given up when no item was taken for so long."""
    held_max_events: int = 1000
    held_max_bytes: int = MIB
    """Bound on what is accepted while there is no call; more is refused as `recovering`."""


MIN_DETACH_GRACE_SECONDS = 10
MAX_DETACH_GRACE_SECONDS = 3600

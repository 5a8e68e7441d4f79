"""What every request that changes something brings: its caller and its keys; and the receipt of a batch. No I/O."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from gateway.relay.events.eventlog import EventId


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling. `name` is a configured key's name or `anonymous`; sessions belong to it."""

    name: str
    anonymous: bool = False
    max_sessions: int | None = None
    """Sessions at once; None for no limit of its own."""
    tokens_per_session: int | None = None
    tokens_per_day: int | None = None
    dollars_per_session: float | None = None
    dollars_per_day: float | None = None

    @property
    def budgeted(self) -> bool:
        """Its spending is limited, in tokens or dollars, so no event may hide a response.create."""
        limits = (
            self.tokens_per_session,
            self.tokens_per_day,
            self.dollars_per_session,
            self.dollars_per_day,
        )
        return any(limit is not None for limit in limits)


@dataclass(frozen=True, slots=True)
class Promise:
    """Keys that are stored with the effect of a request.

    `key` is the Idempotency-Key in its scope, `fingerprint` what a repeat must equal. `request_id` is that of a request
    that another node passed on, and may pass on again.
    """

    key: str | None = None
    fingerprint: str | None = None
    request_id: str | None = None


NO_PROMISE: Final = Promise()


class Receipt(NamedTuple):
    """What became of a batch: how many events, their numbers in the session's own count of accepted events from 1, and
    the log's head as it was before sending."""

    accepted: int
    first: int
    last: int
    head: EventId
    replayed: bool = False
    """It is the receipt of an earlier request with the same Idempotency-Key."""

"""The effects of a record besides the new state: values that the session's shell carries out. No I/O.

The fold returns them in order and does nothing itself, so that no callback runs while the state is half changed, and so
that a replay, which drops them, has no effects. What is sent, reported and dialled follows from `lifecycle` for a call, from
`Send` for the gateway's own events; turns and telemetry follow from the rest.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from gateway.relay.events.envelope import ClientEvent
from gateway.relay.state.turn import Turn
from gateway.relay.usage import Charge


class Send(NamedTuple):
    """Send events of the gateway's own. Ignored if the channel is gone."""

    events: Sequence[ClientEvent]


class Advance(NamedTuple):
    """The next turn may be sent."""


ADVANCE: Final = Advance()
"""The one that is used: it follows from every watched event."""


class TurnOver(NamedTuple):
    """A turn is finished: wake its waiters."""

    turn: Turn


class FirstDelta(NamedTuple):
    """A response sent its first delta, this long after it was requested."""

    seconds: float


class ResponseDone(msgspec.Struct, frozen=True, gc=False):
    """A response ended."""

    status: str
    seconds: float
    charge: Charge | None
    """None if it did not report its cost."""
    error: str | None
    """OpenAI's code, if it failed."""


class Transcribed(NamedTuple):
    """Audio was transcribed by a separate model."""

    charge: Charge


class Unrecorded(NamedTuple):
    """Responses were cut off, so their cost will never be reported."""

    responses: int


class Refused(NamedTuple):
    """Requests for a response were refused: they will cost nothing."""

    requests: int


class UpstreamError(NamedTuple):
    """An `error` event came."""

    code: str


Effect = (
    Send | Advance | TurnOver | FirstDelta | ResponseDone | Transcribed | Unrecorded | Refused | UpstreamError
)

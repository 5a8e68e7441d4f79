"""What follows from a record besides the new state: values that the session's shell carries out. No I/O.

The fold returns them in order and does nothing itself, so that no callback runs while the state is half changed, and so
that a replay, which drops them, has no effects. What is sent, told and dialled follows from `lifecycle` for a call, from
`Send` for the gateway's own events; turns and telemetry follow from the rest.
"""

from collections.abc import Sequence
from typing import NamedTuple

from gateway.relay.envelope import ClientEvent
from gateway.relay.turn import Turn
from gateway.relay.usage import Charge


class Send(NamedTuple):
    """Send events of the gateway's own; harmless if the channel is gone."""

    events: Sequence[ClientEvent]


class Advance(NamedTuple):
    """The next turn may be sent."""


class TurnOver(NamedTuple):
    """A turn is finished: wake whoever waits for it."""

    turn: Turn


class FirstDelta(NamedTuple):
    """A response began to speak, so long after it was asked for."""

    seconds: float


class ResponseDone(NamedTuple):
    """A response ended."""

    status: str
    seconds: float
    charge: Charge | None
    """None where it did not say what it cost."""
    error: str | None
    """OpenAI's code, where it failed."""


class Transcribed(NamedTuple):
    """Audio was transcribed, by a model of its own."""

    charge: Charge


class Unrecorded(NamedTuple):
    """Responses were cut off and will never say what they cost."""

    responses: int


class UpstreamError(NamedTuple):
    """An `error` event came."""

    code: str


Effect = Send | Advance | TurnOver | FirstDelta | ResponseDone | Transcribed | Unrecorded | UpstreamError

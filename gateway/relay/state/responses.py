"""The responses in flight of one session: which are active, how fast they began. No I/O, no clock.

Each knows the request that asked for it, so that a response that a lost call cut off can be asked for again. Out-of-band
responses run in parallel. Above `MAX_ACTIVE` the oldest is considered lost, so that a far end cannot exhaust memory.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from gateway.relay.state.delivery import Delivery
from gateway.relay.state.effects import Effect, FirstDelta, ResponseDone, Unrecorded
from gateway.relay.usage import Charge

Json = Mapping[str, object]

MAX_ACTIVE: Final = 256


class InFlight(msgspec.Struct, gc=False):
    """One response that was created and is not done."""

    request: Delivery | None
    """None for one that the service began by itself, or whose request is not known."""
    default: bool
    """It belongs to the default conversation, which has one response at a time."""
    started: float
    mute_since: float | None
    """When it was asked for; None once it has begun to speak."""


class Responses:
    """Follows response.created, the deltas and response.done."""

    def __init__(self) -> None:
        self._active: dict[str, InFlight] = {}
        self._asked_at: float | None = None
        self.mute = 0
        """Responses that have not begun to speak; deltas are of interest only while there are any."""

    @property
    def active(self) -> tuple[str, ...]:
        """IDs of all responses in flight."""
        return tuple(self._active)

    @property
    def any(self) -> bool:
        """Some response is in flight."""
        return bool(self._active)

    @property
    def busy(self) -> bool:
        """The default conversation has a response in flight: no other may be created in it."""
        return bool(self._active) and any(one.default for one in self._active.values())

    @property
    def requests(self) -> list[Delivery]:
        """The requests for those in flight."""
        return [one.request for one in self._active.values() if one.request is not None]

    def asked(self, now: float) -> None:
        """A response.create was handed to the channel."""
        self._asked_at = now

    def created(self, value: Json, request: Delivery | None, now: float) -> list[Effect]:
        """A response began, asked for by `request`."""
        response_id, response = response_of(value)
        effects: list[Effect] = []
        if len(self._active) >= MAX_ACTIVE:
            self._forget(next(iter(self._active)))
            effects.append(Unrecorded(1))
        since = now if self._asked_at is None else self._asked_at
        self._forget(response_id)
        self._active[response_id] = InFlight(request, response.get("conversation_id") is not None, now, since)
        self._asked_at = None
        self.mute += 1
        return effects

    def delta(self, value: Json, now: float) -> list[Effect]:
        """A response sent a delta."""
        one = self._active.get(str(value.get("response_id")))
        if one is None or one.mute_since is None:
            return []
        since, one.mute_since = one.mute_since, None
        self.mute -= 1
        return [FirstDelta(now - since)]

    def done(self, value: Json, charge: Charge | None, now: float) -> list[Effect]:
        """A response ended at this cost; None if it did not report one."""
        response_id, response = response_of(value)
        one = self._forget(response_id)
        status = response.get("status")
        return [
            ResponseDone(
                status if isinstance(status, str) else "other",
                now - one.started if one is not None else 0.0,
                charge,
                _error_code(response) if response.get("status_details") is not None else None,
            )
        ]

    def lost(self, asking: int) -> list[Effect]:
        """The call is over: the cost of responses in flight or requested will never be reported."""
        count = len(self._active) + asking
        self._active.clear()
        self._asked_at, self.mute = None, 0
        return [Unrecorded(count)] if count else []

    def dump(self) -> list[object]:
        """Return the responses as JSON."""
        return [
            [
                response_id,
                one.default,
                None
                if one.request is None
                else [one.request.id, one.request.number, one.request.turn, one.request.text],
            ]
            for response_id, one in self._active.items()
        ]

    def load(self, response_id: str, default: bool, request: Delivery | None) -> None:
        """Add a response that was dumped."""
        self._active[response_id] = InFlight(request, default, 0.0, None)

    def _forget(self, response_id: str) -> InFlight | None:
        one = self._active.pop(response_id, None)
        if one is not None and one.mute_since is not None:
            self.mute -= 1
        return one


def response_of(value: Json) -> tuple[str, Json]:
    """Return the ID and the object of a response's event."""
    response = value.get("response")
    if not isinstance(response, dict):
        return "", {}
    return str(response.get("id")), response


def _error_code(response: Json) -> str | None:
    details = response.get("status_details")
    error = details.get("error") if isinstance(details, dict) else None
    if not isinstance(error, dict):
        return None
    code = error.get("code") or error.get("type")
    return code if isinstance(code, str) else "other"

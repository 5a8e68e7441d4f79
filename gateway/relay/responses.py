"""The responses in flight of one session: which are active, how fast they began, what they cost. No I/O, no clock.

Fed with server events, it tells telemetry the facts of each response once: the time to its first delta, its status and
duration, its tokens. Whatever ends without a response.done is counted as unrecorded usage.
"""

from collections.abc import Mapping

from gateway.relay.ports import Json
from gateway.relay.telemetry import RelayTelemetry
from gateway.relay.usage import Charge, PriceList, charge

MAX_ACTIVE = 256
"""Out-of-band responses run in parallel; above this the oldest is taken for lost, so that no far end fills memory."""


class Responses:
    """Follows response.create, response.created, the deltas and response.done."""

    def __init__(self, session: str, principal: str, telemetry: RelayTelemetry, prices: PriceList) -> None:
        self._session = session
        self._principal = principal
        self._telemetry = telemetry
        self._prices = prices
        self._asked_at: float | None = None
        self._started: dict[str, float] = {}
        self._mute: dict[str, float] = {}
        self._default: set[str] = set()
        self._audio_told = False
        self.text_only = False
        """The session asked for text alone, so audio tokens are a surprise that costs money."""
        self.model: str | None = None
        self.transcription_model: str | None = None

    @property
    def active(self) -> tuple[str, ...]:
        """Ids of all responses in flight."""
        return tuple(self._started)

    @property
    def busy(self) -> bool:
        """The default conversation has a response in flight: no other may be created in it."""
        return bool(self._default)

    @property
    def awaiting_delta(self) -> bool:
        """Some response has not begun to speak; deltas are of interest only then."""
        return bool(self._mute)

    def asked(self, now: float) -> None:
        """A response.create was handed to the channel."""
        self._asked_at = now

    def created(self, value: Json, now: float) -> None:
        response_id, response = _response(value)
        if len(self._started) >= MAX_ACTIVE:
            self._forget(next(iter(self._started)))
            self._telemetry.usage_unrecorded()
        self._started[response_id] = now
        self._mute[response_id] = now if self._asked_at is None else self._asked_at
        self._asked_at = None
        if response.get("conversation_id") is not None:
            self._default.add(response_id)

    def delta(self, value: Json, now: float) -> None:
        asked_at = self._mute.pop(str(value.get("response_id")), None)
        if asked_at is not None:
            self._telemetry.first_delta(now - asked_at)

    def done(self, value: Json, now: float) -> Charge | None:
        """A response is over. Returns what it cost, None if it does not say."""
        response_id, response = _response(value)
        started = self._started.get(response_id, now)
        self._forget(response_id)
        status = response.get("status")
        self._telemetry.response_done(status if isinstance(status, str) else "other", now - started)
        usage = response.get("usage")
        code = _error_code(response)
        if code is not None:
            self._telemetry.upstream_error(code)
        if not isinstance(usage, Mapping):
            self._telemetry.usage_unrecorded()
            return None
        cost = self._charge(usage, self.model)
        self._watch_audio(cost)
        return cost

    def transcribed(self, value: Json) -> Charge | None:
        """An audio item was transcribed, by a model of its own (Realtime: …input_audio_transcription.completed). Returns
        what that cost, None if it does not say."""
        usage = value.get("usage")
        return self._charge(usage, self.transcription_model) if isinstance(usage, Mapping) else None

    def lost(self) -> int:
        """The call is over: what was in flight will never say what it cost. Returns how many responses that were."""
        count = len(self._started)
        for _ in self._started:
            self._telemetry.usage_unrecorded()
        self._started.clear()
        self._mute.clear()
        self._default.clear()
        return count

    def _charge(self, usage: Json, model: str | None) -> Charge:
        cost = charge(usage, model, self._prices)
        self._telemetry.charged(self._principal, cost)
        return cost

    def _forget(self, response_id: str) -> None:
        self._started.pop(response_id, None)
        self._mute.pop(response_id, None)
        self._default.discard(response_id)

    def _watch_audio(self, cost: Charge) -> None:
        audio = cost.input.get("audio", 0) + cost.output.get("audio", 0)
        if audio and self.text_only and not self._audio_told:
            self._audio_told = True
            self._telemetry.audio_tokens_in_text_session(self._session, audio)


def _response(value: Json) -> tuple[str, Json]:
    response = value.get("response")
    if not isinstance(response, Mapping):
        return "", {}
    return str(response.get("id")), response


def _error_code(response: Json) -> str | None:
    details = response.get("status_details")
    error = details.get("error") if isinstance(details, Mapping) else None
    if not isinstance(error, Mapping):
        return None
    code = error.get("code") or error.get("type")
    return code if isinstance(code, str) else "other"

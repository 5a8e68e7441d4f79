"""The calls of a session: sending on the present one, hearing it, and the steps of their life.

`Calls` is the `Sink` of its calls. Each has a generation: what the present one says goes to the session, what its
successor says is read while it is seeded, anything else is stale and dropped. Where a session is in its calls' life, and
what may happen next, is in `lifecycle`: every change goes through `_step`, which carries out what the table asks for.
What became of each accepted event is in the session's state (see `fold`), which is changed through the owner.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from gateway.errors import CallerError, OverloadError, UpstreamError
from gateway.relay.calls.expiry import MIN_DISTANCE_SECONDS, Expiry, expiry
from gateway.relay.calls.lifecycle import HEARING, HOLDING, STATE_OF, Action, Input, Phase, advance
from gateway.relay.calls.owner import Owner
from gateway.relay.calls.seeding import Seeding
from gateway.relay.calls.succession import Successor
from gateway.relay.events.envelope import member, text_of
from gateway.relay.events.frames import Read
from gateway.relay.events.records import Acknowledged, Handed, LineState
from gateway.relay.ports import CallRequest, Json, LossCause, Upstream
from gateway.relay.services import Services
from gateway.relay.state.delivery import Delivery
from gateway.relay.state.fold import SessionState
from gateway.relay.states import CloseReason, State

ROTATION: Final = "rotation"
RESTART: Final = "restart"
NODE_LOST: Final = "node_lost"
HANDOVER: Final = "handover"

_TELLS_WITHIN: Final = 64
"""Messages of which a transport that can tell has acknowledged some."""


class Calls:
    """The present call and its successor."""

    def __init__(
        self,
        request: CallRequest,
        services: Services,
        owner: Owner,
        state: SessionState,
        ending: "asyncio.Future[Any]",
        phase: Phase = Phase.DIALLING,
    ) -> None:
        """`ending` is the session's; its result is not used here, hence Any."""
        self.phase = phase
        self.holding = phase in HOLDING
        """Events are held back at the moment."""
        self.call_expires_at: int | None = None
        self.last_refusal: Json | None = None
        """Code and message of the last `error` event: a call's end is often explained just before it comes."""
        self._request = request
        self._services = services
        self._limits = services.limits
        self._clock = services.clock
        self._telemetry = services.telemetry
        self._owner = owner
        self._state = state
        self._ending = ending
        self._attached = request.attach_to is not None
        self._upstream: Upstream | None = None
        self._messages = 0
        self._generation = request.generation
        self._successor: Successor | None = None
        self._greeted = asyncio.Event()
        self._moved = moved = asyncio.Event()
        ending.add_done_callback(lambda _: moved.set())
        self._due: str | None = None
        self._parking: asyncio.Future[bool] | None = None
        now = services.clock.monotonic()
        self._heard_at = self._delivered_at = self._handed_at = self._taken_at = now
        self._probe: asyncio.Task[None] | None = None
        self._restored: Seeding | None = None
        self._cut = self._retried = False
        self._retry_hand_over_at = 0.0
        self._expiry: Expiry | None = None
        self._expiry_ignored = False
        # What comes while the state is half changed, from a transport that calls back out of `send`, waits in here.
        self._changing = False
        self._deferred: list[tuple[int, str, Read | None]] = []

    # --- for the session ----------------------------------------------------------------------------------------------

    @property
    def call_id(self) -> str | None:
        return self._upstream.call_id if self._upstream else None

    @property
    def max_message_bytes(self) -> int | None:
        """The largest message that the current call accepts; None without a call, or if it names no limit."""
        return self._upstream.max_message_bytes if self._upstream else None

    @property
    def message(self) -> int:
        """The number of the call's next message."""
        return self._messages + 1

    @property
    def diagnostics(self) -> Json:
        upstream = self._upstream
        return {
            "phase": self.phase,
            "generation": self._generation,
            "held": len(self._state.ledger.held),
            "unconfirmed": len(self._state.ledger.in_flight),
            "buffered": upstream.buffered if upstream else 0,
            "call": upstream.diagnostics if upstream else None,
        }

    def renew(self, bearer: str) -> None:
        """Use another credential of the caller's for the calls to come."""
        self._request = replace(self._request, bearer=bearer)
        self._moved.set()

    @property
    def bearer(self) -> str | None:
        """The caller's own credential."""
        return self._request.bearer

    def send(self, texts: Sequence[str], size: int) -> bool:
        """Hand the complete batch of this size to the channel and return True, or return False if it must be held.
        Raises GatewayError, after which nothing of it was accepted. `catch_up` must follow, when the batch is in the
        state."""
        self._changing = True
        if not self.holding:
            upstream = self._upstream
            if upstream is None:
                raise UpstreamError("upstream-failed", "The session has no call.")
            buffered = upstream.buffered
            if buffered and buffered + size > self._limits.high_water_bytes:
                detail = f"{buffered} bytes are waiting for OpenAI to read them; the batch was not accepted."
                raise OverloadError("upstream-backpressure", detail, retry_after=1)
            if self._state.ledger.crowded(len(texts), size):
                self.confirm()
                self._state.ledger.require_room(len(texts), size)
            try:
                upstream.send(texts)
            except UpstreamError:
                # The channel is closed, but its loss is not reported yet: events sent in between wait for the next call.
                if not self._replaceable:
                    raise
                self._step(Input.BLOCKED)
            else:
                self._messages += len(texts)
                self._handed_at = self._clock.monotonic()
                return True
        limits = self._limits
        self._state.ledger.require_room_to_hold(
            len(texts), size, limits.held_max_events, limits.held_max_bytes
        )
        return False

    def catch_up(self) -> None:
        """Apply the events that arrived in the meantime."""
        self._changing = False
        while self._deferred and not self._changing:
            self.received(*self._deferred.pop(0))

    def confirm(self) -> None:
        """Ask the transport what it has acknowledged."""
        if self._upstream is not None and self.phase in HEARING:
            acknowledged = self._upstream.acknowledged
            if not acknowledged and self._messages > _TELLS_WITHIN and self._heard_at > self._handed_at:
                # This transport reports no acknowledgements, so an event of the call is taken to mean that it has what was sent.
                acknowledged = self._messages
            upto = self._state.ledger.delivery_at(acknowledged)
            if upto:
                self._owner.note(Acknowledged(upto))

    def replace(self, cause: str) -> None:
        """Ask for a hand-over to a new call."""
        if self._due is None and self.phase is Phase.LIVE and not self._attached:
            self._due = cause
            self._moved.set()

    def heard(self, now: float, type_: str, value: Json) -> None:
        """Note an event of the current call that has been applied to the state."""
        if type_ in ("session.created", "session.updated"):
            self._learn(value)
            self._greeted.set()
        elif type_ == "error":
            error = member(value, "error")
            code = text_of(member(error, "code")) or text_of(member(error, "type")) or "other"
            self.last_refusal = {"code": code, "message": member(error, "message")}
        if self.phase is not Phase.LIVE:
            self._moved.set()  # A pause or a confirmation may be what is waited for. Waking the owner takes 100 us.

    # --- steps of the table -------------------------------------------------------------------------------------------

    def _step(self, happened: Input) -> None:
        """Go to the next phase, and do what the table says."""
        before, changing = self.phase, self._changing
        step = advance(before, happened)
        self.phase, self._changing = step.phase, True
        self.holding = step.phase in HOLDING
        if STATE_OF[before] is not STATE_OF[step.phase]:
            self._owner.moved(STATE_OF[before], STATE_OF[step.phase])
        for action in step.actions:
            match action:
                case Action.LEAVE:
                    self._leave_call()
                case Action.TELL_RECOVERING:
                    self._tell_recovering()
                case Action.TAKE_OVER:
                    self._take_over()
                case Action.RELEASE:
                    self._release()
                case Action.TELL_RECOVERED:
                    self._tell_recovered()
                case Action.HOLD:
                    pass  # The phase says so.
        self._moved.set()
        self._changing = changing
        if not changing:
            self.catch_up()

    def _leave_call(self) -> None:
        """Stop listening to the present call. Skip a generation, so that the next call's events are not mistaken for this
        one's while it is seeded."""
        self._generation = max(self._generation, self._request.generation) + 1

    def _tell_recovering(self) -> None:
        cause = self._due or LossCause.CONNECTION_FAILED
        self._owner.note(LineState(State.RECOVERING, self.call_id, None, None, cause))
        self._owner.tell("gateway.recovering", {"cause": cause})

    def _switch(self, seeding: Seeding) -> None:
        """Make the successor the present call. Synchronous, so that no event falls between the two."""
        successor = self._successor
        assert successor is not None  # it was just seeded
        self._restored = seeding
        self._step(Input.SEEDED)
        self._due, self._successor = None, None
        self._owner.replaced()
        if successor.loss is not None:
            self.lost(successor.generation, successor.loss)
        elif self._state.ledger.held:
            # The call is gone already; its loss will be reported, or found by `tick`. The rest waits for the next call.
            self._step(Input.BLOCKED)

    def _take_over(self) -> None:
        successor, seeding, state = self._successor, self._restored, self._state
        assert successor is not None  # `_switch` has it
        assert seeding is not None
        self._cut = state.cut and not self._attached
        again = state.again if self._cut and state.opening.retry_interrupted else []
        self._retried = bool(again)
        resent = {one.id for one in again}
        self._upstream = successor.upstream
        self._generation = successor.generation
        self._messages = successor.messages
        now = self._clock.monotonic()
        self._heard_at = self._delivered_at = self._taken_at = now
        # The old call's values are not the new one's.
        self.call_expires_at = self._expiry = None
        self._learn({"session": seeding.session})
        model = text_of(member(seeding.session, "model"))
        call = (State.CONNECTED, self.call_id, self.call_expires_at, model, self._due)
        self._owner.note(LineState(*call, dict(seeding.renamed), sorted(seeding.refused), sorted(resent)))

    def _release(self) -> None:
        """Hand over what waited, however much the channel has to carry already: it was accepted."""
        upstream, position = self._upstream, self._messages + 1
        assert upstream is not None  # only a line with a call releases
        handed, refused = 0, list[Delivery]()
        for one in self._state.ledger.held:
            try:
                upstream.send([one.text])
            except CallerError:
                refused.append(one)
            except UpstreamError:
                break
            else:
                self._messages += 1
                self._owner.sent(one)
            handed = one.id
        if handed:
            self._handed_at = self._clock.monotonic()
            self._owner.handed(Handed(handed, [one.id for one in refused]), position)

    def _tell_recovered(self) -> None:
        seeding = self._restored
        assert seeding is not None  # `_switch` has it
        members: dict[str, object] = {
            "cause": self._due,
            "call_id": self.call_id,
            "items_restored": seeding.restored,
            "items_lost": seeding.lost,
            "renamed": dict(seeding.renamed),
            "response": "retried" if self._retried else "interrupted" if self._cut else None,
            "unknown": [one.account for one in self._state.ledger.unknown],
            "refused": [one.account for one in self._state.ledger.oversized],
        }
        if self._due in (NODE_LOST, HANDOVER):
            members["accepted"] = self._state.accepted
        self._owner.tell("gateway.recovered", members)

    def _next(self) -> Successor:
        generation = max(self._generation, self._request.generation) + 1
        self._request = replace(self._request, generation=generation)
        return Successor(self._dialled(), self._services.dialer)

    def _dialled(self) -> CallRequest:
        """Return the request with the session object as it is now, which is kept as text alone."""
        return self._request if self._attached else replace(self._request, session=self._state.mirror.session)

    # --- what upstream says (ports.Sink) ------------------------------------------------------------------------------

    def received(self, generation: int, text: str, read: Read | None = None) -> None:
        try:
            if self._changing:
                self._deferred.append((generation, text, read))
            elif generation == self._generation:
                self._heard_at = self._delivered_at = self._clock.monotonic()
                self._owner.arrived(text, read)
            elif self._successor is not None and generation == self._successor.generation:
                self._successor.received(text, read)
        except Exception as error:  # noqa: BLE001  # raising here would close the peer connection
            self._telemetry.relay_failed(self._owner.id, error)

    def received_together(self, generation: int, texts: Sequence[str]) -> None:
        index = 0
        try:
            while index < len(texts) and generation == self._generation and not self._changing:
                self._heard_at = self._delivered_at = self._clock.monotonic()
                index += 1  # What cannot be relayed is not tried again.
                index = self._owner.arrived_together(texts, index - 1)
        except Exception as error:  # noqa: BLE001  # as above
            self._telemetry.relay_failed(self._owner.id, error)
        for text in texts[index:]:
            self.received(generation, text)

    def received_in_steps(self, generation: int, text: str) -> Iterator[None]:
        try:
            read = yield from self._owner.read_in_steps(text)
            yield
            if read is None:
                self.unreadable(generation, len(text))
            else:
                self.received(generation, text, read)
        except Exception as error:  # noqa: BLE001  # as above
            self._telemetry.relay_failed(self._owner.id, error)

    def unreadable(self, generation: int, size: int) -> None:
        self._telemetry.frame_unrelayed(self._owner.id, size)

    def lost(self, generation: int, cause: LossCause) -> None:
        if self._successor is not None and generation == self._successor.generation:
            self._successor.lost(cause)
            return
        if generation != self._generation or self._ending.done():
            return
        self.confirm()
        self._telemetry.upstream_lost(self._owner.id, cause)
        closed = cause is LossCause.CHANNEL_CLOSED
        if self._replaceable and not (self._attached and closed):
            self._due = cause
            self._step(Input.LOST)
            return
        reason = CloseReason.UPSTREAM_CLOSED if closed else CloseReason.UPSTREAM_LOST
        self._owner.end(reason, {"cause": cause, **(self.last_refusal or {})})

    @property
    def _replaceable(self) -> bool:
        return (self._limits.continuity or self._attached) and self.phase is not Phase.DIALLING

    def _learn(self, value: Json) -> None:
        expires_at = member(value, "session", "expires_at")
        if not isinstance(expires_at, int) or expires_at <= 0 or expires_at == self.call_expires_at:
            return
        limits, now = self._limits, self._clock.monotonic()
        found = expiry(
            expires_at, self._clock.unix(), now, limits.expiring_seconds, limits.replace_latest_seconds
        )
        if found is not None:
            self.call_expires_at, self._expiry = expires_at, found
        elif not self._expiry_ignored:
            self._expiry_ignored = True
            self._telemetry.call_expiry_ignored(self._owner.id, expires_at)

    @property
    def expiring(self) -> bool:
        """The call is about to end."""
        left = None if self._expiry is None else self._expiry.left(self._clock.monotonic())
        return left is not None and left <= self._limits.expiring_seconds

    @property
    def _late(self) -> bool:
        return self._expiry is not None and self._expiry.late(self._clock.monotonic())

    @property
    def _earliest_hand_over(self) -> float:
        return max(self._taken_at + MIN_DISTANCE_SECONDS, self._retry_hand_over_at)

"""A session's line upstream: one call at a time, replaced when it is lost or about to end.

The line is the `Sink` of its calls. Each has a generation: what the present one says goes to the session, what its
successor says is read while it is seeded, anything else is stale and dropped. Where a session is in all this, and what may
happen next, is in `lifecycle`: every change goes through `_step`. This file waits, dials, and carries out what the table
asks for. What became of each accepted event is in the session's state (see `fold`), which is changed through its owner.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

from gateway.errors import CallerError, GatewayError, OverloadError, UpstreamError
from gateway.relay.deliveries import Delivery
from gateway.relay.envelope import ClientEvent, member
from gateway.relay.expiry import MIN_DISTANCE_SECONDS, Expiry, expiry
from gateway.relay.fold import SessionState
from gateway.relay.lifecycle import HEARING, HOLDING, STATE_OF, Action, Input, Phase, advance
from gateway.relay.ports import CallRequest, Json, LossCause, Upstream
from gateway.relay.records import Acknowledged, DoubtSettled, Handed, LineState, Record
from gateway.relay.seeding import Seeding
from gateway.relay.services import Services
from gateway.relay.state import CloseReason, State
from gateway.relay.succession import Prepared, Successor, delays

ROTATION: Final = "rotation"
RESTART: Final = "restart"
NODE_LOST: Final = "node_lost"
HANDOVER: Final = "handover"

_HAND_OVER_RETRY_SECONDS: Final = 5.0
_SETTLE_SECONDS: Final = 2.0
"""How long a hand-over that can wait no more gives the old call to confirm what it was sent."""
_PROBE_AFTER_SECONDS: Final = 3.0
_PROBE_SECONDS: Final = 3.5
"""A probe is tried three times in it. Silence, a tick and the probe make less than 8 s, and a path of 0.5 s or with loss
still has time to answer."""
_SURE_POLL_SECONDS: Final = 0.2
_TELLS_WITHIN: Final = 64
"""Messages of which a transport that can tell has acknowledged some."""

_BESIDE: Final = frozenset({Phase.DIALLING_BESIDE, Phase.WAITING_QUIET, Phase.SETTLING, Phase.SEEDING})


class Owner(Protocol):
    """What the line tells its session. Synchronous; never raises."""

    @property
    def id(self) -> str: ...

    @property
    def sure(self) -> bool:
        """This node may speak for the session."""

    @property
    def urgent(self) -> bool:
        """Somebody waits for the session."""

    def arrived(self, text: str) -> None:
        """The present call said this."""

    def note(self, record: Record) -> None:
        """This happened: take it into the state and the journal."""

    def handed(self, record: Handed, position: int) -> None:
        """Held events were handed over, the first as this message of the call."""

    def sent(self, event: ClientEvent | Delivery) -> None:
        """An event was handed to the channel."""

    def tell(self, name: str, members: Json) -> None:
        """Write one of the gateway's own events into the log."""

    def moved(self, before: State, after: State) -> None:
        """The session's state changed."""

    def replaced(self) -> None:
        """There is a new call, and what waited was handed to it."""

    def end(self, reason: CloseReason, upstream: Json | None = None) -> None:
        """The line cannot go on."""


T = TypeVar("T")


class Line:
    """Opens, feeds, watches and replaces calls until `ending` is done."""

    def __init__(
        self,
        request: CallRequest,
        services: Services,
        owner: Owner,
        state: SessionState,
        ending: "asyncio.Future[Any]",
        phase: Phase = Phase.DIALLING,
    ) -> None:
        """`ending` is the session's; its result is of no interest here, hence Any."""
        self.phase = phase
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
        self._moved = asyncio.Event()
        self._due: str | None = None
        self._parking: asyncio.Future[bool] | None = None
        self._heard_at = self._delivered_at = self._handed_at = services.clock.monotonic()
        self._probe: asyncio.Task[None] | None = None
        self._restored: Seeding | None = None
        self._cut = False
        self._retried = False
        self._taken_at = services.clock.monotonic()
        self._retry_hand_over_at = 0.0
        self._expiry: Expiry | None = None
        self._expiry_ignored = False
        # What comes while the state is half changed, from a transport that calls back out of `send`, waits in here.
        self._changing = False
        self._deferred: list[tuple[int, str]] = []

    # --- for the session ----------------------------------------------------------------------------------------------

    @property
    def call_id(self) -> str | None:
        return self._upstream.call_id if self._upstream else None

    @property
    def max_message_bytes(self) -> int | None:
        """What the present call takes at most; None without a call, or where it names no limit."""
        return self._upstream.max_message_bytes if self._upstream else None

    @property
    def holding(self) -> bool:
        """Events are held back at the moment."""
        return self.phase in HOLDING

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

    def send(self, batch: Sequence[ClientEvent]) -> bool:
        """Hand a batch to the channel whole and return True, or return False where it is to be held. Raises GatewayError,
        after which nothing of it was accepted. `catch_up` must follow, when the batch is in the state."""
        self._changing = True
        size = sum(event.size for event in batch)
        if not self.holding:
            upstream = self._upstream
            if upstream is None:
                raise UpstreamError("upstream-failed", "The session has no call.")
            buffered = upstream.buffered
            if buffered and buffered + size > self._limits.high_water_bytes:
                detail = f"{buffered} bytes wait for OpenAI to take them; the batch was not accepted."
                raise OverloadError("upstream-backpressure", detail, retry_after=1)
            if self._state.ledger.crowded(len(batch), size):
                self.confirm()
                self._state.ledger.require_room(len(batch), size)
            try:
                upstream.send([event.text for event in batch])
            except UpstreamError:
                # The channel is closed and its loss about to be told: what is sent between the two waits for the next call.
                if not self._replaceable:
                    raise
                self._step(Input.BLOCKED)
            else:
                self._messages += len(batch)
                self._handed_at = self._clock.monotonic()
                return True
        limits = self._limits
        self._state.ledger.require_room_to_hold(
            len(batch), size, limits.held_max_events, limits.held_max_bytes
        )
        return False

    def catch_up(self) -> None:
        """Take in what came meanwhile."""
        self._changing = False
        while self._deferred and not self._changing:
            self.received(*self._deferred.pop(0))

    def confirm(self) -> None:
        """Ask the transport what it has acknowledged."""
        if self._upstream is not None and self.phase in HEARING:
            acknowledged = self._upstream.acknowledged
            if not acknowledged and self._messages > _TELLS_WITHIN and self._heard_at > self._handed_at:
                # This transport does not tell: the call's last word is taken for a sign that it has what came before.
                acknowledged = self._messages
            upto = self._state.ledger.delivery_at(acknowledged)
            if upto:
                self._owner.note(Acknowledged(upto))

    def replace(self, cause: str) -> None:
        """Ask for a hand-over to a new call."""
        if self._due is None and self.phase is Phase.LIVE and not self._attached:
            self._due = cause
            self._moved.set()

    async def park(self) -> bool:
        """Hold everything back in a pause, for another node to take over. False where that cannot be: there is no call,
        or it is lost meanwhile."""
        if self.phase is not Phase.LIVE or self._parking is not None:
            return False
        self._parking = asyncio.get_running_loop().create_future()
        self._moved.set()
        try:
            return await asyncio.shield(self._parking)
        finally:
            self._parking = None

    def resume(self) -> None:
        """Go on with the call after `park`: the other node did not take over."""
        if self.phase is Phase.PARKED:
            self._step(Input.RESUMED)
            self._owner.replaced()
        self._moved.set()

    def tick(self, now: float) -> None:
        """Look whether the call is about to end, has stalled, or is silent where it owes an answer."""
        upstream = self._upstream
        if upstream is None:
            return
        self.confirm()
        if not self._replaceable:
            return
        if self.phase is Phase.SUSPECT:  # The channel refused to send, but its loss was never told.
            self.lost(self._generation, LossCause.CONNECTION_FAILED)
            return
        if self.phase not in HEARING:
            return
        if self._expiry is not None and self._expiry.due(now) and now >= self._earliest_hand_over:
            self.replace(ROTATION)
        owes = bool(self._state.responses.active) or self._state.ledger.owed
        stalled = now - self._delivered_at >= self._limits.stall_timeout_seconds
        if owes and stalled and upstream.undelivered:
            self.lost(self._generation, LossCause.STALLED)
            return
        # What was sent last may be of a kind that nothing answers; its sender still wants to know that somebody is there.
        owes = owes or bool(upstream.buffered) or self._handed_at > self._heard_at
        if owes and now - self._heard_at >= _PROBE_AFTER_SECONDS and self._probe is None:
            self._probe = asyncio.create_task(self._probe_call(upstream, self._generation))

    def heard(self, now: float, type_: str, value: Json) -> None:
        """The present call said something that the state has taken in."""
        if type_ in ("session.created", "session.updated"):
            self._learn(value)
            self._greeted.set()
        elif type_ == "error":
            error = member(value, "error")
            code = _text(member(error, "code")) or _text(member(error, "type")) or "other"
            self.last_refusal = {"code": code, "message": member(error, "message")}
        self._moved.set()

    # --- the owner task's part ----------------------------------------------------------------------------------------

    async def open(self) -> bool:
        """Open the first call; False if the session was ended meanwhile. Raises UpstreamError."""
        dialling = self._services.dialer.dial(self._dialled(), self)
        upstream = await self._unless_ended(dialling)
        if upstream is None:
            return False
        self._upstream = upstream
        if not self._attached:
            await self._unless_ended(_within(self._greeted.wait(), self._limits.greeting_seconds))
        if self._ending.done():
            return False
        self._step(Input.OPENED)
        return True

    async def keep(self) -> None:
        """Replace calls as often as needed; returns when the session is ended."""
        while not self._ending.done():
            if self.phase is Phase.DOWN:
                await self._recover()
            elif self.phase is Phase.SWITCHING:
                await self._take_prepared()
            elif self._parking is not None and not self._parking.done() and self.phase is Phase.LIVE:
                await self._park()
            elif self._due is not None and self.phase is Phase.LIVE:
                await self._hand_over(self._due)
            else:
                await self._unless_ended(self._moved.wait())
                self._moved.clear()

    def adopt(self, cause: str, prepared: Prepared | None) -> None:
        """Begin with a session that another node held: with a call that was prepared beside, or without any."""
        self._due = cause
        if prepared is not None:
            self._request = replace(self._request, generation=self._request.generation + 1)
            self._generation = (
                self._request.generation + 1
            )  # Nobody's: there is no present call to listen to.
            self._successor = prepared.successor(self._request)
            prepared.pass_on(self, self._request.generation)
        else:
            self._leave_call()

    def end(self) -> None:
        """Listen to no call any more: the log is sealed. `close` must follow."""
        if self.phase is not Phase.ENDED:
            self._leave_call()
            self._step(Input.END)

    async def close(self, hang_up: bool) -> None:
        """End the call; always completes."""
        self.end()
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})
        successor, self._successor = self._successor, None
        if successor is not None:
            await successor.abandon()
        if self._upstream is not None:
            await self._upstream.close(hang_up)

    async def _recover(self) -> None:
        """Find a new call after a loss, or end the session."""
        cause, started = self._due or LossCause.CONNECTION_FAILED, self._clock.monotonic()
        outcome = "ended"
        lost_call, self._upstream = self._upstream, None
        # Beside the dialling: a far end that does not answer would not answer this either.
        hang_up = cause != LossCause.CHANNEL_CLOSED and not self._attached
        closing = asyncio.create_task(lost_call.close(hang_up=hang_up)) if lost_call else None
        try:
            outcome = await self._try_calls(cause)
            self._telemetry.recovered(self._owner.id, cause, outcome, self._clock.monotonic() - started)
        finally:
            if closing is not None:
                await asyncio.wait({closing})

    async def _try_calls(self, cause: str) -> str:
        """Take the first call into use that can be seeded; return the outcome."""
        await self._unless_ended(self._until_allowed())
        deadline = self._clock.monotonic() + self._limits.recovery_timeout_seconds
        least = 0.0
        for delay in delays():
            left = deadline - self._clock.monotonic()
            await self._unless_ended(asyncio.sleep(max(0.0, min(max(delay, least), left))))
            try:
                async with AsyncExitStack() as stack:
                    if cause == NODE_LOST and self._services.gate is not None:
                        gate = self._services.gate.dial(lambda: self._owner.urgent)
                        before = self._clock.monotonic()
                        await self._unless_ended(stack.enter_async_context(gate))
                        deadline += self._clock.monotonic() - before
                    left = deadline - self._clock.monotonic()
                    if left <= 0 or self._ending.done():
                        break
                    seeding = await self._unless_ended(_within(self._bring_up(), left))
            except GatewayError as error:
                if not error.retryable:
                    gone = CloseReason.UPSTREAM_CLOSED if self._attached else CloseReason.UPSTREAM_REJECTED
                    self._owner.end(gone, _upstream_part(error))
                    return "rejected"
                least = error.retry_after or 0.0
                continue
            if self._ending.done():
                return "ended"
            if seeding is not None:
                self._switch(seeding)
                return "recovered"
        if self._ending.done():
            return "ended"
        self._owner.end(CloseReason.UPSTREAM_LOST, {"cause": cause})
        return "failed"

    async def _until_allowed(self) -> None:
        """Wait until this node may dial, and has a credential to do it with."""
        while not self._owner.sure:
            await asyncio.sleep(_SURE_POLL_SECONDS)
        while self._state.opening.own_credential and self._request.bearer is None:
            await self._next_move(None)

    async def _bring_up(self) -> Seeding:
        """Dial and seed one call; whatever goes wrong, nothing of it is left."""
        successor = self._successor = self._next()
        seeding: Seeding | None = None
        try:
            await successor.open(self)
            self._step(Input.OPENED)
            seeding = await self._seed(successor)
            if seeding is None:
                raise UpstreamError("upstream-timeout", "The new call did not take the conversation in time.")
            return seeding
        finally:
            if seeding is None:
                if self.phase is Phase.RESEEDING:
                    self._step(Input.FAILED)
                self._successor = None
                await successor.abandon()

    async def _seed(self, successor: Successor) -> Seeding | None:
        """Give a call the conversation; None where it takes too long. Raises UpstreamError."""
        seed = self._state.mirror.seed()
        return await _within(
            successor.seed(seed, self._limits.greeting_seconds), self._limits.seeding_seconds
        )

    async def _hand_over(self, cause: str) -> None:
        """Replace a call that still works; if that fails the session stays with it and tries again later."""
        started, outcome = self._clock.monotonic(), "failed"
        self._step(Input.REPLACE)
        successor = self._successor = self._next()
        old = self._upstream
        try:
            await self._unless_ended(successor.open(self))
            if self.phase is Phase.DIALLING_BESIDE and not self._ending.done():
                self._step(Input.OPENED)
                if await self._unless_ended(self._until_free()):
                    severed = bool(self._state.responses.active or self._state.ledger.owed)
                    # What the old call still has to say would be missing on the new one: it is over, as after a loss.
                    self._step(Input.OVERDUE if severed else Input.SETTLED)
                    changes = self._state.mirror.changes
                    seeding = await self._unless_ended(self._seed(successor))
                    moved = self._at(Phase.SEEDING) and self._state.mirror.changes != changes
                    if seeding is not None and not moved and not self._ending.done():
                        outcome = "recovered"
                        # Where the old call was lost a moment ago, this is the recovery as well.
                        cause = self._due or cause
                        self._switch(seeding)
        except GatewayError:
            pass  # Told by the outcome; the old call is still there.
        finally:
            if outcome != "recovered":
                self._successor = None
                self._retry_hand_over_at = self._clock.monotonic() + _HAND_OVER_RETRY_SECONDS
                if not self._ending.done() and self.phase is not Phase.DOWN:
                    self._stay()
                await successor.abandon()
        if self._ending.done() and outcome != "recovered":
            outcome = "ended"
        self._telemetry.recovered(self._owner.id, cause, outcome, self._clock.monotonic() - started)
        if outcome == "recovered" and old is not None:
            await old.close(hang_up=True)

    def _at(self, phase: Phase) -> bool:
        """Whether this is the phase now: it changes wherever something is awaited."""
        return self.phase is phase

    def _stay(self) -> None:
        """Go on with the old call after a hand-over that failed, if it is still listened to."""
        if self.phase in _BESIDE:
            self._due = None
        if self.phase is not Phase.SUSPECT:
            self._step(Input.FAILED)
            self._owner.replaced()

    async def _take_prepared(self) -> None:
        """Bring the call that was dialled for this session to where the other node's was."""
        started, outcome = self._clock.monotonic(), "failed"
        successor = self._successor
        assert successor is not None  # a line that begins in this phase has one
        try:
            seeding = await self._unless_ended(self._seed(successor))
            if seeding is not None and not self._ending.done():
                outcome = "recovered"
                self._switch(seeding)
        except GatewayError:
            pass  # Told by the outcome; a recovery follows.
        finally:
            if outcome != "recovered":
                self._successor = None
                if self.phase is Phase.SWITCHING and not self._ending.done():
                    self._step(Input.FAILED)
                await successor.abandon()
        self._telemetry.recovered(self._owner.id, HANDOVER, outcome, self._clock.monotonic() - started)

    async def _park(self) -> None:
        parking = self._parking
        assert parking is not None  # looked at by `keep`
        self._step(Input.YIELD)
        free = await self._unless_ended(self._until_free())
        if free and self.phase is Phase.SETTLING and not self._ending.done():
            self._step(Input.WRITTEN)
        elif self.phase in (Phase.WAITING_QUIET, Phase.SETTLING) and not self._ending.done():
            self._step(Input.FAILED)
        if not parking.done():
            parking.set_result(self.phase is Phase.PARKED)

    async def _until_free(self) -> bool:
        """Wait for a pause and hold back what comes; False if the old call was lost before."""
        while await self._until_quiet():
            self._step(Input.QUIET)
            await _within(self._until_settled(), _SETTLE_SECONDS)
            if self.phase is not Phase.SETTLING:
                return False
            if not self._state.responses.active or self._late:
                return True
            self._step(Input.ANSWERING)  # The answer to what was sent last has begun; it is waited for.
        return False

    async def _until_quiet(self) -> bool:
        """Wait for a pause between responses, at most until the call is nearly over."""
        while self.phase is Phase.WAITING_QUIET and self._state.responses.active and not self._late:
            now = self._clock.monotonic()
            await self._next_move(
                None if self._expiry is None else self._expiry.left(now) - self._expiry.latest
            )
        return self.phase is Phase.WAITING_QUIET

    async def _until_settled(self) -> bool:
        while self._state.ledger.owed and self.phase is Phase.SETTLING:
            await self._next_move(None)
        return True

    async def _next_move(self, timeout: float | None) -> None:
        """Wait until something was confirmed, finished or lost."""
        self._moved.clear()
        await _within(self._moved.wait(), timeout)
        self._moved.set()  # `keep` looks again when it is back.

    async def _probe_call(self, upstream: Upstream, generation: int) -> None:
        # Two at once: on a path that loses every twentieth packet one probe of three tries misses once in a thousand.
        alive = any(await asyncio.gather(*(upstream.probe(_PROBE_SECONDS) for _ in range(2))))
        self._probe = None
        self._heard_at = self._clock.monotonic()
        if alive:
            self._owner.note(DoubtSettled())
            self._moved.set()
        else:
            self._telemetry.consent_failed()
            self.lost(generation, LossCause.CONSENT_EXPIRED)

    # --- steps of the table -------------------------------------------------------------------------------------------

    def _step(self, happened: Input) -> None:
        """Go to the next phase, and do what the table says."""
        before, changing = self.phase, self._changing
        step = advance(before, happened)
        self.phase, self._changing = step.phase, True
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
        """Listen to the present call no more. Skip a generation, so that the next call's events are not mistaken for this
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
            # It is gone already; its loss is on its way, or found by `tick`. The rest waits for the next.
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
        self.call_expires_at, self._expiry = None, None  # The old call's, unless the new one tells its own.
        self._learn({"session": seeding.session})
        model = _text(member(seeding.session, "model"))
        self._owner.note(
            LineState(
                State.CONNECTED,
                self.call_id,
                self.call_expires_at,
                model,
                self._due,
                dict(seeding.renamed),
                sorted(seeding.refused),
                sorted(resent),
            )
        )

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

    def received(self, generation: int, text: str) -> None:
        try:
            if self._changing:
                self._deferred.append((generation, text))
            elif generation == self._generation:
                self._heard_at = self._delivered_at = self._clock.monotonic()
                self._owner.arrived(text)
            elif self._successor is not None and generation == self._successor.generation:
                self._successor.received(text)
        except Exception as error:  # noqa: BLE001  # raising here would close the peer connection
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
        if self._replaceable and not (self._attached and cause is LossCause.CHANNEL_CLOSED):
            self._due = cause
            self._step(Input.LOST)
            return
        closed = cause is LossCause.CHANNEL_CLOSED
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
        return (
            self._expiry is not None
            and self._expiry.left(self._clock.monotonic()) <= self._limits.expiring_seconds
        )

    @property
    def _late(self) -> bool:
        return self._expiry is not None and self._expiry.late(self._clock.monotonic())

    @property
    def _earliest_hand_over(self) -> float:
        return max(self._taken_at + MIN_DISTANCE_SECONDS, self._retry_hand_over_at)

    async def _unless_ended(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do something that the session's end interrupts; None if it was. The interrupted work cleans up first."""
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, self._ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        return None if task.cancelled() else task.result()


async def _within(work: Coroutine[Any, Any, T], seconds: float | None) -> T | None:
    """Do something within a time; None if it took longer."""
    try:
        return await asyncio.wait_for(work, seconds)
    except TimeoutError:
        return None


def _upstream_part(error: GatewayError) -> Json | None:
    part = error.members.get("upstream")
    return part if isinstance(part, Mapping) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

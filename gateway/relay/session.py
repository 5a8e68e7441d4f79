"""One conversation as its clients see it: a log downstream, a line upstream, and one task that owns both.

The session outlives its clients' connections, which only read the log, and its calls, which the line replaces. What it is
stands in its state (see `fold`), and every change of that is a record: `note` applies it, gives it to the journal, and
carries out what follows. What comes from upstream arrives in `arrived`, which is synchronous and appends to the log at
once, because it runs inside the transport's callbacks.

Whatever ends the session only sets `_ending`. The owner task then does the rest in one place and one order: cancel what
costs money, wait briefly for its bill, write `gateway.closed`, seal the log, close the call.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from gateway.errors import CallerError, GatewayError, OverloadError, UpstreamError
from gateway.relay import effects as fx
from gateway.relay.broker import JournalledLog, LocalLog
from gateway.relay.deliveries import Delivery
from gateway.relay.effects import Effect
from gateway.relay.envelope import ClientEvent, peek
from gateway.relay.fold import WATCHED, SessionState
from gateway.relay.journal import Journal
from gateway.relay.lifecycle import STATE_OF, Phase
from gateway.relay.line import NODE_LOST, RESTART, Line
from gateway.relay.ports import CallRequest, Json, Reader, Receipt, Receiver, SessionId, View
from gateway.relay.promise import NO_PROMISE, Promise
from gateway.relay.records import (
    Accepted,
    GatewayEvent,
    Handed,
    LineState,
    Record,
    Released,
    Sealed,
    ServerEvent,
    TurnFinished,
    TurnQueued,
)
from gateway.relay.services import Services
from gateway.relay.sessionobject import check_locked
from gateway.relay.state import CloseReason, State
from gateway.relay.succession import Prepared
from gateway.relay.turn import Turn, TurnRequest, dump_failure
from gateway.relay.turns import TOKEN_LENGTH
from gateway.relay.usage import Charge


@dataclass(frozen=True, slots=True)
class _End:
    """Why the session ends, and OpenAI's part in it."""

    reason: CloseReason
    upstream: Json | None = None
    hang_up: bool = True


class Session:
    """A `Handle` (see ports), the `Owner` of its line, and the `JournalOwner` of its journal."""

    def __init__(
        self,
        state: SessionState,
        log: LocalLog,
        journal: Journal,
        services: Services,
        bearer: str | None = None,
        phase: Phase = Phase.DIALLING,
    ) -> None:
        self.state = state
        self.log = log
        self.closed_at: float | None = None
        """When the log was sealed, in monotonic seconds."""
        opening = state.opening
        self._id = SessionId(opening.id)
        self._journal = journal
        self._clock = services.clock
        self._telemetry = services.telemetry
        self._limits = services.limits
        self._account = services.allowance.open(opening.principal)
        self._account.load(asdict(state.spent))
        self._holding = services.budget.open(opening.principal.name)
        self._receivers: list[Receiver] = []
        self._audio_told = self._expiring_told = False
        now, unix = services.clock.monotonic(), services.clock.unix()
        self._opened_at = now - max(0.0, unix - opening.created_at)
        self._touched_at = self._event_at = now
        loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[_End] = loop.create_future()
        self._connected: asyncio.Future[None] = loop.create_future()
        self._sealed = asyncio.Event()
        self._paid = asyncio.Event()
        self._gone = False
        request = CallRequest(
            session={},
            bearer=bearer,
            safety_identifier=None if opening.principal.anonymous else opening.principal.name,
            attach_to=opening.attach_to,
        )
        self._line = Line(request, services, self, state, self._ending, phase)
        journal.bind(self)
        services.telemetry.session_state(None, STATE_OF[phase])

    # --- what handlers see (ports.Handle) -----------------------------------------------------------------------------

    @property
    def id(self) -> SessionId:
        return self._id

    def view(self) -> View:
        limit, opening, state = self._limits.max_session_seconds, self.state.opening, self.state
        return View(
            id=self._id,
            principal=opening.principal.name,
            state=self.phase_state,
            created_at=int(opening.created_at),
            expires_at=int(opening.created_at) + int(limit) if limit else None,
            call_expires_at=self._line.call_expires_at,
            model=state.call.model,
            call_id=opening.attach_to or self._line.call_id,
            metadata=opening.metadata,
            head=self.log.head,
            oldest=self.log.oldest,
            receivers=len(self._receivers),
            close_reason=self._reason if self._ending.done() else None,
            attached=opening.attach_to is not None,
            usage=state.usage,
            detach_grace_seconds=opening.detach_grace_seconds,
            secret_allows=opening.secret_allows,
            max_event_bytes=self._line.max_message_bytes,
        )

    @property
    def reader(self) -> Reader:
        return self.log

    def touch(self) -> None:
        self._touched_at = self._clock.monotonic()

    def renew(self, bearer: str) -> None:
        self._line.renew(bearer)

    def attach(self, receiver: Receiver) -> None:
        if len(self._receivers) >= self._limits.max_receivers:
            oldest = min(self._receivers, key=lambda other: other.silent_since)
            self._receivers.remove(oldest)
            oldest.supersede()
        self._receivers.append(receiver)
        if self._gone:
            receiver.rotate()

    def detach(self, receiver: Receiver) -> None:
        if receiver in self._receivers:
            self._receivers.remove(receiver)
            self.touch()

    async def submit(self, batch: Sequence[ClientEvent], promise: Promise = NO_PROMISE) -> Receipt:
        known = self.promised(promise)
        if isinstance(known, Receipt):
            await self._journal.flushed()
            return known
        self._require_live()
        self._check(batch)
        head, first = self.log.head, self.state.accepted + 1
        self._send(batch, first, promise=promise, head=head.sequence)
        if self._journal.keeps:
            await self._journal.flushed()
        return Receipt(len(batch), first, first + len(batch) - 1, head)

    async def turn(self, request: TurnRequest, promise: Promise = NO_PROMISE) -> Turn:
        known = self.promised(promise)
        turn = known if isinstance(known, Turn) else self._queue(request, promise)
        await self._journal.flushed()
        return turn

    def promised(self, promise: Promise) -> Receipt | Turn | None:
        return None if promise is NO_PROMISE else self.state.answers.find(promise)

    async def withdraw(self, turn: Turn) -> None:
        if self.live:
            self._carry_out(self.state.turns.withdraw(turn, self.state.position))
            self._advance_turns()

    async def close(self, reason: CloseReason, *, hang_up: bool | None = None) -> None:
        self.end(reason, hang_up=hang_up)
        await self._sealed.wait()
        await self._journal.flushed()

    # --- what the hub and the operator see ----------------------------------------------------------------------------

    @property
    def phase_state(self) -> State:
        """The session's state, as clients are told."""
        return STATE_OF[self._line.phase]

    @property
    def live(self) -> bool:
        """Not closed and not about to be."""
        return not self._ending.done()

    @property
    def busy(self) -> bool:
        """A response is in flight."""
        return bool(self.state.responses.active) and self._line.phase is not Phase.DOWN

    @property
    def attended(self) -> bool:
        """Somebody is reading."""
        return bool(self._receivers)

    @property
    def urgent(self) -> bool:
        return bool(self._receivers or self.state.ledger.held or self.state.turns.waiting)

    @property
    def sure(self) -> bool:
        return self._journal.sure

    def diagnostics(self) -> Json:
        """What an operator may see: no text, no SDP, no address, no key."""
        refusal = self._line.last_refusal
        return {
            "accepted": self.state.accepted,
            "log_events": len(self.log),
            "log_bytes": self.log.size,
            "memory_bytes": self._holding.size,
            "usage": self.state.usage.shown(),
            "responses_reserved": self._account.reserved,
            "responses_active": len(self.state.responses.active),
            "last_error_code": refusal["code"] if refusal else None,
            "line": self._line.diagnostics,
        }

    def restart(self) -> None:
        """Have the call replaced by a new one, history kept. Raises `session-closed`, or `invalid-parameter` where nothing
        is kept that a new call could be told."""
        self._require_live()
        if self.state.opening.attach_to is not None:
            raise CallerError("invalid-parameter", "The call is somebody else's and cannot be replaced.")
        if not self._limits.continuity:
            detail = "relay.continuity is off, so a new call would know nothing of the conversation."
            raise CallerError("invalid-parameter", detail)
        self._line.replace(RESTART)

    def tell(self, name: str, members: Json) -> None:
        """Write one of the gateway's own events into the log."""
        text = json.dumps({"type": name, **members}, separators=(",", ":"))
        sequence = self.log.append(name, text, self._clock.monotonic(), name=name)
        self.note(GatewayEvent(sequence, name, text))

    def end(self, reason: CloseReason, upstream: Json | None = None, *, hang_up: bool | None = None) -> None:
        """Begin to close; harmless when repeated, the first reason stands."""
        if not self._ending.done():
            # A call that somebody else made is left alone unless a client asks for its end.
            own = self.state.opening.attach_to is None
            self._ending.set_result(_End(reason, upstream, own if hang_up is None else hang_up))

    async def connected(self) -> None:
        """Wait until the channel is open and the far end has greeted; raises what the opening failed with."""
        await asyncio.shield(self._connected)

    async def run(self) -> None:
        """Own the session from opening to end. Never raises but for cancellation, after which all is closed, too."""
        try:
            if self._line.phase is not Phase.DIALLING or await self._line.open():
                self._begun()
                await self._line.keep()
            if not self._gone:
                await self._settle_responses()
        except GatewayError as error:
            self._refuse(error)
        except asyncio.CancelledError:
            self.end(CloseReason.DRAINED)
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the session is closed and the mistake reported
            self._telemetry.relay_failed(self._id, error)
        finally:
            self.end(CloseReason.INTERNAL)
            if not self._gone:
                self._seal()
            self._holding.release()
            end = self._ending.result()
            await self._line.close(end.hang_up and self._reason is not CloseReason.UPSTREAM_CLOSED)

    def tick(self, now: float) -> None:
        """Meet the deadlines that have passed; called about once a second."""
        if not self.live or self._line.phase is Phase.DIALLING:
            return
        limits = self._limits
        if limits.max_session_seconds and now - self._opened_at >= limits.max_session_seconds:
            self.end(CloseReason.EXPIRED)
        elif limits.idle_timeout_seconds and now - self._event_at >= limits.idle_timeout_seconds:
            self.end(CloseReason.IDLE)
        elif not self._receivers and now - self._touched_at >= self.state.opening.detach_grace_seconds:
            self.end(CloseReason.DETACHED)
        else:
            unix = self._clock.unix()
            for turn in self.state.turns.expired(unix):
                effects = self.state.turns.expire(turn, self.state.position, limits.turn_timeout_seconds)
                self._carry_out(effects)
            self.state.answers.expire(unix)
            self._advance_turns()
            self._tell_expiring()
            self._line.tick(now)
            self._charge()
            if self._journal.keeps:
                self._journal.oldest(self.log.oldest.sequence)

    @property
    def bearer(self) -> str | None:
        """The caller's own upstream credential, where its calls are made with one."""
        return self._line.bearer

    @property
    def journal(self) -> Journal:
        return self._journal

    def rest(self) -> None:
        """Stand for a session that ended on another node: its log can be read until its retention is over."""
        self.end(CloseReason(self.state.closed or CloseReason.INTERNAL))
        self.closed_at = self._clock.monotonic()
        self.log.seal()
        self._sealed.set()
        self._account.close()
        self._holding.release()

    # --- for another node (journal.JournalOwner, and the hand-over) ---------------------------------------------------

    def settled(self) -> None:
        if isinstance(self.log, JournalledLog):
            self.log.settle(self._journal.settled)

    def fenced(self) -> None:
        self._let_go(hang_up=False)

    def dump(self) -> bytes:
        return self.state.dump()

    def kept(self, after: int) -> Iterable[Record]:
        return self.log.records(after)

    def adopt(self, cause: str, prepared: Prepared | None) -> None:
        """Begin where another node's session ended. `run` then finds a call."""
        self._line.adopt(cause, prepared)
        if cause == NODE_LOST:
            self.note(LineState(State.RECOVERING, None, None, None, cause))
            self.tell("gateway.recovering", {"cause": cause})

    async def prepare_release(self) -> bool:
        """Hold everything in a pause, so that another node can take the session over. Returns when all of it is in the
        journal; False where that cannot be now. `released` or `resume` must follow."""
        if not self.live or not await self._line.park():
            return False
        self._journal.add(Released(None))
        await self._journal.flushed()
        return True

    def resume(self) -> None:
        """Go on after `prepare_release`: the other node did not take over."""
        self._line.resume()

    def released(self) -> None:
        """Another node has taken over: end without a word. Readers come back and find it there."""
        self._let_go(hang_up=None)

    def _let_go(self, *, hang_up: bool | None) -> None:
        if self._gone or self._sealed.is_set():
            return
        self._gone = True
        for receiver in list(self._receivers):
            receiver.rotate()
        self.end(CloseReason.DRAINED, hang_up=hang_up)
        failure = OverloadError("recovering", "Another node has the session now.", retry_after=1)
        if not self._connected.done():
            self._connected.set_exception(failure)
            self._connected.exception()
        self._carry_out(self.state.turns.fail_all(failure, self.state.position))
        self._account.close()
        self._line.end()
        self.closed_at = self._clock.monotonic()
        self._sealed.set()

    # --- what the line says (line.Owner) ------------------------------------------------------------------------------

    def arrived(self, text: str) -> None:
        value = peek(text)
        if value is None:
            self._telemetry.frame_unrelayed(self._id, len(text))
            return
        found = value.get("type")
        type_ = found if isinstance(found, str) else ""
        now = self._event_at = self._clock.monotonic()
        state, log = self.state, self.log
        # A delta of no turn, when all responses have begun to speak: most events, and nothing but the log wants them.
        plain = type_ not in WATCHED and state.turns.running is None and not state.responses.mute
        if plain:
            tag, effects = 0, None
            state.head = log.append(type_, text, now)
        else:
            tag, effects = state.arrived(type_, value, state.head + 1, now)
            log.append(type_, text, now, turn=tag)
        if self._journal.keeps:
            self._journal.add(ServerEvent(state.head, tag, type_, text))
        # Most events are ASCII, of which this asks in no time.
        self._telemetry.event_down(type_, len(text) if text.isascii() else len(text.encode()))
        if effects is not None:
            if type_ in WATCHED:
                self._line.heard(now, type_, value)
            self._carry_out(effects)

    def note(self, record: Record) -> None:
        effects = self.state.apply(record, self._clock.monotonic())
        if self._journal.keeps:
            self._journal.add(record)
        self._carry_out(effects)

    def handed(self, record: Handed, position: int) -> None:
        self.state.handed(record, self._clock.monotonic(), position)
        if self._journal.keeps:
            self._journal.add(record)

    def sent(self, event: ClientEvent | Delivery) -> None:
        self._telemetry.event_up(event.type, event.size)

    def moved(self, before: State, after: State) -> None:
        self._telemetry.session_state(before, after)

    def replaced(self) -> None:
        self._charge()
        self._advance_turns()

    # --- the end ------------------------------------------------------------------------------------------------------

    @property
    def _reason(self) -> CloseReason:
        return self._ending.result().reason

    def _begun(self) -> None:
        """The session can be used."""
        if not self._connected.done():
            self._connected.set_result(None)
        if self.state.call.state is State.CONNECTING:
            line, model = self._line, self.state.call.model
            self.note(LineState(State.CONNECTED, line.call_id, line.call_expires_at, model))
            self._telemetry.session_opened(self.view(), self._clock.monotonic() - self._opened_at)

    def _refuse(self, error: GatewayError) -> None:
        """The opening failed: whoever waits for it is told why, and nobody else ever saw the session."""
        if not self._connected.done():
            self._connected.set_exception(error)
            self._connected.exception()  # The waiter may have left; an unread exception would be logged as forgotten.
        rejected = error.code in ("upstream-rejected", "upstream-rate-limited")
        self.end(CloseReason.UPSTREAM_REJECTED if rejected else CloseReason.UPSTREAM_LOST)

    async def _settle_responses(self) -> None:
        """Cancel what is being answered, or was asked for, and wait briefly for its response.done, which says what it
        cost."""
        state = self.state
        if self._reason in _UPSTREAM_REASONS or state.opening.attach_to is not None:
            return
        cancels = [_cancel(response_id) for response_id in state.responses.active]
        if state.ledger.asking:
            cancels.append(_cancel(None))  # It has no name yet.
        if not cancels:
            return
        self._paid.clear()  # It was set by every response that was done before these.
        try:
            self._send(cancels, 0)
            await asyncio.wait_for(self._paid.wait(), self._limits.parting_seconds)
        except (GatewayError, TimeoutError):
            return  # What was not said by now is counted as unrecorded.

    def _seal(self) -> None:
        """Write the log's last event. Synchronous, so that nothing can come between it and the seal."""
        end = self._ending.result()
        self._line.confirm()
        opened = self._line.phase is not Phase.DIALLING
        if opened:
            members = {"reason": end.reason, "retryable": end.reason.retryable, "upstream": end.upstream}
            # The gateway's own events, which nobody else has counted, are nobody's loss.
            left = {"unknown": self.state.ledger.in_flight, "unsent": self.state.ledger.held}
            accounts = {name: [one.account for one in of if one.number] for name, of in left.items()}
            self.tell("gateway.closed", members | {name: told for name, told in accounts.items() if told})
        failure = _failure(end, self._id)
        self._carry_out(self.state.turns.fail_all(failure, self.state.position))
        if not self._connected.done():
            self._connected.set_exception(failure)
            self._connected.exception()
        self.note(Sealed(end.reason))
        self._account.close()
        self._line.end()
        self.closed_at = self._clock.monotonic()
        self.log.seal()
        self._sealed.set()
        self._journal.seal(self._limits.log_retention_seconds)
        if opened:
            self._telemetry.session_closed(self.view(), self.closed_at - self._opened_at)

    # --- carrying out -------------------------------------------------------------------------------------------------

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        """Do what follows from a record that is taken in."""
        advance = settled = False
        for effect in effects:
            match effect:
                case fx.Advance():
                    advance = True
                case fx.Send():
                    self._send_quietly(effect.events)
                case fx.TurnOver():
                    self._turn_over(effect.turn)
                case fx.FirstDelta():
                    self._telemetry.first_delta(effect.seconds)
                case fx.ResponseDone():
                    settled = True
                    self._response_done(effect)
                case fx.Transcribed():
                    self._spend(effect.charge, response=False)
                case fx.Unrecorded():
                    self._unrecorded(effect.responses)
                case fx.UpstreamError():
                    settled = True
                    # It may be the refusal of a response that was asked for; which of them, only some errors say.
                    if self._account.reserved > len(self.state.responses.active):
                        self._account.release(1)
                    self._telemetry.upstream_error(effect.code)
        if settled and not self.state.responses.active and not self.state.ledger.asking:
            self._paid.set()
        if advance:
            self._charge()
            self._advance_turns()

    def _turn_over(self, turn: Turn) -> None:
        if self._journal.keeps and turn.last is not None:
            failure = None if turn.failure is None else dump_failure(turn.failure)
            self._journal.add(TurnFinished(turn.number, turn.last.sequence, failure))
        turn.wake()

    def _response_done(self, done: fx.ResponseDone) -> None:
        self._telemetry.response_done(done.status, done.seconds)
        if done.charge is None:
            self._unrecorded(1)
        else:
            self._spend(done.charge)
            self._watch_audio(done.charge)
        if done.error is not None:
            self._telemetry.upstream_error(done.error)

    def _unrecorded(self, count: int) -> None:
        """Count responses whose cost nobody will tell, and charge an estimate: they are billed all the same."""
        for _ in range(count):
            self._telemetry.usage_unrecorded()
        self._account.forfeit(count, self._clock.unix())
        self._end_if_spent()

    def _spend(self, charge: Charge, *, response: bool = True) -> None:
        """Count what a response, or a transcription, has cost."""
        self._telemetry.charged(self.state.opening.principal.name, charge)
        self._account.spend(charge, self._clock.unix(), response=response)
        self._end_if_spent()

    def _end_if_spent(self) -> None:
        if self._account.exhausted:
            self.end(CloseReason.LIMIT)

    def _watch_audio(self, charge: Charge) -> None:
        """Say once where a session that asked for text alone is billed for audio."""
        audio = charge.input.get("audio", 0) + charge.output.get("audio", 0)
        if audio and self.state.settings.text_only and not self._audio_told:
            self._audio_told = True
            self._telemetry.audio_tokens_in_text_session(self._id, audio)

    def _tell_expiring(self) -> None:
        expires_at = self._line.call_expires_at
        if self._limits.continuity or self._expiring_told or not self._line.expiring:
            return
        self._expiring_told = True
        self.tell("gateway.expiring", {"call_expires_at": expires_at})

    # --- sending ------------------------------------------------------------------------------------------------------

    def _require_live(self) -> None:
        if self._gone or not self._journal.sure:
            raise OverloadError("recovering", "Another node may have the session.", retry_after=1)
        if not self.live:
            detail = "The session is closed; open another one."
            raise CallerError("session-closed", detail, members={"reason": self._reason})

    def _check(self, batch: Sequence[ClientEvent]) -> None:
        limits = self._limits
        for index, event in enumerate(batch):
            if event.size > limits.max_event_bytes:
                detail = (
                    f"Event {index} has {event.size} bytes; at most {limits.max_event_bytes} are allowed."
                )
                raise CallerError("too-large", detail, members={"limit": limits.max_event_bytes})
            if limits.session_locked and event.type in _HOLDS_SESSION:
                holder = _HOLDS_SESSION[event.type]
                locked = [f"{holder}.{name}" for name in limits.session_locked]
                check_locked(event.value, locked, f"/{index}" if len(batch) > 1 else "")

    def _send(
        self,
        batch: Sequence[ClientEvent],
        first: int,
        *,
        turn: int = 0,
        promise: Promise = NO_PROMISE,
        head: int | None = None,
    ) -> None:
        """Hand a batch to the line whole, or have it held, or raise. `first` is 0 for events that no client counts."""
        before, state = self._holding.size, self.state
        reserved = self._account.reserve(
            batch, state.settings.max_output_tokens, state.call.model, self._clock.unix()
        )
        try:
            self._holding.take(sum(event.size for event in batch))  # Corrected by `_charge`.
            position = self._line.message
            handed = self._line.send(batch)
        except GatewayError:
            self._holding.resize(before)
            self._account.cancel(reserved)
            self._line.catch_up()
            raise
        now = self._event_at = self._clock.monotonic()
        record = Accepted(
            first,
            [event.text for event in batch],
            not handed,
            turn,
            promise.key,
            promise.fingerprint,
            promise.request_id,
            # Readers can go on from there: what is appended may not be settled yet.
            self.log.head.sequence if head is None else head,
            self._clock.unix(),
        )
        effects = self.state.accept(record, batch, now, position)
        if self._journal.keeps:
            self._journal.add(record)
        if handed:
            for event in batch:
                self.sent(event)
        self._carry_out(effects)
        self._line.catch_up()

    def _send_quietly(self, events: Sequence[ClientEvent]) -> None:
        try:
            self._send(events, 0)
        except GatewayError:
            return  # The channel is gone, and the response with it.

    def _queue(self, request: TurnRequest, promise: Promise) -> Turn:
        self._require_live()
        check_locked(request.response, self._limits.session_locked, "")
        self._account.check(self._clock.unix())
        turns, unix = self.state.turns, self._clock.unix()
        turns.require_room(self._limits.max_waiting_turns)
        number = turns.count + 1
        self.note(
            TurnQueued(
                number,
                self._clock.token(TOKEN_LENGTH),
                request.dump(),
                unix + self._limits.turn_timeout_seconds,
                promise.key,
                promise.fingerprint,
                promise.request_id,
                unix,
            )
        )
        turn = turns.find(number)
        assert turn is not None  # just queued
        self._advance_turns()
        return turn

    def _advance_turns(self) -> None:
        """Send what can be sent: the next turn, or the running one's request for its response."""
        state = self.state
        while self.live and not self._line.holding and self._journal.sure:
            asking = state.turns.due(state.responses.busy)
            if asking is None:
                return
            try:
                self._send(asking.events, 0, turn=asking.turn.number)
                return
            except GatewayError as error:
                # A refusal that outlasts the turn, such as that of a budget that is spent, is its answer.
                timeout = self._limits.turn_timeout_seconds
                if isinstance(error, OverloadError) and (error.retry_after or 0) <= timeout:
                    return  # It goes on waiting, until its time is over.
                self._carry_out(state.turns.fail(asking.turn, error, state.position))

    def _charge(self) -> None:
        """Tell the budget what is held."""
        self._holding.resize(self.state.size + self.state.answers.size)


_HOLDS_SESSION = {"session.update": "session", "response.create": "response"}
"""Client events that carry members of the session object, and where."""

_UPSTREAM_REASONS = frozenset(
    {CloseReason.UPSTREAM_LOST, CloseReason.UPSTREAM_CLOSED, CloseReason.UPSTREAM_REJECTED}
)


def _failure(end: _End, session_id: str) -> GatewayError:
    """What those are told who waited for something of the session."""
    if end.reason is CloseReason.INTERNAL:
        return GatewayError("internal", f"The gateway failed; its log has the reason under '{session_id}'.")
    detail = f"The session ended: {end.reason}."
    if end.reason not in _UPSTREAM_REASONS:
        return CallerError("session-closed", detail, members={"reason": end.reason})
    members: Mapping[str, object] = {"upstream": end.upstream} if end.upstream else {}
    return UpstreamError("upstream-failed", detail, members=members)


def _cancel(response_id: str | None) -> ClientEvent:
    value: dict[str, object] = {"type": "response.cancel"}
    if response_id is not None:
        value["response_id"] = response_id
    return ClientEvent(json.dumps(value, separators=(",", ":")), "response.cancel", None, value)

"""What a session does when something happens: apply it to its state, add it to the journal, and carry out the effects.

`note` is the one way: it applies a record (see `fold`), gives it to the journal, and executes the effects, after the state
is whole again. `arrived` does the same for a server event, without building a record where nothing but the log wants it.
"""

import asyncio
import json
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Final

from gateway.errors import GatewayError, OverloadError
from gateway.relay.broker import LocalLog
from gateway.relay.calls.lifecycle import STATE_OF, Phase
from gateway.relay.calls.line import Line
from gateway.relay.ending import End
from gateway.relay.events.envelope import ClientEvent
from gateway.relay.events.frames import Read, deltas, passing, server_event
from gateway.relay.events.jsontext import Steps
from gateway.relay.events.large import read_large
from gateway.relay.events.records import (
    Accepted,
    GatewayEvent,
    Handed,
    Record,
    ServerEvent,
    TurnFinished,
)
from gateway.relay.journal import Journal
from gateway.relay.ports import CallRequest, Json, Receiver, SessionId
from gateway.relay.requests import NO_PROMISE, Promise
from gateway.relay.services import Services
from gateway.relay.state import effects as fx
from gateway.relay.state.delivery import Delivery
from gateway.relay.state.effects import Effect
from gateway.relay.state.fold import KEPT_AS_TEXT, READ_WHOLE, WATCHED, SessionState
from gateway.relay.state.turn import Turn, dump_failure
from gateway.relay.states import CloseReason, State
from gateway.relay.usage import Charge

REPEAT_SECONDS: Final = 60
"""How long a session that was opened for one turn waits for a repeat of the request, after its node was lost."""

_MEMORY_OF_LARGE: Final = 4
"""What reading a large frame takes, in sizes of its text: as it came, as text, its value, and a member written again."""


class SessionCore:
    """State, log, journal and line of one session."""

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
        self.journal = journal
        self._clock = services.clock
        self._telemetry = services.telemetry
        self._limits = services.limits
        self._account = services.allowance.open(opening.principal)
        self._account.load(asdict(state.spent))
        self._budget = services.budget
        self._holding = services.budget.open(opening.principal.name)
        self._receivers: list[Receiver] = []
        self._audio_told = self._expiring_told = False
        self._adopted = phase is not Phase.DIALLING
        now, unix = services.clock.monotonic(), services.clock.unix()
        self._opened_at = now - max(0.0, unix - opening.created_at)
        self._touched_at = self._event_at = now
        loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[End] = loop.create_future()
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
        # A session keeps its line, and not the other way round, so that it is freed without a garbage collection.
        self._line = Line(request, services, weakref.proxy(self), state, self._ending, phase)
        services.telemetry.session_state(None, STATE_OF[phase])

    @property
    def id(self) -> SessionId:
        return self._id

    @property
    def live(self) -> bool:
        """The session is neither closed nor closing."""
        return not self._ending.done()

    @property
    def busy(self) -> bool:
        """A response is in flight."""
        return bool(self.state.responses.active) and self._line.phase is not Phase.DOWN

    @property
    def working(self) -> bool:
        """A response is in flight, or a turn is not finished."""
        return self.busy or self.state.turns.unfinished

    @property
    def returnable(self) -> bool:
        """A client can come back for the session. If it was opened for one turn, that takes an Idempotency-Key."""
        return not self.state.opening.single_turn or self.state.answers.keyed

    def _deserted(self, now: float) -> bool:
        """Return whether no client has been there for the grace period. An unfinished turn counts as a client."""
        opening = self.state.opening
        orphaned = opening.single_turn and self._adopted  # The node whose request would close it is gone.
        if self._receivers or (self.state.turns.unfinished and not (orphaned and not self.returnable)):
            return False
        grace = opening.detach_grace_seconds
        if orphaned:
            grace = min(grace, REPEAT_SECONDS) if self.returnable else 0
        return now - self._touched_at >= grace

    @property
    def urgent(self) -> bool:
        return bool(self._receivers or self.state.ledger.held or self.state.turns.waiting)

    @property
    def sure(self) -> bool:
        return self.journal.sure

    @property
    def _reason(self) -> CloseReason:
        return self._ending.result().reason

    # --- what happens (line.Owner) ---------------------------------------------------------------------------------------

    def read_in_steps(self, text: str) -> Steps[Read | None]:
        with self._budget.open(self.state.opening.principal.name) as holding:
            holding.grow(_MEMORY_OF_LARGE * len(text))
            return (yield from read_large(text, READ_WHOLE, KEPT_AS_TEXT))

    def arrived(self, text: str, read: Read | None = None) -> None:
        if read is None:
            # Of most events only the type matters, and reading that alone costs a fraction of the whole.
            read = server_event(text, READ_WHOLE)
        if read is None:
            self._telemetry.frame_unrelayed(self._id, len(text))
            return
        type_, value = read
        now = self._event_at = self._clock.monotonic()
        state, log, effects = self.state, self.log, None
        watched = type_ in WATCHED
        if not watched and state.turns.running is None and not state.responses.mute:
            # A delta that belongs to no turn, while every response has had its first delta: only the log needs it.
            tag = 0
            state.head = log.append(type_, text, now)
        else:
            tag, effects = state.arrived(type_, value, state.head + 1, now)
            log.append(type_, text, now, turn=tag)
        if self.journal.keeps:
            self.journal.add(ServerEvent(state.head, tag, type_, text))
        # Most events are ASCII, and `isascii` takes constant time.
        self._telemetry.event_down(type_, len(text) if text.isascii() else len(text.encode()))
        if effects is not None:
            if watched:
                self._line.heard(now, type_, value)
            self._carry_out(effects)

    def arrived_together(self, texts: Sequence[str], begin: int) -> int:
        state = self.state
        if not state.responses.mute:
            # Deltas, which only the log needs: what is done once for each event is done once for all of them.
            turn = state.turns.running
            if turn is None:
                events = passing(texts, begin, WATCHED)
            else:
                events = deltas(texts, begin, turn.response_id, turn.number)
            if events:
                now = self._event_at = self._clock.monotonic()
                head = state.head
                state.head = self.log.append_all(events, now)
                if self.journal.keeps:
                    for sequence, (type_, text, tag) in enumerate(events, start=head + 1):
                        self.journal.add(ServerEvent(sequence, tag, type_, text))
                self._telemetry.events_down(events)
                return begin + len(events)
        self.arrived(texts[begin])
        return begin + 1

    def note(self, record: Record) -> None:
        effects = self.state.apply(record, self._clock.monotonic())
        if self.journal.keeps:
            self.journal.add(record)
        self._carry_out(effects)

    def handed(self, record: Handed, position: int) -> None:
        self.state.handed(record, self._clock.monotonic(), position)
        if self.journal.keeps:
            self.journal.add(record)

    def sent(self, event: Delivery) -> None:
        self._telemetry.event_up(event.type, event.size)

    def moved(self, before: State, after: State) -> None:
        self._telemetry.session_state(before, after)

    def replaced(self) -> None:
        self._charge()
        self._advance_turns()

    def tell(self, name: str, members: Json) -> None:
        """Write one of the gateway's own events into the log."""
        text = json.dumps({"type": name, **members}, separators=(",", ":"))
        sequence = self.log.append(name, text, self._clock.monotonic(), name=name)
        self.note(GatewayEvent(sequence, name, text))

    def end(self, reason: CloseReason, upstream: Json | None = None, *, hang_up: bool | None = None) -> None:
        """Begin to close. Safe to call twice; the first reason is kept."""
        if not self._ending.done():
            # A call that another application made is not ended unless a client asks for it.
            own = self.state.opening.attach_to is None
            self._ending.set_result(End(reason, upstream, own if hang_up is None else hang_up))

    @property
    def bearer(self) -> str | None:
        """The caller's own upstream credential, if its calls use one."""
        return self._line.bearer

    # --- carrying out ---------------------------------------------------------------------------------------------------

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        """Execute the effects of an applied record."""
        advance = settled = False
        for effect in effects:
            if effect is fx.ADVANCE:
                advance = True
                continue
            match effect:
                case fx.ResponseDone():
                    settled = True
                    self._response_done(effect)
                case fx.FirstDelta():
                    self._telemetry.first_delta(effect.seconds)
                case fx.Send():
                    self._send_quietly(effect.events)
                case fx.TurnOver():
                    self._turn_over(effect.turn)
                case fx.Transcribed():
                    self._spend(effect.charge, response=False)
                case fx.Unrecorded():
                    self._unrecorded(effect.responses)
                case fx.Refused():
                    self._account.release(effect.requests)
                case fx.UpstreamError():
                    settled = True
                    self._telemetry.upstream_error(effect.code)
        if settled and not self.state.cut:
            self._paid.set()
        if advance:
            self._charge()
            self._advance_turns()

    def _turn_over(self, turn: Turn) -> None:
        if self.journal.keeps and turn.last is not None:
            failure = None if turn.failure is None else dump_failure(turn.failure)
            self.journal.add(TurnFinished(turn.number, turn.last.sequence, failure))
        turn.wake()
        self._touched_at = self._clock.monotonic()

    def _response_done(self, done: fx.ResponseDone) -> None:
        self._telemetry.response_done(done.status, done.seconds)
        charge = done.charge
        if charge is None:
            self._unrecorded(1)
        else:
            self._spend(charge)
            if self.state.settings.text_only:
                self._watch_audio(charge)
        if done.error is not None:
            self._telemetry.upstream_error(done.error)

    def _unrecorded(self, count: int) -> None:
        """Count responses whose cost will never be reported, and charge an estimate: OpenAI bills them all the same."""
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
        if self._account.limited and self._account.exhausted:
            self.end(CloseReason.LIMIT)

    def _watch_audio(self, charge: Charge) -> None:
        """Log once that a session, which asked for text only, is billed for audio."""
        audio = charge.input.get("audio", 0) + charge.output.get("audio", 0)
        if audio and not self._audio_told:
            self._audio_told = True
            self._telemetry.audio_tokens_in_text_session(self._id, audio)

    # --- sending --------------------------------------------------------------------------------------------------------

    def _send(
        self,
        batch: Sequence[ClientEvent],
        first: int,
        *,
        turn: int = 0,
        promise: Promise = NO_PROMISE,
        head: int | None = None,
    ) -> None:
        """Hand the whole batch to the line, hold it, or raise. `first` is 0 for the gateway's own events."""
        before, state, line, unix = self._holding.size, self.state, self._line, self._clock.unix()
        reserved = self._account.reserve(batch, state.settings.max_output_tokens, state.call.model, unix)
        texts, size = [event.text for event in batch], 0
        for event in batch:
            size += event.size
        try:
            self._holding.take(size)  # Corrected by `_charge`.
            position = line.message
            handed = line.send(texts, size)
        except BaseException:  # A bug, too, must not leave the line deaf: until `catch_up` it hears nothing.
            self._holding.resize(before)
            self._account.cancel(reserved)
            line.catch_up()
            raise
        now = self._event_at = self._clock.monotonic()
        record = Accepted(
            first,
            texts,
            not handed,
            turn,
            promise.key,
            promise.fingerprint,
            promise.request_id,
            # Readers can continue from there; appended events may not be settled yet.
            self.log.head.sequence if head is None else head,
            unix,
        )
        state.accept(record, batch, now, position)
        if self.journal.keeps:
            self.journal.add(record)
        if handed:
            for event in batch:
                self._telemetry.event_up(event.type, event.size)
        line.catch_up()

    def _send_quietly(self, events: Sequence[ClientEvent]) -> None:
        try:
            self._send(events, 0)
        except GatewayError:
            return  # The channel is gone, and the response with it.

    def _advance_turns(self) -> None:
        """Send what can be sent: the next turn, or the running one's request for its response."""
        state = self.state
        if not state.turns.unfinished:
            return
        while self.live and not self._line.holding and self.journal.sure:
            asking = state.turns.due(state.responses.busy)
            if asking is None:
                return
            try:
                self._send(asking.events, 0, turn=asking.turn.number)
                return
            except GatewayError as error:
                # A refusal that waiting does not fix, such as an exhausted budget, ends the turn.
                timeout = self._limits.turn_timeout_seconds
                if isinstance(error, OverloadError) and (error.retry_after or 0) <= timeout:
                    return  # The turn keeps waiting until its deadline.
                self._carry_out(state.turns.fail(asking.turn, error, state.position))

    def _charge(self) -> None:
        """Update the memory budget with what is held."""
        size = self.state.size
        if size != self._holding.size:
            self._holding.resize(size)

"""The state of a session: a fold over its records. No I/O, no clock.

`SessionState` holds every fact of a session that must survive its node, each in one place:

| fact | where |
|---|---|
| options it was opened with | `opening` |
| accepted events: held, in flight, unknown | `ledger` |
| items of the conversation, session object | `mirror` |
| responses in flight | `responses` |
| turns that wait or run | `turns` |
| idempotent answers | `answers` |
| usage, and what budgets are charged | `usage`, `spent` |
| current settings of the session object | `settings` |
| position in the log | `epochs`, `head` |
| the call | `call` |

`apply` takes a record, changes the state and returns what follows from it (see `effects`). The owner of a session applies
each record as it happens and carries the effects out; a node that takes the session over applies the same records and drops
the effects. `dump` writes all of it as bytes, `load` reads them back: a snapshot, after which the fold goes on.

Two records are split for the owner's sake, who must know a server event's turn before the event enters the log: `arrived`
is what `apply` does for a server event whose text is parsed already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Final

from gateway.errors import UpstreamError
from gateway.relay.events.envelope import ClientEvent, compact, member, text_of
from gateway.relay.events.eventlog import MAX_EPOCHS, EventId
from gateway.relay.events.frames import peek
from gateway.relay.events.records import (
    READS,
    VERSION,
    Accepted,
    Acknowledged,
    Border,
    DoubtSettled,
    GatewayEvent,
    Handed,
    LineState,
    Record,
    Sealed,
    ServerEvent,
    TurnFinished,
    TurnQueued,
    UnreadableRecord,
    expanded,
)
from gateway.relay.requests import Principal, Promise, Receipt
from gateway.relay.state import effects as fx
from gateway.relay.state.answers import Answers
from gateway.relay.state.deliveries import ANSWERED_BY, ASKING, OF_THE_CALL, Ledger
from gateway.relay.state.delivery import Delivery, delivery, read_event
from gateway.relay.state.effects import Effect
from gateway.relay.state.facts import Call, Opening, Settings, Spent, loaded, settings_of
from gateway.relay.state.mirror import Mirror
from gateway.relay.state.responses import Responses, response_of
from gateway.relay.state.turn import Progress, Turn, TurnRequest, load_failure
from gateway.relay.state.turns import Turns
from gateway.relay.states import State
from gateway.relay.usage import Charge, PriceList, Usage, charge

Json = Mapping[str, object]

WATCHED: Final = Mirror.WATCHED | {*ANSWERED_BY.values(), "session.created", "response.done", "error"}
"""Server events that change the state; all others only enter the log."""

READ_WHOLE: Final = WATCHED | {"response.output_item.added", "conversation.item.created"}
"""Those, and the ones whose item tells a turn that they are its own."""

KEPT_AS_TEXT: Final[Mapping[str, str]] = {
    "conversation.item.added": "item",
    "conversation.item.done": "item",
    "response.output_item.done": "item",
    "response.done": "response",
}
"""Server events of which a member is kept as text: in the mirror, or as the result of a turn."""


class SessionState:
    """The complete state of a session."""

    def __init__(self, opening: Opening, session: str, epoch: str, prices: PriceList | None = None) -> None:
        """`session` is the OpenAI session object as JSON, `epoch` that of the log's next event."""
        self.opening = opening
        self.accepted = 0
        self.ledger = Ledger(shared=opening.attach_to is not None)
        self.mirror = Mirror(session)
        self.responses = Responses()
        self.turns = Turns()
        self.answers = Answers()
        self.usage = Usage()
        self.spent = Spent()
        self.epochs: list[tuple[str, int]] = [(epoch, 1)]
        """Name and first sequence of each epoch of the log, oldest first."""
        self.head = 0
        """Sequence of the log's newest event."""
        wanted = self.mirror.session
        self.call = Call(model=text_of(wanted.get("model")))
        self.settings = settings_of(wanted)
        self.closed: str | None = None
        self.prices = prices or PriceList()

    # --- what the shell asks ------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> str:
        """The epoch of the log's next event."""
        return self.epochs[-1][0]

    @property
    def position(self) -> EventId:
        """The log's newest event."""
        return EventId(self.epoch, self.head)

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, beside the log."""
        size = self.ledger.size + self.mirror.size + self.answers.size
        return size + self.turns.size if self.turns.unfinished else size

    @property
    def cut(self) -> bool:
        """A response is, or may be, in flight: losing the call would cut it off."""
        return self.responses.any or self.ledger.asks

    @property
    def again(self) -> list[Delivery]:
        """What to send for the responses that are cut off: the requests of those in flight, and what was not confirmed of
        the conversation, since a question may be among it."""
        unconfirmed = [
            one for one in self.ledger.in_flight if one.type in ANSWERED_BY and one.type not in OF_THE_CALL
        ]
        return self.responses.requests + unconfirmed

    # --- the fold -----------------------------------------------------------------------------------------------------

    def apply(self, record: Record, now: float = 0.0) -> list[Effect]:
        """Apply a record and return its effects. Raises UnreadableRecord for one that does not fit."""
        match record:
            case ServerEvent():
                # What only enters the log is not parsed: most of a long journal.
                value = peek(record.text) if self.watches(record.type) else {}
                if value is None:
                    raise UnreadableRecord("a server event is not a JSON object")
                return self.arrived(record.type, value, record.sequence, now)[1]
            case GatewayEvent():
                self.head = max(self.head, record.sequence)
                if record.type == "gateway.recovered":
                    self.ledger.told()
            case Accepted():
                self.accept(record, [read_event(text) for text in record.texts], now)
            case Handed():
                self.handed(record, now)
            case Acknowledged():
                self.ledger.acknowledged(record.upto)
            case DoubtSettled():
                refused = self.ledger.requests_refused
                self.ledger.settle()
                refused = self.ledger.requests_refused - refused
                return [fx.Refused(refused)] if refused else []
            case TurnQueued():
                self.queue(record, TurnRequest.load(record.request))
            case TurnFinished():
                return self._end_turn(record)
            case LineState():
                return self._change_call(record)
            case Border():
                if record.epoch != self.epoch:  # else it belongs to a repair within an epoch
                    self.epochs = [*self.epochs, (record.epoch, self.head + 1)][-MAX_EPOCHS:]
            case Sealed():
                return self._seal(record)
        return []  # Released says who may take the session over, and changes nothing in it.

    def watches(self, type: str) -> bool:
        """Return whether a server event of this type can change more than the head at the moment."""
        return type in WATCHED or self.turns.running is not None or self.responses.mute > 0

    def arrived(self, type: str, value: Json, sequence: int, now: float) -> tuple[int, list[Effect]]:
        """Apply the server event that is to have this sequence. Return the number of its turn, 0 for none, and the
        effects. An event that is in the state already, because it was written twice, changes nothing."""
        if sequence <= self.head:
            return 0, []
        self.head = sequence
        refused = self.ledger.requests_refused
        request = self._confirm(type, value)
        effects: list[Effect] = []
        tag, progress, turn = 0, Progress.FOREIGN, self.turns.running
        if turn is not None:
            sole = request is not None and request.turn == turn.number and not self.ledger.asks
            progress, effects = self.turns.look(type, value, sole=sole)
            tag = turn.number if progress in (Progress.OURS, Progress.DONE) else 0
        if self.responses.mute and type.endswith(".delta"):
            effects += self.responses.delta(value, now)
        if type not in WATCHED:
            return tag, effects
        if self.opening.mirrored and type in Mirror.WATCHED:
            self.mirror.received(type, value)
        if self.ledger.requests_refused > refused:
            effects.append(fx.Refused(self.ledger.requests_refused - refused))
        effects += self._watch(type, value, request, now)
        if progress is Progress.DONE:
            effects += self.turns.done(self.position)
        if progress is not Progress.BUSY:  # What was just refused is not asked for again at once.
            effects.append(fx.ADVANCE)
        return tag, effects

    def accept(self, record: Accepted, events: Sequence[ClientEvent], now: float, position: int = 0) -> None:
        """Apply a batch whose events are parsed already; `position` is that of the first among the call's messages."""
        asks = self.ledger.accept(events, record.first, record.turn, record.held, position)
        if record.first:
            self.accepted = record.first + len(events) - 1
            if record.key is not None or record.request_id is not None:
                receipt = Receipt(len(events), record.first, self.accepted, EventId(self.epoch, record.head))
                promise = Promise(record.key, record.fingerprint, record.request_id)
                self.answers.keep(promise, receipt, record.at)
        elif record.turn:
            self.turns.sent(record.turn, EventId(self.epoch, record.head), asked=asks)
        if asks and not record.held:
            self.responses.asked(now)

    def handed(self, record: Handed, now: float, position: int = 0) -> None:
        """Take in that held deliveries were handed over, the first as this message of the call."""
        if any(one.type == ASKING and one.id <= record.upto for one in self.ledger.held):
            self.responses.asked(now)
        self.ledger.handed(record.upto, record.refused, position)

    def queue(self, record: TurnQueued, request: TurnRequest) -> Turn:
        """Queue a turn whose request is parsed already."""
        size = len(record.request)
        turn = self.turns.add(Turn(record.number, record.token, request, record.deadline), size)
        promise = Promise(record.key, record.fingerprint, record.request_id)
        self.answers.keep(promise, turn, record.at)
        return turn

    def _end_turn(self, record: TurnFinished) -> list[Effect]:
        turn = self.turns.find(record.number)
        if turn is None:
            return []
        if record.failure is None:
            return self.turns.done(EventId(self.epoch, record.last)) if turn is self.turns.running else []
        return self.turns.fail(turn, load_failure(record.failure), EventId(self.epoch, record.last))

    def _change_call(self, record: LineState) -> list[Effect]:
        state = State(record.state)
        self.call = Call(
            state, record.call_id, record.expires_at, record.model or self.call.model, record.cause
        )
        effects: list[Effect] = []
        if record.cause is None:
            return effects
        # The old call is gone. Once there is a new one, everything that was in flight is reported.
        if state is State.RECOVERING:
            return self._interrupt(record.cause)
        ids = set(record.again)
        again = [one for one in self.again if one.id in ids]
        turn = self.turns.running
        if self.cut or (turn is not None and not turn.ready):
            effects += self._interrupt(record.cause)
        effects += self.responses.lost(self.ledger.asked)
        self.ledger.restart(again)
        if self.opening.mirrored:
            self.mirror.restart(record.renamed, set(record.refused))
        return effects

    def _interrupt(self, cause: str) -> list[Effect]:
        """The call is over, and so are the responses in flight."""
        if self.opening.retry_interrupted:
            return []
        detail = f"The call was lost in the middle of the turn: {cause}."
        return self.turns.interrupt(UpstreamError("upstream-failed", detail), self.position)

    def _seal(self, record: Sealed) -> list[Effect]:
        self.closed = record.reason
        self.call = replace(self.call, state=State.CLOSED)
        effects = self.responses.lost(self.ledger.asked)
        self.ledger = Ledger(self.ledger.count > 0 and self.opening.attach_to is not None)
        self.mirror.forget()
        return effects

    # --- server events ------------------------------------------------------------------------------------------------

    def _confirm(self, type: str, value: Json) -> Delivery | None:
        """Match an event with the deliveries it answers. Return the request if the event starts a response."""
        ledger = self.ledger
        match type:
            case "response.created":
                return ledger.response_created()
            case "conversation.item.added":
                item = value.get("item")
                if isinstance(item, dict) and item.get("status") != "in_progress":
                    ledger.item_added(item)
            case "response.done":
                if member(value, "response", "status") == "cancelled":
                    ledger.response_cancelled(response_of(value)[0])
            case "conversation.item.deleted":
                ledger.item_named("conversation.item.delete", str(value.get("item_id")))
            case "conversation.item.truncated":
                ledger.item_named("conversation.item.truncate", str(value.get("item_id")))
            case "conversation.item.retrieved":
                ledger.item_named("conversation.item.retrieve", str(member(value, "item", "id")))
            case "input_audio_buffer.committed":
                ledger.buffer("input_audio_buffer.commit")
            case "input_audio_buffer.cleared":
                ledger.buffer("input_audio_buffer.clear")
            case "session.updated":
                session = ledger.session_updated(value.get("session"))
                if session is not None and self.opening.mirrored:
                    self.mirror.update(session)
            case "error":
                ledger.refused(member(value, "error", "event_id"))
        return None

    def _watch(self, type: str, value: Json, request: Delivery | None, now: float) -> list[Effect]:
        match type:
            case "session.created" | "session.updated":
                model = text_of(member(value, "session", "model"))
                self.call = replace(self.call, model=model or self.call.model)
                self.settings = settings_of(value.get("session"))
            case "response.created":
                return self.responses.created(value, request, now)
            case "response.done":
                usage, cost = member(value, "response", "usage"), None
                if isinstance(usage, dict):
                    cost = self._charge(usage, self.call.model)
                    self.spent.context = cost.tokens
                return self.responses.done(value, cost, now)
            case "conversation.item.input_audio_transcription.completed":
                usage = value.get("usage")
                if isinstance(usage, dict):
                    return [fx.Transcribed(self._charge(usage, self.settings.transcription_model))]
            case "error":
                code = member(value, "error", "code") or member(value, "error", "type")
                return [fx.UpstreamError(str(code))]
        return []

    def _charge(self, usage: Json, model: str | None) -> Charge:
        cost, spent = charge(usage, model, self.prices), self.spent
        self.usage = self.usage.plus(cost)
        spent.tokens += cost.tokens
        spent.cost += cost.assumed_cost
        return cost

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def dump(self, version: int = VERSION) -> bytes:
        """Return the state as bytes, in a version that this code reads."""
        state = {
            "v": version,
            "opening": asdict(self.opening),
            "accepted": self.accepted,
            "ledger": self.ledger.dump(),
            "mirror": self.mirror.dump(),
            "responses": self.responses.dump(),
            "turns": self.turns.dump(),
            "answers": self.answers.dump(self.turns.unfinished_by_number),
            "usage": self.usage.dump(),
            "spent": asdict(self.spent),
            "settings": asdict(self.settings),
            "epochs": self.epochs,
            "head": self.head,
            "call": asdict(self.call),
            "closed": self.closed,
        }
        return compact(state)

    @classmethod
    def load(cls, data: bytes, prices: PriceList | None = None) -> "SessionState":
        """Read what `dump` wrote. Raises UnreadableRecord."""
        try:
            found = expanded(data)
            if found["v"] not in READS:
                raise UnreadableRecord(f"a snapshot of version {found['v']}")
            return cls._loaded(found, prices)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnreadableRecord(f"a snapshot is malformed: {error!r}") from error

    @classmethod
    def _loaded(cls, found: dict, prices: PriceList | None) -> "SessionState":  # type: ignore[type-arg]  # JSON of `dump`
        opening = found["opening"]
        opening["secret_allows"] = tuple(opening["secret_allows"])
        opening["principal"] = loaded(Principal, opening["principal"])
        state = cls(loaded(Opening, opening), "{}", "", prices)
        state.accepted, state.head = found["accepted"], found["head"]
        state.spent, state.settings = loaded(Spent, found["spent"]), loaded(Settings, found["settings"])
        state.epochs = [(name, first) for name, first in found["epochs"]]
        state.ledger = Ledger.load(found["ledger"], state.opening.attach_to is not None)
        state.mirror = Mirror.load(found["mirror"])
        state.turns = Turns.load(found["turns"])
        state.answers = Answers.load(found["answers"], state.turns.unfinished_by_number)
        for response_id, default, row in found["responses"]:
            request = None if row is None else delivery(row[0], row[1], read_event(row[3]), row[2])
            state.responses.load(response_id, default, request)
        state.usage = Usage.load(found["usage"])
        state.call = loaded(Call, found["call"] | {"state": State(found["call"]["state"])})
        state.closed = found["closed"]
        return state

"""One conversation as its clients see it: a log downstream, a line upstream, and one task that owns both.

The session outlives its clients' connections, which only read the log, and its calls, which the line replaces. What
comes from upstream arrives in `arrived`, which is synchronous and appends to the log at once, since it runs inside the
far end's callbacks. Whatever ends the session only sets `_ending`; the owner task then does the rest in one place and
one order: cancel what costs money, wait briefly for its bill, write `gateway.closed`, seal the log, close the call.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.errors import CallerError, GatewayError, UpstreamError
from gateway.relay.broker import LocalLog
from gateway.relay.conversation import Sent
from gateway.relay.envelope import ClientEvent, member
from gateway.relay.idempotency import IdempotencyKeys
from gateway.relay.line import RESTART, Line, Replacement, World
from gateway.relay.ports import CallRequest, Json, Principal, Reader, Receipt, Receiver, SessionId, View
from gateway.relay.responses import Responses
from gateway.relay.sessionobject import check_locked
from gateway.relay.state import CloseReason, Input, State, advance
from gateway.relay.turn import Progress, Turn, TurnRequest
from gateway.relay.turnqueue import TOKEN_LENGTH, TurnQueue
from gateway.relay.usage import Charge, Usage


@dataclass(frozen=True, slots=True)
class Opening:
    """What a session is opened with, checked and merged by the hub."""

    principal: Principal
    session: Json
    metadata: Json
    detach_grace_seconds: int
    bearer: str | None = field(default=None, repr=False)
    secret_allows: tuple[str, ...] = ()
    retry_interrupted: bool = False
    """Ask again for a response that a lost call cut off."""


@dataclass(frozen=True, slots=True)
class _End:
    """Why the session ends, and OpenAI's part in it."""

    reason: CloseReason
    upstream: Json | None = None


class Session:
    """A `Handle` (see ports) and the `Owner` of its line."""

    def __init__(self, session_id: SessionId, opening: Opening, log: LocalLog, world: World) -> None:
        self.opening = opening
        self.log = log
        self.closed_at: float | None = None
        """When the log was sealed, in monotonic seconds."""
        self._id = session_id
        self._clock = world.clock
        self._telemetry = world.telemetry
        self._limits = world.limits
        self._account = world.allowance.open(opening.principal)
        self._usage = Usage()
        self._max_output_tokens = opening.session.get("max_output_tokens")
        self._idempotency = IdempotencyKeys(world.budget.open(opening.principal.name))
        self._state = State.CONNECTING
        self._accepted = 0
        self._receivers: list[Receiver] = []
        self._turns = TurnQueue(
            self._send_own, world.limits.max_waiting_turns, world.limits.turn_timeout_seconds
        )
        self._responses = Responses(session_id, opening.principal.name, world.telemetry, world.limits.prices)
        self._responses.text_only = opening.session.get("output_modalities") == ["text"]
        self._expiring_told = False
        now = world.clock.monotonic()
        self._opened_at = self._touched_at = self._event_at = now
        self._created_at = int(world.clock.unix())
        loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[_End] = loop.create_future()
        self._connected: asyncio.Future[None] = loop.create_future()
        self._sealed = asyncio.Event()
        self._paid = asyncio.Event()
        request = CallRequest(
            session=opening.session,
            bearer=opening.bearer,
            safety_identifier=None if opening.principal.anonymous else opening.principal.name,
        )
        self._line = Line(request, world, self, self._ending)
        world.telemetry.session_state(None, self._state)

    # --- what handlers see (ports.Handle) -----------------------------------------------------------------------------

    @property
    def id(self) -> SessionId:
        return self._id

    def view(self) -> View:
        limit = self._limits.max_session_seconds
        return View(
            id=self._id,
            principal=self.opening.principal.name,
            state=self._state,
            created_at=self._created_at,
            expires_at=self._created_at + int(limit) if limit else None,
            call_expires_at=self._line.call_expires_at,
            model=self._line.model,
            call_id=self._line.call_id,
            metadata=self.opening.metadata,
            head=self.log.head,
            oldest=self.log.oldest,
            receivers=len(self._receivers),
            close_reason=self._ending.result().reason if self._ending.done() else None,
            detach_grace_seconds=self.opening.detach_grace_seconds,
            secret_allows=self.opening.secret_allows,
            max_event_bytes=self._line.max_message_bytes,
            usage=self._usage,
        )

    @property
    def reader(self) -> Reader:
        return self.log

    @property
    def idempotency(self) -> IdempotencyKeys:
        return self._idempotency

    def release(self) -> None:
        """Give back what is still held of a session that nobody can ask for any more."""
        self._idempotency.close()

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

    def detach(self, receiver: Receiver) -> None:
        if receiver in self._receivers:
            self._receivers.remove(receiver)
            self.touch()

    async def submit(self, batch: Sequence[ClientEvent]) -> Receipt:
        self._require_live()
        self._check(batch)
        head = self.log.head
        first = self._accepted + 1
        self._send([Sent(first + index, event) for index, event in enumerate(batch)])
        self._accepted += len(batch)
        return Receipt(len(batch), first, self._accepted, head)

    async def turn(self, request: TurnRequest) -> Turn:
        self._require_live()
        check_locked(request.response, self._limits.session_locked, "")
        self._account.check(self._clock.unix())
        turn = self._turns.add(request, self._clock.token(TOKEN_LENGTH))
        self._advance_turns()
        return turn

    async def withdraw(self, turn: Turn) -> None:
        if self.live:
            self._turns.withdraw(turn, self.log.head)

    async def close(self, reason: CloseReason) -> None:
        self.end(reason)
        await self._sealed.wait()

    # --- what the hub and the operator see ----------------------------------------------------------------------------

    @property
    def live(self) -> bool:
        """Not closed and not about to be."""
        return not self._ending.done()

    @property
    def busy(self) -> bool:
        """A response is in flight."""
        return bool(self._responses.active)

    @property
    def retries(self) -> bool:
        """Responses that a lost call cut off are asked for again."""
        return self.opening.retry_interrupted

    @property
    def attended(self) -> bool:
        """Somebody is reading."""
        return bool(self._receivers)

    def diagnostics(self) -> Json:
        """What an operator may see: no text, no SDP, no address, no key."""
        refusal = self._line.last_refusal
        return {
            "accepted": self._accepted,
            "log_events": len(self.log),
            "log_bytes": self.log.size,
            "usage": self._usage.shown(),
            "responses_reserved": self._account.reserved,
            "responses_active": len(self._responses.active),
            "last_error_code": refusal["code"] if refusal else None,
            "line": self._line.diagnostics,
        }

    def restart(self) -> None:
        """Have the call replaced by a new one, history kept. Raises `session-closed`, or `invalid-parameter` where nothing
        is kept that a new call could be told."""
        self._require_live()
        if not self._limits.continuity:
            detail = "relay.continuity is off, so a new call would know nothing of the conversation."
            raise CallerError("invalid-parameter", detail)
        self._line.replace(RESTART)

    def tell(self, name: str, members: Json) -> None:
        """Write one of the gateway's own events into the log."""
        text = json.dumps({"type": name, **members}, separators=(",", ":"))
        self.log.append(name, text, self._clock.monotonic(), name=name)

    def end(self, reason: CloseReason, upstream: Json | None = None) -> None:
        """Begin to close; harmless when repeated, the first reason stands."""
        if not self._ending.done():
            self._ending.set_result(_End(reason, upstream))

    async def connected(self) -> None:
        """Wait until the channel is open and the far end has greeted; raises what the opening failed with."""
        await asyncio.shield(self._connected)

    async def run(self) -> None:
        """Own the session from opening to end. Never raises but for cancellation, after which all is closed, too."""
        try:
            if await self._line.open():
                self._move(Input.OPENED)
                self._connected.set_result(None)
                self._telemetry.session_opened(self.view(), self._clock.monotonic() - self._opened_at)
                await self._line.keep()
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
            self._seal()
            await self._line.close(hang_up=self._reason is not CloseReason.UPSTREAM_CLOSED)

    def tick(self, now: float) -> None:
        """Meet the deadlines that have passed; called about once a second."""
        if not self.live or self._state is State.CONNECTING:
            return
        limits = self._limits
        if limits.max_session_seconds and now - self._opened_at >= limits.max_session_seconds:
            self.end(CloseReason.EXPIRED)
        elif limits.idle_timeout_seconds and now - self._event_at >= limits.idle_timeout_seconds:
            self.end(CloseReason.IDLE)
        elif not self._receivers and now - self._touched_at >= self.opening.detach_grace_seconds:
            self.end(CloseReason.DETACHED)
        else:
            self._turns.expire(self.log.head, now)
            self._advance_turns()
            self._tell_expiring()
            self._line.tick(now)

    # --- what the line says (line.Owner) ------------------------------------------------------------------------------

    def arrived(self, type: str, text: str, value: Json, now: float) -> None:
        self._event_at = now
        tag, progress, turn = 0, Progress.FOREIGN, self._turns.running
        if turn is not None:
            progress = self._turns.look(type, value)
            tag = turn.number if progress in (Progress.OURS, Progress.DONE) else 0
        self.log.append(type, text, now, turn=tag)
        # Most events are ASCII, of which this asks in no time.
        self._telemetry.event_down(type, len(text) if text.isascii() else len(text.encode()))
        if self._responses.awaiting_delta and type.endswith(".delta"):
            self._responses.delta(value, now)
        if type not in _WATCHED:
            return
        self._watch(type, value, now)
        if progress is Progress.DONE:
            self._turns.done(self.log.head)
        if progress is not Progress.BUSY:  # What was just refused is not asked for again at once.
            self._advance_turns()

    def fell(self, cause: str) -> None:
        self._interrupt(cause)
        self._move(Input.LOST)
        self.tell("gateway.recovering", {"cause": cause})

    def asked(self) -> None:
        self._responses.asked(self._clock.monotonic())

    def replaced(self, replacement: Replacement) -> None:
        if replacement.cut:
            self._interrupt(replacement.cause)
        response = "retried" if replacement.retried else "interrupted" if replacement.cut else None
        members = {
            "cause": replacement.cause,
            "call_id": replacement.call_id,
            "items_restored": replacement.items_restored,
            "items_lost": replacement.items_lost,
            "renamed": dict(replacement.renamed),
            "response": response,
            "unknown": [_account(sent) for sent in replacement.unknown],
            "refused": [_account(sent) for sent in replacement.refused],
        }
        if self._state is State.RECOVERING:
            self._move(Input.RECOVERED)
        self.tell("gateway.recovered", members)
        self._advance_turns()

    def _interrupt(self, cause: str) -> None:
        """The call is over and with it whatever was being answered."""
        self._account.forfeit(self._responses.lost(), self._clock.unix())
        if not self.opening.retry_interrupted:
            detail = f"The call was lost in the middle of the turn: {cause}."
            self._turns.interrupt(UpstreamError("upstream-failed", detail), self.log.head)

    # --- the end ------------------------------------------------------------------------------------------------------

    @property
    def _reason(self) -> CloseReason:
        return self._ending.result().reason

    def _refuse(self, error: GatewayError) -> None:
        """The opening failed: whoever waits for it is told why, and nobody else ever saw the session."""
        self._connected.set_exception(error)
        self._connected.exception()  # The waiter may have left; an unread exception would be logged as forgotten.
        rejected = error.code in ("upstream-rejected", "upstream-rate-limited")
        self.end(CloseReason.UPSTREAM_REJECTED if rejected else CloseReason.UPSTREAM_LOST)

    async def _settle_responses(self) -> None:
        """Cancel what is being answered and wait briefly for its response.done, which says what it cost."""
        if self._reason in _UPSTREAM_REASONS:
            return
        cancels = [_cancel(response_id) for response_id in self._responses.active]
        if not cancels:
            return
        self._paid.clear()  # It was set by every response that was done before these.
        try:
            self._send_own(cancels)
            await asyncio.wait_for(self._paid.wait(), self._limits.parting_seconds)
        except (GatewayError, TimeoutError):
            return  # What was not said by now is counted as unrecorded.

    def _seal(self) -> None:
        """Write the log's last event. Synchronous, so that nothing can come between it and the seal."""
        end = self._ending.result()
        self._account.forfeit(self._responses.lost(), self._clock.unix())
        self._account.close()
        opened = self._state is not State.CONNECTING
        if opened:
            members = {"reason": end.reason, "retryable": end.reason.retryable, "upstream": end.upstream}
            # The gateway's own events, which nobody else has counted, are nobody's loss.
            left = {"unknown": self._line.unknown, "unsent": self._line.unsent}
            accounts = {name: [_account(sent) for sent in of if sent.number] for name, of in left.items()}
            self.tell("gateway.closed", members | {name: told for name, told in accounts.items() if told})
        failure = _failure(end, self._id)
        self._turns.fail(failure, self.log.head)
        if not self._connected.done():
            self._connected.set_exception(failure)
            self._connected.exception()
        self._move(Input.CLOSED)
        self.closed_at = self._clock.monotonic()
        self.log.seal()
        self._sealed.set()
        if opened:
            self._telemetry.session_closed(self.view(), self.closed_at - self._opened_at)

    # --- the rest -----------------------------------------------------------------------------------------------------

    def _watch(self, type_: str, value: Json, now: float) -> None:
        match type_:
            case "session.created" | "session.updated":
                self._responses.text_only = member(value, "session", "output_modalities") == ["text"]
                transcription = member(value, "session", "audio", "input", "transcription", "model")
                self._responses.transcription_model = str(transcription) if transcription else None
                self._max_output_tokens = member(value, "session", "max_output_tokens")
            case "response.created":
                self._responses.model = self._line.model
                self._responses.created(value, now)
            case "response.done":
                self._spend(self._responses.done(value, now))
                if not self._responses.active:
                    self._paid.set()
            case "conversation.item.input_audio_transcription.completed":
                charge = self._responses.transcribed(value)
                if charge is not None:
                    self._spend(charge, response=False)
            case "error":
                # It may be the refusal of a response that was asked for; which of them, only some errors say.
                if self._account.reserved > len(self._responses.active):
                    self._account.release(1)
                code = member(value, "error", "code") or member(value, "error", "type")
                self._telemetry.upstream_error(str(code))

    def _spend(self, charge: Charge | None, *, response: bool = True) -> None:
        """Count what a response has cost, and end the session once its own limit is reached."""
        unix = self._clock.unix()
        if charge is None:
            self._account.forfeit(1, unix)
        else:
            self._usage = self._usage.plus(charge)
            self._account.spend(charge, unix, response=response)
        if self._account.exhausted:
            self.end(CloseReason.LIMIT)

    def _tell_expiring(self) -> None:
        expires_at = self._line.call_expires_at
        if self._limits.continuity or self._expiring_told or expires_at is None:
            return
        if self._clock.unix() >= expires_at - self._limits.expiring_seconds:
            self._expiring_told = True
            self.tell("gateway.expiring", {"call_expires_at": expires_at})

    def _require_live(self) -> None:
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

    def _send(self, batch: Sequence[Sent]) -> None:
        """Give a batch to the line whole, or raise."""
        events = [sent.event for sent in batch]
        reserved = self._account.reserve(
            events, self._max_output_tokens, self._line.model, self._clock.unix()
        )
        try:
            self._line.send(batch)
        except GatewayError:
            self._account.cancel(reserved)
            raise
        self._event_at = self._clock.monotonic()

    def _send_own(self, events: Sequence[ClientEvent]) -> None:
        """Send events that no client counts."""
        self._send([Sent(0, event) for event in events])

    def _advance_turns(self) -> None:
        if self.live and not self._line.holding:
            self._turns.advance(self._responses.busy, self.log.head, self._clock.monotonic())

    def _move(self, happened: Input) -> None:
        before, self._state = self._state, advance(self._state, happened)
        self._telemetry.session_state(before, self._state)


_HOLDS_SESSION = {"session.update": "session", "response.create": "response"}
"""Client events that carry members of the session object, and where."""

_WATCHED = frozenset(
    {
        "session.created",
        "session.updated",
        "response.created",
        "response.done",
        "conversation.item.input_audio_transcription.completed",
        "error",
    }
)
"""Server events that mean something to the session itself; all others only pass."""

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


def _cancel(response_id: str) -> ClientEvent:
    value = {"type": "response.cancel", "response_id": response_id}
    return ClientEvent(json.dumps(value, separators=(",", ":")), "response.cancel", None, value)


def _account(sent: Sent) -> Json:
    """Name an event to the client that sent it; the gateway's own have no number."""
    return {"number": sent.number or None, "event_id": sent.event.event_id, "type": sent.event.type}

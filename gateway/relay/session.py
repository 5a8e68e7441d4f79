"""One conversation: a call upstream, a log downstream, and one task that owns both.

The session outlives its clients' connections, which only read the log, and its calls, which it owns. Everything that
comes from upstream arrives in `received`, which is synchronous, appends to the log at once and never raises, since it
runs inside the far end's callbacks. Whatever ends the session only sets `_ending`; the owner task then does the rest
in one place and one order: cancel what costs money, wait briefly for its bill, write `gateway.closed`, seal the log,
close the call.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import CallerError, GatewayError, OverloadError, UpstreamError
from gateway.relay.broker import LocalLog
from gateway.relay.clock import Clock
from gateway.relay.envelope import ClientEvent, peek
from gateway.relay.idempotency import IdempotencyKeys
from gateway.relay.limits import RelayLimits
from gateway.relay.ports import (
    CallRequest,
    Dialer,
    Json,
    LossCause,
    Principal,
    Reader,
    Receipt,
    Receiver,
    SessionId,
    Telemetry,
    Upstream,
    View,
)
from gateway.relay.responses import Responses
from gateway.relay.sessionobject import check_locked
from gateway.relay.state import CloseReason, Input, State, advance
from gateway.relay.turn import Progress, Turn, TurnRequest
from gateway.relay.turnqueue import TOKEN_LENGTH, TurnQueue

_NOT_SENT_AFTER_CLOSE = "The session is closed; open another one."


@dataclass(frozen=True, slots=True)
class Opening:
    """What a session is opened with, checked and merged by the hub."""

    principal: Principal
    session: Json
    metadata: Json
    detach_grace_seconds: int
    bearer: str | None = field(default=None, repr=False)
    secret_allows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class World:
    """What every session of a hub shares."""

    dialer: Dialer
    telemetry: Telemetry
    limits: RelayLimits
    clock: Clock


@dataclass(frozen=True, slots=True)
class _End:
    """Why the session ends, and OpenAI's part in it."""

    reason: CloseReason
    upstream: Json | None = None


class Session:
    """A `Handle` (see ports) and the `Sink` of its call."""

    def __init__(self, session_id: SessionId, opening: Opening, log: LocalLog, world: World) -> None:
        self.id = session_id
        self.opening = opening
        self.log = log
        self.idempotency = IdempotencyKeys()
        self._world = world
        self._clock = world.clock
        self._telemetry = world.telemetry
        self._limits = world.limits
        self._state = State.CONNECTING
        self._generation = 0
        self._upstream: Upstream | None = None
        self._model = _text(opening.session.get("model"))
        self._call_expires_at: int | None = None
        self._expiring_told = False
        self._last_refusal: Json | None = None
        self._bearer = opening.bearer
        self._accepted = 0
        self._receivers: list[Receiver] = []
        self._responses = Responses(session_id, opening.principal.name, world.telemetry)
        self._responses.model = self._model
        self._responses.text_only = opening.session.get("output_modalities") == ["text"]
        self._turns = TurnQueue(self._send, world.limits.max_waiting_turns, world.limits.turn_timeout_seconds)
        now = world.clock.monotonic()
        self._opened_at = now
        self._created_at = int(world.clock.unix())
        self._touched_at = now
        self._event_at = now
        self.closed_at: float | None = None
        """When the log was sealed, in monotonic seconds."""
        loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[_End] = loop.create_future()
        self._greeted: asyncio.Future[None] = loop.create_future()
        self._quiet: asyncio.Future[None] | None = None
        self._sealed = asyncio.Event()
        self._connected: asyncio.Future[None] = loop.create_future()
        world.telemetry.session_state(None, self._state)

    # --- what handlers see (ports.Handle) -----------------------------------------------------------------------------

    def view(self) -> View:
        limit = self._limits.max_session_seconds
        return View(
            id=self.id,
            principal=self.opening.principal.name,
            state=self._state,
            created_at=self._created_at,
            expires_at=self._created_at + int(limit) if limit else None,
            call_expires_at=self._call_expires_at,
            model=self._model,
            call_id=self._upstream.call_id if self._upstream else None,
            metadata=self.opening.metadata,
            head=self.log.head,
            oldest=self.log.oldest,
            receivers=len(self._receivers),
            close_reason=self._ending.result().reason if self._ending.done() else None,
            detach_grace_seconds=self.opening.detach_grace_seconds,
            secret_allows=self.opening.secret_allows,
        )

    @property
    def reader(self) -> Reader:
        return self.log

    @property
    def live(self) -> bool:
        """Not closed and not about to be."""
        return not self._ending.done()

    def touch(self) -> None:
        self._touched_at = self._clock.monotonic()

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

    async def submit(self, batch: Sequence[ClientEvent], *, bearer: str | None = None) -> Receipt:
        self._require_open()
        self._check(batch)
        if bearer is not None:
            self._bearer = bearer
        head = self.log.head
        self._send(batch)
        first = self._accepted + 1
        self._accepted += len(batch)
        return Receipt(len(batch), first, self._accepted, head)

    async def turn(self, request: TurnRequest) -> Turn:
        self._require_open()
        check_locked(request.response, self._limits.session_locked, "")
        turn = self._turns.add(request, self._clock.token(TOKEN_LENGTH))
        self._advance_turns()
        return turn

    async def withdraw(self, turn: Turn) -> None:
        """Cancel a turn that nobody waits for any more."""
        if self.live:
            self._turns.withdraw(turn, self.log.head)

    async def close(self, reason: CloseReason) -> None:
        self.end(reason)
        await self._sealed.wait()

    # --- what the owner does ------------------------------------------------------------------------------------------

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
            await self._open()
            await self._ending
            await self._settle_responses()
        except GatewayError as error:
            self._refuse(error)
        except asyncio.CancelledError:
            self.end(CloseReason.DRAINED)
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the session is closed and the mistake reported
            self._telemetry.relay_failed(self.id, error)
            self.end(CloseReason.INTERNAL)
        finally:
            self.end(CloseReason.INTERNAL)
            self._seal()
            await self._hang_up()

    async def _open(self) -> None:
        request = CallRequest(
            session=self.opening.session,
            generation=self._generation,
            bearer=self._bearer,
            safety_identifier=None if self.opening.principal.anonymous else self.opening.principal.name,
        )
        dialling = asyncio.create_task(self._world.dialer.dial(request, self), name=f"dial-{self.id}")
        try:
            await _first(dialling, self._ending)
        finally:
            if not dialling.done():
                dialling.cancel()
                await asyncio.wait({dialling})
        if dialling.cancelled():
            return  # The session was ended while it opened.
        self._upstream = dialling.result()
        await _first(self._greeted, self._ending, timeout=self._limits.greeting_seconds)
        if self.live:
            self._move(Input.OPENED)
            self._connected.set_result(None)
            self._telemetry.session_opened(self.view(), self._clock.monotonic() - self._opened_at)

    def _refuse(self, error: GatewayError) -> None:
        """The opening failed: whoever waits for it is told why, and nobody else ever saw the session."""
        self._connected.set_exception(error)
        self._connected.exception()  # The waiter may have left; an unread exception would be logged as forgotten.
        rejected = error.code in ("upstream-rejected", "upstream-rate-limited")
        reason = CloseReason.UPSTREAM_REJECTED if rejected else CloseReason.UPSTREAM_LOST
        self.end(reason, error.members.get("upstream"))  # type: ignore[arg-type]  # an object by contract

    async def _settle_responses(self) -> None:
        """Cancel what is being answered and wait briefly for its response.done, which says what it cost."""
        if self._upstream is None or not self._responses.active or not self._ends_by_our_will():
            return
        self._quiet = asyncio.get_running_loop().create_future()
        for response_id in self._responses.active:
            text = json.dumps({"type": "response.cancel", "response_id": response_id})
            try:
                self._upstream.send([text])
            except GatewayError:
                return
        await asyncio.wait({self._quiet}, timeout=self._limits.parting_seconds)

    def _ends_by_our_will(self) -> bool:
        return self._ending.result().reason not in (
            CloseReason.UPSTREAM_LOST,
            CloseReason.UPSTREAM_CLOSED,
            CloseReason.UPSTREAM_REJECTED,
        )

    def _seal(self) -> None:
        """Write the log's last event. Synchronous, so that nothing can come between it and the seal."""
        end = self._ending.result()
        self._responses.lost()
        if self._state is State.CONNECTED or self._state is State.RECOVERING:
            members = {"reason": end.reason, "retryable": end.reason.retryable, "upstream": end.upstream}
            self.tell("gateway.closed", members)
        lost = self._turn_failure(end)
        self._turns.fail(lost, self.log.head)
        if not self._connected.done():
            self._connected.set_exception(lost)
            self._connected.exception()
        was_open = self._state is not State.CONNECTING
        self._move(Input.CLOSED)
        self.closed_at = self._clock.monotonic()
        self.log.seal()
        self._sealed.set()
        if was_open:
            self._telemetry.session_closed(self.view(), self.closed_at - self._opened_at)

    def _turn_failure(self, end: _End) -> GatewayError:
        if self._ends_by_our_will():
            return CallerError("session-closed", f"The session ended: {end.reason}.")
        members = {"upstream": end.upstream} if end.upstream else {}
        return UpstreamError("upstream-failed", f"The session ended: {end.reason}.", members=members)

    async def _hang_up(self) -> None:
        upstream = self._upstream
        if upstream is None:
            return
        try:
            await upstream.close(hang_up=self._ending.result().reason is not CloseReason.UPSTREAM_CLOSED)
        except Exception as error:  # noqa: BLE001  # the session is sealed already; a close must not undo that
            self._telemetry.relay_failed(self.id, error)

    # --- what upstream says (ports.Sink) ------------------------------------------------------------------------------

    def received(self, generation: int, text: str) -> None:
        if generation != self._generation or self.log.sealed:
            return
        try:
            self._relay_down(text)
        except Exception as error:  # noqa: BLE001  # raising here would close the peer connection
            self._telemetry.relay_failed(self.id, error)

    def _relay_down(self, text: str) -> None:
        value = peek(text)
        if value is None:
            self._telemetry.frame_unrelayed(self.id, len(text))
            return
        type_ = value.get("type")
        if not isinstance(type_, str):
            type_ = ""
        now = self._event_at = self._clock.monotonic()
        tag, progress, turn = 0, Progress.FOREIGN, self._turns.running
        if turn is not None:
            progress = self._turns.look(type_, value)
            tag = turn.number if progress in (Progress.OURS, Progress.DONE) else 0
        self.log.append(type_, text, now, turn=tag)
        self._telemetry.event_down(type_, len(text))
        if self._responses.awaiting_delta and type_.endswith(".delta"):
            self._responses.delta(value, now)
        watched = type_ in _WATCHED
        if watched:
            self._watch(type_, value, now)
        if progress is Progress.DONE:
            self._turns.done(self.log.head)
        if watched:
            self._advance_turns()

    def unreadable(self, generation: int, size: int) -> None:
        self._telemetry.frame_unrelayed(self.id, size)

    def drained(self, generation: int) -> None:
        """Nothing waits for the channel here: a batch that does not fit is refused, not queued."""

    def lost(self, generation: int, cause: LossCause) -> None:
        if generation != self._generation:
            return
        self._telemetry.upstream_lost(self.id, cause)
        closed = cause is LossCause.CHANNEL_CLOSED
        reason = CloseReason.UPSTREAM_CLOSED if closed else CloseReason.UPSTREAM_LOST
        self.end(reason, {"cause": cause, **(self._last_refusal or {})})

    def _watch(self, type_: str, value: Json, now: float) -> None:
        match type_:
            case "session.created" | "session.updated":
                self._on_session(value)
            case "response.created":
                self._responses.created(value, now)
            case "response.done":
                self._on_done(value, now)
            case "error":
                self._on_error(value)

    def _on_session(self, value: Json) -> None:
        session = value.get("session")
        if isinstance(session, Mapping):
            self._model = self._responses.model = _text(session.get("model")) or self._model
            expires_at = session.get("expires_at")
            if isinstance(expires_at, int) and expires_at > 0:
                self._call_expires_at = expires_at
            self._responses.text_only = session.get("output_modalities") == ["text"]
        if not self._greeted.done():
            self._greeted.set_result(None)

    def _on_done(self, value: Json, now: float) -> None:
        self._responses.done(value, now)
        if self._quiet is not None and not self._quiet.done() and not self._responses.active:
            self._quiet.set_result(None)

    def _on_error(self, value: Json) -> None:
        error = value.get("error")
        if not isinstance(error, Mapping):
            return
        code = _text(error.get("code")) or _text(error.get("type")) or "other"
        self._telemetry.upstream_error(code)
        # Kept in case the call ends next: session_expired, say, comes as an error and then the channel closes.
        self._last_refusal = {"code": code, "message": error.get("message")}

    # --- time ---------------------------------------------------------------------------------------------------------

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

    def _tell_expiring(self) -> None:
        expires_at = self._call_expires_at
        if self._expiring_told or expires_at is None:
            return
        if self._clock.unix() >= expires_at - self._limits.expiring_seconds:
            self._expiring_told = True
            self.tell("gateway.expiring", {"call_expires_at": expires_at})

    # --- the rest -----------------------------------------------------------------------------------------------------

    def tell(self, name: str, members: Json) -> None:
        """Write one of the gateway's own events into the log."""
        text = json.dumps({"type": name, **members}, separators=(",", ":"))
        self.log.append(name, text, self._clock.monotonic(), name=name)

    @property
    def answering(self) -> bool:
        """A response is in flight."""
        return bool(self._responses.active)

    @property
    def attended(self) -> bool:
        """Somebody is reading."""
        return bool(self._receivers)

    def diagnostics(self) -> Json:
        """What an operator may see: no text, no SDP, no address, no key."""
        return {
            "accepted": self._accepted,
            "generation": self._generation,
            "log_events": len(self.log),
            "log_bytes": self.log.size,
            "responses_active": len(self._responses.active),
            "buffered": self._upstream.buffered if self._upstream else 0,
            "last_refusal": {"code": self._last_refusal["code"]} if self._last_refusal else None,
            "upstream": self._upstream.diagnostics if self._upstream else None,
        }

    def _require_open(self) -> None:
        if not self.live:
            reason = self._ending.result().reason
            raise CallerError("session-closed", _NOT_SENT_AFTER_CLOSE, members={"reason": reason})
        if self._upstream is None:
            raise OverloadError("recovering", "The session has no call at the moment.", retry_after=1)

    def _check(self, batch: Sequence[ClientEvent]) -> None:
        limits = self._limits
        for index, event in enumerate(batch):
            if event.size > limits.max_event_bytes:
                detail = (
                    f"Event {index} has {event.size} bytes; at most {limits.max_event_bytes} are allowed."
                )
                raise CallerError("too-large", detail, members={"limit": limits.max_event_bytes})
            if limits.session_locked and event.type in _HOLDS_SESSION:
                member = _HOLDS_SESSION[event.type]
                pointer = f"/{index}/{member}" if len(batch) > 1 else f"/{member}"
                check_locked(event.value.get(member, {}), limits.session_locked, pointer)

    def _send(self, batch: Sequence[ClientEvent]) -> None:
        """Hand a batch over whole, or raise."""
        upstream = self._upstream
        if upstream is None:
            raise UpstreamError("upstream-failed", "The session has no call.")
        buffered = upstream.buffered
        if buffered and buffered + sum(event.size for event in batch) > self._limits.high_water_bytes:
            detail = f"{buffered} bytes wait for OpenAI to take them; the batch was not accepted."
            raise OverloadError("upstream-backpressure", detail, retry_after=1)
        upstream.send([event.text for event in batch])
        now = self._event_at = self._clock.monotonic()
        for event in batch:
            self._telemetry.event_up(event.type, event.size)
            if event.type == "response.create":
                self._responses.asked(now)

    def _advance_turns(self) -> None:
        if self.live:
            self._turns.advance(self._responses.busy, self.log.head, self._clock.monotonic())

    def _move(self, happened: Input) -> None:
        before, self._state = self._state, advance(self._state, happened)
        self._telemetry.session_state(before, self._state)


_HOLDS_SESSION = {"session.update": "session", "response.create": "response"}
"""Client events that carry members of the session object, and where."""

_WATCHED = frozenset({"session.created", "session.updated", "response.created", "response.done", "error"})
"""Server events that mean something to the session itself; all others only pass."""


async def _first(*futures: "asyncio.Future[Any]", timeout: float | None = None) -> None:
    """Wait until one of several is done; their results are of different types, hence Any."""
    await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

"""One conversation as its clients see it: a log downstream, a line upstream, and one task that owns both.

The session outlives its clients' connections, which only read the log, and its calls, which the line replaces. What it is
stands in its state (see `fold`), and every change of that is a record: `note` applies it, gives it to the journal, and
carries out what follows. What comes from upstream arrives in `arrived`, which is synchronous and appends to the log at
once, because it runs inside the transport's callbacks.

Every cause of an end only sets `_ending`. The owner task then does the rest in one place and one order: cancel active
responses, wait briefly for their usage, write `gateway.closed`, seal the log, close the call.
"""

import asyncio
from collections.abc import Iterable, Sequence

from gateway.errors import CallerError, GatewayError, OverloadError
from gateway.relay.broker import JournalledLog
from gateway.relay.calls.lifecycle import STATE_OF, Phase
from gateway.relay.calls.steps import NODE_LOST, RESTART
from gateway.relay.calls.succession import Prepared
from gateway.relay.core import SessionCore
from gateway.relay.ending import UPSTREAM_REASONS, cancelling, failure_of
from gateway.relay.events.envelope import ClientEvent
from gateway.relay.events.jsontext import SEARCHED_BYTES
from gateway.relay.events.records import VERSION, LineState, Record, Released, Sealed, TurnQueued
from gateway.relay.ports import Json, Reader, Receiver, View
from gateway.relay.requests import NO_PROMISE, Promise, Receipt
from gateway.relay.sessionobject import check_locked
from gateway.relay.state.turn import Turn, TurnRequest
from gateway.relay.state.turns import TOKEN_LENGTH
from gateway.relay.states import CloseReason, State
from gateway.relay.tasks import in_turns


class Session(SessionCore):
    """A `Handle` (see ports), the `Owner` of its line, and the `JournalOwner` of its journal."""

    # --- what handlers see (ports.Handle) -----------------------------------------------------------------------------

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

    async def owned(self) -> bool:
        return self.journal.sure and await self.journal.owned()

    async def submit(self, batch: Sequence[ClientEvent], promise: Promise = NO_PROMISE) -> Receipt:
        if promise is not NO_PROMISE:
            known = self.state.answers.find(promise)
            if isinstance(known, Receipt):
                await self.journal.flushed()
                return known
        self._require_live()
        self._check(batch)
        # Appended, and shown once this is flushed: after a takeover, the head of a receipt is of the new epoch.
        before, first, count = self.log.appended, self.state.accepted + 1, len(batch)
        self._send(batch, first, promise=promise, head=before.sequence)
        if self.journal.keeps:
            await self.journal.flushed()
        return Receipt(count, first, first + count - 1, before)

    async def turn(self, request: TurnRequest, promise: Promise = NO_PROMISE) -> Turn:
        request = await in_turns(request.in_text())
        text = request.dump()
        if len(text) > SEARCHED_BYTES:
            await asyncio.sleep(0)  # Sending it may take milliseconds.
        known = self.promised(promise)
        turn = known if isinstance(known, Turn) else self._queue(request, text, promise)
        await self.journal.flushed()
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
        await self.journal.flushed()

    # --- what the hub and the operator see ----------------------------------------------------------------------------

    @property
    def phase_state(self) -> State:
        """The session's state, as clients see it."""
        return STATE_OF[self._line.phase]

    @property
    def attended(self) -> bool:
        """A reader is connected."""
        return bool(self._receivers)

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
        """Have the call replaced by a new one that gets the history. Raises `session-closed`, or `invalid-parameter` if no
        history is kept."""
        self._require_live()
        if self.state.opening.attach_to is not None:
            raise CallerError(
                "invalid-parameter", "Another application made the call; it cannot be replaced."
            )
        if not self._limits.continuity:
            detail = "relay.continuity is off, so a new call would start without the conversation."
            raise CallerError("invalid-parameter", detail)
        self._line.replace(RESTART)

    async def connected(self) -> None:
        """Wait until the channel is open and the far end has greeted; raises what the opening failed with."""
        await asyncio.shield(self._connected)

    async def run(self) -> None:
        """Own the session from opening to end. Raises nothing but CancelledError; everything is closed then, too."""
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
        """Act on deadlines that have passed; called about once a second."""
        if not self.live or self._line.phase is Phase.DIALLING:
            return
        limits = self._limits
        if limits.max_session_seconds and now - self._opened_at >= limits.max_session_seconds:
            self.end(CloseReason.EXPIRED)
        elif limits.idle_timeout_seconds and now - self._event_at >= limits.idle_timeout_seconds:
            self.end(CloseReason.IDLE)
        elif self._deserted(now):
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
            if self.journal.keeps:
                self.journal.oldest(self.log.oldest.sequence)

    def rest(self) -> None:
        """Serve the log of a session that ended on another node, until its retention is over."""
        self.end(CloseReason(self.state.closed or CloseReason.INTERNAL))
        self.closed_at = self._clock.monotonic()
        self.log.seal()
        self._sealed.set()
        self.journal.seal(self._limits.log_retention_seconds)
        self._account.close()
        self._holding.release()

    # --- for another node (journal.JournalOwner, and the hand-over) ---------------------------------------------------

    def settled(self) -> None:
        if isinstance(self.log, JournalledLog):
            self.log.settle(self.journal.settled)

    def fenced(self) -> None:
        self._let_go(hang_up=False)

    def dump(self, version: int = VERSION) -> bytes:
        return self.state.dump(version)

    def kept(self, after: int) -> Iterable[Record]:
        return self.log.records(after)

    def adopt(self, cause: str, prepared: Prepared | None) -> None:
        """Begin where another node's session ended. `run` then finds a call."""
        self._line.adopt(cause, prepared)
        if cause == NODE_LOST:
            self.note(LineState(State.RECOVERING, None, None, None, cause))
            self.tell("gateway.recovering", {"cause": cause, "accepted": self.state.accepted})

    async def prepare_release(self) -> bool:
        """Hold everything in a pause, so that another node can take the session over. Returns when all of it is in the
        journal; False where that cannot be now. `released` or `resume` must follow."""
        if not self.live or not await self._line.park():
            return False
        self.journal.add(Released(None))
        await self.journal.flushed()
        return True

    def resume(self) -> None:
        """Go on after `prepare_release`: the other node did not take over."""
        self._line.resume()

    def released(self) -> None:
        """Another node has taken over: end without writing an event. Readers reconnect and find the session there."""
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

    # --- the end ------------------------------------------------------------------------------------------------------

    def _begun(self) -> None:
        """Mark the session as open."""
        if not self._connected.done():
            self._connected.set_result(None)
        if self.state.call.state is State.CONNECTING:
            line, model = self._line, self.state.call.model
            self.note(LineState(State.CONNECTED, line.call_id, line.call_expires_at, model))
            self._telemetry.session_opened(self.view(), self._clock.monotonic() - self._opened_at)

    def _refuse(self, error: GatewayError) -> None:
        """The opening failed: its waiter gets the error. No client has seen the session."""
        if not self._connected.done():
            self._connected.set_exception(error)
            self._connected.exception()  # The waiter may have left; an unread exception would be logged as forgotten.
        rejected = error.code in ("upstream-rejected", "upstream-rate-limited")
        self.end(CloseReason.UPSTREAM_REJECTED if rejected else CloseReason.UPSTREAM_LOST)

    async def _settle_responses(self) -> None:
        """Cancel what is being answered, or was asked for, and wait briefly for its response.done, which says what it
        cost."""
        state = self.state
        if self._reason in UPSTREAM_REASONS or state.opening.attach_to is not None:
            return
        cancels = [cancelling(response_id) for response_id in state.responses.active]
        if state.ledger.asks:
            cancels.append(cancelling(None))  # Its ID is not known yet.
        if not cancels:
            return
        self._paid.clear()  # It was set by every response that was done before these.
        try:
            self._send(cancels, 0)
            await asyncio.wait_for(self._paid.wait(), self._limits.parting_seconds)
        except (GatewayError, TimeoutError):
            return  # Usage that was not reported by now is counted as unrecorded.

    def _seal(self) -> None:
        """Write the log's last event. Synchronous, so that nothing can come between it and the seal."""
        end = self._ending.result()
        self._line.confirm()
        opened = self._line.phase is not Phase.DIALLING
        if opened:
            members = {"reason": end.reason, "retryable": end.reason.retryable, "upstream": end.upstream}
            # The gateway's own events are not counted as lost: no client sent them.
            left = {"unknown": self.state.ledger.in_flight, "unsent": self.state.ledger.held}
            accounts = {name: [one.account for one in of if one.number] for name, of in left.items()}
            self.tell("gateway.closed", members | {name: told for name, told in accounts.items() if told})
        failure = failure_of(end, self._id)
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
        self.journal.seal(self._limits.log_retention_seconds)
        if opened:
            self._telemetry.session_closed(self.view(), self.closed_at - self._opened_at)

    def _tell_expiring(self) -> None:
        expires_at = self._line.call_expires_at
        if self._limits.continuity or self._expiring_told or not self._line.expiring:
            return
        self._expiring_told = True
        self.tell("gateway.expiring", {"call_expires_at": expires_at})

    # --- sending ------------------------------------------------------------------------------------------------------

    def _require_live(self) -> None:
        if self._gone or not self.journal.sure:
            raise OverloadError("recovering", "Another node may have the session.", retry_after=1)
        if not self.live:
            detail = "The session is closed; open another one."
            raise CallerError("session-closed", detail, members={"reason": self._reason})

    def _check(self, batch: Sequence[ClientEvent]) -> None:
        most, session_locked = self._limits.max_event_bytes, self._limits.session_locked
        for index, event in enumerate(batch):
            if event.size > most:
                detail = f"Event {index} has {event.size} bytes; at most {most} are allowed."
                raise CallerError("too-large", detail, members={"limit": most})
            if session_locked and event.type in _HOLDS_SESSION:
                holder = _HOLDS_SESSION[event.type]
                locked = [f"{holder}.{name}" for name in session_locked]
                check_locked(event.value, locked, f"/{index}" if len(batch) > 1 else "")

    def _queue(self, request: TurnRequest, text: str, promise: Promise) -> Turn:
        self._require_live()
        check_locked(request.response, self._limits.session_locked, "")
        self._account.check(self._clock.unix())
        turns, unix = self.state.turns, self._clock.unix()
        turns.require_room(self._limits.max_waiting_turns)
        record = TurnQueued(
            turns.count + 1,
            self._clock.token(TOKEN_LENGTH),
            text,
            unix + self._limits.turn_timeout_seconds,
            promise.key,
            promise.fingerprint,
            promise.request_id,
            unix,
        )
        turn = self.state.queue(record, request)
        if self.journal.keeps:
            self.journal.add(record)
        self._advance_turns()
        return turn


_HOLDS_SESSION = {"session.update": "session", "response.create": "response"}
"""Client events that carry members of the session object, and where."""

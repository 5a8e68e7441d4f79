"""All sessions of this process: opening, finding, limits, deadlines, drain.

The hub owns one task per session and one that ticks. A session is found from when its channel is open until its log's
retention is over. Drain in three steps: new sessions are refused; running ones get `gateway.draining`; each ends at a random
moment within the time allowed, but not in the middle of a response, so that clients reconnect with complete answers.
"""

import asyncio
import random
from typing import Final

from gateway.errors import CallerError, GatewayError, OverloadError, UpstreamError, invalid_parameter
from gateway.relay.broker import Broker
from gateway.relay.calls.lifecycle import Phase
from gateway.relay.calls.steps import HANDOVER, NODE_LOST
from gateway.relay.calls.succession import Prepared
from gateway.relay.clock import Clock
from gateway.relay.dropped import drop
from gateway.relay.events.eventlog import Framing, Unframing
from gateway.relay.events.longtext import written_in_steps
from gateway.relay.idempotency import IdempotencyKeys
from gateway.relay.journal import Directory, Journal, NullJournal
from gateway.relay.limits import MAX_DETACH_GRACE_SECONDS, MIN_DETACH_GRACE_SECONDS, RelayLimits
from gateway.relay.memory import Budget
from gateway.relay.ports import CallRequest, Dialer, Handle, Json, OpenRequest, SessionId, View
from gateway.relay.requests import Principal
from gateway.relay.services import Gate, Services
from gateway.relay.session import Session
from gateway.relay.sessionobject import check_locked, merge
from gateway.relay.spending import Allowance
from gateway.relay.state.facts import Opening
from gateway.relay.state.fold import SessionState
from gateway.relay.state.saved import Saved
from gateway.relay.states import CloseReason
from gateway.relay.strain import Strain
from gateway.relay.tasks import Tasks, in_turns
from gateway.relay.telemetry import RelayTelemetry

TICK_SECONDS: Final = 1.0
"""The grain of all deadlines of seconds and minutes: one timer for all sessions instead of several each."""
TICKED_AT_ONCE: Final = 64
"""Sessions that tick before other work has its turn: 1 to 2 ms. All of 2,000 would delay it by 50 ms, every second."""

RETRY_CAPACITY_SECONDS: Final = 5.0
RETRY_DRAINING_SECONDS: Final = 2.0
"""Short, because another node behind the same address is likely to take the next attempt."""

_ID_LENGTH: Final = 24
"""142 bits: for anonymous callers the ID is the only credential."""

_DRAIN_JITTER: Final = 0.6
"""Share of the drain's time over which sessions end; the rest is for those that are still answering."""

_DRAIN_POLL_SECONDS: Final = 0.05


class Hub:
    """Opens sessions and finds them again."""

    def __init__(
        self,
        dialer: Dialer,
        framing: Framing,
        telemetry: RelayTelemetry,
        limits: RelayLimits,
        clock: Clock | None = None,
        budget: Budget | None = None,
        *,
        unframing: Unframing | None = None,
        directory: Directory | None = None,
        gate: Gate | None = None,
    ) -> None:
        """`directory`, and with it `unframing` and `gate`, where several nodes share the sessions."""
        self.limits = limits
        self.budget = budget or Budget()
        self.draining = False
        self._drain_told = False
        self.strain = Strain(limits.max_loop_lag_seconds)
        """Receives the measured delay of the event loop."""
        # One table per caller, so that a busy caller does not evict the promises of others. Bounded by the configured names.
        self._idempotency: dict[str, IdempotencyKeys] = {}
        self._clock = clock or Clock()
        self._telemetry = telemetry
        self._directory = directory
        self._services = Services(
            dialer, telemetry, limits, self._clock, Allowance(limits.prices), self.budget, gate
        )
        self._broker = Broker(
            framing, limits.log_max_events, limits.log_max_bytes, limits.log_total_bytes, telemetry, unframing
        )
        self._sessions: dict[SessionId, Session] = {}
        self._opening: dict[SessionId, Session] = {}
        self._reserving = 0  # Creates that wait for the directory, and are in no table yet.
        self._tasks: dict[asyncio.Task[None], Session] = {}
        self._ticking = Tasks(lambda error: telemetry.relay_failed("", error))
        self._counted = (0, 0)

    @property
    def allowance(self) -> Allowance:
        """What all callers have spent."""
        return self._services.allowance

    def start(self) -> None:
        """Begin to tick."""
        _ = self._ticking.repeat(self._tick_for_ever, "hub-ticker")

    async def close(self) -> None:
        """End every session and wait until their calls are closed."""
        self.draining = True
        await self._ticking.end()
        for session in self._tasks.values():
            session.end(CloseReason.DRAINED)
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def drain(self, timeout: float) -> None:
        """Refuse new sessions, notify the running ones, and end each within `timeout` seconds. Harmless when repeated."""
        # Not `draining`: a node sets that before it hands its sessions over, and those that stay are notified here.
        told, self._drain_told, self.draining = self._drain_told, True, True
        now = self._clock.monotonic()
        # Some JSON parsers distinguish 25 from 25.0.
        seconds = int(timeout) if timeout == int(timeout) else timeout
        deadlines: dict[Session, float] = {}
        for session in self.live_sessions():
            if not told:
                session.tell("gateway.draining", {"deadline_seconds": seconds})
            share = random.uniform(0, _DRAIN_JITTER) if session.attended else 0  # noqa: S311  # spread, not secrecy
            deadlines[session] = now + timeout * share
        final = now + timeout
        while deadlines and (now := self._clock.monotonic()) < final:
            for session in [s for s, due in deadlines.items() if now >= due and not s.working]:
                session.end(CloseReason.DRAINED)
                del deadlines[session]
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
        for session in self._tasks.values():
            session.end(CloseReason.DRAINED)
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=max(self.limits.parting_seconds, final - now))

    async def open(self, request: OpenRequest) -> Handle:
        """Open a session: returns when its channel is open. Raises GatewayError, after which nothing of it is left."""
        session_id = request.session_id or f"gws_{self._clock.token(_ID_LENGTH)}"
        merged = {} if request.call_id is not None else merge(self.limits.template, request.session)
        wanted = await in_turns(written_in_steps(merged))
        try:
            self._admit(request)
            if self._directory is not None:
                self._reserving += 1
                try:
                    await self._directory.reserve(session_id, request.principal)
                finally:
                    self._reserving -= 1
        except GatewayError as error:
            self._telemetry.session_refused(request.principal.name, error)
            raise
        session = self._new(session_id, request, wanted.decode())
        self._opening[session.id] = session
        self._run(session)
        try:
            await session.connected()
            if self._directory is not None:
                await self._directory.create(session.id, session.journal)
                await session.journal.flushed()
            if self.draining:
                session.end(CloseReason.DRAINED)
                raise _draining()
            if not session.live:
                raise UpstreamError("upstream-failed", "The call ended as soon as it was open.")
        except GatewayError as error:
            session.end(CloseReason.UPSTREAM_LOST)
            if self._directory is not None:
                await self._directory.release(session.id, request.principal.name)
            refusal = _draining() if error.code == "session-closed" and self.draining else error
            self._telemetry.session_refused(request.principal.name, refusal)
            if refusal is error:
                raise
            raise refusal from error
        except asyncio.CancelledError:
            session.end(CloseReason.CLIENT)  # No client will ever learn the session's ID.
            if self._directory is not None:
                release = self._directory.release(session.id, request.principal.name)
                _ = self._ticking.run(release, "hub-release")
            raise
        self._sessions[session.id] = self._opening.pop(session.id)
        return session

    def adopt(self, saved: Saved, journal: Journal, prepared: Prepared | None = None) -> Handle:
        """Go on with a session that another node held, and that `journal` belongs to now: the border of this node's epoch
        is the last record of `saved`. It can be found and read at once, and is without a call until one is made, unless
        one was `prepared`."""
        state = saved.state
        log = self._broker.create_journalled(state.epochs[0][0])
        log.load(saved.epochs, saved.first, saved.events)
        if state.closed is not None:
            session = Session(state, log, journal, self._services, phase=Phase.ENDED)
            journal.bind(session)
            session.rest()
        else:
            phase = Phase.DOWN if prepared is None else Phase.SWITCHING
            bearer = None if prepared is None else prepared.request.bearer
            session = Session(state, log, journal, self._services, bearer, phase)
            journal.bind(session)
            session.adopt(NODE_LOST if prepared is None else HANDOVER, prepared)
            self._run(session)
        self._sessions[session.id] = session
        return session

    async def prepare(self, opening: Opening, session: Json, bearer: str | None) -> Prepared:
        """Dial a call for a session that another node is about to hand over. Raises GatewayError; the caller must adopt
        it or abandon it."""
        if self.draining:
            raise _draining()
        request = CallRequest(
            session=session,
            bearer=bearer,
            safety_identifier=None if opening.principal.anonymous else opening.principal.name,
            attach_to=opening.attach_to,
        )
        prepared = Prepared(request, self._services.dialer)
        await prepared.open()
        return prepared

    def has(self, session_id: str) -> bool:
        """Whether the session lives in this process."""
        return session_id in self._sessions

    def drop(self, session_id: str) -> None:
        """Forget a session that another node has now."""
        session = self._sessions.pop(SessionId(session_id), None)
        if session is not None:
            session.fenced()
            drop(session, self._broker)

    def _new(self, session_id: str, request: OpenRequest, wanted: str) -> Session:
        grace = request.detach_grace_seconds
        opening = Opening(
            id=session_id,
            principal=request.principal,
            metadata=request.metadata,
            detach_grace_seconds=self.limits.detach_grace_seconds if grace is None else grace,
            created_at=self._clock.unix(),
            secret_allows=request.secret_allows,
            retry_interrupted=request.retry_interrupted,
            attach_to=request.call_id,
            mirrored=self.limits.continuity and request.call_id is None,
            own_credential=request.bearer is not None,
            single_turn=request.single_turn,
        )
        epoch = self._clock.epoch()
        state = SessionState(opening, wanted, epoch, self.limits.prices)
        if self._directory is None:
            return Session(state, self._broker.create(epoch), NullJournal(), self._services, request.bearer)
        journal = self._directory.journal(opening.id, request.principal.name, epoch)
        log = self._broker.create_journalled(epoch)
        session = Session(state, log, journal, self._services, request.bearer)
        journal.bind(session)
        return session

    def _run(self, session: Session) -> None:
        task = asyncio.create_task(session.run(), name=f"session-{session.id}")
        self._tasks[task] = session
        task.add_done_callback(self._ended)

    def idempotency(self, principal: Principal) -> IdempotencyKeys:
        """Return the caller's keys of requests that open sessions."""
        table = self._idempotency.get(principal.name)
        if table is None:
            table = self._idempotency[principal.name] = IdempotencyKeys(self.budget.open(principal.name))
        return table

    def find(self, session_id: str, principal: Principal | None) -> Handle:
        """Return a session. Raises `session-unknown`, also for a session of another principal. With principal None, the
        ID or a signed credential that contains it grants access."""
        session = self._sessions.get(SessionId(session_id))
        if session is None or not (principal is None or _owns(principal, session)):
            raise CallerError("session-unknown", "There is no such session, or it is not yours.")
        return session

    def page(
        self, principal: Principal | None, limit: int, after: str | None = None
    ) -> tuple[list[View], bool]:
        """Return up to `limit` of a principal's sessions, or of all where it is None, newest first, and whether more
        follow. They begin behind the session `after`; raises `session-unknown` if that is not among them."""
        listed: list[View] = []
        begun = after is None
        for session in reversed(self._sessions.values()):
            if not (principal is None or _owns(principal, session)):
                continue
            if not begun:
                begun = session.id == after
            elif len(listed) == limit:
                return listed, True
            else:
                listed.append(session.view())
        if not begun:
            raise CallerError("session-unknown", "The session in 'after' is not in this list.")
        return listed, False

    def all_sessions(self) -> list[View]:
        """Every session, newest first; for the operator."""
        return [session.view() for session in reversed(self._sessions.values())]

    def diagnostics(self, session_id: str) -> Json:
        """Return a session's internal state as the operator may see it. Raises `session-unknown`."""
        session = self._sessions.get(SessionId(session_id))
        if session is None:
            raise CallerError("session-unknown", "There is no such session.")
        return session.diagnostics()

    def restart(self, session_id: str) -> None:
        """Replace a session's call and keep its history. Raises `session-unknown` or `session-closed`."""
        session = self._sessions.get(SessionId(session_id))
        if session is None:
            raise CallerError("session-unknown", "There is no such session.")
        session.restart()

    def _admit(self, request: OpenRequest) -> None:
        """Check a create against the limits."""
        if self.draining:
            raise _draining()
        check_locked(request.session, self.limits.session_locked, "/session")
        grace = request.detach_grace_seconds
        if grace is not None and not MIN_DETACH_GRACE_SECONDS <= grace <= MAX_DETACH_GRACE_SECONDS:
            what = f"must be from {MIN_DETACH_GRACE_SECONDS} to {MAX_DETACH_GRACE_SECONDS}"
            raise invalid_parameter("detach_grace_seconds", what)
        self._reserve(request.principal)

    def _reserve(self, principal: Principal) -> None:
        if self.strain.high:
            # Running sessions come first: opening a session is the most expensive request.
            raise OverloadError("capacity", "The gateway is too busy.", retry_after=RETRY_CAPACITY_SECONDS)
        # Closed sessions are still among them until their logs are dropped, so they are only counted near the limit.
        opening, most = len(self._opening) + self._reserving, self.limits.max_sessions
        if opening + len(self._sessions) >= most and opening + len(self.live_sessions()) >= most:
            detail = f"All {most} sessions are in use."
            raise OverloadError("capacity", detail, retry_after=RETRY_CAPACITY_SECONDS)
        if self._broker.full and not self._broker.relieve():
            raise OverloadError("capacity", "The logs' memory is full.", retry_after=RETRY_CAPACITY_SECONDS)
        self._services.allowance.check(principal, self._clock.unix())
        if principal.max_sessions is None:
            return
        if (
            sum(
                session.state.opening.principal.name == principal.name
                for session in (*self._opening.values(), *self.live_sessions())
            )
            >= principal.max_sessions
        ):
            detail = f"This key may have {principal.max_sessions} sessions at once."
            raise OverloadError("session-limit", detail, retry_after=RETRY_CAPACITY_SECONDS)

    def live_sessions(self) -> list[Session]:
        """Return the sessions that are not closed."""
        return [session for session in self._sessions.values() if session.live]

    def _ended(self, task: "asyncio.Task[None]") -> None:
        session = self._tasks.pop(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._telemetry.relay_failed(session.id, error)
        if self._opening.pop(session.id, None) is not None:
            self._broker.drop(session.log)  # It never opened, so no client knows it or will read its log.

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self._tick_all()

    async def _tick_all(self) -> None:
        for number, session in enumerate(list(self._sessions.values()), start=1):
            if self._sessions.get(session.id) is session:  # It may have left since the round began.
                self._tick(session, self._clock.monotonic())
            if not number % TICKED_AT_ONCE:
                await asyncio.sleep(0)
        events, size = self._broker.events, self._broker.size
        self._telemetry.log_grew(events - self._counted[0], size - self._counted[1])
        self._counted = events, size

    def _tick(self, session: Session, now: float) -> None:
        try:
            session.tick(now)
        except Exception as error:  # noqa: BLE001  # one bad session must not stop the others' deadlines
            self._telemetry.relay_failed(session.id, error)
        if session.closed_at is not None and session.closed_at <= now - self.limits.log_retention_seconds:
            del self._sessions[session.id]
            drop(session, self._broker)
            if self._directory is not None:
                release = self._directory.release(session.id, session.state.opening.principal.name)
                _ = self._ticking.run(release, "hub-release")


def _draining() -> OverloadError:
    return OverloadError("draining", "The gateway is shutting down.", retry_after=RETRY_DRAINING_SECONDS)


def _owns(principal: Principal, session: Session) -> bool:
    return session.state.opening.principal.name == principal.name

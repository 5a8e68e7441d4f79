"""A session's line upstream: one call at a time, replaced when it is lost or about to end.

`lifecycle` says what may happen in which phase, and `calls` executes it. This file does the waiting: it dials, retries,
waits for pauses and confirmations, and reports the results as inputs of the table.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

from gateway.errors import GatewayError, UpstreamError
from gateway.relay.calls.lifecycle import HEARING, Input, Phase
from gateway.relay.calls.seeding import Seeding
from gateway.relay.calls.steps import HANDOVER, NODE_LOST, ROTATION, Calls
from gateway.relay.calls.succession import Prepared, Successor, delays
from gateway.relay.events.records import DoubtSettled
from gateway.relay.ports import Json, LossCause, Upstream
from gateway.relay.states import CloseReason
from gateway.relay.tasks import Tasks, within

_HAND_OVER_RETRY_SECONDS: Final = 5.0
_SETTLE_SECONDS: Final = 2.0
"""Time for the old call to confirm what it was sent, when the hand-over cannot wait for a pause."""
_PROBE_AFTER_SECONDS: Final = 3.0
_PROBE_SECONDS: Final = 3.5
"""A probe is tried three times in it. Silence, a tick and the probe make less than 8 s, and a path of 0.5 s or with loss
still has time to answer."""
_SURE_POLL_SECONDS: Final = 0.2
_DELIVERY_POLL_SECONDS: Final = 0.02

_BESIDE: Final = frozenset({Phase.DIALLING_BESIDE, Phase.WAITING_QUIET, Phase.SETTLING, Phase.SEEDING})


T = TypeVar("T")


class Line(Calls):
    """Opens and replaces calls until the session is ended."""

    async def park(self) -> bool:
        """Hold all events in a pause, for another node to take over. False if that is impossible: there is no call,
        or it is lost meanwhile."""
        if self.phase is not Phase.LIVE or self._parking is not None:
            return False
        self._parking = parking = asyncio.get_running_loop().create_future()
        self._moved.set()
        try:
            return await asyncio.shield(parking)
        finally:
            parking.cancel()  # If the caller left, `_park` must not hold events for a node that will not come.
            self._parking = None

    def resume(self) -> None:
        """Go on with the call after `park`: the other node did not take over."""
        if self.phase is Phase.PARKED:
            self._step(Input.RESUMED)
            self._owner.replaced()
        self._moved.set()

    def tick(self, now: float) -> None:
        """Check whether the call is about to end, has stalled, or owes an answer and is silent."""
        upstream = self._upstream
        if upstream is None:
            return
        self.confirm()
        if not self._replaceable:
            return
        if self.phase is Phase.SUSPECT:  # The channel refused to send, but its loss was never reported.
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
        # The last event may be of a kind that is never answered; probe anyway, because its sender needs a live call.
        owes = owes or bool(upstream.buffered) or self._handed_at > self._heard_at
        if owes and now - self._heard_at >= _PROBE_AFTER_SECONDS and self._probe is None:
            self._probe = Tasks(self._failed).run(self._probe_call(upstream, self._generation))

    # --- the owner task's part ----------------------------------------------------------------------------------------------

    async def open(self) -> bool:
        """Open the first call; False if the session was ended meanwhile. Raises UpstreamError."""
        dialling = self._services.dialer.dial(self._dialled(), self)
        upstream = await self._unless_ended(dialling)
        if upstream is None:
            return False
        self._upstream = upstream
        if not self._attached:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.greeting_seconds):
                    while not (self._greeted.is_set() or self._ending.done()):
                        await self._moved.wait()
                        self._moved.clear()
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
                await self._moved.wait()
                self._moved.clear()

    def adopt(self, cause: str, prepared: Prepared | None) -> None:
        """Begin with a session that another node owned, with a prepared call or without one."""
        self._due = cause
        if prepared is not None:
            self._request = replace(self._request, generation=self._request.generation + 1)
            # Skip a generation: there is no present call to listen to.
            self._generation = self._request.generation + 1
            self._successor = prepared.successor(self._request)
            prepared.pass_on(self, self._request.generation)
        else:
            self._leave_call()

    def end(self) -> None:
        """Ignore all calls from now on: the log is sealed. `close` must follow."""
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
        # Concurrently with dialling: a far end that does not answer would not answer this either.
        hang_up = cause != LossCause.CHANNEL_CLOSED and not self._attached
        closing = Tasks(self._failed)
        if lost_call is not None:
            _ = closing.run(lost_call.close(hang_up=hang_up))
        try:
            outcome = await self._try_calls(cause)
            self._telemetry.recovered(self._owner.id, cause, outcome, self._clock.monotonic() - started)
        finally:
            await closing.ended()

    async def _try_calls(self, cause: str) -> str:
        """Switch to the first call that can be seeded; return the outcome."""
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
                    seeding = await self._unless_ended(self._bring_up(left))
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

    async def _bring_up(self, seconds: float) -> Seeding:
        """Dial a call within a time, and seed it. After any failure the call is closed."""
        successor = self._successor = self._next()
        seeding: Seeding | None = None
        try:
            try:
                async with asyncio.timeout(seconds), self._services.dial_gate.place():
                    await successor.open(self)
            except TimeoutError as error:
                raise UpstreamError("upstream-timeout", "The new call did not open in time.") from error
            if self._ending.done():
                raise UpstreamError("upstream-failed", "The session ended while the new call was dialled.")
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
        """Seed a call with the conversation; None if that takes too long. Raises UpstreamError."""
        limits = self._limits
        work = successor.seed(
            self._state.mirror.seed(),
            self._services.seeding_turn,
            limits.seeding_seconds,
            limits.greeting_seconds,
        )
        return await within(work, limits.recovery_timeout_seconds)

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
                    # The rest of the old call's response would be missing on the new one, so it counts as cut off by a loss.
                    self._step(Input.OVERDUE if severed else Input.SETTLED)
                    changes = self._state.mirror.changes
                    seeding = await self._unless_ended(self._seed(successor))
                    moved = self._at(Phase.SEEDING) and self._state.mirror.changes != changes
                    if seeding is not None and not moved and not self._ending.done():
                        outcome = "recovered"
                        # If the old call was lost meanwhile, this is also its recovery.
                        cause = self._due or cause
                        self._switch(seeding)
        except GatewayError:
            pass  # The outcome reports it; the old call still exists.
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
        """Return whether this is the current phase, which may change at every await."""
        return self.phase is phase

    def _stay(self) -> None:
        """Continue with the old call after a failed hand-over, if it is still in use."""
        if self.phase in _BESIDE:
            self._due = None
        if self.phase is not Phase.SUSPECT:
            self._step(Input.FAILED)
            self._owner.replaced()

    async def _take_prepared(self) -> None:
        """Seed the call that was dialled for this session with the other node's conversation."""
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
        assert parking is not None  # checked by `keep`
        self._step(Input.YIELD)
        free = await self._unless_ended(self._until_free())
        if free and self.phase is Phase.SETTLING and not self._ending.done() and not parking.done():
            self._step(Input.WRITTEN)
        elif self.phase in (Phase.WAITING_QUIET, Phase.SETTLING) and not self._ending.done():
            self._step(Input.FAILED)
            self._owner.replaced()
        if not parking.done():
            parking.set_result(self.phase is Phase.PARKED)

    async def _until_free(self) -> bool:
        """Wait for a pause and hold back what comes; False if the old call was lost before."""
        while await self._until_quiet():
            self._step(Input.QUIET)
            await within(self._until_settled(), _SETTLE_SECONDS)
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
            expiry = self._expiry
            await self._next_move(None if expiry is None else expiry.left(now) - expiry.latest)
        return self.phase is Phase.WAITING_QUIET

    async def _until_settled(self) -> bool:
        """Wait until what is owed has come, and what the far end believes delivered is delivered."""
        while self.phase is Phase.SETTLING:
            if self._state.ledger.owed:
                await self._next_move(None)
            elif self._upstream is not None and self._upstream.undelivered:
                await self._next_move(_DELIVERY_POLL_SECONDS)
            else:
                break
        return True

    async def _next_move(self, timeout: float | None) -> None:
        """Wait until something was confirmed, finished or lost."""
        self._moved.clear()
        await within(self._moved.wait(), timeout)
        self._moved.set()  # `keep` looks again when it is back.

    async def _probe_call(self, upstream: Upstream, generation: int) -> None:
        # Two at once: on a path that loses every twentieth packet one probe of three tries misses once in a thousand.
        try:
            alive = any(await asyncio.gather(*(upstream.probe(_PROBE_SECONDS) for _ in range(2))))
        except Exception as error:  # noqa: BLE001  # a call that cannot be asked is not alive, and must not stop later probes
            self._failed(error)
            alive = False
        finally:
            self._probe = None
        self._heard_at = self._clock.monotonic()
        if alive:
            self._owner.note(DoubtSettled())
            self._moved.set()
        else:
            self._telemetry.consent_failed()
            self.lost(generation, LossCause.CONSENT_EXPIRED)

    def _failed(self, error: BaseException) -> None:
        self._telemetry.relay_failed(self._owner.id, error)

    async def _unless_ended(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Await something until the session ends; None if it ended first. The interrupted work cleans up first."""
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, self._ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        return None if task.cancelled() else task.result()


def _upstream_part(error: GatewayError) -> Json | None:
    part = error.members.get("upstream")
    return part if isinstance(part, Mapping) else None

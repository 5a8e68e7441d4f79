"""A session's line upstream: one call at a time, replaced when it is lost or about to end.

The line is the `Sink` of its calls. Each has a generation; what the present one says goes to the session, what its
successor says is read while it is seeded, anything else is stale and dropped. An accepted event is in one of three
places, so nothing is lost unsaid: held here while there is no call; handed to a channel and not confirmed, which
`conversation` remembers; or confirmed and part of the mirror.

Replacement comes in two forms. After a loss the session is without a call: events are held, and calls are tried with
back-off until one is seeded. Before a planned end the new call is dialled beside the old one and seeded in a moment of
quiet, for which alone events are held, so that clients notice nothing.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

from gateway.errors import CallerError, GatewayError, OverloadError, UpstreamError
from gateway.relay.allowance import Allowance
from gateway.relay.budget import Budget
from gateway.relay.clock import Clock
from gateway.relay.conversation import MAX_UNCONFIRMED, Conversation, Sent
from gateway.relay.envelope import member, peek
from gateway.relay.limits import RelayLimits
from gateway.relay.ports import CallRequest, Dialer, Json, LossCause, Upstream
from gateway.relay.seeding import Seeding
from gateway.relay.state import CloseReason
from gateway.relay.succession import Held, Successor, delays
from gateway.relay.telemetry import RelayTelemetry

ROTATION: Final = "rotation"
RESTART: Final = "restart"

_HAND_OVER_RETRY_SECONDS: Final = 5.0
_SETTLE_SECONDS: Final = 2.0
"""How long a hand-over that can wait no more gives the old call to confirm what it was sent."""
_LONGEST_LEAD: Final = 0.25
"""Share of a call's life: calls that are short by configuration are not replaced as soon as they begin."""
_LATEST_SHARE: Final = 0.25
"""Share of the lead that is kept for a replacement in the middle of a response."""
_PROBE_AFTER_SECONDS: Final = 3.0
_PROBE_SECONDS: Final = 3.5
"""A probe is tried three times in it. Silence, a tick and the probe make less than 8 s, and a path of 0.5 s or with loss
still has time to answer."""


@dataclass(frozen=True, slots=True)
class World:
    """What every session of a hub shares."""

    dialer: Dialer
    telemetry: RelayTelemetry
    limits: RelayLimits
    clock: Clock
    allowance: Allowance
    budget: Budget


@dataclass(frozen=True, slots=True)
class Replacement:
    """What became of the conversation when a call was replaced."""

    cause: str
    call_id: str | None
    items_restored: int
    items_lost: int
    renamed: Mapping[str, str]
    unknown: Sequence[Sent]
    """Handed to the old call, and perhaps taken by it."""
    cut: bool
    """A response was in flight, or was asked for and may have been."""
    retried: bool
    """It is asked for again, with all that was not confirmed."""
    refused: Sequence[Sent]
    """Accepted while there was no call, and larger than the new one takes."""


class Owner(Protocol):
    """What the line tells its session. Synchronous; never raises."""

    @property
    def id(self) -> str: ...

    @property
    def busy(self) -> bool:
        """A response is in flight."""

    def arrived(self, type: str, text: str, value: Json, now: float) -> None:
        """The present call said this."""

    def fell(self, cause: str) -> None:
        """There is no call at the moment."""

    @property
    def retries(self) -> bool:
        """Responses that a lost call cut off are to be asked for again."""

    def asked(self) -> None:
        """A response.create was handed to the channel."""

    def replaced(self, replacement: Replacement) -> None:
        """There is a new call, and what waited was handed to it."""

    def end(self, reason: CloseReason, upstream: Json | None = None) -> None:
        """The line cannot go on."""


T = TypeVar("T")


class Line:
    """Opens, feeds, watches and replaces calls until `ending` is done."""

    def __init__(
        self, request: CallRequest, world: World, owner: Owner, ending: "asyncio.Future[Any]"
    ) -> None:
        """`ending` is the session's; its result is of no interest here, hence Any."""
        self._request = request
        self._world = world
        self._limits = world.limits
        self._clock = world.clock
        self._telemetry = world.telemetry
        self._owner = owner
        self._ending = ending
        self._conversation = Conversation(request.session)
        # Without continuity nobody will ever be told of the conversation, so it costs nothing to follow it.
        self._mirrored = Conversation.WATCHED if world.limits.continuity else frozenset[str]()
        self._upstream: Upstream | None = None
        self._generation = request.generation
        self._successor: Successor | None = None
        self._held: Held | None = None
        self._opened = False
        self._greeted = asyncio.Event()
        self._moved = asyncio.Event()
        self._due: str | None = None
        self._heard_at = self._handed_at = world.clock.monotonic()
        # Of kinds that nothing answers, handed over since the last sign of life.
        self._unheard: deque[Sent] = deque(maxlen=MAX_UNCONFIRMED)
        self._probe: asyncio.Task[None] | None = None
        self._last_refusal: Json | None = None
        self._retry_hand_over_at = 0.0
        self._lead = 0.0
        self.call_expires_at: int | None = None
        self.model = _text(request.session.get("model"))

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
        return self._held is not None

    @property
    def last_refusal(self) -> Json | None:
        """Code and message of the last `error` event: a call's end is often explained just before it comes."""
        return self._last_refusal

    @property
    def unknown(self) -> list[Sent]:
        """What was handed to the call and may not have been taken."""
        return [*self._conversation.unconfirmed, *self._unheard]

    @property
    def unsent(self) -> list[Sent]:
        """What was accepted and waits for a call."""
        return list(self._held.events) if self._held else []

    @property
    def diagnostics(self) -> Json:
        upstream = self._upstream
        return {
            "generation": self._generation,
            "held": len(self._held.events) if self._held else 0,
            "unconfirmed": len(self._conversation.unconfirmed),
            "buffered": upstream.buffered if upstream else 0,
            "call": upstream.diagnostics if upstream else None,
        }

    def renew(self, bearer: str) -> None:
        """Use another credential of the caller's for the calls to come."""
        self._request = replace(self._request, bearer=bearer)

    def send(self, batch: Sequence[Sent]) -> None:
        """Hand a batch to the channel whole, hold it, or raise GatewayError."""
        if self._held is not None:
            self._held.add(batch)
            return
        upstream = self._upstream
        if upstream is None:
            raise UpstreamError("upstream-failed", "The session has no call.")
        buffered = upstream.buffered
        if buffered and buffered + sum(sent.event.size for sent in batch) > self._limits.high_water_bytes:
            detail = f"{buffered} bytes wait for OpenAI to take them; the batch was not accepted."
            raise OverloadError("upstream-backpressure", detail, retry_after=1)
        try:
            self._hand(upstream, batch)
        except UpstreamError:
            # The channel is closed and its loss about to be told: what is sent between the two waits for the next call.
            if not self._replaceable:
                raise
            self._hold().add(batch)

    def _hand(self, upstream: Upstream, batch: Sequence[Sent]) -> None:
        """Give a batch to the channel, or raise GatewayError."""
        upstream.send([sent.event.text for sent in batch])
        self._handed_at = self._clock.monotonic()
        for sent in batch:
            if self._mirrored and not self._conversation.sent(sent.number, sent.event):
                self._unheard.append(sent)
            self._telemetry.event_up(sent.event.type, sent.event.size)
            if sent.event.type == "response.create":
                self._owner.asked()

    @property
    def _replaceable(self) -> bool:
        return self._limits.continuity and self._opened

    def _hold(self) -> Held:
        """Hold back from now on what is sent."""
        if self._held is None:
            self._held = Held(self._limits.held_max_events, self._limits.held_max_bytes)
        return self._held

    def replace(self, cause: str) -> None:
        """Ask for a hand-over to a new call."""
        if self._due is None and self._held is None:
            self._due = cause
            self._moved.set()

    def tick(self, now: float) -> None:
        """Look whether the call is about to end, or silent where it owes an answer."""
        if not self._replaceable or self._upstream is None:
            return
        if self._held is not None:
            if self._due is None:  # The channel refused to send, but its loss was never told.
                self.lost(self._generation, LossCause.CONNECTION_FAILED)
            return
        left = self._seconds_left()
        if left is not None and left <= self._lead and now >= self._retry_hand_over_at:
            self.replace(ROTATION)
        owes = self._owner.busy or bool(self._upstream.buffered or self._conversation.unconfirmed)
        # What was sent last may be of a kind that nothing answers; its sender still wants to know that somebody is there.
        owes = owes or self._handed_at > self._heard_at
        if owes and now - self._heard_at >= _PROBE_AFTER_SECONDS and self._probe is None:
            self._probe = asyncio.create_task(self._probe_call(self._upstream, self._generation))

    # --- the owner task's part ----------------------------------------------------------------------------------------

    async def open(self) -> bool:
        """Open the first call; False if the session was ended meanwhile. Raises UpstreamError."""
        dialling = self._world.dialer.dial(self._request, self)
        upstream = await self._unless_ended(dialling)
        if upstream is None:
            return False
        self._upstream = upstream
        await self._unless_ended(_within(self._greeted.wait(), self._limits.greeting_seconds))
        self._opened = not self._ending.done()
        return self._opened

    async def keep(self) -> None:
        """Replace calls as often as needed; returns when the session is ended."""
        while not self._ending.done():
            await self._unless_ended(self._moved.wait())
            self._moved.clear()
            if self._ending.done():
                return
            if self._due is None:
                continue
            if self._held is not None:
                await self._recover()
            else:
                await self._hand_over(self._due)

    async def close(self, hang_up: bool) -> None:
        """End the call; always completes."""
        self._leave_call()  # The log is sealed: what the call still says while it is closed is stale.
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})
        if self._upstream is not None:
            await self._upstream.close(hang_up)

    async def _recover(self) -> None:
        """Find a new call after a loss, or end the session."""
        cause, started = self._due or LossCause.CONNECTION_FAILED, self._clock.monotonic()
        outcome = "ended"
        dead, self._upstream = self._upstream, None
        # Beside the dialling: a far end that does not answer would not answer this either.
        burying = asyncio.create_task(dead.close(hang_up=cause != LossCause.CHANNEL_CLOSED)) if dead else None
        try:
            outcome = await self._try_calls(cause, started + self._limits.recovery_timeout_seconds)
            self._telemetry.recovered(self._owner.id, cause, outcome, self._clock.monotonic() - started)
        finally:
            if burying is not None:
                await asyncio.wait({burying})

    async def _try_calls(self, cause: str, deadline: float) -> str:
        """Take the first call into use that can be seeded; give the outcome."""
        least = 0.0
        for delay in delays():
            left = deadline - self._clock.monotonic()
            await self._unless_ended(asyncio.sleep(max(0.0, min(max(delay, least), left))))
            left = deadline - self._clock.monotonic()
            if left <= 0:
                break
            try:
                seeded = await self._unless_ended(_within(self._bring_up(cause), left))
            except GatewayError as error:
                if not error.retryable:
                    self._owner.end(CloseReason.UPSTREAM_REJECTED, _upstream_part(error))
                    return "rejected"
                least = error.retry_after or 0.0
                continue
            if self._ending.done():
                if seeded is not None:
                    await self._give_up(seeded[0])
                return "ended"
            if seeded is not None:
                self._take_over(*seeded, cause)
                return "recovered"
        if self._ending.done():
            return "ended"
        self._owner.end(CloseReason.UPSTREAM_LOST, {"cause": cause})
        return "failed"

    async def _give_up(self, successor: Successor) -> None:
        self._successor = None
        await successor.abandon()

    async def _bring_up(self, cause: str) -> tuple[Successor, Seeding]:
        """Dial and seed one call; whatever goes wrong, nothing of it is left."""
        successor = self._successor = self._next()
        taken = False
        try:
            await successor.open(self)
            seed = self._conversation.seed()
            seeding = await _within(
                successor.seed(seed, self._limits.greeting_seconds), self._limits.seeding_seconds
            )
            if seeding is None:
                raise UpstreamError("upstream-timeout", "The new call did not take the conversation in time.")
            taken = True
            return successor, seeding
        finally:
            if not taken:
                await self._give_up(successor)

    async def _hand_over(self, cause: str) -> None:
        """Replace a call that still works; if that fails the session stays with it and tries again later."""
        started, outcome, severed = self._clock.monotonic(), "failed", False
        successor = self._successor = self._next()
        old = self._upstream
        try:
            await self._unless_ended(successor.open(self))
            if await self._unless_ended(self._until_free()):
                severed = self._owner.busy or bool(self._conversation.unconfirmed)
                if severed:
                    # What the old call still has to say would be missing on the new one: it is over, as after a loss.
                    self._leave_call()
                seed = self._conversation.seed()
                seeding = await self._unless_ended(
                    _within(successor.seed(seed, self._limits.greeting_seconds), self._limits.seeding_seconds)
                )
                unchanged = severed or self._conversation.seed().items == seed.items
                if seeding is not None and unchanged and not self._ending.done():
                    outcome = "recovered"
                    # Where the old call was lost a moment ago, this is the recovery as well.
                    cause = self._due or cause
                    self._take_over(successor, seeding, cause)
        except GatewayError:
            pass  # Told by the outcome; the old call is still there.
        finally:
            if outcome != "recovered":
                self._successor = None
                self._retry_hand_over_at = self._clock.monotonic() + _HAND_OVER_RETRY_SECONDS
                if self._due == cause:  # else the old call was lost meanwhile, and recovery comes next
                    self._stay(cause, severed)
                await successor.abandon()
        if self._ending.done() and outcome != "recovered":
            outcome = "ended"
        self._telemetry.recovered(self._owner.id, cause, outcome, self._clock.monotonic() - started)
        if outcome == "recovered" and old is not None:
            await old.close(hang_up=True)

    async def _until_free(self) -> bool:
        """Wait for a pause and hold back what comes; False if the old call was lost before."""
        while await self._until_quiet() and self._held is None:
            self._hold()
            await _within(self._until_settled(), _SETTLE_SECONDS)
            if self._due in _LOSSES or not self._owner.busy or self._late:
                return True
            self._release_held()  # The answer to what was sent last has begun; it is waited for.
        return False

    def _stay(self, cause: str, severed: bool) -> None:
        """Go on with the old call after a hand-over that failed, if it is still listened to."""
        if severed and not self._ending.done():
            self._fall(cause)
        else:
            self._due = None
            self._release_held()

    def _take_over(self, successor: Successor, seeding: Seeding, cause: str) -> None:
        """Make the successor the present call. Synchronous, so that no event falls between the two."""
        cut, unknown = self._conversation.cut, self.unknown
        again = self._conversation.again if cut and self._owner.retries else []
        self._unheard.clear()
        resent = set(map(id, again))
        self._conversation.restart(seeding.renamed, seeding.refused)
        self._upstream = successor.upstream
        self._generation = successor.generation
        self._successor = None
        self._due = None
        self._heard_at = self._clock.monotonic()
        self.call_expires_at = None  # The old call's, unless the new one tells its own.
        self._learn({"session": seeding.session})
        refused = self._release_held(again)
        replacement = Replacement(
            cause=cause,
            call_id=self.call_id,
            items_restored=seeding.restored,
            items_lost=seeding.lost,
            renamed=seeding.renamed,
            unknown=[sent for sent in unknown if id(sent) not in resent],
            cut=cut,
            retried=bool(again),
            refused=refused,
        )
        self._owner.replaced(replacement)
        if successor.loss is not None:
            self.lost(successor.generation, successor.loss)

    def _release_held(self, first: Sequence[Sent] = ()) -> list[Sent]:
        """Hand over what waited, however much the channel has to carry already: it was accepted. Give what the far end
        does not take for its size."""
        held, self._held = self._held, None
        batch = [*first, *(held.events if held is not None else ())]
        refused: list[Sent] = []
        upstream = self._upstream
        assert upstream is not None  # only a line with a call releases
        for at, sent in enumerate(batch):
            try:
                self._hand(upstream, [sent])
            except CallerError:
                refused.append(sent)
            except UpstreamError:
                # The new call is gone already; its loss is on its way, or found by `tick`. The rest waits for the next.
                self._hold().put_back(batch[at:])
                break
        return refused

    def _leave_call(self) -> None:
        """Listen to the present call no more. The generation then is nobody's: the next one's is the successor's, and what
        that says while it is seeded would be taken for the present call's."""
        self._generation = max(self._generation, self._request.generation) + 1

    def _next(self) -> Successor:
        generation = max(self._generation, self._request.generation) + 1
        self._request = replace(self._request, generation=generation)
        request = replace(self._request, session=self._conversation.session)
        return Successor(request, self._world.dialer)

    async def _until_quiet(self) -> bool:
        """Wait for a pause between responses, at most until the call is nearly over."""
        while self._owner.busy and not self._late:
            left = self._seconds_left()
            await self._next_move(None if left is None else left - self._latest)
            if self._held is not None:
                return False  # The old call was lost meanwhile; recovery is another matter.
        return True

    async def _until_settled(self) -> bool:
        while self._conversation.unconfirmed:
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
            self._conversation.settle()
            self._unheard.clear()
        else:
            self._telemetry.consent_failed()
            self.lost(generation, LossCause.CONSENT_EXPIRED)

    # --- what upstream says (ports.Sink) ------------------------------------------------------------------------------

    def received(self, generation: int, text: str) -> None:
        try:
            if generation == self._generation:
                self._arrived(text)
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
        self._telemetry.upstream_lost(self._owner.id, cause)
        if self._replaceable:
            self._fall(cause)
            return
        closed = cause is LossCause.CHANNEL_CLOSED
        reason = CloseReason.UPSTREAM_CLOSED if closed else CloseReason.UPSTREAM_LOST
        self._owner.end(reason, {"cause": cause, **(self._last_refusal or {})})

    def _fall(self, cause: str) -> None:
        """Be without a call from now on."""
        self._leave_call()
        self._due = cause
        self._hold()
        self._owner.fell(cause)
        self._moved.set()

    def _arrived(self, text: str) -> None:
        value = peek(text)
        if value is None:
            self._telemetry.frame_unrelayed(self._owner.id, len(text))
            return
        found = value.get("type")
        type_ = found if isinstance(found, str) else ""
        now = self._heard_at = self._clock.monotonic()
        if self._unheard:
            self._unheard.clear()
        self._owner.arrived(type_, text, value, now)
        if type_ in _WATCHED:
            self._watch(type_, value)

    def _watch(self, type_: str, value: Json) -> None:
        if type_ in self._mirrored:
            self._conversation.received(type_, value)
        if type_ in ("session.created", "session.updated"):
            self._learn(value)
            self._greeted.set()
        elif type_ == "error":
            error = member(value, "error")
            code = _text(member(error, "code")) or _text(member(error, "type")) or "other"
            self._last_refusal = {"code": code, "message": member(error, "message")}
        self._moved.set()

    def _learn(self, value: Json) -> None:
        self.model = _text(member(value, "session", "model")) or self.model
        expires_at = member(value, "session", "expires_at")
        if isinstance(expires_at, int) and expires_at > 0 and expires_at != self.call_expires_at:
            self.call_expires_at = expires_at
            life = expires_at - self._clock.unix()
            self._lead = min(self._limits.expiring_seconds, life * _LONGEST_LEAD)

    @property
    def _latest(self) -> float:
        """Seconds before the call's end at which it is replaced even in the middle of a response."""
        return min(self._limits.replace_latest_seconds, self._lead * _LATEST_SHARE)

    @property
    def _late(self) -> bool:
        left = self._seconds_left()
        return left is not None and left <= self._latest

    def _seconds_left(self) -> float | None:
        return None if self.call_expires_at is None else self.call_expires_at - self._clock.unix()

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


_LOSSES = frozenset(LossCause)

_WATCHED = Conversation.WATCHED | {"session.created", "response.done"}
"""Server events that mean something to the line; all others only pass."""


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

"""The turns of one session: one at a time, and only while no response is active. No I/O, no clock.

A turn is sent when the default conversation has no response in flight. If a client's own response.create still came
first, the service refuses the turn's with `conversation_already_has_active_response`; the turn then asks again
when that response is done, and the refusal is not shown as the turn's.

A turn's time counts from its request, also while it waits: in the queue, for room in the channel, for a new call.

A cancel names its response, because without an ID the service would cancel the active response, which may belong to
another request. So a turn that is withdrawn before its response is created stays the running one until then.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from gateway.errors import GatewayError, UpstreamError
from gateway.relay.events.envelope import ClientEvent
from gateway.relay.events.eventlog import EventId
from gateway.relay.state.effects import Effect, Send, TurnOver
from gateway.relay.state.turn import Progress, Turn, queue_full

Json = Mapping[str, object]

TOKEN_LENGTH: Final = 18


class Asking(NamedTuple):
    """What to send for a turn now."""

    turn: Turn
    events: Sequence[ClientEvent]


class Turns:
    """Waiting turns and the running one."""

    def __init__(self) -> None:
        self._waiting: deque[Turn] = deque()
        self.running: Turn | None = None
        """The turn that was sent and is not over."""
        self._unwanted = False
        self.count = 0
        """Turns so far."""

    @property
    def waiting(self) -> Sequence[Turn]:
        return tuple(self._waiting)

    @property
    def size(self) -> int:
        """Bytes of turns that are not finished."""
        if not self.unfinished:
            return 0
        return sum(turn.size for turn in (*self._waiting, *filter(None, [self.running])))

    @property
    def unfinished(self) -> bool:
        """Whether any turn waits or runs."""
        return self.running is not None or bool(self._waiting)

    @property
    def unfinished_by_number(self) -> dict[int, Turn]:
        return {turn.number: turn for turn in (*filter(None, [self.running]), *self._waiting)}

    def require_room(self, max_waiting: int) -> None:
        """Raise `turn-queue-full` if the queue is full."""
        if len(self._waiting) >= max_waiting:
            raise queue_full(len(self._waiting))

    def add(self, turn: Turn, size: int) -> Turn:
        """Queue a turn whose request has this size as JSON."""
        self.count = max(self.count, turn.number)
        # Parsed, and once more as text while it is on its way.
        turn.size = 4 * size
        self._waiting.append(turn)
        return turn

    def find(self, number: int) -> Turn | None:
        """Return a turn that is not finished."""
        return next((turn for turn in (self.running, *self._waiting) if turn and turn.number == number), None)

    def due(self, busy: bool) -> Asking | None:
        """Return what can be sent now: the next turn, or the running one's request for its response."""
        turn = self.running
        if turn is not None:
            asks = not turn.asked and turn.ready and not self._unwanted and not busy
            return Asking(turn, [turn.asking()]) if asks else None
        if busy or not self._waiting:
            return None
        return Asking(self._waiting[0], self._waiting[0].opening())

    def sent(self, number: int, after: EventId, *, asked: bool) -> None:
        """Events of a turn were accepted for the channel: its first, or its request for the response."""
        if self.running is None and self._waiting and self._waiting[0].number == number:
            self.running = self._waiting.popleft()
            self.running.after = after
            self._unwanted = False
        if self.running is not None and self.running.number == number and asked:
            self.running.asked = True

    def look(self, type: str, value: Json, *, sole: bool = False) -> tuple[Progress, list[Effect]]:
        """Return what an event means for the running turn, and its effects."""
        turn = self.running
        if turn is None:
            return Progress.FOREIGN, []
        response_id = turn.response_id
        progress = turn.look(type, value, sole=sole)
        if progress is Progress.BUSY:
            turn.asked = False
            if self._unwanted:
                self.running = None  # The response was refused and must not be requested again.
                return progress, _finish(turn, turn.after, _withdrawn())
        elif self._unwanted and turn.response_id != response_id:
            return progress, [Send([turn.cancelling()])]
        return progress, []

    def done(self, head: EventId) -> list[Effect]:
        """The running turn's last event is at `head` in the log."""
        turn = self.running
        assert turn is not None  # only a running turn reports DONE
        if turn.over:
            self.running = None
            return _finish(turn, head)
        return [*self._stop(turn), *_finish(turn, head)]

    def expired(self, unix: float) -> list[Turn]:
        """Return the turns whose deadline has passed."""
        return [turn for turn in (self.running, *self._waiting) if turn is not None and turn.deadline <= unix]

    def expire(self, turn: Turn, head: EventId, seconds: float) -> list[Effect]:
        """Time a turn out: drop it if it waits, cancel its response if it runs."""
        effects: list[Effect] = []
        if turn is self.running:
            self.running = None
            if turn.asked:
                # Without an ID if it was never created: such a silent service has no other active response.
                effects.append(Send([turn.cancelling()]))
            detail = f"The response was not done within {seconds:g} s and was cancelled."
        else:
            self._waiting.remove(turn)
            detail = f"The turn waited for {seconds:g} s and was not sent."
        return effects + _finish(turn, head, _timeout(detail))

    def withdraw(self, turn: Turn, head: EventId) -> list[Effect]:
        """Withdraw a turn: cancel its response, or drop it unsent."""
        effects: list[Effect] = []
        if turn in self._waiting:
            self._waiting.remove(turn)
        elif turn is self.running:
            effects += self._stop(turn)
        if turn is not self.running:
            effects += _finish(turn, head, _withdrawn())
        return effects

    def fail(self, turn: Turn, failure: GatewayError, head: EventId) -> list[Effect]:
        """Fail a turn that cannot continue."""
        if turn is self.running:
            self.running = None
        elif turn in self._waiting:
            self._waiting.remove(turn)
        return _finish(turn, head, failure)

    def interrupt(self, failure: GatewayError, head: EventId) -> list[Effect]:
        """Fail the running turn, whose call is lost. Waiting turns keep waiting."""
        return [] if self.running is None else self.fail(self.running, failure, head)

    def fail_all(self, failure: GatewayError, head: EventId) -> list[Effect]:
        """Fail every turn, because the session is over."""
        effects = self.interrupt(failure, head)
        for turn in self.waiting:
            effects += self.fail(turn, failure, head)
        return effects

    def dump(self) -> Json:
        """Return the turns that are not finished as JSON."""
        turns = [turn.dump() for turn in (*filter(None, [self.running]), *self._waiting)]
        return {"count": self.count, "running": self.running is not None, "turns": turns}

    @classmethod
    def load(cls, dumped: Json) -> "Turns":
        """Rebuild the turns from `dump`."""
        turns = cls()
        rows = dumped.get("turns")
        for row in rows if isinstance(rows, list) else ():
            turns._waiting.append(Turn.load(row))
        if dumped.get("running"):
            turns.running = turns._waiting.popleft()
        turns.count = int(str(dumped.get("count")))
        return turns

    def _stop(self, turn: Turn) -> list[Effect]:
        """Cancel the running turn's response, now or as soon as its ID is known. Safe to call twice."""
        if self._unwanted:
            return []
        self._unwanted = True
        if not turn.asked:
            self.running = None  # It has no response and must not request one.
        elif turn.response_id is not None:
            return [Send([turn.cancelling()])]
        return []


def _finish(turn: Turn, last: EventId | None, failure: GatewayError | None = None) -> list[Effect]:
    return [TurnOver(turn)] if turn.finish(last, failure) else []


def _withdrawn() -> UpstreamError:
    return UpstreamError("upstream-failed", "The turn was withdrawn.")


def _timeout(detail: str) -> UpstreamError:
    return UpstreamError("upstream-timeout", detail, members={"phase": "response"})

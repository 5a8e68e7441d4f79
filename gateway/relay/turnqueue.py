"""The turns of one session, one at a time behind any active response. No I/O, no clock.

A turn is sent when the default conversation has no response in flight. Where somebody's own response.create came
first all the same, the service refuses the turn's with `conversation_already_has_active_response`; the turn then asks
again when that response is done, and the refusal is not shown as the turn's.

A turn that the channel has no room for at the moment goes on waiting: it was accepted. One that finds none for as long as
a response may take fails with that.

A cancel always names its response: without a name the service would cancel whatever is active, which may be somebody
else's. So a turn that nobody wants any more before its response is created stays the running one until then.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from gateway.errors import GatewayError, OverloadError, UpstreamError
from gateway.relay.envelope import ClientEvent
from gateway.relay.eventlog import EventId
from gateway.relay.ports import Json
from gateway.relay.turn import Progress, Turn, TurnRequest, queue_full

TOKEN_LENGTH: Final = 18

Send = Callable[[Sequence[ClientEvent]], None]
"""Hands events to the channel, or raises GatewayError."""


class TurnQueue:
    """Waiting turns, the running one, and what to do when the world moves."""

    def __init__(self, send: Send, max_waiting: int, timeout_seconds: float) -> None:
        self._send = send
        self._max_waiting = max_waiting
        self._timeout_seconds = timeout_seconds
        self._waiting: deque[Turn] = deque()
        self._running: Turn | None = None
        self._count = 0
        self._deadline = 0.0
        self._ask_again = False
        self._unwanted = False
        self._crowded_since: float | None = None

    @property
    def running(self) -> Turn | None:
        return self._running

    def add(self, request: TurnRequest, token: str) -> Turn:
        """Queue a turn; the caller then calls `advance`. Raises `turn-queue-full`."""
        if len(self._waiting) >= self._max_waiting:
            raise queue_full(len(self._waiting))
        self._count += 1
        turn = Turn(self._count, token, request)
        self._waiting.append(turn)
        return turn

    def advance(self, busy: bool, head: EventId, now: float) -> None:
        """Send what can be sent: the next turn, or the running one's question again."""
        if self._running is not None and self._unwanted and self._ask_again:
            self.interrupt(_withdrawn(), head)  # It was refused for now, and is not to be asked for again.
        if busy:
            return
        if self._running is not None:
            if self._ask_again:
                self._ask_again = self._crowds(self._running, [self._running.asking()], head)
            return
        while self._waiting and self._running is None:
            turn = self._waiting.popleft()
            turn.after = head
            self._running = turn
            self._ask_again = self._unwanted = False
            self._deadline = now + self._timeout_seconds
            if not self._crowds(turn, turn.opening(), head):
                self._crowded_since = None
            else:
                self._running = None
                if self._wait_longer(now):
                    turn.after = None
                    self._waiting.appendleft(turn)
                    return
                detail = f"OpenAI took nothing for {self._timeout_seconds:g} s; the turn was not sent."
                turn.finish(head, UpstreamError("upstream-timeout", detail, members={"phase": "response"}))

    def look(self, type: str, value: Json) -> Progress:
        """Say what an event means for the running turn; only to be called while one runs."""
        turn = self._running
        if turn is None:
            return Progress.FOREIGN
        response_id = turn.response_id
        progress = turn.look(type, value)
        if progress is Progress.BUSY:
            self._ask_again = True
        elif self._unwanted and turn.response_id != response_id:
            self._cancel(turn)
        return progress

    def done(self, head: EventId) -> None:
        """The running turn's last event stands in the log at `head`."""
        turn = self._running
        assert turn is not None  # only a running turn reports DONE
        if turn.over:
            self._running = None
        else:
            self._stop(turn)
        turn.finish(head)

    def expire(self, head: EventId, now: float) -> None:
        """Cancel the running turn's response if its time is over."""
        turn = self._running
        if turn is None or now < self._deadline:
            return
        self._running = None
        if not self._ask_again:
            self._cancel(
                turn
            )  # Unnamed if it was never created: a service that silent has nothing else active.
        detail = f"The response was not done within {self._timeout_seconds:g} s and was cancelled."
        turn.finish(head, UpstreamError("upstream-timeout", detail, members={"phase": "response"}))

    def withdraw(self, turn: Turn, head: EventId) -> None:
        """Nobody wants this turn any more: cancel its response, or forget it unsent."""
        if turn in self._waiting:
            self._waiting.remove(turn)
        elif turn is self._running:
            self._stop(turn)
        if turn is not self._running:
            turn.finish(head, _withdrawn())

    def interrupt(self, failure: GatewayError, head: EventId) -> None:
        """The running turn's call is lost; those that wait go on waiting."""
        turn, self._running = self._running, None
        if turn is not None:
            turn.finish(head, failure)

    def fail(self, failure: GatewayError, head: EventId) -> None:
        """The session is over, and with it every turn."""
        self.interrupt(failure, head)
        while self._waiting:
            self._waiting.popleft().finish(head, failure)

    def _crowds(self, turn: Turn, events: Sequence[ClientEvent], head: EventId) -> bool:
        """Send, and say whether there is no room for it now; what cannot be sent at all is the turn's answer."""
        try:
            self._send(events)
        except GatewayError as error:
            # A refusal that outlasts the turn, such as that of a budget that is spent, is its answer.
            if isinstance(error, OverloadError) and (error.retry_after or 0) <= self._timeout_seconds:
                return True
            self._running = None
            turn.finish(head, error)
        return False

    def _wait_longer(self, now: float) -> bool:
        if self._crowded_since is None:
            self._crowded_since = now
        return now - self._crowded_since < self._timeout_seconds

    def _stop(self, turn: Turn) -> None:
        """Cancel the running turn's response, now or as soon as it has a name. Harmless when repeated."""
        if self._unwanted:
            return
        self._unwanted = True
        if self._ask_again:
            self._running = None  # It has none, and is not to ask for one again.
        elif turn.response_id is not None:
            self._cancel(turn)

    def _cancel(self, turn: Turn) -> None:
        try:
            self._send([turn.cancelling()])
        except GatewayError:
            return  # The channel is gone, and the response with it.


def _withdrawn() -> UpstreamError:
    return UpstreamError("upstream-failed", "The turn was withdrawn.")

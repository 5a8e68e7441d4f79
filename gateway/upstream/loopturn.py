"""The time that all calls of a process share for deliveries in one turn of the event loop.

A far end may send faster than its messages can be relayed, and a repaired gap may release thousands at once. Without a bound
the loop would be blocked for all sessions. So the messages of all calls together are delivered for at most `TURN_SECONDS` in
one turn. A call that has more waits in a queue and is served in the next turns, a few messages at a time in rotation with
the other calls that wait.

A large message is taken in steps, each of which may take as long as a turn. A step is all that is done in its turn, and every
second turn is free for other messages. Large messages of all calls are taken one after the other, so that the memory for one
is enough.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

TURN_SECONDS = 0.01
"""Time for deliveries in one turn of the loop. A tenth of what the loop may be held by all its work together."""

SLICE_MESSAGES = 16
"""Messages of one call before the next call has its turn."""


class Backlog(Protocol):
    """A call with undelivered messages."""

    def deliver_slice(self, messages: int) -> bool:
        """Deliver up to `messages` messages and return whether more wait. Does not raise."""


class LoopTurn:
    """The present turn of the loop. One object serves all calls of a dialer."""

    def __init__(self, seconds: float = TURN_SECONDS, clock: Callable[[], float] = time.perf_counter) -> None:
        self._seconds = seconds
        self._clock = clock
        self._until = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False
        self._at_end: list[Callable[[], None]] = []
        self._waiting: deque[Backlog] = deque()
        self._work: deque[Callable[[], bool]] = deque()
        self._worked = False

    def has_time(self) -> bool:
        """Return whether this turn has time for one more message."""
        if not self._until:
            self._until = self._clock() + self._seconds
            if not self._scheduled:
                self._schedule()
            return True
        return self._clock() < self._until

    def at_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when this turn is over."""
        self._at_end.append(callback)
        if not self._scheduled:
            self._schedule()

    def wait(self, backlog: Backlog) -> None:
        """Serve a backlog in the next turns, until it is empty. Call once per backlog."""
        self._waiting.append(backlog)
        if not self._scheduled:
            self._schedule()

    def work(self, step: Callable[[], bool]) -> None:
        """Call `step` in the next turns until it returns False or raises."""
        self._work.append(step)
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        # Read once: before Python 3.12 each read is a system call.
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._scheduled = True
        self._loop.call_soon(self._next)

    def _again(self, step: Callable[[], bool]) -> bool:
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - one call's mistake must not stop the others'
            self._report(error)
            return False

    def _report(self, error: Exception) -> None:
        assert self._loop is not None  # it scheduled this turn
        self._loop.call_exception_handler(
            {"message": "a call failed in its turn of the loop", "exception": error}
        )

    def _next(self) -> None:
        self._scheduled = False
        self._until = 0.0
        callbacks, self._at_end = self._at_end, []
        for callback in callbacks:
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - one call's mistake must not stop the others'
                self._report(error)
        waiting, work = self._waiting, self._work
        self._worked = bool(work) and not self._worked
        if self._worked:
            self._until = self._clock()  # Nothing else is delivered in this turn.
            if not self._again(work[0]):
                work.popleft()
        while waiting and not self._worked and self.has_time():
            backlog = waiting.popleft()
            if backlog.deliver_slice(SLICE_MESSAGES):
                waiting.append(backlog)
        if (waiting or work or self._worked) and not self._scheduled:
            self._schedule()

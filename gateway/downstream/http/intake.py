"""What a server's connections do in one turn of the event loop: first the writes that are due, then a few reads.

Hundreds of requests may arrive together: after a deploy, or when many answers end at the same moment. Each takes about 0.3 ms.
Handled in one turn, they would delay everything else by all of them, events from OpenAI included, and the first response would
leave only after the last request. So a turn reads a few connections. The others are not read further, and wait.

The connections whose data came last are read first. Such a request is often the second one of a client whose first was just
answered, since a question takes two. If it had to wait behind the first requests of all other clients, all answers would begin
late, instead of some early and some late: of 50 clients that asked five times, half saw the first delta after 18 ms, and now after
9 ms. The first read of a turn goes to the connection that has waited longest, so none waits forever.

Events that readers wait for are written before any waiting connection is read.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

READS_PER_TURN: Final = 8
"""2 to 4 ms of requests."""


class Reading(Protocol):
    """The interface of a connection that this file uses."""

    def read_on(self) -> None:
        """Handle the data for which `admits` returned False. Must not raise."""


class Intake:
    """Admits the reads of all connections of one listener."""

    def __init__(self, reads_per_turn: int = READS_PER_TURN) -> None:
        self._reads_per_turn = reads_per_turn
        self._left = reads_per_turn
        # Each connection once, so bounded by their number.
        self._waiting: deque[Reading] = deque()
        # At most one call of each open read.
        self._writes: list[Callable[[], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False

    def write_soon(self, write: Callable[[], None]) -> None:
        """Call a function in the next turn, before the reads."""
        self._writes.append(write)
        if not self._scheduled:
            self._schedule()

    def admits(self, connection: Reading) -> bool:
        """Return whether data can be handled now. Otherwise `read_on` is called once, in one of the next turns."""
        if not self._scheduled:
            self._schedule()
        if self._left and not self._waiting:
            self._left -= 1
            return True
        self._waiting.append(connection)
        return False

    def _schedule(self) -> None:
        # Read once: before Python 3.12 each read is a system call.
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._scheduled = True
        self._loop.call_soon(self._next)

    def _next(self) -> None:
        """Begin a turn."""
        assert self._loop is not None  # it scheduled this turn
        writes, self._writes = self._writes, []
        for write in writes:
            try:
                write()
            except Exception as error:  # noqa: BLE001  # one read's bug must not stop the others
                self._loop.call_exception_handler({"message": "a write failed", "exception": error})
        waiting = self._waiting
        self._left = self._reads_per_turn
        oldest = True
        while waiting and self._left:
            self._left -= 1
            (waiting.popleft if oldest else waiting.pop)().read_on()
            oldest = False
        self._scheduled = self._left < self._reads_per_turn or bool(self._writes)
        if self._scheduled:
            self._loop.call_soon(self._next)

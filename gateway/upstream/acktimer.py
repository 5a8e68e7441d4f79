"""The delay of acknowledgements: one timer for all calls of a process.

A timer for each acknowledgement costs as much as the acknowledgement: it is made, it wakes the event loop, and the loop
polls for nothing. With one timer, the acknowledgements of all calls that are due are sent one after the other, which also
costs half as much for each, because the code and its data are still in the processor's caches.
"""

import asyncio
from collections.abc import Callable

ACK_DELAY_SECONDS = 0.04
"""Longest delay. RFC 9260 6.2 proposes 200 ms and allows 500; Linux uses 40 ms in TCP. It is well below the shortest
retransmission time-out of any peer, 200 ms in libdatachannel."""

SLICE = 32
"""Acknowledgements sent in one turn of the loop, so that a thousand streams do not hold it: about 0.5 ms."""


class AckTimer:
    """Calls back within `ACK_DELAY_SECONDS`. One object serves all calls of a dialer."""

    def __init__(self) -> None:
        self._due: list[Callable[[], None]] = []
        self._late: list[Callable[[], None]] = []
        """Due in the turns that follow, last first."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running = False

    def soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` once."""
        self._due.append(callback)
        if not self._running:
            # Read once: before Python 3.12 each read is a system call.
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._running = True
            self._loop.call_later(ACK_DELAY_SECONDS, self._fire)

    def _fire(self) -> None:
        self._late, self._due = self._due, []
        self._late.reverse()
        self._serve()

    def _serve(self) -> None:
        loop, late = self._loop, self._late
        assert loop is not None  # `soon` was called
        for _ in range(min(SLICE, len(late))):
            try:
                late.pop()()
            except Exception as error:  # noqa: BLE001 - one call's mistake must not stop the others'
                loop.call_exception_handler({"message": "an acknowledgement failed", "exception": error})
        if late:
            loop.call_soon(self._serve)
        elif self._due:
            loop.call_later(ACK_DELAY_SECONDS, self._fire)
        else:
            self._running = False

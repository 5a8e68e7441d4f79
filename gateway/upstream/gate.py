"""How many calls are set up at the same time.

After a network failure or a deploy, hundreds of clients open sessions at once. Set up all together, each call would take as
long as all of them, so that they time out together, and the event loop would be blocked by their work for everyone else. So
a bounded number is set up at once, at most one call begins in each turn of the loop, and the others wait in order of arrival.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.errors import OverloadError

AT_ONCE = 32
"""One core sets up 150 to 200 calls a second. With 64 at once, more turns of the loop were long; with 16 it took longer."""

HOLD_SECONDS = 2.0
"""A set-up that takes longer waits for the network and not for the processor. It gives up its place, so that a service that
does not answer does not keep the others waiting."""

RETRY_SECONDS = 2.0


class Gate:
    """Admits set-ups. One object serves all calls of a dialer."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._free = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._scheduled = False

    @asynccontextmanager
    async def admitted(self, seconds: float) -> AsyncIterator[None]:
        """Wait for a place, and hold it until the end of the block, at most for `HOLD_SECONDS`.

        Raises OverloadError if there is none in time.
        """
        await self._enter(seconds)
        held = True

        def leave() -> None:
            nonlocal held
            if held:
                held = False
                self._free += 1
                self._schedule()

        timer = asyncio.get_running_loop().call_later(HOLD_SECONDS, leave)
        try:
            yield
        finally:
            timer.cancel()
            leave()

    async def _enter(self, seconds: float) -> None:
        if self._free and not self._waiting and not self._scheduled:
            self._free -= 1
            self._schedule()
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._schedule()
        try:
            async with asyncio.timeout(seconds):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                # Admitted in the same turn of the loop: the place goes to the next.
                self._free += 1
                self._schedule()
            elif place in self._waiting:
                self._waiting.remove(place)
            if isinstance(error, TimeoutError):
                detail = "Too many sessions are being opened at once."
                raise OverloadError("capacity", detail, retry_after=RETRY_SECONDS) from error
            raise

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._admit)

    def _admit(self) -> None:
        self._scheduled = False
        while self._waiting and self._waiting[0].cancelled():
            del self._waiting[0]
        if self._free and self._waiting:
            self._free -= 1
            self._waiting.popleft().set_result(None)
            self._schedule()

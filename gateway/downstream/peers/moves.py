"""Waits for sessions to change their owner, with one look-up task for all waiting requests.

When a node with a thousand streams is lost, its clients return within seconds, and their requests wait on the other nodes.
If each looked its session up by itself, they would keep these nodes from taking the sessions over. Those for a session that
this node takes over itself need no look-up.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.errors import OverloadError
from gateway.relay.journal import Location
from gateway.relay.tasks import Tasks

POLL_SECONDS: Final = 0.05
"""Time between look-ups."""
MOST_LOOKUPS: Final = 100
"""Maximum number of sessions looked up at once. If more wait, each is looked up less often."""


class Locations(Protocol):
    """What is asked of the directory."""

    async def locate_all(self, session_ids: Sequence[str]) -> Sequence[Location | None]:
        """Look up several sessions at once. Raises OverloadError `recovering`."""


class Moves:
    """The requests that wait."""

    def __init__(self, locations: Locations, failed: Callable[[BaseException], None]) -> None:
        """`failed` is called with an exception of a look-up that nobody expected."""
        self._locations = locations
        self._tasks = Tasks(failed)
        self._waiting: dict[str, list[tuple[str, asyncio.Future[Location | None]]]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop looking up. Requests that wait end with their own time-out."""
        await self._tasks.end()

    async def next(self, session_id: str, location: Location, seconds: float) -> Location | None:
        """Return where a session is once it is not at `location` any more, or `location` after so many seconds; None for
        a session that is gone or on this node."""
        future: asyncio.Future[Location | None] = asyncio.get_running_loop().create_future()
        waiter = (location.node, future)
        self._waiting.setdefault(session_id, []).append(waiter)
        if self._looking is None or self._looking.done():
            self._looking = self._tasks.run(self._look_up(), "cluster-moves")
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            return location
        finally:
            self._forget(session_id, waiter)

    def arrived(self, session_id: str) -> None:
        """End the waiting for a session that is on this node now."""
        self._tell(session_id, None)

    def _forget(self, session_id: str, waiter: tuple[str, asyncio.Future[Location | None]]) -> None:
        waiters = self._waiting.get(session_id, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._waiting.pop(session_id, None)

    async def _look_up(self) -> None:
        while self._waiting:
            some = list(self._waiting)[:MOST_LOOKUPS]
            try:
                found = await self._locations.locate_all(some)
            except OverloadError:
                found = ()
            for session_id, location in zip(some, found, strict=False):
                self._tell(session_id, location)
            await asyncio.sleep(POLL_SECONDS)

    def _tell(self, session_id: str, location: Location | None) -> None:
        waiters = self._waiting.pop(session_id, [])
        for node, future in waiters:
            if not future.done() and (location is None or location.node != node):
                future.set_result(location)
        left = [(node, future) for node, future in waiters if not future.done()]
        if left:
            self._waiting[session_id] = left  # at the end, so that the others are looked up before it again

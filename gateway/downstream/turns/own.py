"""A turn in its own session, which is opened for it and closed after it.

The client may leave, and others may attach to the turn with its Idempotency-Key. So the turn runs in a task, which is
owned here and awaited when the server closes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from gateway.relay.ports import Handle
from gateway.relay.state.turn import Turn, TurnRequest
from gateway.relay.states import CloseReason


class OwnTurn:
    """One such turn. `begun` resolves to its session and the turn, or to an error."""

    def __init__(self) -> None:
        self.begun: asyncio.Future[tuple[Handle, Turn]] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._abandoned = asyncio.Event()

    def start(
        self, open_session: Callable[[], Awaitable[Handle]], request: TurnRequest
    ) -> asyncio.Task[None]:
        """Open a session for the turn, and close it afterwards. The caller owns the task, which never raises."""
        self._task = asyncio.create_task(self._run(open_session, request), name="turn")
        return self._task

    def abandon(self) -> None:
        """Cancel the response and close the session, because no client waits for the turn."""
        self._abandoned.set()
        if self._task is not None and not self.begun.done():
            self._task.cancel()  # Still opening; the hub closes the partly opened session.

    async def _run(self, open_session: Callable[[], Awaitable[Handle]], request: TurnRequest) -> None:
        try:
            handle = await open_session()
        except BaseException as error:
            self._fail(error)
            if isinstance(error, asyncio.CancelledError) or not isinstance(error, Exception):
                raise
            return
        try:
            turn = await handle.turn(request)
            self.begun.set_result((handle, turn))
            unsubscribe = turn.subscribe(self._abandoned.set)
            try:
                await self._abandoned.wait()
            finally:
                unsubscribe()
        except Exception as error:  # noqa: BLE001  # on any error, waiters get it and the session is closed
            self._fail(error)
        finally:
            await handle.close(CloseReason.CLIENT)

    def _fail(self, error: BaseException) -> None:
        if self.begun.done():
            return
        if isinstance(error, Exception):
            self.begun.set_exception(error)
            self.begun.exception()  # Mark it as retrieved: if the client has left, asyncio would log it.
        else:
            self.begun.cancel()


class OwnTurns:
    """Owns the tasks of all turns that have their own session."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def own(self, task: asyncio.Task[None]) -> None:
        """Keep a task until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel the tasks that are still running, and await them."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))


OWN_TURNS: Final = web.AppKey("own_turns", OwnTurns)

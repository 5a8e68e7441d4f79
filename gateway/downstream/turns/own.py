"""A turn in its own session, which is opened for it and closed after it.

The client may leave, and others may attach to the turn with its Idempotency-Key. So the turn runs in a task, which is
owned here and awaited when the server closes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from gateway.downstream.turns.result import moved, retryable
from gateway.relay.ports import Handle
from gateway.relay.requests import NO_PROMISE, Promise
from gateway.relay.state.turn import Turn, TurnRequest
from gateway.relay.states import CloseReason
from gateway.relay.tasks import Tasks


class OwnTurn:
    """One such turn. `begun` resolves to its session and the turn, or to an error."""

    def __init__(self) -> None:
        self.begun: asyncio.Future[tuple[Handle, Turn]] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._abandoned = asyncio.Event()
        self.repeated = False
        """The turn was begun by an earlier request, at another node."""

    def start(
        self,
        turns: Tasks,
        open_session: Callable[[], Awaitable[Handle]],
        request: TurnRequest,
        promise: Promise = NO_PROMISE,
        forget: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Open a session for the turn, and close it afterwards, in a task that `turns` owns. `promise` is stored with the
        turn; `forget` is called if a repeat of the request is to run the turn again."""
        self._task = turns.run(self._run(open_session, request, promise, forget), "turn")

    def abandon(self) -> None:
        """Cancel the response and close the session, because no client waits for the turn."""
        self._abandoned.set()
        if self._task is not None and not self.begun.done():
            self._task.cancel()  # Still opening; the hub closes the partly opened session.

    async def _run(
        self,
        open_session: Callable[[], Awaitable[Handle]],
        request: TurnRequest,
        promise: Promise,
        forget: Callable[[], Awaitable[None]] | None,
    ) -> None:
        try:
            handle = await open_session()
        except BaseException as error:
            self._fail(error)
            if isinstance(error, asyncio.CancelledError) or not isinstance(error, Exception):
                raise
            return
        try:
            turn = await handle.turn(request, promise)
            self.begun.set_result((handle, turn))
            unsubscribe = turn.subscribe(self._abandoned.set)
            try:
                await self._abandoned.wait()
            finally:
                unsubscribe()
            if forget is not None and retryable(turn) and not moved(turn):
                await forget()
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


OWN_TURNS: Final = web.AppKey("own_turns", Tasks)
"""The tasks of all turns that have their own session."""

"""A turn in its own session, run once even if its request is repeated at another node, or after its node was lost.

The directory stores the promise of an Idempotency-Key: the ID of the session, chosen before it is opened. The session's
journal stores the turn under the same key. So whichever node has the session by then finds the turn and attaches to it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from gateway.downstream.peers.promises import new_session_id, still_opening
from gateway.relay.journal import Directory
from gateway.relay.ports import Handle, Sessions
from gateway.relay.requests import Promise
from gateway.relay.states import CloseReason

Open = Callable[[], Awaitable[Handle]]


class ElsewhereError(Exception):
    """Another node has the session of the turn."""

    def __init__(self, session_id: str) -> None:
        super().__init__(session_id)
        self.session_id = session_id


@dataclass(frozen=True, slots=True)
class Once:
    """One key of one caller."""

    directory: Directory
    sessions: Sessions
    principal: str
    promise: Promise

    async def begin(self, open_as: Callable[[str], Awaitable[Handle]]) -> tuple[Open, bool, str]:
        """Return a function that returns the turn's session, whether it was opened by an earlier request, and its ID.

        `open_as` opens one under an ID. Raises ElsewhereError, OverloadError `idempotency-in-progress` while the first
        request is still opening it, or CallerError `idempotency-key-reused`."""
        directory, key, fingerprint = self.directory, self.promise.key or "", self.promise.fingerprint or ""
        session_id = new_session_id()
        while True:
            first = await directory.promise(self.principal, key, fingerprint, session_id)
            if first is None:
                return partial(self._opened, open_as, session_id), False, session_id
            if first.answer is None:
                raise still_opening()
            if self.sessions.has(first.session_id):
                handle = self.sessions.find(first.session_id, None)
                if handle.promised(self.promise) is not None or handle.view().close_reason is None:
                    return partial(_found, handle), True, first.session_id
            elif await directory.locate(first.session_id, fresh=True) is not None:
                raise ElsewhereError(first.session_id)
            # The session is gone, or the turn never was in its journal: this counts as a first request.
            await self.forget(first.session_id)

    async def forget(self, session_id: str) -> None:
        """Let a repeat run the turn of this session again."""
        await self.directory.break_promise(self.principal, self.promise.key or "", session_id)

    async def _opened(self, open_as: Callable[[str], Awaitable[Handle]], session_id: str) -> Handle:
        promise, handle = self.promise, None
        try:
            handle = await open_as(session_id)
            await self.directory.keep_promise(
                self.principal, promise.key or "", promise.fingerprint or "", session_id, b"{}"
            )
        except BaseException:
            await self.forget(session_id)
            if handle is not None:
                await handle.close(CloseReason.CLIENT)
            raise
        return handle


async def _found(handle: Handle) -> Handle:
    return handle

"""Background tasks: their owner keeps them until they end, and an exception that ends one is reported.

asyncio keeps only weak references to tasks, and reports an unread exception only when it collects the task, if ever.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from gateway.relay.events.jsontext import Steps

T = TypeVar("T")

RESTART_SECONDS: Final = 1.0
"""How long a loop that raised an exception is paused: a bug that raises at once must not take the whole processor."""
_AGAIN_SECONDS: Final = 1.0


class Tasks:
    """The tasks of one owner."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        """`failed` is called with the exception that ended a task."""
        self._failed = failed
        self._running: set[asyncio.Task[Any]] = set()  # Any: their results are not used here

    def __len__(self) -> int:
        return len(self._running)

    def run(self, work: Coroutine[Any, Any, None], name: str | None = None) -> "asyncio.Task[None]":
        """Start a task. It runs to its end, even if one that waits for it is cancelled."""
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def repeat(self, loop: Callable[[], Coroutine[Any, Any, None]], name: str) -> "asyncio.Task[None]":
        """Run a coroutine function that never returns. If it raises, report that and call it again after a pause."""
        return self.run(self._repeated(loop), name)

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in self._running:
            task.cancel()

    async def ended(self) -> None:
        """Wait until all tasks have ended, those included that are started meanwhile."""
        while self._running:
            await asyncio.wait(set(self._running))

    async def end(self) -> None:
        """Cancel all tasks and wait until they have ended. Repeat if a library mistook the cancellation for its own
        time-out."""
        while self._running:
            self.cancel()
            await asyncio.wait(set(self._running), timeout=_AGAIN_SECONDS)

    async def _repeated(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await loop()
            except Exception as error:  # noqa: BLE001  # a bug must not stop heartbeats or deadlines for good
                self._failed(error)
            await asyncio.sleep(RESTART_SECONDS)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)


async def within(work: Coroutine[Any, Any, T], seconds: float | None) -> T | None:
    """Await something within a time; None if it took longer."""
    try:
        return await asyncio.wait_for(work, seconds)
    except TimeoutError:
        return None


async def in_turns(steps: Steps[T]) -> T:
    """Do work in steps, each in its own turn of the event loop, and return its result. Work of one step is done at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await asyncio.sleep(0)

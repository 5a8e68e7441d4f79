"""Background tasks: their owner keeps them until they end, and an exception that ends one is reported.

asyncio keeps only weak references to tasks, and reports an unread exception only when it collects the task, if ever.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


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

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in self._running:
            task.cancel()

    async def ended(self) -> None:
        """Wait until all tasks have ended, those included that are started meanwhile."""
        while self._running:
            await asyncio.wait(set(self._running))

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)

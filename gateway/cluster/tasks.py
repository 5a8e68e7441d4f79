"""Ending tasks reliably."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

_AGAIN_SECONDS: Final = 1.0


async def end(tasks: Iterable["asyncio.Task[Any] | None"]) -> None:  # Any: their results are not used
    """Cancel tasks and wait until they are done. Repeat if a library mistook the cancellation for its own time-out."""
    left = {task for task in tasks if task is not None and not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_SECONDS)

"""Waiting for a condition that needs some turns of the loop, or another process."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

LOOK_SECONDS = 0.01


async def until(holds: Callable[[], object | Awaitable[object]], seconds: float = 20.0) -> None:
    """Wait until a condition holds. It may be a coroutine function. Raises TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while True:
            found = holds()
            if await found if inspect.isawaitable(found) else found:
                return
            await asyncio.sleep(LOOK_SECONDS)

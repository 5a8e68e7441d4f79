"""Processes a body in steps, so that a large one does not delay other requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from aiohttp import web

from gateway.downstream.http.app_keys import STEPS_LOCK
from gateway.relay.events.jsontext import Steps

T = TypeVar("T")


@asynccontextmanager
async def one_at_a_time(request: web.Request) -> AsyncIterator[None]:
    """Serialize work that takes milliseconds, such as a list of a hundred sessions.

    One caller runs per loop iteration, so other requests are served in between.
    """
    async with request.app[STEPS_LOCK]:
        await asyncio.sleep(0)
        yield


async def in_steps(request: web.Request, steps: Steps[T]) -> T:
    """Run work to its end and yield to the event loop after each step, the last included. Work of a single step runs at once.

    Each loop iteration runs one step of one body, however many bodies wait.
    """
    result: T
    try:
        next(steps)
    except StopIteration as end:
        result = end.value
        return result
    async with request.app[STEPS_LOCK]:
        while True:
            await asyncio.sleep(0)
            try:
                next(steps)
            except StopIteration as end:
                result = end.value
                break
    await asyncio.sleep(0)  # What the caller does with so large a body may take as long as a step.
    return result

"""Work on a body in steps, so that reading a large one does not hold up other requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from aiohttp import web

from gateway.downstream.http.app_keys import STEPS_LOCK
from gateway.relay.jsontext import Steps

T = TypeVar("T")


@asynccontextmanager
async def one_at_a_time(request: web.Request) -> AsyncIterator[None]:
    """Hold up no other request by work that takes milliseconds, such as a list of a hundred sessions.

    Of all that ask at once, one is served in a turn of the loop; the sockets are looked at in between.
    """
    async with request.app[STEPS_LOCK]:
        await asyncio.sleep(0)
        yield


async def in_steps(request: web.Request, steps: Steps[T]) -> T:
    """Run work to its end and give way after each step. Work of a single step runs at once.

    A turn of the loop has one step of one body, however many bodies wait.
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
                return result

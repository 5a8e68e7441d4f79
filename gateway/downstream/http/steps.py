"""Work on a body in steps, so that reading a large one does not hold up other requests."""

import asyncio
from typing import TypeVar

from aiohttp import web

from gateway.downstream.http.app_keys import STEPS_LOCK
from gateway.relay.jsontext import Steps

T = TypeVar("T")


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

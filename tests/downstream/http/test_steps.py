"""Reading large bodies yields to other work and to other bodies."""

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from gateway.downstream.http.app_keys import STEPS_LOCK
from gateway.downstream.http.steps import in_steps


class _Request:
    def __init__(self) -> None:
        self.app = {STEPS_LOCK: asyncio.Lock()}


def work(steps: int, told: list[str], name: str = "step") -> Generator[None, None, str]:
    """Return work that consists of several steps."""
    for number in range(steps):
        told.append(name)
        if number < steps - 1:
            yield
    return f"{name} done"


async def test_work_of_one_step_runs_at_once() -> None:
    """Nothing else runs in between."""
    told: list[str] = []
    asyncio.get_running_loop().call_soon(told.append, "other")
    request: Any = _Request()

    assert await in_steps(request, work(1, told)) == "step done"
    assert told == ["step"]


async def test_other_work_runs_between_steps() -> None:
    """A body of several steps yields after each step."""
    told: list[str] = []
    request: Any = _Request()
    running = asyncio.create_task(in_steps(request, work(3, told)))
    for _ in range(6):
        told.append("other")
        await asyncio.sleep(0)

    assert await running == "step done"
    assert [told[i] for i in range(6)] == ["other", "step", "other", "step", "other", "step"]


async def test_the_caller_goes_on_in_a_turn_of_its_own() -> None:
    """What a handler does with a large body takes as long as a step, so it does not follow the last step at once."""
    told: list[str] = []
    request: Any = _Request()

    async def handler() -> None:
        await in_steps(request, work(2, told))
        told.append("handler")

    async with asyncio.TaskGroup() as tasks:
        _ = tasks.create_task(handler())
        for _ in range(5):
            await asyncio.sleep(0)
            told.append("other")

    assert told.index("handler") - max(i for i, what in enumerate(told) if what == "step") >= 2


async def test_large_bodies_take_turns() -> None:
    """Beyond the first step only one body is processed at a time, so a turn of the loop has at most one large step."""
    told: list[str] = []
    request: Any = _Request()
    results = await asyncio.gather(*(in_steps(request, work(4, told, name)) for name in "ab"))

    assert results == ["a done", "b done"]
    assert "".join(told) == "abaaabbb"


async def test_a_failure_frees_the_lock() -> None:
    """After a body is refused midway, the next large body is read."""

    def failing() -> Generator[None, None, str]:
        yield
        raise ValueError("no")

    request: Any = _Request()
    with pytest.raises(ValueError, match="no"):
        await in_steps(request, failing())

    assert await in_steps(request, work(2, [])) == "step done"

"""gateway/relay/tasks.py: tasks that nothing awaits are kept, and their failures are reported."""

import asyncio

import pytest

from gateway.relay import tasks as module
from gateway.relay.tasks import Tasks


async def fail() -> None:
    """Raise an error."""
    raise ValueError("x")


async def test_a_failure_is_reported_once_and_a_cancellation_is_not() -> None:
    """A failure is reported to the owner once, because nothing else reads it; a cancellation is not."""
    failures: list[BaseException] = []
    tasks = Tasks(failures.append)
    _ = tasks.run(fail(), "named")
    tasks.run(asyncio.Event().wait()).cancel()  # type: ignore[arg-type]  # it never returns
    await tasks.ended()

    assert [repr(failure) for failure in failures] == ["ValueError('x')"]
    assert not tasks


async def test_all_can_be_cancelled_and_waited_for() -> None:
    """Tasks that are started meanwhile are waited for as well."""
    tasks, done = Tasks(lambda error: None), list[str]()

    async def late() -> None:
        done.append("late")

    async def first() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            _ = tasks.run(late())

    _ = tasks.run(first())
    await asyncio.sleep(0)
    tasks.cancel()
    await tasks.ended()

    assert (done, len(tasks)) == (["late"], 0)


async def test_a_loop_that_fails_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failure is reported. Only `end` stops the loop."""
    monkeypatch.setattr(module, "RESTART_SECONDS", 0.0)
    failures: asyncio.Queue[BaseException] = asyncio.Queue()
    tasks = Tasks(failures.put_nowait)
    _ = tasks.repeat(fail, "loop")
    told = [repr(await asyncio.wait_for(failures.get(), 10)) for _ in range(2)]
    await tasks.end()

    assert told == ["ValueError('x')"] * 2
    assert not tasks


async def test_a_swallowed_cancellation_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that took the first cancellation for its own time-out ends with the second."""
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.01)
    tasks, cancelled = Tasks(lambda error: None), list[int]()

    async def stubborn() -> None:
        for number in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(number)

    _ = tasks.run(stubborn())
    await asyncio.sleep(0)
    await tasks.end()

    assert cancelled == [0, 1]

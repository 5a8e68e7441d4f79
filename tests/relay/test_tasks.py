"""gateway/relay/tasks.py: tasks that nobody awaits are kept, and their failures are reported."""

import asyncio

from gateway.relay.tasks import Tasks


async def fail() -> None:
    """Raise."""
    raise ValueError("x")


async def test_a_failure_is_reported_once_and_a_cancellation_is_not() -> None:
    """The owner learns what nobody else reads."""
    failures: list[BaseException] = []
    tasks = Tasks(failures.append)
    _ = tasks.run(fail(), "named")
    tasks.run(asyncio.Event().wait()).cancel()  # type: ignore[arg-type]  # it never returns
    await tasks.ended()

    assert [repr(failure) for failure in failures] == ["ValueError('x')"]
    assert not tasks


async def test_all_can_be_cancelled_and_waited_for() -> None:
    """Those that are started meanwhile are waited for as well."""
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

"""The timer that acknowledgements of all calls share."""

import asyncio

from gateway.upstream.acktimer import ACK_DELAY_SECONDS, SLICE, AckTimer


async def test_all_that_is_due_is_called_once_within_the_delay() -> None:
    """Callbacks of several calls run together, in order, and a later one also runs within the delay."""
    timer, told, loop = AckTimer(), list[str](), asyncio.get_running_loop()
    began = loop.time()
    for name in "ab":
        timer.soon(lambda name=name: told.append(name))  # type: ignore[misc]
    while len(told) < 2:
        await asyncio.sleep(0.001)
    assert loop.time() - began >= ACK_DELAY_SECONDS / 2

    timer.soon(lambda: told.append("c"))
    await asyncio.sleep(3 * ACK_DELAY_SECONDS)

    assert told == ["a", "b", "c"]


async def test_callback_that_registers_again_is_served_by_the_next_round() -> None:
    """A callback that is registered while others are called waits for its own delay."""
    timer, told = AckTimer(), list[int]()

    def again() -> None:
        told.append(len(told))
        if len(told) < 3:
            timer.soon(again)

    timer.soon(again)
    while len(told) < 3:
        await asyncio.sleep(0.001)

    assert told == [0, 1, 2]


async def test_many_are_called_in_slices() -> None:
    """A thousand streams do not block the loop: each turn serves some, in order."""
    timer, told = AckTimer(), list[int]()
    for number in range(3 * SLICE):
        timer.soon(lambda number=number: told.append(number))  # type: ignore[misc]
    most = 0
    while len(told) < 3 * SLICE:
        before = len(told)
        await asyncio.sleep(0)
        most = max(most, len(told) - before)

    assert told == list(range(3 * SLICE))
    assert most <= SLICE


async def test_failing_callback_does_not_stop_the_others() -> None:
    """One call's error is reported; the next call and the next round are served."""
    timer, told = AckTimer(), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

    def failing() -> None:
        raise KeyError("x")

    timer.soon(failing)
    timer.soon(lambda: told.append("second"))
    while len(told) < 2:
        await asyncio.sleep(0.001)
    timer.soon(lambda: told.append("third"))
    while len(told) < 3:
        await asyncio.sleep(0.001)

    assert isinstance(told[0], KeyError)
    assert told[1:] == ["second", "third"]

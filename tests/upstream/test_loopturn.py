"""One turn of the loop delivers messages for a limited time, and calls that wait are served in rotation."""

import asyncio
from collections.abc import Callable

from gateway.upstream.loopturn import SLICE_MESSAGES, LoopTurn


class Ticking:
    """A clock that advances by one second per reading."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Waiting:
    """A backlog of a number of messages."""

    def __init__(self, turn: LoopTurn, name: str, messages: int, order: list[str]) -> None:
        self._turn, self._name, self._left, self._order = turn, name, messages, order

    def deliver_slice(self, messages: int) -> bool:
        """Deliver, as a call would."""
        while self._left and messages and self._turn.has_time():
            self._left -= 1
            messages -= 1
            self._order.append(self._name)
        return self._left > 0


async def test_turn_has_time_until_its_seconds_are_over() -> None:
    """The time begins with the first query and is renewed in the next turn."""
    turn = LoopTurn(seconds=3.0, clock=Ticking())

    assert [turn.has_time() for _ in range(5)] == [True, True, True, False, False]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert turn.has_time()


async def test_callbacks_run_once_at_the_end_of_a_turn() -> None:
    """They are called once and in order, after everything else that runs in this turn."""
    turn, told = LoopTurn(), []
    turn.at_end(lambda: told.append("first"))
    turn.at_end(lambda: told.append("second"))
    assert told == []
    for _ in range(4):
        await asyncio.sleep(0)

    assert told == ["first", "second"]


async def test_backlogs_are_served_in_rotation_over_several_turns() -> None:
    """A call with many messages yields to the next one after a slice, and all messages are delivered in the end."""
    order: list[str] = []
    turn = LoopTurn(seconds=10.0, clock=Ticking())
    for name, messages in (("a", 3 * SLICE_MESSAGES), ("b", 3)):
        turn.wait(Waiting(turn, name, messages, order))
    turns = 0
    while len(order) < 3 * SLICE_MESSAGES + 3:
        before = len(order)
        await asyncio.sleep(0)
        turns += 1
        assert len(order) - before <= 10
        assert turns < 100

    assert order.index("b") <= SLICE_MESSAGES
    assert turns > 5


async def test_failing_callback_does_not_stop_the_others() -> None:
    """One call's error is reported, and the next call is still served."""
    turn, told = LoopTurn(), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

    def failing() -> None:
        raise KeyError("x")

    turn.at_end(failing)
    turn.at_end(lambda: told.append("second"))
    for _ in range(3):
        await asyncio.sleep(0)

    assert isinstance(told[0], KeyError)
    assert told[1] == "second"


async def test_a_step_of_large_work_has_a_turn_of_its_own() -> None:
    """In the turn of a step nothing is delivered, and after each step other messages have a turn."""
    order: list[str] = []
    turn = LoopTurn(seconds=10.0, clock=Ticking())
    steps = iter([True, True, False])

    def step() -> bool:
        order.append("step")
        assert not turn.has_time()
        return next(steps)

    turn.work(step)
    turn.wait(Waiting(turn, "small", 30, order))
    while len(order) < 33:
        before = len(order)
        await asyncio.sleep(0)
        assert "step" not in order[before:] or len(order) == before + 1

    assert order[:2] == ["step", "small"]
    await asyncio.sleep(0)
    assert turn.has_time()


async def test_large_work_is_done_one_after_the_other() -> None:
    """The second work begins when the first is done, so the memory for one is enough."""
    order: list[str] = []
    turn = LoopTurn()

    def work(name: str) -> Callable[[], bool]:
        steps = iter([True, True, False])

        def step() -> bool:
            order.append(name)
            return next(steps)

        return step

    turn.work(work("a"))
    turn.work(work("b"))
    while len(order) < 6:
        await asyncio.sleep(0)

    assert "".join(order) == "aaabbb"


async def test_work_that_fails_does_not_stop_the_next() -> None:
    """The error is reported, and the next call's work is done."""
    turn, told = LoopTurn(), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

    def failing() -> bool:
        raise KeyError("x")

    def working() -> bool:
        told.append("worked")
        return False

    turn.work(failing)
    turn.work(working)
    for _ in range(6):
        await asyncio.sleep(0)

    assert [str(one) for one in told] == ["'x'", "worked"]

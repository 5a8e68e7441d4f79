"""How many calls are set up at once, and how long the others wait."""

import asyncio

import pytest

from gateway.errors import OverloadError
from gateway.upstream import gate
from gateway.upstream.gate import Gate
from tests.waiting import until


class Entrants:
    """Set-ups that hold their place until they are told to leave."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.inside: list[int] = []
        self.most = 0
        self.leave = asyncio.Event()

    async def enter(self, number: int, seconds: float = 5.0) -> None:
        async with self.gate.admitted(seconds):
            self.inside.append(number)
            self.most = max(self.most, len(self.inside))
            await self.leave.wait()
            self.inside.remove(number)


async def test_places_are_given_in_order_of_arrival() -> None:
    """The limit is never exceeded, and every set-up gets its place in order."""
    entrants = Entrants(Gate(2))
    tasks = [asyncio.create_task(entrants.enter(number)) for number in range(6)]
    await until(lambda: entrants.inside == [0, 1])
    entrants.leave.set()
    await asyncio.gather(*tasks)

    assert entrants.most == 2
    assert not entrants.inside


async def test_one_set_up_begins_in_each_turn_of_the_loop() -> None:
    """Even with room for all, other work runs between two set-ups."""
    entrants = Entrants(Gate(10))
    tasks = [asyncio.create_task(entrants.enter(number)) for number in range(5)]
    begun = []
    for _ in range(30):
        await asyncio.sleep(0)
        begun.append(len(entrants.inside))
    entrants.leave.set()
    await asyncio.gather(*tasks)

    assert begun[-1] == 5
    assert all(after - before <= 1 for before, after in zip([0, *begun], begun, strict=False))


async def test_set_up_that_finds_no_place_in_time_is_refused() -> None:
    """A set-up that finds no place in time is told to come back, and takes no place that becomes free later."""
    entrants = Entrants(Gate(1))
    first = asyncio.create_task(entrants.enter(0))
    await until(lambda: entrants.inside)
    with pytest.raises(OverloadError) as caught:
        await entrants.enter(1, seconds=0.01)
    entrants.leave.set()
    await first
    await asyncio.wait_for(entrants.enter(2), 5)

    assert caught.value.code == "capacity"
    assert caught.value.retry_after is not None


@pytest.mark.parametrize("turns", range(4))
async def test_set_up_that_is_cancelled_while_it_waits_keeps_no_place(turns: int) -> None:
    """Whether a set-up is cancelled before it gets its place or in the same turn, the next one gets the place."""
    entrants = Entrants(Gate(1))
    first = asyncio.create_task(entrants.enter(0))
    await until(lambda: entrants.inside)
    waiting = asyncio.create_task(entrants.enter(1))
    await asyncio.sleep(0)
    entrants.leave.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({first, waiting})

    await asyncio.wait_for(entrants.enter(2), 5)


async def test_set_up_that_takes_long_gives_up_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that does not answer blocks no other set-up, and the place is freed once."""
    monkeypatch.setattr(gate, "HOLD_SECONDS", 0.01)
    entrants = Entrants(Gate(1))
    first = asyncio.create_task(entrants.enter(0))
    second = asyncio.create_task(entrants.enter(1))
    await until(lambda: entrants.inside == [0, 1])
    entrants.leave.set()
    await asyncio.gather(first, second)

    assert entrants.gate._free == 1

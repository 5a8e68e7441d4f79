"""gateway.relay.dialgate.py: few dials at a time, and one that hangs does not block the others."""

import asyncio

from gateway.relay.dialgate import HOLD_SECONDS, DialGate


async def test_places_are_passed_on_in_order_and_a_cancelled_waiter_takes_none() -> None:
    """A block that ends passes its place to the next waiter; a cancelled waiter takes none."""
    gate, entered = DialGate(1), list[str]()
    go = asyncio.Event()

    async def dial(name: str) -> None:
        async with gate.place():
            entered.append(name)
            await go.wait()

    tasks = [asyncio.create_task(dial(name)) for name in "abc"]
    await asyncio.sleep(0.01)
    assert entered == ["a"]
    tasks[1].cancel()
    go.set()
    await asyncio.wait(tasks)

    assert entered == ["a", "c"]


async def test_a_place_is_given_up_while_its_holder_still_waits() -> None:
    """A place is freed while its holder still waits, because a far end that does not answer must not block the
    others."""
    gate, loop = DialGate(1), asyncio.get_running_loop()
    async with gate.place():
        began = loop.time()
        async with gate.place():
            waited = loop.time() - began
        await asyncio.sleep(0)

    assert HOLD_SECONDS <= waited < HOLD_SECONDS + 1
    async with gate.place():  # each place was returned once
        pass

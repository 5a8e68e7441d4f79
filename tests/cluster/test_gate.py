"""The gate in front of dials: how many at once, at what rate, and in what order."""

import asyncio
import time

import pytest
import uvloop

from gateway.cluster.gate import DialGate
from gateway.errors import UpstreamError


async def dial(gate: DialGate, urgent: bool, order: list[str], name: str, holding: asyncio.Event) -> None:
    """Dial until the event is set."""
    async with gate.dial(lambda: urgent):
        order.append(name)
        await holding.wait()


async def test_sessions_wait_while_others_are_made_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle ones wait until all are readable, those with waiting clients at most for a limited time."""
    monkeypatch.setattr("gateway.cluster.gate.HOLD_SECONDS", 0.05)
    monkeypatch.setattr("gateway.cluster.gate._PATIENCE_SECONDS", 0.01)
    gate, dialled = DialGate(per_second=1000), list[str]()

    async def dial(name: str, *, urgent: bool) -> None:
        async with gate.dial(lambda: urgent):
            dialled.append(name)

    with gate.hold():
        idle = asyncio.create_task(dial("idle", urgent=False))
        urgent = asyncio.create_task(dial("urgent", urgent=True))
        await asyncio.sleep(0.02)
        held = list(dialled)
        await urgent
        before = list(dialled)
        assert gate.held
    await idle

    assert not gate.held
    assert held == []
    assert before == ["urgent"]
    assert dialled == ["urgent", "idle"]


async def test_the_first_dial_follows_at_once_when_all_are_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A takeover of a few sessions takes milliseconds, and so does the wait of their calls."""
    monkeypatch.setattr("gateway.cluster.gate._PATIENCE_SECONDS", 60.0)
    gate = DialGate()

    async def dial() -> None:
        async with gate.dial(lambda: True):
            pass

    with gate.hold():
        dialling = asyncio.create_task(dial())
        await asyncio.sleep(0.01)
        assert not dialling.done()

    await asyncio.wait_for(dialling, 5)


async def test_so_many_at_once_and_the_urgent_first() -> None:
    """The number of simultaneous dials is limited, and a session with waiting clients goes before earlier ones
    without."""
    gate, order, done = DialGate(at_once=2, per_second=1000), list[str](), asyncio.Event()
    tasks = [
        asyncio.create_task(dial(gate, urgent, order, name, done))
        for urgent, name in ((False, "a"), (False, "b"), (False, "c"), (True, "d"))
    ]
    await asyncio.sleep(0.1)
    assert len(order) == 2
    done.set()
    await asyncio.gather(*tasks)

    assert order.index("d") < order.index("c")


async def test_refusal_for_the_rate_halves_it_and_success_brings_it_back() -> None:
    """A refusal for the rate halves the dial rate, success restores it, and other errors change nothing."""
    gate = DialGate(per_second=1000)
    for code, rate in (
        ("upstream-failed", 1000),
        ("upstream-rate-limited", 500),
        ("upstream-rate-limited", 250),
    ):
        with pytest.raises(UpstreamError):
            async with gate.dial(lambda: True):
                raise UpstreamError(code, "no")  # type: ignore[arg-type]  # a word of the table
        assert gate.per_second == rate
    for _ in range(20):
        async with gate.dial(lambda: True):
            pass
    assert gate.per_second == 1000


async def test_dials_are_spread_over_time() -> None:
    """Twenty at 100 a second take about a fifth of a second."""
    gate = DialGate(at_once=100, per_second=100)
    began = asyncio.get_running_loop().time()

    async def one() -> None:
        async with gate.dial(lambda: True):
            pass

    await asyncio.gather(*(one() for _ in range(20)))

    assert asyncio.get_running_loop().time() - began > 0.15


async def test_who_gives_up_waiting_leaves_no_trace() -> None:
    """A session that ends while waiting does not delay others."""
    gate, order, done = DialGate(at_once=1, per_second=1000), list[str](), asyncio.Event()
    first = asyncio.create_task(dial(gate, True, order, "a", done))
    await asyncio.sleep(0.02)
    second = asyncio.create_task(dial(gate, True, order, "b", done))
    await asyncio.sleep(0.02)
    second.cancel()
    await asyncio.wait({second})
    done.set()
    await first
    async with gate.dial(lambda: False):
        pass

    assert order == ["a"]


async def test_who_gives_up_as_its_turn_comes_leaves_no_trace() -> None:
    """The timer may fire in the turn of the loop in which the waiter was cancelled."""
    gate = DialGate()
    waiting = asyncio.create_task(dial(gate, False, [], "", asyncio.Event()))
    await asyncio.sleep(0)
    waiting.cancel()
    gate._admit()
    await asyncio.wait({waiting})

    assert gate._dialling == 0


async def test_many_that_wait_take_no_processor_time() -> None:
    """Thousands of sessions wait after the loss of a node, while the node makes others readable."""
    gate = DialGate()
    with gate.hold():
        waiting = [asyncio.create_task(dial(gate, False, [], "", asyncio.Event())) for _ in range(3000)]
        await asyncio.sleep(0.01)
        before = time.process_time()
        await asyncio.sleep(0.6)
        took = time.process_time() - before
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)

    assert took < 0.1
    assert not gate._waiting


def test_the_gate_works_on_the_loop_that_serves() -> None:
    """The timers of uvloop differ from those of asyncio."""
    gate, dialled = DialGate(per_second=1000), list[int]()

    async def one(number: int) -> None:
        async with gate.dial(lambda: False):
            dialled.append(number)

    async def run() -> None:
        await asyncio.wait_for(asyncio.gather(*map(one, range(20))), 10)

    uvloop.run(run())

    assert dialled == list(range(20))

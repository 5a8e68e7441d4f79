"""After many calls nothing is left: no socket, task, thread or call."""

import asyncio
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.emulator.faults import Faults
from tests.emulator.caller import Caller


def sockets() -> int:
    """Count this process's open files."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hang_up", "leave", "vanish", "close_channel", "deaf", "expire"])
async def test_calls_leave_nothing_behind(how: str, emulate: Callable[..., Any]) -> None:
    """Thirty calls that end in each of the possible ways leave no resources in the emulator."""
    emulator = await emulate(faults=Faults(deaf=how == "deaf"), tokens_per_second=50.0)
    gc.collect()
    before = sockets(), threading.active_count()
    for _ in range(3):
        callers = [Caller(emulator.base_url) for _ in range(10)]
        for caller in callers:
            await caller.open(connect=how != "deaf")
            if how != "deaf":
                caller.say("Count to 1000")
        await asyncio.gather(*(end(caller, how) for caller in callers))
        await asyncio.gather(*(caller.close() for caller in callers))
    async with asyncio.timeout(10):
        while emulator.service.calls or emulator.service._endings:
            await asyncio.sleep(0.01)
    gc.collect()

    assert (sockets(), threading.active_count()) == before


async def end(caller: Caller, how: str) -> None:
    """End one call."""
    if how in ("hang_up", "deaf"):
        assert await caller.hang_up() == 200
    elif how == "leave":
        await caller.peer.close()
    else:
        await caller.tell("fault", {"do": how})
        if how == "vanish":
            assert await caller.hang_up() == 200

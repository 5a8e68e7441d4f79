"""The process's own pauses are seen."""

import asyncio
import gc
import time

from gateway.telemetry import Probes


async def test_loop_lag_is_seen() -> None:
    """A call that holds the loop shows as lag of about its length."""
    lags: asyncio.Queue[float] = asyncio.Queue()
    probes = Probes(lags.put_nowait, lambda seconds: None)
    probes.start()
    try:
        await asyncio.wait_for(lags.get(), 10)
        time.sleep(0.35)  # noqa: ASYNC251  # holding the loop is what is measured
        lag = await asyncio.wait_for(lags.get(), 10)
    finally:
        await probes.close()

    assert 0.1 < lag < 2


async def test_collections_are_timed_until_closed() -> None:
    """Each garbage collection is reported, none after the end."""
    pauses: list[float] = []
    probes = Probes(lambda seconds: None, pauses.append)
    probes.start()
    gc.collect()
    counted = len(pauses)
    await probes.close()
    gc.collect()

    assert counted >= 1
    assert all(0 < pause < 5 for pause in pauses)
    assert len(pauses) == counted

"""Pauses of the process are measured."""

import asyncio
import gc
import time

import pytest

from gateway.relay import tasks
from gateway.telemetry import Probes, looplag


async def test_loop_lag_is_seen() -> None:
    """A call that blocks the loop appears as lag of about its duration."""
    lags: asyncio.Queue[float] = asyncio.Queue()
    probes = Probes(lags.put_nowait, lambda seconds: None, lambda error: None)
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
    probes = Probes(lambda seconds: None, pauses.append, lambda error: None)
    gc.freeze()  # the suite's own objects, whose collection takes half a second
    try:
        probes.start()
        gc.collect()
        counted = len(pauses)
        await probes.close()
        gc.collect()
    finally:
        gc.unfreeze()

    assert counted >= 1
    assert all(0 < pause < 5 for pause in pauses)
    assert len(pauses) == counted


async def test_lag_is_measured_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception while the lag is reported is reported itself, and does not end the measurements."""
    monkeypatch.setattr(tasks, "RESTART_SECONDS", 0.0)
    monkeypatch.setattr(looplag, "LAG_SECONDS", 0.001)
    failures: asyncio.Queue[BaseException] = asyncio.Queue()

    def lagged(seconds: float) -> None:
        raise ValueError(seconds)

    probes = Probes(lagged, lambda seconds: None, failures.put_nowait)
    probes.start()
    try:
        told = [await asyncio.wait_for(failures.get(), 10) for _ in range(2)]
    finally:
        await probes.close()

    assert [type(error) for error in told] == [ValueError] * 2

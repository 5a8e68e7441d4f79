"""Garbage is collected only when sessions have ended."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from gateway.telemetry import garbage as collector_module
from gateway.telemetry.garbage import MAX_ENDED, MIN_ENDED, THRESHOLDS, Collector


class Cycle:
    """A reference cycle, which only the garbage collector can free."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def _heap_is_small() -> Iterator[None]:
    """Exclude the objects of the suite from the collections, which otherwise take half a second each."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def counts() -> dict[str, int]:
    """Return the counts that a collector asks for."""
    return {"ended": 0, "live": 0}


@pytest.fixture
def collector(counts: dict[str, int]) -> Collector:
    """Return a collector that asks for those counts."""
    return Collector(lambda: counts["ended"], lambda: counts["live"], lambda error: None)


def test_nothing_is_swept_while_few_sessions_end(collector: Collector, counts: dict[str, int]) -> None:
    """A full collection blocks the loop, so it waits until enough sessions have ended."""
    counts["ended"] = MIN_ENDED - 1

    assert not collector.sweep()


def test_garbage_is_swept_after_enough_ends(collector: Collector, counts: dict[str, int]) -> None:
    """After enough ends, the remains of closed sessions are freed, however old they are."""
    garbage = Cycle()
    seen = weakref.ref(garbage)
    gc.collect()  # Now it belongs to the oldest generation.
    del garbage
    counts["ended"] = MIN_ENDED
    swept = collector.sweep(), collector.sweep()

    assert swept == (False, True)
    assert seen() is None


def test_a_collection_waits_until_no_session_is_opened_or_closed(
    collector: Collector, counts: dict[str, int]
) -> None:
    """A collection blocks the loop while hundreds of clients come or leave, so it waits, but not for ever."""
    swept = []
    for ended, live in (
        (MIN_ENDED, 9),
        (MIN_ENDED + 1, 9),
        (MIN_ENDED + 1, 10),
        (MAX_ENDED - 1, 10),
        (MAX_ENDED, 10),
    ):
        counts.update(ended=ended, live=live)
        swept.append(collector.sweep())

    assert swept == [False, False, False, False, True]


def test_sweeping_begins_anew_each_time(collector: Collector, counts: dict[str, int]) -> None:
    """Sessions that a collection has handled are not counted again."""
    counts["ended"] = MIN_ENDED
    collector.sweep()
    swept = collector.sweep()
    counts["ended"] += 1
    collector.sweep()

    assert (swept, collector.sweep()) == (True, False)


def test_many_live_sessions_are_looked_at_less_often(collector: Collector, counts: dict[str, int]) -> None:
    """The cost of a collection grows with the open sessions, so with many of them it waits for more ends."""
    counts.update(ended=200, live=2000)
    early = collector.sweep() or collector.sweep()
    counts["ended"] = 250
    collector.sweep()

    assert (early, collector.sweep()) == (False, True)


async def test_python_collects_by_itself_again_afterwards(collector: Collector) -> None:
    """After closing, Python's own collector works as before."""
    before = gc.get_threshold()
    collector.start()
    during, frozen = gc.get_threshold(), gc.get_freeze_count()
    await collector.close()
    await collector.close()

    assert during == THRESHOLDS
    assert frozen > 1000
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)


async def test_sweeper_looks_by_itself(
    collector: Collector, counts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once started, the sweeper runs by itself."""
    monkeypatch.setattr(collector_module, "SWEEP_SECONDS", 0.01)
    collector.start()
    try:
        garbage = weakref.ref(Cycle())
        counts["ended"] = MIN_ENDED
        async with asyncio.timeout(10):
            while garbage() is not None:
                await asyncio.sleep(0.01)  # Weak references do not report when their object is freed.
    finally:
        await collector.close()

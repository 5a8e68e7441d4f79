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
def unfrozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Exclude the objects of the suite from the collections, which otherwise take half a second each. Return a record of
    what would have included them."""
    included: list[str] = []
    unfreeze = gc.unfreeze
    monkeypatch.setattr(gc, "unfreeze", lambda: included.append("unfreeze"))
    gc.freeze()
    yield included
    unfreeze()


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
    counts.update(ended=999, live=2000)
    early = collector.sweep() or collector.sweep()
    counts["ended"] = 1000
    collector.sweep()

    assert (early, collector.sweep()) == (False, True)


async def test_python_collects_by_itself_again_afterwards(collector: Collector, unfrozen: list[str]) -> None:
    """After closing, Python's own collector works as before."""
    before = gc.get_threshold()
    collector.start()
    during, frozen = gc.get_threshold(), gc.get_freeze_count()
    await collector.close()
    await collector.close()

    assert during == THRESHOLDS
    assert frozen > 1000
    assert gc.get_threshold() == before
    assert unfrozen == ["unfreeze"]


def test_what_is_set_aside_is_not_collected_by_python_but_by_a_sweep(
    collector: Collector, counts: dict[str, int], unfrozen: list[str]
) -> None:
    """Young objects are excluded from Python's own collections, and included in a sweep."""
    garbage = weakref.ref(Cycle())
    collector.set_aside()
    gc.collect()
    before = garbage() is not None, list(unfrozen)
    counts["ended"] = MIN_ENDED

    assert before == (True, [])
    assert collector.sweep() or collector.sweep()
    assert unfrozen == ["unfreeze"]


def test_many_objects_are_collected_though_no_session_ended(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Growth by other causes is another reason for a collection: at once, if it is twice as large."""
    monkeypatch.setattr(collector_module, "MAX_GROWTH", 2000)
    swept, kept = [], list[list[int]]()
    for count in (0, 2500, 0, 100, 4500):
        kept += [[] for _ in range(count)]
        collector.set_aside()
        swept.append(collector.sweep())

    assert swept == [False, True, False, False, True]


async def test_sweeper_looks_by_itself(
    collector: Collector, counts: dict[str, int], unfrozen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once started, the sweeper runs by itself."""
    monkeypatch.setattr(collector_module, "SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(collector_module, "ASIDE_SECONDS", 0.005)
    collector.start()
    try:
        counts["ended"] = MIN_ENDED
        async with asyncio.timeout(10):
            while not unfrozen:
                await asyncio.sleep(0.01)
    finally:
        await collector.close()

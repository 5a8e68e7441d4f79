"""gateway/downstream/reading/ticker.py: one timer for all open reads."""

import asyncio

import pytest

from gateway.downstream.reading import ticker as module
from gateway.downstream.reading.ticker import Ticker


class Read:
    """An open read that counts its ticks, and raises in them if `broken`."""

    peer_request: str | None = None

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.ticks: asyncio.Queue[float] = asyncio.Queue()

    def tick(self, now: float) -> None:
        self.ticks.put_nowait(now)
        if self.broken:
            raise ValueError("a bug")

    def rotate(self) -> None: ...
    def shut(self) -> None: ...


async def test_a_read_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """One exception is reported at every tick, and the reads behind it are ticked as well."""
    monkeypatch.setattr(module, "TICK_SECONDS", 0.001)
    failures: list[BaseException] = []
    ticker = Ticker(lambda: 7.0, failures.append)
    reads = [Read(broken=True), Read(), Read(broken=True)]
    for read in reads:
        ticker.add(read)
    ticker.start()
    ticks = [[await asyncio.wait_for(read.ticks.get(), 10) for _ in range(2)] for read in reads]
    await ticker.close()

    assert ticks == [[7.0, 7.0]] * 3
    assert 2 <= len(failures) <= 2 + reads[0].ticks.qsize()

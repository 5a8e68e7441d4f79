"""`gateway bench` measures processes that it starts, and a gateway that already runs."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.load import delays
from gateway.cli.procfs import cpu_seconds, resident_bytes
from tests.cli.conftest import Start


def figures(output: str) -> dict[str, Any]:
    """Return the JSON at the end of the output; the progress report is above it."""
    return dict(json.loads(output[output.index("{") :]))


@pytest.mark.slow
async def test_bench_of_its_own_gives_every_figure(start: Start, tmp_path: Path) -> None:
    """A small but complete run: the gateway and bare aiortc receive the same events."""
    drawing = tmp_path / "bench.svg"
    bench = await start(
        *("bench", "--sessions", "4", "--turns", "1", "--words", "20", "--json", "--svg", str(drawing))
    )
    async with asyncio.timeout(90):
        await bench.process.wait()
    await bench.says(r"\n\}")
    found = figures(bench.output)

    assert bench.process.returncode == 0
    assert found["sessions"] == 4
    for name in (
        "setup_ms_p50",
        "setup_cpu_ms",
        "session_kib",
        "first_delta_ms_p99",
        "events_per_second",
        "delta_delay_ms_p99",
        "relay_ms_p50",
        "gateway_us_per_event",
        "bare_stock_us_per_event",
        "bare_tuned_us_per_event",
    ):
        assert found[name] > 0, name
    assert found["delta_delay_ms_p50"] <= found["delta_delay_ms_p99"] <= found["delta_delay_ms_p999"]
    assert drawing.read_text().count("<rect") == 6
    assert found["own_us_per_event"] == found["gateway_us_per_event"] - found["bare_tuned_us_per_event"]
    assert abs(found["bare_stock_events"] - found["events"]) <= 4


@pytest.mark.slow
async def test_bench_of_a_running_gateway_gives_what_a_client_sees(start: Start, gateway: str) -> None:
    """Without access to the process, no CPU or memory figure is reported."""
    bench = await start(
        "bench", "--url", gateway, "--sessions", "2", "--turns", "1", "--words", "5", "--json"
    )
    status = await bench.ended()
    await bench.says(r"\n\}")
    found = figures(bench.output)

    assert status == 0
    assert found["first_delta_ms_p50"] > 0
    assert "gateway_us_per_event" not in found
    assert "bare_stock_us_per_event" not in found


async def test_bench_without_a_gateway_fails(start: Start) -> None:
    """The error is one line, and the exit status is 1."""
    bench = await start("bench", "--url", "http://127.0.0.1:1")

    assert await bench.ended() == 1
    assert "bench failed" in bench.output


def test_delay_is_counted_from_the_delta_that_came_earliest() -> None:
    """Due times are counted from the earliest delta: at ten deltas a second, one that arrived 0.05 s after its due
    time is 0.05 s late."""
    assert delays([5.0, 5.15, 5.2, 5.3], rate=10) == pytest.approx([0, 0.05, 0, 0])
    assert delays([5.02, 5.1, 5.2], rate=10) == pytest.approx([0.02, 0, 0])
    assert delays([], rate=10) == []


def test_cpu_time_grows_with_work() -> None:
    """CPU that the process spends is measured."""
    before = cpu_seconds(os.getpid())
    sum(range(2_000_000))

    assert 0.001 < cpu_seconds(os.getpid()) - before < 5


def test_memory_grows_with_use() -> None:
    """32 MiB of written memory are measured."""
    before = resident_bytes(os.getpid())
    kept = bytearray(os.urandom(32 * 1024 * 1024))

    assert resident_bytes(os.getpid()) - before > 16 * 1024 * 1024
    assert kept

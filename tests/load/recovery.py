"""How long it takes to notice a loss and to recover from it, by cause: `python -m tests.load.recovery`.

Not collected by pytest, because it waits for consent to expire. Prints a table in Markdown: from the fault to
`gateway.recovering` (noticed) and from there to `gateway.recovered` (recovered), as a client reads them; a planned
replacement has no first part. The exit status is 1 if a silent far end that owed an answer was not noticed within 8
s.
"""

# ruff: noqa: T201  # a command prints its result

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.caller import Caller, Read, say
from tests.farend import FarEnd
from tests.programs import Served

NOTICE_BOUND_SECONDS = 8.0
LONGEST_SECONDS = 60.0


@dataclass(slots=True)
class Row:
    """One kind of loss and its figures."""

    title: str
    noticed: list[float] = field(default_factory=list)
    recovered: list[float] = field(default_factory=list)
    causes: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        cells = [self.title, ", ".join(sorted(self.causes))]
        for times in (self.noticed, self.recovered):
            cells += [f"{statistics.median(times):.2f}", f"{max(times):.2f}"] if times else ["-", "-"]
        return f"| {' | '.join(cells)} |"


@dataclass(slots=True)
class Bench:
    """A gateway, a far end, and a way to start another one at the same address."""

    folder: Path
    stack: ExitStack
    far_end: FarEnd
    caller: Caller
    operator: Caller
    started: int = 1

    async def measure(self, row: Row, fault: str, *, answering: bool) -> None:
        """Apply a fault to one session once."""
        session_id = (await self.caller.open())["id"]
        receipt = await self.caller.send(session_id, *say("My name is Ada."))
        reads = await self.caller.until(session_id, "response.done", after=receipt["head"])
        head = str(reads[-1].id)
        _, session = await self.caller.ask("GET", f"/v1/sessions/{session_id}")
        if answering:
            await self.far_end.fault(session["call_id"], tokens_per_second=20)
            await self.caller.send(session_id, *say("Count to 100."))
            await self.caller.until(session_id, "response.output_text.delta", count=3, after=head)
        blocks = self.caller.stream(session_id, after=head)
        async with asyncio.timeout(LONGEST_SECONDS), aclosing(blocks):
            waiting = asyncio.create_task(_watch(blocks))
            began = time.monotonic()
            await self._strike(fault, session_id, session["call_id"])
            noticed, recovered, cause = await waiting
        row.causes.add(cause)
        if noticed is not None:
            row.noticed.append(noticed - began)
        row.recovered.append(recovered - (noticed or began))
        await self.caller.ask("DELETE", f"/v1/sessions/{session_id}")

    async def _strike(self, fault: str, session_id: str, call_id: str) -> None:
        match fault:
            case "kill":
                port = self.far_end.base_url.rsplit(":", 1)[1].split("/")[0]
                self.far_end.program.kill()
                self.far_end = self._another("--port", port)
            case "restart":
                await self.operator.ask("POST", f"/sessions/{session_id}/restart")
            case _:
                await self.far_end.fault(call_id, do=fault)

    def _another(self, *flags: str) -> FarEnd:
        self.started += 1
        far_end = FarEnd(self.folder / f"far-end-{self.started}", "--tokens-per-second", "0", *flags)
        return self.stack.enter_context(far_end)


async def _watch(blocks: AsyncIterator[Read]) -> tuple[float | None, float, str]:
    noticed: float | None = None
    async for block in blocks:
        if block.type == "gateway.recovering":
            noticed = time.monotonic()
        elif block.type == "gateway.recovered":
            return noticed, time.monotonic(), str(block.value["cause"])
    raise AssertionError("the stream ended")


TRIALS: list[tuple[str, str, bool]] = [
    ("channel closed by the far end, idle", "close_channel", False),
    ("connection closed by the far end, idle", "hang_up", False),
    ("connection closed, while answering", "hang_up", True),
    ("far end silent (every packet dropped), while answering", "vanish", True),
    ("far end process killed, while answering", "kill", True),
    ("far end silent, idle", "vanish", False),
    ("call ended by the service's clock", "expire", False),
    ("hand-over asked for by the operator", "restart", False),
]


async def run(folder: Path, stack: ExitStack, times: int, say_row: Callable[[Row], None]) -> list[Row]:
    """Measure every kind this many times."""
    far_end = stack.enter_context(FarEnd(folder / "far-end", "--tokens-per-second", "0"))
    gateway = stack.enter_context(Served(folder / "gateway", far_end.base_url))
    rows = []
    async with Caller(gateway.url) as caller, Caller(gateway.admin_url) as operator:
        bench = Bench(folder, stack, far_end, caller, operator)
        for title, fault, answering in TRIALS:
            row = Row(title)
            for _ in range(times):
                await bench.measure(row, fault, answering=answering)
            say_row(row)
            rows.append(row)
    return rows


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.recovery", description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    print("| loss | cause told | noticed p50, s | max | recovered p50, s | max |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        rows = asyncio.run(run(Path(folder), stack, given.times, lambda row: print(row, flush=True)))
    owed = [row for row, (_, fault, answering) in zip(rows, TRIALS, strict=True) if answering]
    return 0 if all(max(row.noticed) <= NOTICE_BOUND_SECONDS for row in owed) else 1


if __name__ == "__main__":
    sys.exit(main())

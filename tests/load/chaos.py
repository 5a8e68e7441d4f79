"""Everything fails at once while sessions talk: `python -m tests.load.chaos --minutes 30 --sessions 50`.

Not collected by pytest: it takes as long as it is told to. The gateway is a process of its own with few descriptors, whose
log goes into a pipe. Meanwhile the far end, which crosses stream sequence numbers as two writers do, is killed and started
again, or stopped for a while; the path to it drops and reorders datagrams and pauses; the log's reader stops reading; idle
connections take all descriptors that are left. Each pause is shorter than the time for a recovery; several in
a row may not be.

Each session is held against a model of its client, which knows every event ID it saw and every event that was accepted: an
accepted event is confirmed once, or named once as unknown, refused or wrong. Exit status 1 if one is not, if a session ends by
itself or stands still, if memory grows, if the gateway ends or logs a traceback, or if its loop is later than asked for.
"""

# ruff: noqa: T201  # a command speaks to the person who called it

import argparse
import asyncio
import fcntl
import os
import random
import re
import resource
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path as File

from tests.e2e.house import Caller
from tests.e2e.programs import START_SECONDS, Program
from tests.load.chaos_client import Count, talk
from tests.load.churn import Process
from tests.upstream.badpath import Path, bad_path

IDLE_CONNECTIONS = 2000
GROWTH = 1.25
MOST_DEFECT_LINES = 200


class Log:
    """The reader of the gateway's log, which can stop reading. Keeps the last lines, and what looks like a defect."""

    def __init__(self) -> None:
        self._end, write = os.pipe()
        # One page: it is full within a second of the reader's stop.
        fcntl.fcntl(self._end, fcntl.F_SETPIPE_SZ, 4096)
        self.sink = File(f"/proc/self/fd/{write}")
        self.write = write
        self.reading = threading.Event()
        self.reading.set()
        self.addresses: list[str] = []
        self.defects: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with os.fdopen(self._end, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self.addresses += re.findall(r"listening on (http://[\w.:]+)", line)
                defect = "Traceback" in line or "never retrieved" in line
                following = (self.defects and line.startswith((" ", "Traceback"))) or re.match(
                    r"[\w.]+Error", line
                )
                if (defect or following) and len(self.defects) < MOST_DEFECT_LINES:
                    self.defects.append(line.strip())
                self.reading.wait()

    async def listening(self) -> tuple[str, str]:
        """Wait for the two listeners; return the clients' URL and the operator's."""
        async with asyncio.timeout(START_SECONDS):
            while len(self.addresses) < 2:
                await asyncio.sleep(0.05)
        return self.addresses[0], self.addresses[1]


@dataclass(slots=True)
class Bench:
    """The processes and the path between them, and what can be done to them."""

    folder: File
    path: Path
    log: Log
    far_end: Program
    done: Counter[str] = field(default_factory=Counter)
    started: int = 1
    crossed: int = 0

    def note_crossed(self) -> None:
        """Add up what the far end that runs now said of crossed pairs."""
        self.crossed += int((re.findall(r"crossed (\d+)", self.far_end.output) or ["0"])[-1])

    def close(self) -> None:
        """End the far end that runs now."""
        self.far_end.stop()

    async def kill(self) -> None:
        """End the far end by SIGKILL; another one follows at its address."""
        port = self.far_end.said(r"emulator listening on http://[\w.]+:(\d+)")
        self.far_end.kill()
        self.note_crossed()
        await asyncio.sleep(random.uniform(0, 5))
        self.started += 1
        self.far_end = far_end(self.folder, self.started, port)
        await asyncio.to_thread(self.far_end.said, r"emulator listening on (\S+)\n")

    async def stop(self) -> None:
        """Stop the far end by SIGSTOP, mostly for less than consent's 15 s."""
        pid = self.far_end.process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(random.choice([2, 5, 20]))
        finally:
            os.kill(pid, signal.SIGCONT)

    async def outage(self) -> None:
        """Let nothing pass."""
        self.path.down = True
        try:
            await asyncio.sleep(random.choice([3, 8, 20]))
        finally:
            self.path.down = False

    async def stop_log(self) -> None:
        """Stop reading the gateway's log."""
        self.log.reading.clear()
        try:
            await asyncio.sleep(15)
        finally:
            self.log.reading.set()

    async def take_descriptors(self, url: str) -> None:
        """Open connections that say nothing until no more are taken, and hold them."""
        host, port = url.removeprefix("http://").split(":")
        writers: list[asyncio.StreamWriter] = []
        try:
            with suppress(OSError, TimeoutError):
                while len(writers) < IDLE_CONNECTIONS:
                    async with asyncio.timeout(1):
                        writers.append((await asyncio.open_connection(host, int(port)))[1])
            await asyncio.sleep(5)
        finally:
            for writer in writers:
                writer.close()

    async def torment(self, url: str, until: float) -> None:
        """Do all of it, each in its own rhythm, until then."""
        deeds = {
            "far end killed": (self.kill, 25.0),
            "path down": (self.outage, 30.0),
            "log reader stopped": (self.stop_log, 10.0),
            "idle connections": (lambda: self.take_descriptors(url), 15.0),
        }

        async def repeat(name: str) -> None:
            deed, pause = deeds[name]
            while True:
                await asyncio.sleep(random.uniform(0.5, 1.5) * pause)
                if time.monotonic() > until:
                    return
                self.done[name] += 1
                await deed()
                # One after the other: what is stopped cannot be killed and started.
                if name == "far end killed" and random.random() < 0.5:
                    self.done["far end stopped"] += 1
                    await self.stop()

        await asyncio.gather(*(repeat(name) for name in deeds))


def far_end(folder: File, started: int, port: str) -> Program:
    """Start a far end."""
    flags = ("--port", port, "--tokens-per-second", "100", "--fault", "burst=4")
    return Program(folder / f"far-end-{started}", "tests.load.two_writers", *flags)


@asynccontextmanager
async def running(folder: File, descriptors: int) -> AsyncIterator[tuple[Bench, Program, str, str]]:
    """Run the far end, the path and the gateway; yield them with the gateway's two URLs."""
    bench = Bench(folder, Path(), Log(), far_end(folder, 1, "0"))
    async with AsyncExitStack() as stack:
        stack.callback(bench.close)
        base_url = bench.far_end.said(r"emulator listening on (\S+)\n")
        url = await stack.enter_async_context(bad_path(base_url, bench.path))
        flags = ("serve", "--port", "0", "--admin-port", "0", "--upstream-url", url)
        gateway = Program(
            bench.log.sink,
            *(f"--nofile={descriptors}:{descriptors}", sys.executable, "-m", "gateway", *flags),
            command="prlimit",
            environ={"GATEWAY_RELAY__LOG_RETENTION_SECONDS": "5", "GATEWAY_RELAY__MAX_LOOP_LAG_SECONDS": "0"},
        )
        stack.callback(gateway.stop)
        stack.callback(bench.log.reading.set)
        os.close(bench.log.write)
        yield bench, gateway, *await bench.log.listening()


async def metrics(admin: str) -> str:
    """Return the gateway's metrics."""
    async with Caller(admin) as operator:
        _, text = await operator.ask("GET", "/metrics")
    return text.decode() if isinstance(text, bytes) else str(text)


def late(text: str) -> float:
    """Return the bucket of the loop's lag below which 99 of 100 looks are, in ms."""
    name = r'event_loop_lag_seconds_bucket\{le="([\d.e+-]+|\+Inf)"\} ([\d.e+]+)'
    buckets = [(float(bound), float(many)) for bound, many in re.findall(name, text)]
    return next((bound for bound, many in buckets if many >= 0.99 * buckets[-1][1]), 0.0) * 1000


async def weigh(pid: int, weights: list[float]) -> None:
    """Note the process's memory in MiB, over and over."""
    while True:
        await asyncio.sleep(2)
        weights.append(Process.of(pid).memory_kib / 1024)


async def chaos(minutes: float, sessions: int, descriptors: int, lag_ms: float) -> int:
    """Run it and print what was counted."""
    count, weights = Count(), [0.0]
    with tempfile.TemporaryDirectory() as folder:
        async with running(File(folder), descriptors) as (bench, gateway, url, admin), Caller(url) as caller:
            pid = gateway.process.pid
            weights[0] = Process.of(pid).memory_kib / 1024
            bench.path.loss, bench.path.delay, bench.path.jitter = 0.03, 0.005, 0.02
            until = time.monotonic() + minutes * 60
            weighing = asyncio.create_task(weigh(pid, weights))
            tormenting = asyncio.create_task(bench.torment(url, until))
            await asyncio.gather(*(talk(caller, at, count, until) for at in range(sessions)))
            await tormenting
            weighing.cancel()
            await asyncio.wait({weighing})
            said = await metrics(admin)
            alive = gateway.process.poll() is None
            bench.note_crossed()
    causes = re.findall(r'_recoveries_total\{cause="(\w+)",outcome="(\w+)"\} ([\d.]+)', said)
    dropped = re.findall(r"_log_lines_dropped_total ([\d.]+)", said)
    half, quarter = max(weights[: len(weights) // 2 + 1]), max(weights[-(len(weights) // 4) - 1 :])
    defects = bench.log.defects
    rows = {
        "minutes, sessions at once, sessions opened": f"{minutes:g}, {sessions}, {count.opened}",
        "done to it": ", ".join(f"{name} {many}" for name, many in sorted(bench.done.items())),
        "datagrams passed, dropped; pairs crossed": f"{bench.path.passed}, {bench.path.dropped}; {bench.crossed}",
        "log lines dropped; requests repeated": f"{', '.join(dropped)}; {count.retried}",
        "events sent and accepted": count.accepted,
        "events confirmed; named as unknown, refused or wrong": f"{count.delivered}; {count.named}",
        "events read": count.read,
        "lost, doubled or broken without being told": len(count.faults),
        "sessions that ended by themselves, and told it": len(count.ended),
        "sessions standing still": len(count.still),
        "memory at start, peak, end, MiB": f"{weights[0]:.0f}, {max(weights):.0f}, {weights[-1]:.0f}",
        "loop lag p99, ms": f"{late(said):g}",
        "recoveries": ", ".join(f"{c} {o} {float(n):g}" for c, o, n in causes if float(n)),
        "tracebacks logged": sum("Traceback" in line for line in defects),
    }
    print("| | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    for line in [*count.faults, *count.ended, *count.still, *defects]:
        print(f"  {line}")
    bad = bool(count.faults or count.ended or count.still or defects) or not alive
    return 1 if bad or quarter > GROWTH * half or late(said) > lag_ms else 0


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--descriptors", type=int, help="the gateway's limit (200 and 6 for each session)")
    parser.add_argument("--max-lag-ms", type=float, default=100)
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The path has two sockets for each call that was ever made.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    descriptors = given.descriptors or 200 + 6 * given.sessions
    return asyncio.run(chaos(given.minutes, given.sessions, descriptors, given.max_lag_ms))


if __name__ == "__main__":
    sys.exit(main())

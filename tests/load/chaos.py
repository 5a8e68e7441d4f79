"""Everything fails at once while sessions converse: `python -m tests.load.chaos --minutes 30 --sessions 50`.

Not collected by pytest: it takes as long as requested. The gateway is its own process with few descriptors, whose
log goes into a pipe. Meanwhile the far end, which crosses stream sequence numbers as two writers do, is killed and
restarted, or stopped for a while; the path to it drops and reorders datagrams and pauses; the log's reader stops
reading or closes the pipe; idle connections use all that the gateway accepts; for seconds the gateway has no free
descriptor at all. `chaos_faults` describes how they overlap.

Each session is compared with a model of its client, which knows every event ID it saw and every event that was
accepted: an accepted event is confirmed once, or named once as unknown, refused or wrong. The exit status is 1 if
one is not, if a session ends by itself or stands still, if memory grows, if the gateway ends or logs a traceback, if
its loop is later than the limit, or if a fault had no effect: log lines must have been dropped and reported, and
connections refused for lack of descriptors.
"""

# ruff: noqa: T201  # a command prints its result

import argparse
import asyncio
import re
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path as File
from typing import TextIO

from tests.e2e.caller import Caller
from tests.load.chaos_client import Count, talk
from tests.load.chaos_faults import Faults, Log, far_end
from tests.load.churn import Process
from tests.programs import Program
from tests.upstream.badpath import Path, bad_path

GROWTH = 1.25


@asynccontextmanager
async def running(
    folder: File, descriptors: int, copy: TextIO | None
) -> AsyncIterator[tuple[Faults, Program, str, str]]:
    """Run the far end, the path and the gateway; yield them with the gateway's two URLs."""
    faults = Faults(folder, Path(), Log(folder, copy), far_end(folder, 1, "0"))
    async with AsyncExitStack() as stack:
        stack.callback(faults.close)
        base_url = faults.far_end.said(r"emulator listening on (\S+)\n")
        url = await stack.enter_async_context(bad_path(base_url, faults.path))
        flags = ("serve", "--port", "0", "--admin-port", "0", "--upstream-url", url)
        gateway = Program(
            faults.log.sink,
            *(f"--nofile={descriptors}:{descriptors}", sys.executable, "-m", "gateway", *flags),
            command="prlimit",
            environ={"GATEWAY_RELAY__LOG_RETENTION_SECONDS": "5", "GATEWAY_RELAY__MAX_LOOP_LAG_SECONDS": "0"},
        )
        stack.callback(gateway.stop)
        yield faults, gateway, *await faults.log.listening()


async def metrics(admin: str) -> str:
    """Return the gateway's metrics."""
    async with Caller(admin) as operator:
        _, text = await operator.ask("GET", "/metrics")
    return text.decode() if isinstance(text, bytes) else str(text)


def late(text: str) -> float:
    """Return the bucket of the loop's lag that contains the 99th percentile, in ms."""
    name = r'event_loop_lag_seconds_bucket\{le="([\d.e+-]+|\+Inf)"\} ([\d.e+]+)'
    buckets = [(float(bound), float(many)) for bound, many in re.findall(name, text)]
    return next((bound for bound, many in buckets if many >= 0.99 * buckets[-1][1]), 0.0) * 1000


async def weigh(pid: int, weights: list[float]) -> None:
    """Record the process's memory in MiB repeatedly."""
    while True:
        await asyncio.sleep(2)
        weights.append(Process.of(pid).memory_kib / 1024)


async def chaos(minutes: float, sessions: int, descriptors: int, lag_ms: float, copy: TextIO | None) -> int:
    """Run it and print the counts."""
    count, weights = Count(), [0.0]
    with tempfile.TemporaryDirectory() as folder:
        bench = running(File(folder), descriptors, copy)
        async with bench as (faults, gateway, url, admin), Caller(url) as caller:
            pid = gateway.process.pid
            weights[0] = Process.of(pid).memory_kib / 1024
            faults.path.loss, faults.path.delay, faults.path.jitter = 0.03, 0.005, 0.02
            until = time.monotonic() + minutes * 60
            weighing = asyncio.create_task(weigh(pid, weights))
            tormenting = asyncio.create_task(faults.torment(pid, url, admin, until))
            await asyncio.gather(*(talk(caller, at, count, until) for at in range(sessions)))
            await tormenting
            weighing.cancel()
            await asyncio.wait({weighing})
            said = await metrics(admin)
            alive = gateway.process.poll() is None
            faults.note_crossed()
    causes = re.findall(r'_recoveries_total\{cause="(\w+)",outcome="(\w+)"\} ([\d.]+)', said)
    dropped = sum(float(number) for number in re.findall(r"_log_lines_dropped_total ([\d.e+]+)", said))
    half, quarter = max(weights[: len(weights) // 2 + 1]), max(weights[-(len(weights) // 4) - 1 :])
    log = faults.log
    rows = {
        "minutes, sessions at once, sessions opened": f"{minutes:g}, {sessions}, {count.opened}",
        "done to it": ", ".join(f"{name} {many}" for name, many in sorted(faults.done.items())),
        "datagrams passed, dropped; pairs crossed": f"{faults.path.passed}, {faults.path.dropped}; {faults.crossed}",
        "log lines dropped; told in the log": f"{dropped:g}; {log.told_dropped}",
        "refused with 503 without descriptors; told in the log": f"{faults.refused}; {log.refused} times",
        "both probes without descriptors, slowest, s": f"{faults.slowest_live:.2f}",
        "requests repeated": count.retried,
        "events sent and accepted": count.accepted,
        "events confirmed; named as unknown, refused or wrong": f"{count.delivered}; {count.named}",
        "events read": count.read,
        "lost, doubled or broken without being told": len(count.faults),
        "sessions that ended by themselves, and told it": len(count.ended),
        "sessions standing still": len(count.still),
        "memory at start; peak of the first half, of the last quarter; end, MiB": (
            f"{weights[0]:.0f}; {half:.0f}, {quarter:.0f}; {weights[-1]:.0f}"
        ),
        "loop lag p99, ms": f"{late(said):g}",
        "recoveries": ", ".join(f"{c} {o} {float(n):g}" for c, o, n in causes if float(n)),
        "lines of defects in the log": len(log.defects),
    }
    print("| | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    for line in [*count.faults, *count.ended, *count.still, *log.defects]:
        print(f"  {line}")
    if count.ended:
        print("\n".join(faults.timeline))
    bad = bool(count.faults or count.ended or count.still or log.defects) or not alive
    spared = not (dropped and log.told_dropped and faults.refused and log.refused)
    if spared:
        print("A fault had no effect.")
    return 1 if bad or spared or quarter > GROWTH * half or late(said) > lag_ms else 0


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--descriptors", type=int, help="the gateway's limit (200 and 6 for each session)")
    parser.add_argument("--max-lag-ms", type=float, default=100)
    parser.add_argument("--log", type=argparse.FileType("w"), help="a file for a copy of the gateway's log")
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The path has two sockets for each call that was ever made.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    descriptors = given.descriptors or 200 + 6 * given.sessions
    return asyncio.run(chaos(given.minutes, given.sessions, descriptors, given.max_lag_ms, given.log))


if __name__ == "__main__":
    sys.exit(main())

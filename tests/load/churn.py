"""Opens and closes thousands of sessions and observes the resources of the gateway's process: `python -m
tests.load.churn`.

Not collected by pytest, because 10,000 take minutes. Gateway and emulator run in their own processes, so the figures
from /proc are the gateway's alone. The exit status is 1 if descriptors, threads or memory grew.
"""

# ruff: noqa: T201  # a command prints its result

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.farend import FarEnd
from tests.programs import Served

# Memory is first measured after this many sessions. It grows by about 11 MiB over the first thousands, whether 10,000 follow
# or 30,000, until the heap has reached its size.
WARM_UP = 4000
# The variation that is allowed; a leak of one peer connection in a hundred would add 16 MiB over 10,000.
GROWTH_KIB = 8 * 1024
# Connections to the far end that are kept for the next call; their number varies.
SPARE_DESCRIPTORS = 10
# The log of a closed session is kept for a while by contract; here so briefly that it does not look like a leak.
RETENTION_SECONDS = 1
# Longer than connections to the far end are kept for the next call.
SETTLE_SECONDS = 20
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Process:
    """The resources of a process."""

    descriptors: int
    threads: int
    memory_kib: int
    cpu_seconds: float

    @classmethod
    def of(cls, pid: int) -> "Process":
        proc = Path("/proc") / str(pid)
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        stat = (proc / "stat").read_text().rsplit(") ", 1)[1].split()
        return cls(
            descriptors=len(os.listdir(proc / "fd")),
            threads=int(status["Threads"]),
            memory_kib=int(status["VmRSS"].split()[0]),
            cpu_seconds=(int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"),
        )


async def churn(url: str, count: int, at_once: int) -> None:
    """Open and delete this many sessions, a number of them at once."""
    left = iter(range(count))
    done = 0

    async def worker(http: aiohttp.ClientSession) -> None:
        nonlocal done
        for _ in left:
            async with http.post(f"{url}/v1/sessions") as answer:
                body = await answer.text()
                assert answer.status == 201, body
            async with http.delete(f"{url}/v1/sessions/{json.loads(body)['id']}") as answer:
                assert answer.status == 204, await answer.text()
            done += 1
            if sys.stderr.isatty():
                print(f"\r{done} of {count}", end="", file=sys.stderr, flush=True)

    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        await asyncio.gather(*(worker(http) for _ in range(at_once)))
    if sys.stderr.isatty():
        print(file=sys.stderr)


def main() -> int:
    """Run it and print what grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.churn", description=__doc__)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environ = {
            "GATEWAY_RELAY__LOG_RETENTION_SECONDS": str(RETENTION_SECONDS),
            "GATEWAY_LOG__ACCESS": "false",
        }
        with (
            FarEnd(Path(folder) / "far-end") as far_end,
            Served(Path(folder) / "gateway", far_end.base_url, environ=environ) as gateway,
        ):
            return compare(gateway, given.sessions, given.at_once)


def compare(gateway: Served, sessions: int, at_once: int) -> int:
    """Churn, and compare the gateway's resources afterwards with those when it was warm."""
    url = gateway.url
    asyncio.run(churn(url, WARM_UP, at_once))
    time.sleep(SETTLE_SECONDS)
    before = Process.of(gateway.process.pid)
    took = 0.0
    for _ in range(ROUNDS):
        began = time.monotonic()
        asyncio.run(churn(url, sessions // ROUNDS, at_once))
        took += time.monotonic() - began
        now = Process.of(gateway.process.pid)
        print(
            f"after {sessions // ROUNDS} more: {now.memory_kib} KiB, {now.descriptors} descriptors",
            flush=True,
        )
    time.sleep(SETTLE_SECONDS)
    after = Process.of(gateway.process.pid)
    grown = after.memory_kib - before.memory_kib
    print(f"{sessions} sessions opened and closed in {took:.1f} s ({sessions / took:.0f} a second)")
    print(f"CPU of the gateway for each: {(after.cpu_seconds - before.cpu_seconds) / sessions * 1000:.2f} ms")
    print(f"descriptors {before.descriptors} -> {after.descriptors}")
    print(f"threads {before.threads} -> {after.threads}")
    print(f"memory {before.memory_kib} -> {after.memory_kib} KiB ({grown:+d})")
    same = after.descriptors <= before.descriptors + SPARE_DESCRIPTORS and after.threads <= before.threads
    return 0 if same and grown <= GROWTH_KIB else 1


if __name__ == "__main__":
    sys.exit(main())

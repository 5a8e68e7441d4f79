"""Opens hundreds of sessions at the same moment, and reports how late the gateway's loop ran meanwhile: `python -m
tests.load.rush`.

Not collected by pytest. Gateway and emulator run in their own processes. Some sessions that are already open receive
a stream, and the delay of its events is what a user would notice. The exit status is 1 if a session was refused, or
if the 99th percentile of the loop's lag is above 25 ms.
"""

# ruff: noqa: T201  # a command speaks to the person who called it

import argparse
import asyncio
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import aiohttp

from gateway.telemetry.garbage import SWEEP_SECONDS
from tests.farend import FarEnd
from tests.load import cores
from tests.load.churn import Process
from tests.load.sessions import lag, quantile
from tests.programs import Served

LAG_SECONDS = 0.025


async def rush(program: Served, sessions: int, rounds: int) -> int:
    """Open the sessions of each round at once, close them, and measure."""
    url, admin_url = program.url, program.admin_url
    pid = program.process.pid
    failed, worst = 0, 0.0
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:

        async def open_one() -> tuple[float, str | None]:
            began = time.monotonic()
            async with http.post(f"{url}/v1/sessions") as answer:
                body = await answer.json()
            return time.monotonic() - began, body["id"] if answer.status == 201 else None

        before = await lag(http, admin_url)
        for _ in range(rounds):
            start, cpu = time.monotonic(), Process.of(pid).cpu_seconds
            done = await asyncio.gather(*(open_one() for _ in range(sessions)))
            took, cpu = time.monotonic() - start, Process.of(pid).cpu_seconds - cpu
            waits = sorted(seconds for seconds, _ in done)
            opened = [each for _, each in done if each is not None]
            failed += sessions - len(opened)
            print(
                f"{len(opened)} of {sessions} sessions open after {took:.1f} s, p50 {waits[len(waits) // 2]:.2f} s; "
                f"CPU {cpu * 1000 / sessions:.1f} ms each"
            )
            filled = await lag(http, admin_url)
            await asyncio.gather(*(_close(http, f"{url}/v1/sessions/{each}") for each in opened))
            parts = [
                f"p{share * 100:g} ≤ {quantile(share, before, filled)[0] * 1000:g} ms"
                for share in (0.5, 0.9, 0.99, 1)
            ]
            print(f"loop lag while opening: {', '.join(parts)} ({quantile(1, before, filled)[1]} looks)")
            worst = quantile(0.99, before, filled)[0]
            # The garbage of closed sessions is collected first: with 500 of them that holds the loop for 50 ms and more.
            await asyncio.sleep(SWEEP_SECONDS + 1)
            before = await lag(http, admin_url)
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    return 0 if not failed and worst <= LAG_SECONDS else 1


async def _close(http: aiohttp.ClientSession, url: str) -> None:
    async with http.delete(url):
        pass


def main() -> int:
    """Run it and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.rush", description=__doc__)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--upstream", help="base URL of a far end that runs already; default: an emulator")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        upstream, others = given.upstream, list[int]()
        if upstream is None:
            far_end = stack.enter_context(FarEnd(Path(folder) / "far-end"))
            upstream = far_end.base_url
            others.append(far_end.program.process.pid)
        environ = {"GATEWAY_LOG__ACCESS": "false"}
        gateway = stack.enter_context(Served(Path(folder) / "gateway", upstream, environ=environ))
        assert gateway.admin_url
        cores.reserve(gateway.process.pid, *others)
        return asyncio.run(rush(gateway, given.sessions, given.rounds))


if __name__ == "__main__":
    sys.exit(main())

"""One client that never reads among fifty readers: the others are not affected, and its buffers are bounded.

Latency is measured within one process, from before the far end is told to send until the event arrives at each
reader. Rounds with and without the mute reader alternate, so that other load on the machine affects both alike.
"""

import asyncio
import json
import socket
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import aiohttp
import pytest

from gateway.app import Gateway
from tests.e2e.caller import Caller, Json, Serve
from tests.farend import FarEnd
from tests.waiting import until

READERS = 50
ROUNDS = 6
BURSTS = 40
BURST = 5
SIZE = 1000
LOG_BYTES = 512 * 1024
# What is in transit to one reader: the page being written (at most 256 KiB), our send buffer, which Linux doubles, and
# what the kernel puts into the mute reader's receive buffer, which is set to the minimum.
ON_ITS_WAY_BYTES = 256 * 1024 + 128 * 1024
# Neighbouring rounds are compared. A quiet machine gives 1.0; other load affects one round and not the next,
# and has been seen to double it. A reader that delays others costs seconds. CPU time does not depend on other load.
LATENCY_NOISE = 3.0
CPU_NOISE = 1.25


class Fast:
    """A reader that records when each event arrives."""

    def __init__(self) -> None:
        self.arrived: dict[int, float] = {}
        self._open = asyncio.Event()

    async def read(self, http: aiohttp.ClientSession, url: str) -> None:
        async with http.get(url, params={"format": "ndjson", "after": "now"}) as answer:
            async for line in answer.content:
                now = time.monotonic()
                self._open.set()
                if b'"numbered"' in line:
                    self.arrived[json.loads(line)["event"]["n"]] = now

    async def opened(self) -> None:
        async with asyncio.timeout(20):
            await self._open.wait()


@asynccontextmanager
async def mute(gateway: Gateway, session: Json) -> AsyncIterator[socket.socket]:
    """Request a stream and never read any of it."""
    address = urlsplit(gateway.url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, (address.hostname, address.port))
        request = f"GET {session['events_url']}?after=earliest HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n"
        await loop.sock_sendall(connection, request.encode())
        yield connection


async def burst(far_end: FarEnd, session: Json, numbers: range) -> float:
    """Let the far end send a burst, and return the time."""
    now = time.monotonic()
    frames = (json.dumps({"type": "numbered", "n": n, "text": "x" * SIZE}) for n in numbers)
    await far_end.send(session["call_id"], *frames)
    return now


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile of many values."""
    return statistics.quantiles(values, n=100)[percent - 1]


async def read_by_all(readers: list[Fast], number: int) -> None:
    """Wait until every reader has a number."""

    async def there() -> bool:
        return all(number in reader.arrived for reader in readers)

    await until(there)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_one_that_never_reads_costs_the_others_nothing(serve: Serve, far_end: FarEnd) -> None:
    """With a mute reader beside them, the 99th percentile of 50 readers is the same as without, within noise."""
    # The mute reader stays for the whole round and is not cut.
    gateway = await serve(
        far_end,
        stream={"max_receivers": READERS + 1, "write_timeout_seconds": 300},
        relay={"log_max_bytes": LOG_BYTES},
    )
    rounds: dict[bool, list[float]] = {False: [], True: []}
    cpu: dict[bool, list[float]] = {False: [], True: []}
    last = -1
    async with Caller(gateway.url) as caller, AsyncExitStack() as stack:
        session = await caller.open()
        timeless = aiohttp.ClientTimeout(total=None)
        http = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeless)
        )
        readers = [Fast() for _ in range(READERS)]
        url = gateway.url + session["events_url"]
        reading = [asyncio.create_task(reader.read(http, url)) for reader in readers]
        try:
            for reader in readers:
                await reader.opened()
            for number in range(2 * ROUNDS):
                beside = number % 2 == 1
                async with AsyncExitStack() as one:
                    if beside:
                        await one.enter_async_context(mute(gateway, session))
                    delays: list[float] = []
                    began = time.process_time()
                    for count in range(BURSTS):
                        numbers = range(last + 1, last + 1 + BURST)
                        at = await burst(far_end, session, numbers)
                        last = numbers[-1]
                        await read_by_all(readers, last)
                        # A round begins with what any new reader costs: catching up.
                        if count > 0:
                            delays.extend(reader.arrived[n] - at for reader in readers for n in numbers)
                # The first two rounds warm up, and fill the log beyond what a socket buffers.
                if number >= 2:
                    rounds[beside].append(percentile(delays, 99))
                    cpu[beside].append(time.process_time() - began)
        finally:
            for task in reading:
                task.cancel()
            await asyncio.wait(reading)

    shown = {name: [round(p99 * 1000, 1) for p99 in of] for name, of in rounds.items()}
    print(f"p99 in ms by round: {shown[False]} alone, {shown[True]} beside a mute reader; CPU: {cpu}")  # noqa: T201  # read with -s
    pairs = zip(rounds[True], rounds[False], strict=True)
    assert statistics.median(beside / alone for beside, alone in pairs) <= LATENCY_NOISE, shown
    assert statistics.median(cpu[True]) <= statistics.median(cpu[False]) * CPU_NOISE, cpu


@pytest.mark.slow
async def test_what_is_held_for_one_that_never_reads_is_bounded(serve: Serve, far_end: FarEnd) -> None:
    """However much is sent, the log keeps its limit and the transport holds a fraction of it; when the reader wakes
    up, it is told of the gap."""
    gateway = await serve(far_end, stream={"write_timeout_seconds": 300}, relay={"log_max_bytes": LOG_BYTES})
    async with Caller(gateway.url) as caller:
        session = await caller.open()
        async with mute(gateway, session) as connection:
            last = 4 * LOG_BYTES // SIZE
            for first in range(0, last + 1, 100):
                await burst(far_end, session, range(first, min(first + 100, last + 1)))
            kept = await wait_for(caller, session, last)
            logged_bytes = await log_bytes(gateway, session)
            taken = await take_what_is_held(connection, b'"n": %d,' % last)

        on_its_way, told, logged = taken.partition(b"event: gateway.gap")
        print(f"{len(on_its_way)} bytes on their way, {logged_bytes} in the log")  # noqa: T201  # read with -s
        assert kept["state"] == "connected"
        assert told
        assert 0.9 * LOG_BYTES <= logged_bytes <= LOG_BYTES
        assert len(on_its_way) <= ON_ITS_WAY_BYTES
        assert len(logged) <= 1.1 * LOG_BYTES  # the same events, in their chunks


@pytest.mark.slow
async def test_one_that_never_reads_is_cut_at_the_write_deadline(serve: Serve, far_end: FarEnd) -> None:
    """After `write_timeout_seconds` without a byte read its connection ends, and the session and its readers
    continue."""
    gateway = await serve(far_end, stream={"write_timeout_seconds": 1})
    async with Caller(gateway.url) as caller:
        session = await caller.open()
        async with mute(gateway, session):
            last = 799
            await burst(far_end, session, range(last + 1))

            async def cut() -> bool:
                _, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")
                return bool(now["receivers"] == 0)

            _, before = await caller.ask("GET", f"/v1/sessions/{session['id']}")
            await until(cut)
        kept = await wait_for(caller, session, last)
        metrics = await admin_metrics(gateway)

    assert before["receivers"] == 1
    assert kept["state"] == "connected"
    assert metrics['streams_closed_total{format="sse",reason="slow"}'] == 1


async def wait_for(caller: Caller, session: Json, last: int) -> Json:
    """Wait until the log has a number and return the session object."""
    query = {"format": "json", "types": "numbered", "wait": "1", "limit": "1000", "max_bytes": "4194304"}

    async def there() -> bool:
        async with caller.http.get(caller.url + session["events_url"], params=query) as answer:
            page = await answer.json()
        return bool(page["events"]) and page["events"][-1]["event"]["n"] == last

    await until(there)
    _, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")
    found: Json = now
    return found


async def log_bytes(gateway: Gateway, session: Json) -> int:
    """Return the size of a session's log as the admin listener shows it."""
    async with Caller(gateway.admin_url) as operator:
        _, about = await operator.ask("GET", f"/sessions/{session['id']}")
    size: int = about["diagnostics"]["log_bytes"]
    return size


async def admin_metrics(gateway: Gateway) -> dict[str, float]:
    """Read the metrics, without their prefix."""
    async with aiohttp.ClientSession() as http, http.get(gateway.admin_url + "/metrics") as answer:
        text = await answer.text()
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name.removeprefix("realtime_gateway_"): float(value) for name, value in lines}


async def take_what_is_held(connection: socket.socket, last: bytes) -> bytes:
    """Read everything in transit, the gap, and the log up to the last number."""
    loop = asyncio.get_running_loop()
    held = bytearray()
    async with asyncio.timeout(20):
        while last not in held[-4 * SIZE :]:
            data = await loop.sock_recv(connection, 2 * SIZE)
            assert data, "it was cut"
            held += data
    return bytes(held)

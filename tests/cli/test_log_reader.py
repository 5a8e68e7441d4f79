"""`gateway serve` when its log is not read or cannot be written: it keeps serving, and ends on a signal."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import pytest

from gateway.client import Client
from tests.cli.conftest import clean_environment
from tests.ports import free_port

pytestmark = pytest.mark.slow

SECONDS = 60.0
REQUESTS = 1500
"""Each leaves a line of some 200 bytes; a pipe holds 64 KiB."""


@contextmanager
def serving(emulator: str, stderr: int) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """Run a gateway that logs there, and return the process and both URLs."""
    ports = free_port(), free_port()
    arguments = ["serve", "--port", str(ports[0]), "--admin-port", str(ports[1]), "--upstream-url", emulator]
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stderr,
        stderr=stderr,
        env=clean_environment(OPENAI_API_KEY="sk-test", GATEWAY_DRAIN__TIMEOUT_SECONDS="1"),
    ) as process:
        try:
            yield process, f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
        finally:
            if process.poll() is None:
                process.kill()


async def listening(url: str) -> None:
    """Wait until the gateway answers."""
    async with asyncio.timeout(SECONDS), aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.get(f"{url}/livez"):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


async def converse(url: str) -> None:
    """Open sessions and request missing resources many times: every request is answered, and none with 500."""
    async with asyncio.timeout(SECONDS), Client(url) as client:
        for _ in range(3):
            await (await client.open()).close()
        for _ in range(REQUESTS):
            async with client.http.get(f"{url}/v1/sessions/gws_none") as answer:
                assert answer.status == 404


def ends(process: "subprocess.Popen[bytes]") -> int:
    """Stop the gateway and return its exit status."""
    process.send_signal(signal.SIGTERM)
    return process.wait(SECONDS)


async def test_a_reader_that_leaves_after_two_lines(emulator: str) -> None:
    """The gateway keeps serving after the reader of its log leaves, as in `gateway serve 2>&1 | head -2`."""
    reading, writing = os.pipe()
    with serving(emulator, writing) as (process, url, _):
        os.close(writing)
        with os.fdopen(reading) as lines:
            assert all("listening on" in lines.readline() for _ in range(2))
        await converse(url)

        assert ends(process) == 0


async def test_a_reader_that_stops_reading(emulator: str) -> None:
    """When the pipe is full, only the log waits."""
    reading, writing = os.pipe()
    with serving(emulator, writing) as (process, url, _):
        os.close(writing)
        await listening(url)
        await converse(url)

        assert ends(process) == 0
    os.close(reading)


async def test_a_full_disk(emulator: str) -> None:
    """On a full disk no line can be written, and a metric counts the lost lines."""
    full = os.open("/dev/full", os.O_WRONLY)
    with serving(emulator, full) as (process, url, admin):
        os.close(full)
        await listening(url)
        await converse(url)
        lost = 0.0
        async with asyncio.timeout(SECONDS), aiohttp.ClientSession() as http:
            while lost < REQUESTS:  # A separate thread writes the lines, after the requests.
                await asyncio.sleep(0.05)
                async with http.get(f"{admin}/metrics") as answer:
                    text = await answer.text()
                found = re.search(r"^realtime_gateway_log_lines_dropped_total (\S+)", text, re.MULTILINE)
                lost = float(found[1]) if found else 0.0

        assert ends(process) == 0

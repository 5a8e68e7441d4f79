"""Where the calls of a run offer their media."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from gateway.emulator.service import media_addresses
from tests.emulator.caller import Caller

ROOT = Path(__file__).resolve().parents[2]
# Runs in a network namespace with only `lo`: starts an emulator and holds one turn with it.
ALONE = """
import asyncio
from gateway.emulator import Emulator, EmulatorConfig
from tests.emulator.caller import Caller

async def main():
    emulator = Emulator(EmulatorConfig(port=0))
    await emulator.start()
    caller = Caller(emulator.base_url)
    try:
        await caller.open()
        print(await caller.ask("ping"))
    finally:
        await caller.close()
        await emulator.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "192.0.2.7"])
def test_media_is_offered_on_the_listeners_address(host: str) -> None:
    """A listener on one address offers media on that address, whether IPv4 or IPv6."""
    assert media_addresses(host) == [host]


def test_media_of_a_name_is_offered_where_it_resolves() -> None:
    """`localhost` offers the loopback addresses that can be bound, and no others."""
    found = [(socket.AF_INET6, 2, 17, "", ("::1", 0, 0, 0)), (socket.AF_INET, 2, 17, "", ("127.0.0.1", 0))]
    gone = [(socket.AF_INET, 2, 17, "", ("192.0.2.7", 0))]
    with mock.patch("socket.getaddrinfo", return_value=[*found, *gone]):
        assert media_addresses("localhost") == ["::1", "127.0.0.1"]


@pytest.mark.parametrize(
    ("host", "listed", "offered"),
    [
        ("0.0.0.0", ["127.0.0.1", ("::1", 0, 0)], ["127.0.0.1"]),
        ("::", ["127.0.0.1", ("::1", 0, 0), ("fe80::1", 0, 2)], ["127.0.0.1", "::1"]),
        ("0.0.0.0", [("::1", 0, 0), ("fe80::1", 0, 2)], ["::1"]),
    ],
)
def test_wildcard_offers_every_address(host: str, listed: list[Any], offered: list[str]) -> None:
    """A wildcard offers IPv4; `::` and a machine without IPv4 offer IPv6 too, link-local addresses left out."""
    adapters = [SimpleNamespace(ips=[SimpleNamespace(ip=ip) for ip in listed])]
    with mock.patch("ifaddr.get_adapters", return_value=adapters):
        assert media_addresses(host) == offered


@pytest.mark.parametrize("host", ["::1", "::"])
async def test_call_runs_over_ipv6_alone(host: str, emulate: Callable[..., Any]) -> None:
    """With a listener on IPv6 loopback, and a client without an IPv4 address, a turn works."""
    emulator = await emulate(host=host)
    caller = Caller(emulator.base_url)
    try:
        with mock.patch("tests.emulator.caller.LOOPBACK", "::1"):
            await caller.open()
        assert emulator.base_url.startswith("http://[::1]:")
        assert await caller.ask("Repeat after me: hi") == "hi"
    finally:
        await caller.close()


@pytest.mark.slow
@pytest.mark.needs("unshare", "ip")
async def test_call_runs_where_there_is_only_loopback() -> None:
    """In a network namespace with only `lo` a call connects and a turn works."""
    script = f'ip link set lo up && exec "{sys.executable}" -c "$ALONE"'
    process = await asyncio.create_subprocess_exec(
        "unshare", "--net", "--map-root-user", "sh", "-c", script,
        env=os.environ | {"ALONE": ALONE, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 30)
    if b"unshare" in err or b"ip:" in err:
        pytest.skip(f"this machine allows no network namespace: {err.decode().strip()}")

    assert out == b"Pong!\n", err.decode()

"""The memory of a gateway under attack: `python -m tests.load.memory [--seconds N] [NAME…]`.

Not collected by pytest: each attack runs for up to `--seconds` against its own gateway, with an emulator behind it.
For each it prints the memory of the gateway's process before, at its peak and ten seconds after, and the longest
time of the admin listener's `/livez` during the attack: the table of docs/benchmarks.md.
"""

# ruff: noqa: T201  # a command prints its result

import argparse
import asyncio
import hashlib
import json
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from gateway.relay.state.mirror import MAX_BYTES
from tests.farend import FarEnd
from tests.programs import Served

KIB, MIB = 1024, 1024 * 1024

KEY = "an-api-key"
CONFIG = """
[server]
memory_budget_bytes = 268435456

[[access.keys]]
name = "one"
sha256 = "{digest}"
max_sessions = {max_sessions}
"""
ASIDE_SECONDS = 10.0
"""How long after an attack memory is looked at again: as long as a client may take nothing of an answer."""


@dataclass
class Target:
    """A gateway under attack."""

    url: str
    http: aiohttp.ClientSession
    until: float
    statuses: Counter[int] = field(default_factory=Counter)
    """What the attack was answered with."""

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Make a request with the key and return status and JSON."""
        headers = {"Authorization": f"Bearer {KEY}", **options.pop("headers", {})}
        if "data" in options:
            headers["Content-Type"] = "application/json"
        async with self.http.request(method, self.url + path, headers=headers, **options) as answer:
            body = await answer.read()
            self.statuses[answer.status] += 1
            return answer.status, json.loads(body) if body.startswith(b"{") else None

    async def open(self, **body: Any) -> Any:
        status, session = await self.ask("POST", "/v1/sessions", json=body)
        assert status == 201, session
        return session

    def connect(self) -> socket.socket:
        """Open a connection with small buffers."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
        connection.connect(("127.0.0.1", int(self.url.rpartition(":")[2])))
        return connection

    def send(self, connection: socket.socket, request: str) -> None:
        head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
        connection.sendall(f"{request} HTTP/1.1\r\n{head}\r\n".encode())


async def nameless_cancels(target: Target) -> None:
    """Post a `response.cancel` of 1 MiB without an ID repeatedly, with a client secret."""
    session = await target.open()
    body = b'{"type":"response.cancel","filling":"%b"}' % (b"x" * (MIB - 200))
    secret = {"Authorization": f"Bearer {session['client_secret']['value']}"}
    while target.goes_on:
        await target.ask("POST", session["events_url"], data=body, headers=secret)


async def creates_and_deletes(target: Target) -> None:
    """Create with a session object of 1 MiB and delete, repeatedly, with a key that allows one session at once."""
    body = json.dumps({"session": {"instructions": "x" * (MIB - 2000)}}).encode()
    while target.goes_on:
        status, session = await target.ask("POST", "/v1/sessions", data=body)
        if status == 201:
            await target.ask("DELETE", f"/v1/sessions/{session['id']}")


async def keyed_turns(target: Target) -> None:
    """Take turns with inputs of 60 KB, each with its own Idempotency-Key, eight at once."""

    async def one(worker: int) -> None:
        number = 0
        while target.goes_on:
            number += 1
            headers = {"Idempotency-Key": f"{worker}-{number}-{'k' * 22}"}
            await target.ask("POST", "/v1/turns", json={"input": "x" * 60_000}, headers=headers)

    await asyncio.gather(*map(one, range(8)))


async def _fill(target: Target, session: Any, size: int) -> int:
    """Send items until this many bytes are accepted; return how many were."""
    part = [{"type": "input_text", "text": "x" * 30_000}]
    event = {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": part}}
    body, sent = json.dumps([event] * 16), 0
    while sent < size and target.goes_on:
        status, _ = await target.ask("POST", session["events_url"], data=body)
        if status == 202:
            sent += len(body)
        else:
            await asyncio.sleep(0.05)
    return sent


async def unread_long_polls(target: Target) -> None:
    """Request 4 MiB by long-poll on 300 connections with a ticket, and read none of it."""
    session = await target.open()
    await _fill(target, session, 6 * MIB)
    target.until += 10
    connections = [target.connect() for _ in range(300)]
    for connection in connections:
        target.send(
            connection,
            f"GET {session['stream_url']}&format=json&wait=0&limit=1000&max_bytes=4194304&errors=status",
        )
    while target.goes_on:
        await asyncio.sleep(0.1)
    for connection in connections:
        connection.close()


async def unread_lists(target: Target) -> None:
    """Request the list of sessions, with 16 KiB of metadata each, on 150 connections, and read none of it."""
    for _ in range(50):
        await target.open(metadata={"a": "x" * 16_000})
    target.until += 10
    connections = [target.connect() for _ in range(150)]
    for connection in connections:
        target.send(connection, "GET /v1/sessions?limit=100")
    while target.goes_on:
        await asyncio.sleep(0.1)
    for connection in connections:
        connection.close()


async def unfinished_heads(target: Target) -> None:
    """Send 127 headers of 16 KB on each of 200 connections, without a credential and without the end of the head."""

    def attack() -> None:
        lines = b"".join(b"X-%d: %b\r\n" % (n, b"y" * 16_000) for n in range(127))
        connections = [target.connect() for _ in range(200)]
        for connection in connections:
            connection.settimeout(0.5)
            with suppress(OSError):
                connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + lines)
        while target.goes_on:
            time.sleep(0.1)
        for connection in connections:
            connection.close()

    await asyncio.to_thread(attack)


async def long_conversation(target: Target) -> None:
    """Fill one session's conversation with 32 MiB, until it exceeds what the mirror may hold."""
    session = await target.open()
    sent = await _fill(target, session, 32 * MIB)
    # At most 4 MiB of them are unconfirmed, and so not in the mirror.
    least = 4 * MIB + MAX_BYTES
    target.until += 60
    sent += await _fill(target, session, max(0, least - sent))
    assert sent >= least, f"only {sent} bytes were accepted"


async def idle_connections(target: Target) -> None:
    """Open 3,000 connections and send nothing."""
    connections: list[socket.socket] = []
    while target.goes_on:
        if len(connections) < 3000:
            connections.append(target.connect())
        await asyncio.sleep(0.0005 if len(connections) < 3000 else 0.1)
    for connection in connections:
        connection.close()


ATTACKS: tuple[Callable[[Target], Awaitable[None]], ...] = (
    nameless_cancels,
    creates_and_deletes,
    keyed_turns,
    unread_long_polls,
    unread_lists,
    unfinished_heads,
    long_conversation,
    idle_connections,
)


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def watch(pid: int, admin_url: str, peak: list[float]) -> None:
    """Keep the maximum of the memory and of the duration of `/livez` up to date."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        while True:
            began = time.monotonic()
            async with http.get(f"{admin_url}/livez") as answer:
                await answer.read()
            peak[1] = max(peak[1], time.monotonic() - began)
            peak[0] = max(peak[0], resident(pid))
            await asyncio.sleep(0.05)


async def suffer(gateway: Served, attack: Callable[[Target], Awaitable[None]], seconds: float) -> str:
    """Attack a gateway and return its row of the table."""
    pid = gateway.process.pid
    before, peak = resident(pid), [0.0, 0.0]
    watching = asyncio.create_task(watch(pid, gateway.admin_url, peak))
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        target = Target(gateway.url, http, time.monotonic() + seconds)
        await attack(target)
    await asyncio.sleep(ASIDE_SECONDS)
    watching.cancel()
    await asyncio.wait({watching})
    name = attack.__name__.replace("_", " ")
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(target.statuses.items()))
    return f"| {name} | {before / MIB:.0f} | {peak[0] / MIB:.0f} | {resident(pid) / MIB:.0f} | {peak[1] * 1000:.0f} | {answers} |"


def serving(folder: Path, far_end: FarEnd, max_sessions: int) -> Served:
    """Start a gateway with one key."""
    config = folder / "gateway.toml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    config.write_text(CONFIG.format(digest=digest, max_sessions=max_sessions))
    flags = ("--config", str(config))
    return Served(folder / "gateway", far_end.base_url, *flags, environ={"GATEWAY_LOG__ACCESS": "false"})


def main() -> int:
    """Run the attacks and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.memory", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("attacks", nargs="*", metavar="NAME", help=", ".join(a.__name__ for a in ATTACKS))
    given = parser.parse_args()
    print(
        "| attack | before, MiB | peak | after | `/livez`, ms | answers |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for attack in ATTACKS:
        if given.attacks and attack.__name__ not in given.attacks:
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            sessions = 1 if attack is creates_and_deletes else 100
            with FarEnd(folder / "far-end") as far_end, serving(folder, far_end, sessions) as gateway:
                print(asyncio.run(suffer(gateway, attack, given.seconds)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

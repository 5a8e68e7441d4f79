"""Several gateways in their own processes on one Redis, and a client that records every ID it saw and every 202 it
got."""

import asyncio
import json
import os
import random
import secrets
import signal
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import aiohttp

from gateway.client import BlockParser
from tests.e2e.caller import Caller
from tests.farend import FarEnd
from tests.programs import Program

Json = dict[str, Any]

SIGNING_KEY = "0123456789abcdef0123456789abcdef"
LEASE_SECONDS = 1.0
"""A quarter of the default, so that a test of three leases takes three seconds."""


class Node:
    """One gateway."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.url = ""
        self.admin_url = ""

    def ready(self) -> "Node":
        self.admin_url = self.program.said(r"admin listening on (http://[\w.:]+)")
        self.url = self.program.said(r"(?<!admin )listening on (http://[\w.:]+)")
        return self

    def pause(self) -> None:
        """Stop the process at any point of its work."""
        os.kill(self.program.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.program.process.pid, signal.SIGCONT)

    def terminate(self) -> None:
        """Send SIGTERM, as a rolling deployment does."""
        os.kill(self.program.process.pid, signal.SIGTERM)

    async def ended(self, seconds: float = 30.0) -> None:
        """Wait until it has ended."""
        async with asyncio.timeout(seconds):
            while self.program.process.poll() is None:
                await asyncio.sleep(0.05)


class Nodes:
    """Gateways that are started one after the other; all are ended with the test."""

    def __init__(self, home: Path, far_end: FarEnd, redis_url: str, **settings: object) -> None:
        self.home = home
        self._far_end = far_end
        self.module = "gateway"
        """What is run as the gateway."""
        self._environ = {
            "GATEWAY_CLUSTER__URL": redis_url,
            "GATEWAY_CLUSTER__LEASE_SECONDS": str(LEASE_SECONDS),
            "GATEWAY_ACCESS__SIGNING_KEY": SIGNING_KEY,
            "GATEWAY_DRAIN__TIMEOUT_SECONDS": "15",
            "GATEWAY_RELAY__MAX_LOOP_LAG_SECONDS": "0",
            **{name: str(value) for name, value in settings.items()},
        }
        self.all: list[Node] = []

    def begin(self, port: int = 0, **settings: object) -> Node:
        """Start one without waiting until it listens."""
        log = self.home / f"node-{len(self.all)}.log"
        flags = ("--port", str(port), "--admin-port", "0", "--upstream-url", self._far_end.base_url)
        environ = self._environ | {name: str(value) for name, value in settings.items()}
        node = Node(Program(log, self.module, "serve", *flags, environ=environ))
        self.all.append(node)
        return node

    def start(self, count: int) -> list[Node]:
        """Start some and wait until they listen."""
        return [node.ready() for node in [self.begin() for _ in range(count)]]

    def close(self) -> None:
        for node in self.all:
            with suppress(ProcessLookupError):
                node.go_on()
            node.program.kill()

    def said(self) -> str:
        """Everything that the nodes have printed."""
        return "\n".join(node.program.output for node in self.all)


class Follower:
    """Reads one session's log from its cursor through any node that answers."""

    def __init__(self, session_id: str, urls: list[str]) -> None:
        self.session_id = session_id
        self.urls = urls
        self.seen: dict[int, Json] = {}
        self.gaps: list[Json] = []
        self.cursor: str | None = None
        self.connections = 0
        self.closed = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Follower":
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})

    def types(self) -> list[str]:
        """The types of all events, in order."""
        return [str(event["type"]) for event in self.seen.values()]

    def of(self, kind: str) -> list[Json]:
        """The events of one type, in order."""
        return [event for event in self.seen.values() if event["type"] == kind]

    async def until(self, kind: str, count: int = 1, seconds: float = 20.0) -> None:
        """Wait until this many events of a type were seen."""
        try:
            async with asyncio.timeout(seconds):
                while len(self.of(kind)) < count:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"not {count} of {kind} in {self.types()}") from None

    async def _follow(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=2, sock_read=30)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while not self.closed:
                with suppress(aiohttp.ClientError, TimeoutError):
                    await self._read(http, random.choice(self.urls))
                await asyncio.sleep(0.05)

    async def _read(self, http: aiohttp.ClientSession, url: str) -> None:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self.cursor} if self.cursor else {})
        async with http.get(f"{url}/v1/sessions/{self.session_id}/events", headers=headers) as answer:
            if answer.status == 204:
                self.closed = True
            if answer.status != 200:
                return
            self.connections += 1
            parser = BlockParser()
            async for chunk in answer.content.iter_any():
                for block in parser.feed(chunk):
                    self._take(block.id, block.name, block.data)

    def _take(self, event_id: str | None, name: str, data: str | None) -> None:
        if data is None:
            return
        value: Json = json.loads(data)
        if name == "gateway.gap":
            self.gaps.append(value)
        if event_id is not None and name not in (
            "gateway.open",
            "gateway.gap",
            "gateway.ping",
            "gateway.rotating",
        ):
            sequence = int(event_id.rsplit("-", 1)[1])
            assert sequence not in self.seen, f"{event_id} came twice"
            assert not self.seen or self.gaps or sequence == max(self.seen) + 1, (
                f"{event_id} after {max(self.seen)}"
            )
            self.seen[sequence] = value
        if event_id is not None:
            self.cursor = event_id


async def ask(url: str, session_id: str, text: str, seconds: float = 30.0) -> str:
    """Send a text turn and return the answer. It is repeated under one key while the session's node is being
    replaced: with a lease as short as this, a busy machine may replace a node at any time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    headers = {"Content-Type": "text/plain", "Idempotency-Key": secrets.token_hex(16)}
    async with Caller(url) as caller:
        while True:
            timeout = aiohttp.ClientTimeout(total=seconds)
            path = f"/v1/sessions/{session_id}/turns"
            answer, said = await caller.ask("POST", path, text, headers=headers, timeout=timeout)
            if answer.status == 503 and said["code"] == "recovering" and loop.time() < deadline:
                await asyncio.sleep(0.2)
                continue
            assert answer.status == 200, said
            return bytes(said).decode()


__all__ = ["LEASE_SECONDS", "Follower", "Node", "Nodes", "aclosing", "ask"]

"""What tests of reads share: a session whose far end emits what a test asks for, and clients that read it."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from gateway.client import Block, BlockParser
from tests.downstream.harness import Harness

DEADLINE_SECONDS = 20.0

Json = dict[str, Any]

DELTA = "response.output_text.delta"


def event(type: str = DELTA, **members: object) -> str:
    """Return a server event's text in a form that no encoder produces, so that re-encoding would be noticed."""
    return json.dumps({"type": type, **members}, separators=(" ,", ":  "))


@dataclass
class Session:
    """One open session of a harness, and its far end."""

    harness: Harness
    id: str
    created: Json

    @property
    def path(self) -> str:
        return f"/v1/sessions/{self.id}/events"

    @property
    def handle(self) -> Any:  # the hub's own type: tests read whatever they need from it
        return self.harness.hub.find(self.id, None)

    @property
    def ticket(self) -> str:
        return str(self.created["stream_url"]).partition("ticket=")[2]

    def say(self, *texts: str) -> None:
        """Let the far end send an event."""
        assert self.harness.far_end.sink is not None
        for text in texts:
            self.harness.far_end.sink.received(0, text)

    def count(self, numbers: range) -> None:
        """Let the far end send numbered events."""
        self.say(*(event(delta=str(number)) for number in numbers))

    def id_after(self, events: int) -> str:
        """Return the id of the log's event with this number. `session.created` is the first."""
        return f"{self.handle.reader.head.epoch}-{events}"

    def read(self, **query: Any) -> Any:
        """Begin a read, for `async with`."""
        return reading(self.harness.http, f"{self.harness.url}{self.path}", **query)


async def opened(harness: Harness, **body: object) -> Session:
    """Open a session; its log holds `session.created`."""
    created = await harness.open(body)
    return Session(harness, str(created["id"]), created)


@dataclass
class Reading:
    """A client's side of one stream."""

    answer: aiohttp.ClientResponse
    blocks: AsyncGenerator[Block, None]
    raw: bytearray = field(default_factory=bytearray)

    async def next(self) -> Block:
        """Return the next event; fail if none comes."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await anext(self.blocks)

    async def take(self, count: int) -> list[Block]:
        return [await self.next() for _ in range(count)]

    async def value(self) -> Json:
        """Return the parsed data of the next event."""
        return said(await self.next())

    async def rest(self) -> list[Block]:
        """Return all events up to the stream's end."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return [block async for block in self.blocks]


@asynccontextmanager
async def reading(
    http: aiohttp.ClientSession, url: str, headers: dict[str, str] | None = None, **query: object
) -> AsyncIterator[Reading]:
    """Read a stream; the connection is cut at the end."""
    params = {name: str(value) for name, value in query.items()}
    async with asyncio.timeout(DEADLINE_SECONDS):
        answer = await http.get(url, params=params, headers=headers or {})
    raw = bytearray()
    blocks = _blocks(answer, raw)
    try:
        yield Reading(answer, blocks, raw)
    finally:
        await blocks.aclose()
        answer.close()


async def _blocks(answer: aiohttp.ClientResponse, raw: bytearray) -> AsyncGenerator[Block, None]:
    parser = BlockParser()
    async for chunk in answer.content.iter_any():
        raw += chunk
        for block in parser.feed(chunk):
            if block.data is not None:
                yield block


def said(block: Block) -> Json:
    """Return an event's JSON."""
    assert block.data is not None
    value: Json = json.loads(block.data)
    return value


def deltas(blocks: list[Block]) -> list[int]:
    """Return the numbers of the far end's events among these."""
    return [int(said(block)["delta"]) for block in blocks if said(block)["type"] == DELTA]

"""A client of a running gateway, and the configuration of a gateway for the end-to-end tests."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, Self

import aiohttp

from gateway.app import Gateway
from gateway.client import BlockParser
from gateway.config import Config
from tests.farend import FarEnd

Json = dict[str, Any]
DEADLINE_SECONDS = 20.0
KEY = "sk-offline"


class Serve(Protocol):
    """Starts a gateway in this process; keyword arguments are sections with their keys."""

    async def __call__(self, upstream: FarEnd | str, /, **sections: Json) -> Gateway: ...


class Emulate(Protocol):
    """Starts an emulator in its own process with a test's own flags."""

    def __call__(self, *flags: str) -> FarEnd: ...


def configured(base_url: str, **sections: Json) -> Config:
    """Return a configuration for tests: free ports, few log lines, and the given settings."""
    given: Json = {
        "server": {"port": 0},
        "admin": {"port": 0},
        "upstream": {"base_url": base_url, "api_key": KEY},
        # Tests share the gateway's loop and the machine, so its lag says nothing here.
        "relay": {"max_loop_lag_seconds": 0},
        "drain": {"timeout_seconds": 0},
        "log": {"level": "warning", "access": False},
    }
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section}
    return Config.model_validate(given)


def number(event_id: str | None) -> int:
    """Return the sequence number of an id. Ids are opaque to clients, but a test that counts may parse them."""
    assert event_id is not None
    return int(event_id.rsplit("-", 1)[1])


def say(text: str) -> list[Json]:
    """Return the two client events of a text turn."""
    content = [{"type": "input_text", "text": text}]
    item = {"type": "message", "role": "user", "content": content}
    return [{"type": "conversation.item.create", "item": item}, {"type": "response.create"}]


def answer_of(events: Iterable[Json]) -> str:
    """Join the text of a response's deltas."""
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


@dataclass(frozen=True, slots=True)
class Read:
    """One block of a stream: its id, its data as received, and the parsed data."""

    id: str | None
    name: str
    text: str

    @property
    def value(self) -> Json:
        value: Json = json.loads(self.text)
        return value

    @property
    def type(self) -> str:
        return str(self.value["type"])


class Caller:
    """A client of one gateway, for tests that look at statuses and headers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=DEADLINE_SECONDS),
            skip_auto_headers=["Content-Type"],
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()

    async def ask(
        self, method: str, path: str, body: Any = None, **options: Any
    ) -> tuple[aiohttp.ClientResponse, Any]:
        """Send a request and return the answer with its body, as JSON where it is JSON. A body that is not text is sent
        as JSON."""
        if body is not None and not isinstance(body, (str, bytes)):
            options["headers"] = {"Content-Type": "application/json", **options.get("headers", {})}
            body = json.dumps(body, ensure_ascii=False)
        data = body.encode() if isinstance(body, str) else body
        async with self.http.request(method, self.url + path, data=data, **options) as answer:
            said: Any = await answer.read()
            if "json" in answer.content_type and "ndjson" not in answer.content_type:
                said = json.loads(said)
            return answer, said

    async def open(self, **body: Any) -> Json:
        """Open a session and return its object."""
        answer, said = await self.ask("POST", "/v1/sessions", body)
        assert answer.status == 201, said
        session: Json = said
        return session

    async def send(self, session_id: str, *events: Json) -> Json:
        """Send client events and return the receipt."""
        answer, said = await self.ask("POST", f"/v1/sessions/{session_id}/events", list(events))
        assert answer.status == 202, said
        receipt: Json = said
        return receipt

    async def stream(
        self, session_id: str, after: str | None = None, **query: str
    ) -> AsyncGenerator[Read, None]:
        """Yield the blocks of one SSE connection that have data."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        url = f"{self.url}/v1/sessions/{session_id}/events"
        timeout = aiohttp.ClientTimeout(total=None, sock_read=2 * DEADLINE_SECONDS)
        async with self.http.get(url, headers=headers, params=query, timeout=timeout) as answer:
            assert answer.status == 200, await answer.text()
            parser = BlockParser()
            async for chunk in answer.content.iter_any():
                for block in parser.feed(chunk):
                    if block.data is not None:
                        yield Read(block.id, block.name, block.data)

    async def until(
        self,
        session_id: str,
        kind: str,
        count: int = 1,
        after: str | None = None,
        seconds: float = DEADLINE_SECONDS,
        **query: str,
    ) -> list[Read]:
        """Read the log until the `count`th event of a type and return all that was read, without `gateway.open`."""
        return await self._read(lambda block: block.type == kind, count, session_id, after, query, seconds)

    async def take(self, session_id: str, count: int, after: str | None = None, **query: str) -> list[Read]:
        """Read this many events of the log, without `gateway.open`."""
        return await self._read(lambda _: True, count, session_id, after, query)

    async def _read(
        self,
        counts: Callable[[Read], bool],
        count: int,
        session_id: str,
        after: str | None,
        query: dict[str, str],
        seconds: float = DEADLINE_SECONDS,
    ) -> list[Read]:
        read: list[Read] = []
        async with (
            asyncio.timeout(seconds),
            aclosing(self.stream(session_id, after, **query)) as blocks,
        ):
            async for block in blocks:
                if block.type == "gateway.open":
                    continue
                read.append(block)
                count -= counts(block)
                if count == 0:
                    return read
        raise AssertionError(f"the stream ended too soon: {[block.type for block in read]}")

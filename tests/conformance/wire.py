"""What a client needs: requests, event streams, and sessions that are closed again. It uses none of the gateway's
code.

The parser follows WHATWG HTML 9.2.6 strictly and keeps what a browser would hide: comments and `retry`.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy

Json = dict[str, Any]

# The deadline of one answer, and of silence within a stream. A model may need a while before its first token.
ANSWER_SECONDS = 60
SILENCE_SECONDS = 60

EVENT_STREAM = "text/event-stream"
NDJSON = "application/x-ndjson"
JSON = "application/json"
PROBLEM = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def media_type(self) -> str:
        return self.headers.get("Content-Type", "").partition(";")[0].strip()

    @property
    def lines(self) -> list[Json]:
        """Read it as NDJSON; an empty line is a heartbeat."""
        return [json.loads(line) for line in self.body.split(b"\n") if line.strip()]

    @property
    def blocks(self) -> list["Block"]:
        """Read it as an event stream that has ended."""
        return list(Parser().feed(self.body))

    def problem(self, status: int, code: str) -> Json:
        """Fail unless it is a problem object (RFC 9457) with this status and code, and return it."""
        assert self.status == status, (self.status, self.body)
        assert self.media_type == PROBLEM
        problem: Json = self.json
        assert {"type", "title", "status", "detail", "instance", "code", "retryable"} <= problem.keys()
        assert (problem["status"], problem["code"]) == (status, code), problem
        return problem


@dataclass(slots=True)
class Block:
    """The lines between two empty lines of an event stream."""

    id: str | None = None
    event: str = "message"
    data: str | None = None
    retry: int | None = None
    comments: list[str] = field(default_factory=list)

    @property
    def value(self) -> Json:
        assert self.data is not None
        value: Json = json.loads(self.data)
        return value

    @property
    def type(self) -> str:
        return str(self.value["type"])


class Parser:
    """Cuts an event stream into blocks, however its bytes were split."""

    def __init__(self) -> None:
        self._rest = b""
        self._block = Block()
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Block]:
        """Add bytes and return the blocks that they complete."""
        found = []
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.strip(b"\r"):
                self._take(line.rstrip(b"\r").decode("utf-8"))
                continue
            self._block.data = "\n".join(self._data) if self._data else None
            found.append(self._block)
            self._block, self._data = Block(), []
        return found

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                self._block.comments.append(value)
            case "data":
                self._data.append(value)
            case "event":
                self._block.event = value
            case "id":
                self._block.id = value
            case "retry":
                self._block.retry = int(value)
            case _:
                raise AssertionError(f"no field of an event stream: {line!r}")


class Stream:
    """An open event stream."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self._blocks = _blocks(answer)
        self._answer = answer

    async def block(self) -> Block:
        """Return the next block, comments and `retry` included."""
        return await anext(self._blocks)

    async def next(self) -> Block:
        """Return the next block that has data."""
        while True:
            block = await self.block()
            if block.data is not None:
                return block

    async def until(self, kind: str) -> list[Block]:
        """Return every block that has data, up to and including the first of a type."""
        read = []
        async with asyncio.timeout(SILENCE_SECONDS):
            while True:
                read.append(await self.next())
                if read[-1].type == kind:
                    return read

    async def rest(self) -> list[Block]:
        """Return all blocks up to the stream's end, which must be a clean one."""
        async with asyncio.timeout(SILENCE_SECONDS):
            return [block async for block in self._blocks]

    async def problem(self, status: int, code: str) -> Json:
        """Return the problem of an answer that must be a refusal, not a stream."""
        return Answer(self.status, self.headers, await self._answer.read()).problem(status, code)

    async def close(self) -> None:
        await self._blocks.aclose()


async def _blocks(answer: aiohttp.ClientResponse) -> AsyncGenerator[Block, None]:
    parser = Parser()
    async for chunk in answer.content.iter_any():
        for block in parser.feed(chunk):
            yield block


class Wire:
    """One caller of one gateway; `key` None calls without a credential."""

    def __init__(self, url: str, key: str | None, http: aiohttp.ClientSession) -> None:
        self.url = url.rstrip("/")
        self.key = key
        self.http = http

    def with_key(self, key: str | None) -> "Wire":
        """Return the same wire for another credential."""
        return Wire(self.url, key, self.http)

    def _headers(self, given: dict[str, str] | None) -> dict[str, str]:
        own = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return own | (given or {})

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        query: dict[str, Any] | None = None,
    ) -> Answer:
        """Send a request and return its whole answer. Text and bytes are sent as they are and without a Content-Type,
        everything else as JSON."""
        if body is not None and not isinstance(body, (str, bytes)):
            headers = {"Content-Type": JSON} | (headers or {})
            body = json.dumps(body)
        async with self.http.request(
            method,
            self.url + path,
            data=body.encode() if isinstance(body, str) else body,
            headers=self._headers(headers),
            params=_texts(query),
            allow_redirects=False,
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        body: Any = None,
        *,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        query: dict[str, Any] | None = None,
    ) -> AsyncIterator[Stream]:
        """Open an event stream."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE_SECONDS)
        async with self.http.request(
            method,
            self.url + path,
            json=body,
            headers=self._headers({"Accept": EVENT_STREAM} | (headers or {})),
            params=_texts(query),
            timeout=timeout,
        ) as answer:
            stream = Stream(answer)
            async with aclosing(stream._blocks):
                yield stream

    @asynccontextmanager
    async def session(self, headers: dict[str, str] | None = None, **body: Any) -> AsyncIterator["Session"]:
        """Open a session and delete it at the end."""
        answer = await self.call("POST", "/v1/sessions", body, headers=headers)
        assert answer.status == 201, answer.body
        session = Session(self, answer)
        try:
            yield session
        finally:
            await self.call("DELETE", session.path)


class Session:
    """A session, as its creator uses it."""

    def __init__(self, wire: Wire, answer: Answer) -> None:
        self.wire = wire
        self.answer = answer
        self.created: Json = answer.json
        self.id: str = self.created["id"]
        self.head: str = self.created["head"]
        self.path = f"/v1/sessions/{self.id}"
        self.events = f"{self.path}/events"
        self.secret: str = self.created["client_secret"]["value"]

    async def look(self) -> Json:
        """Return the current session object."""
        answer = await self.wire.call("GET", self.path)
        assert answer.status == 200, answer.body
        found: Json = answer.json
        return found

    async def post(self, body: Any, **headers: str) -> Answer:
        """Post events; header names with underscores."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.wire.call("POST", self.events, body, headers=given)

    async def send(self, *events: Json) -> Json:
        """Post events that must be accepted, and return the receipt."""
        answer = await self.post(list(events))
        assert answer.status == 202, answer.body
        receipt: Json = answer.json
        return receipt

    async def poll(self, **query: Any) -> Answer:
        """Read by long-poll."""
        return await self.wire.call("GET", self.events, headers={"Accept": JSON}, query=query)

    def stream(self, last_event_id: str | None = None, **query: Any) -> Any:
        """Open an event stream; an async context manager."""
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        return self.wire.stream(self.events, headers=headers, query=query)

    async def until(self, kind: str, **query: Any) -> list[Json]:
        """Read from the beginning, or `after`, up to the first event of a type; return `{"id":…,"event":…}` for
        each."""
        cursor = query.pop("after", "earliest")
        found: list[Json] = []
        async with asyncio.timeout(ANSWER_SECONDS):
            while True:
                answer = await self.poll(after=cursor, wait=5, **query)
                assert answer.status == 200, answer.body
                for entry in answer.json["events"]:
                    found.append(entry)
                    if entry["event"]["type"] == kind:
                        return found
                cursor = answer.json["cursor"]

    async def ticket(self) -> str:
        """Make a ticket."""
        answer = await self.wire.call("POST", f"{self.path}/tickets")
        assert answer.status == 201, answer.body
        return str(answer.json["ticket"])


def _texts(query: dict[str, Any] | None) -> dict[str, str]:
    return {name: str(value) for name, value in (query or {}).items()}


def item(text: str, id: str | None = None) -> Json:
    """Return the client event that adds a user's message."""
    content = [{"type": "input_text", "text": text}]
    own: Json = {"type": "message", "role": "user", "content": content} | ({"id": id} if id else {})
    return {"type": "conversation.item.create", "item": own}


RESPONSE: Json = {"type": "response.create"}
LONG_QUESTION = "Write 150 words about rivers"

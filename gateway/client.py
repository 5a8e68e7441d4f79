"""A small asyncio client: sessions, sends that never double, events that resume by themselves, turns.

Shares nothing with the gateway but the wire (docs/api.md), so it works against any deployment and proves the
contract when tests use it.

```python
async with Client("http://127.0.0.1:8080") as client:
    session = await client.open()
    await session.send({"type": "response.create"})
    async for event in session.events():
        print(event.type, event.value)
```
"""

import asyncio
import json
import random
import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

Json = dict[str, Any]  # JSON as the parser gives it; what stands in it is the service's to say

EARLIEST: Final = "earliest"
NOW: Final = "now"

_CONNECT_SECONDS: Final = 10.0
_REQUEST_SECONDS: Final = 60.0
_TURN_SECONDS: Final = 330.0
"""Longer than the gateway's own deadline for a turn, so that its answer, not ours, tells what went wrong."""
_SILENT_HEARTBEATS: Final = 2.5
"""A stream that is silent this many heartbeats is dead, whatever TCP believes."""
_FIRST_BACKOFF_SECONDS: Final = 0.25
_LONGEST_BACKOFF_SECONDS: Final = 15.0
_TRIES: Final = 5
"""Of a request that may be repeated. With back-off about 8 s: a gateway that restarts is back by then."""
_NEVER_AGAIN_MS: Final = 2**31 - 1
"""The `retry` of a stream that another one superseded."""

_UNSEEN: Final = frozenset({"gateway.open", "gateway.ping", "gateway.rotating"})
"""Stream-only events that are this file's business and not its caller's."""


class ProblemError(Exception):
    """The gateway refused: `status`, and the problem object (RFC 9457) with its `code` as far as it sent one."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.status = status
        self.problem = problem
        self.code: str = str(problem.get("code", ""))
        self.retry_after = retry_after
        super().__init__(
            f"{status} {self.code}: {problem.get('detail') or problem.get('title') or ''}".strip()
        )


class SupersededError(Exception):
    """Too many readers: another one took this stream's place."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the log, or a `gateway.gap` between two of them. `text` is its JSON as it came."""

    id: str | None
    text: str
    value: Json = field(repr=False)

    @property
    def type(self) -> str:
        return str(self.value.get("type", ""))


@dataclass(slots=True)
class Block:
    """One block of an event stream (WHATWG HTML 9.2.6)."""

    id: str | None = None
    name: str = "message"
    data: str | None = None
    retry: int | None = None


class BlockParser:
    """Cuts bytes, however they were split, into blocks."""

    def __init__(self) -> None:
        self._rest = b""
        self._block = Block()
        self._data: list[str] = []
        self._started = False

    def feed(self, chunk: bytes) -> Iterator[Block]:
        """Take what came and yield the blocks that it completes."""
        held = self._rest + chunk
        # A CR at the end may be half of a CRLF: it waits for what follows.
        held, self._rest = (held[:-1], b"\r") if held.endswith(b"\r") else (held, b"")
        lines = held.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + self._rest
        for line in lines:
            if not self._started:
                line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no part of the line
                self._started = True
            if line:
                self._take(line.decode("utf-8", "replace"))
            else:
                self._block.data = "\n".join(self._data) if self._data else None
                yield self._block
                self._block, self._data = Block(), []

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._block.id = value
        elif name == "event":
            self._block.name = value
        elif name == "retry" and value.isdigit():
            self._block.retry = int(value)


class Client:
    """Talks to one gateway."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # aiohttp's own limit is 100 connections, after which a request waits without a word.
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS, sock_connect=_CONNECT_SECONDS),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def reach(self) -> None:
        """Make sure that something answers at the URL, at once. Raises aiohttp.ClientError or TimeoutError."""
        async with self.http.get(f"{self.url}/livez", timeout=aiohttp.ClientTimeout(total=_CONNECT_SECONDS)):
            pass

    async def open(self, **body: object) -> "Session":
        """Open a session. `body` is that of a create: `session`, `metadata`, `detach_grace_seconds`."""
        made = await self.request("POST", "/v1/sessions", json=body, repeatable=True)
        return Session(self, made)

    async def request(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool = False,
        seconds: float | None = None,
        **options: Any,
    ) -> Json:
        """Send a request and give the JSON of its answer, `{}` where it has none.

        A `repeatable` one carries an Idempotency-Key and is tried again where the connection failed or the gateway
        asks to come back. `options` are aiohttp's. Raises ProblemError or aiohttp.ClientError.
        """
        headers = {"Accept": "application/json", **options.pop("headers", {})}
        if repeatable:
            headers["Idempotency-Key"] = secrets.token_hex(16)
        if seconds is not None:
            options["timeout"] = aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS)
        for wait in _waits():
            try:
                async with self.http.request(method, self.url + path, headers=headers, **options) as answer:
                    await _raise_for_problem(answer)
                    body = await answer.read()
                    return dict(json.loads(body)) if body else {}
            except ProblemError as error:
                if not repeatable or wait is None or not _passing(error):
                    raise
                await asyncio.sleep(max(wait, error.retry_after or 0))
            except (aiohttp.ClientConnectionError, TimeoutError):
                if not repeatable or wait is None:
                    raise
                await asyncio.sleep(wait)
        raise AssertionError("the last try returned or raised")

    @property
    def http(self) -> aiohttp.ClientSession:
        """The connections; for requests of the caller's own."""
        if self._http is None:
            raise RuntimeError("use `async with Client(…)`")
        return self._http


class Session:
    """One session, as `Client.open` gives it."""

    def __init__(self, client: Client, created: Json) -> None:
        self.created = created
        """The session object of the create answer."""
        self.id = str(created["id"])
        self._client = client
        self._path = f"/v1/sessions/{self.id}"

    async def send(self, *events: Mapping[str, Any]) -> Json:
        """Send client events in order, all or none, once even where the connection fails meanwhile. Gives the receipt:
        `accepted`, `first`, `last`, `head`."""
        return await self._client.request("POST", f"{self._path}/events", json=list(events), repeatable=True)

    async def look(self) -> Json:
        """Give the session object as it is now."""
        return await self._client.request("GET", self._path)

    async def turn(self, input: str | list[Json], **response: object) -> Json:
        """Say something and give the whole answer: `status`, `output_text`, `output`, `usage`, `error`."""
        return await self._client.request(
            "POST",
            f"{self._path}/turns",
            json={"input": input, **response},
            headers={"Accept": "application/json"},
            repeatable=True,
            seconds=_TURN_SECONDS,
        )

    async def close(self) -> None:
        """End the session."""
        await self._client.request("DELETE", self._path)

    async def events(self, after: str = EARLIEST) -> AsyncGenerator[Event]:
        """Yield the log's events after a cursor, in order and each once, across as many connections as it takes.

        A `gateway.gap` is yielded where events are lost. Ends after `gateway.closed`. Raises SupersededError, or
        ProblemError where the session cannot be read any more.
        """
        cursor, failures = after, 0
        while True:
            retry = _FIRST_BACKOFF_SECONDS
            try:
                async with aclosing(self._connect(cursor)) as blocks:
                    async for block in blocks:
                        if block.retry is not None:
                            retry = block.retry / 1000
                        if block.data is None:
                            continue
                        failures = 0
                        event = Event(block.id, block.data, json.loads(block.data))
                        if event.type == "gateway.superseded":
                            raise SupersededError("another reader took this stream's place")
                        if event.type == "gateway.error":
                            raise ProblemError(int(event.value.get("status", 500)), event.value)
                        if event.id:
                            cursor = event.id
                        if event.type not in _UNSEEN:
                            yield event
                        if event.type == "gateway.closed":
                            return
            except ProblemError as error:
                if not _passing(error):
                    raise
                retry = max(retry, error.retry_after or 0)
                failures += 1
            except (aiohttp.ClientError, TimeoutError):
                failures += 1
            except _Ended:
                return
            if retry * 1000 >= _NEVER_AGAIN_MS:
                raise SupersededError("another reader took this stream's place")
            await asyncio.sleep(max(retry if failures == 0 else 0, _backoff(failures)))

    async def _connect(self, cursor: str) -> AsyncGenerator[Block]:
        """Yield the blocks of one connection."""
        heartbeat = float(self.created.get("limits", {}).get("heartbeat_seconds", 15))
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=heartbeat * _SILENT_HEARTBEATS
        )
        headers = {"Accept": "text/event-stream"}
        query: dict[str, str] = {}
        if cursor in (EARLIEST, NOW):
            query["after"] = cursor
        else:
            headers["Last-Event-ID"] = cursor
        url = f"{self._client.url}{self._path}/events"
        async with self._client.http.get(url, params=query, headers=headers, timeout=timeout) as answer:
            if answer.status == 204:
                raise _Ended
            await _raise_for_problem(answer)
            if answer.content_type != "text/event-stream":
                detail = f"expected an event stream, got {answer.content_type}: is this the gateway?"
                raise ProblemError(answer.status, {"detail": detail})
            parser = BlockParser()
            async for chunk in answer.content.iter_any():
                for block in parser.feed(chunk):
                    yield block


class _Ended(Exception):
    """204: there is nothing more to read, now or ever."""


async def _raise_for_problem(answer: aiohttp.ClientResponse) -> None:
    if answer.status < 400:
        return
    try:
        problem = json.loads(await answer.read())
    except ValueError:
        problem = {}
    retry_after = answer.headers.get("Retry-After", "")
    seconds = float(retry_after) if retry_after.replace(".", "", 1).isdigit() else None
    raise ProblemError(answer.status, problem if isinstance(problem, dict) else {}, seconds)


def _passing(error: ProblemError) -> bool:
    """Tell whether the same request may succeed later without anything else being done."""
    retryable = error.problem.get("retryable", error.status in (429, 502, 503, 504))
    return bool(retryable) and error.code not in ("session-limit", "capacity")


def _waits() -> Iterator[float | None]:
    """Yield how long to wait after each try, None for the last."""
    for failures in range(1, _TRIES):
        yield _backoff(failures)
    yield None


def _backoff(failures: int) -> float:
    """Double with each failure, and spread, so that clients of a gateway that fell do not come back all at once."""
    if failures == 0:
        return 0.0
    longest = min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2.0**failures)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  # spread, not secrecy

"""One session: sends events, runs turns, and reads the log, reconnecting as needed."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from gateway.client import retrying
from gateway.client.answer import Answer, Json
from gateway.client.blocks import Block
from gateway.client.errors import ProblemError, SupersededError, problem_error
from gateway.client.http import Connection
from gateway.client.reading import HEARTBEAT_SECONDS, EndedError, read_blocks
from gateway.client.turns import TURN_SECONDS, TurnStream, turn_body

EARLIEST: Final = "earliest"
NOW: Final = "now"

_NEVER_AGAIN_MS: Final = 2**31 - 1
"""The `retry` of a stream that another one superseded."""

_UNSEEN: Final = frozenset({"gateway.open", "gateway.ping", "gateway.rotating"})
"""Stream-only events that are handled here and not passed to the caller."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the log, or a `gateway.gap` between two of them. `text` is its JSON as received."""

    id: str | None
    text: str
    value: Json = field(repr=False)

    @property
    def type(self) -> str:
        return str(self.value.get("type", ""))


class Session:
    """One session. `Client.open` and `Client.attach` return it; `async with` closes it at the end."""

    def __init__(self, connection: Connection, created: Json, credential: str | None = None) -> None:
        self.created = created
        """The session object in the response to the create; only `id` for an attached session."""
        self.id = str(created["id"])
        self._connection = connection
        self._path = f"/v1/sessions/{self.id}"
        self._headers = {"Authorization": f"Bearer {credential}"} if credential else {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def send(self, *events: Mapping[str, Any]) -> Json:
        """Send client events in order, all or none, and only once even if the connection fails.

        Return the receipt: `accepted`, `first`, `last`, `head`. Read after `head` to see all events that they cause.
        """
        return await self._connection.request(
            "POST", f"{self._path}/events", json=list(events), repeatable=True, headers=self._headers
        )

    async def look(self) -> Json:
        """Return the session object as it is now."""
        return await self._connection.request("GET", self._path, headers=self._headers)

    async def usage(self) -> Json:
        """Return the usage of the session so far, over all its calls: tokens by kind and `cost_usd`, which is None if a
        price is unknown."""
        return dict((await self.look()).get("usage") or {})

    async def turn(self, input: str | list[Json], **response: object) -> Answer:
        """Run a turn and return the whole answer. `response` goes into `response.create`."""
        return Answer.of(
            await self._connection.request(
                "POST",
                f"{self._path}/turns",
                json=turn_body(input, response),
                headers=self._headers,
                repeatable=True,
                seconds=TURN_SECONDS,
            )
        )

    def stream(self, input: str | list[Json], **response: object) -> TurnStream:
        """Run a turn and stream the answer: `async for piece in session.stream("Hello")`."""
        return TurnStream(
            self._connection,
            f"{self._path}/turns",
            turn_body(input, response),
            self._headers,
            self._heartbeat,
        )

    async def close(self) -> None:
        """End the session."""
        await self._connection.request("DELETE", self._path, headers=self._headers)

    @property
    def _heartbeat(self) -> float:
        return float(self.created.get("limits", {}).get("heartbeat_seconds", HEARTBEAT_SECONDS))

    async def events(
        self, after: str = EARLIEST, *, types: Iterable[str] = (), exclude: Iterable[str] = ()
    ) -> AsyncGenerator[Event]:
        """Yield the log's events after a cursor, in order and each once, reconnecting as needed.

        `after` is an event's ID, `EARLIEST` or `NOW`. `types` and `exclude` filter by type, and a `*` at the end matches any
        suffix; the gateway's own events always pass. A `gateway.gap` is yielded if events are lost. Ends after
        `gateway.closed`. Raises SupersededError, or ProblemError if the session can no longer be read. Close the
        generator (`contextlib.aclosing`) if you leave the loop early.
        """
        filters = {name: ",".join(words) for name, words in (("types", types), ("exclude", exclude)) if words}
        cursor, failures = after, 0
        while True:
            retry = retrying.FIRST_BACKOFF_SECONDS
            try:
                async with aclosing(self._connect(cursor, filters)) as blocks:
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
                            raise problem_error(int(event.value.get("status", 500)), event.value)
                        if event.id:
                            cursor = event.id
                        if event.type not in _UNSEEN:
                            yield event
                        if event.type == "gateway.closed":
                            return
            except ProblemError as error:
                if not retrying.passing(error):
                    raise
                retry = max(retry, error.retry_after or 0)
                failures += 1
            except (aiohttp.ClientError, TimeoutError):
                failures += 1
            except EndedError:
                return
            if retry * 1000 >= _NEVER_AGAIN_MS:
                raise SupersededError("another reader took this stream's place")
            await asyncio.sleep(max(retry if failures == 0 else 0, retrying.backoff(failures)))

    def _connect(self, cursor: str, filters: dict[str, str]) -> AsyncGenerator[Block]:
        headers, query = dict(self._headers), dict(filters)
        if cursor in (EARLIEST, NOW):
            query["after"] = cursor
        else:
            headers["Last-Event-ID"] = cursor
        url = f"{self._connection.url}{self._path}/events"
        return read_blocks(
            self._connection.http, "GET", url, headers=headers, heartbeat=self._heartbeat, params=query
        )

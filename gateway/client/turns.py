"""A turn whose answer is streamed. If the connection is lost, a new one continues the same turn."""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Final, Self

import aiohttp

from gateway.client.answer import Answer, Json
from gateway.client.errors import ProblemError, UnreachableError, problem_error
from gateway.client.http import Connection
from gateway.client.pieces import Pieces
from gateway.client.reading import HEARTBEAT_SECONDS, EndedError, read_blocks
from gateway.client.retrying import passing, waits

TURN_SECONDS: Final = 330.0
"""Longer than the gateway's own deadline for a turn, so that the gateway's error is reported, not a local time-out."""

_TEXT: Final = frozenset({"response.output_text.delta", "response.output_audio_transcript.delta"})


def turn_body(input: str | list[Json], response: Mapping[str, object], session: Json | None = None) -> Json:
    """Return the body of a turn."""
    return {"input": input, **response, **({"session": session} if session is not None else {})}


class TurnStream:
    """A streamed answer: iterate over its pieces of text, or over `events()`; then read `answer`.

    Use it with `async with` if you may leave the loop early: that closes the connection but does not end the turn.
    """

    def __init__(
        self,
        connection: Connection,
        path: str,
        body: Json,
        headers: Mapping[str, str] | None = None,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._connection = connection
        self._path = path
        self._body = body
        # One key for all connections: the gateway runs the turn once.
        self._headers = {**(headers or {}), "Idempotency-Key": secrets.token_hex(16)}
        self._heartbeat = heartbeat
        self._answer: Answer | None = None
        self._events = self._read()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. The turn continues in its session."""
        await self._events.aclose()

    @property
    def answer(self) -> Answer:
        """The whole answer, available after it has been read to its end."""
        if self._answer is None:
            raise RuntimeError("read the turn to its end first")
        return self._answer

    def events(self) -> AsyncGenerator[Json]:
        """Yield the turn's events, up to and including its `response.done`."""
        return self._events

    def __aiter__(self) -> AsyncGenerator[str]:
        return self._pieces()

    async def _pieces(self) -> AsyncGenerator[str]:
        pieces = Pieces()
        async with aclosing(self._events):
            async for event in self._events:
                if event["type"] in _TEXT and (piece := pieces.add(str(event["delta"]))):
                    yield piece
        if rest := pieces.rest():
            yield rest

    async def _read(self) -> AsyncGenerator[Json]:
        # A gateway may send the turn from its start again, so events already read are skipped.
        seen: set[str] = set()
        last: str | None = None
        pauses = waits()
        while True:
            headers = self._headers | ({"Last-Event-ID": last} if last else {})
            try:
                url = self._connection.url + self._path
                blocks = read_blocks(
                    self._connection.http,
                    "POST",
                    url,
                    headers=headers,
                    heartbeat=self._heartbeat,
                    json=self._body,
                )
                async with aclosing(blocks):
                    async for block in blocks:
                        if block.data is None or (block.id in seen and block.name == "message"):
                            continue
                        event = json.loads(block.data)
                        if event["type"] == "gateway.error":
                            raise problem_error(int(event.get("status", 500)), event)
                        if str(event["type"]).startswith("gateway."):
                            continue
                        if block.id:
                            last = block.id
                            seen.add(block.id)
                            pauses = waits()
                        if event["type"] == "response.done":
                            self._answer = Answer.of(event["response"])
                        yield event
                        if self._answer is not None:
                            return
                cause: Exception = ConnectionError("the stream ended before the answer")
            except ProblemError as error:
                pause = next(pauses)
                if pause is None or not passing(error):
                    raise
                await asyncio.sleep(max(pause, error.retry_after or 0))
                continue
            except (aiohttp.ClientError, TimeoutError) as error:
                cause = error
            except EndedError:
                cause = ConnectionError("the turn is gone")
            pause = next(pauses)
            if pause is None:
                raise UnreachableError(self._connection.url, cause) from cause
            await asyncio.sleep(pause)

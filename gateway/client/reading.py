"""One connection to an event stream: yields its blocks until it ends."""

from collections.abc import AsyncGenerator
from typing import Any, Final

import aiohttp

from gateway.client.blocks import Block, BlockParser
from gateway.client.errors import ProblemError, raise_for_problem

CONNECT_SECONDS: Final = 10.0
HEARTBEAT_SECONDS: Final = 15.0
SILENT_HEARTBEATS: Final = 2.5
"""A stream that is silent for this many heartbeats counts as lost, even if TCP reports no error."""


class EndedError(Exception):
    """The gateway answered 204: the log has ended and has been read completely."""


async def read_blocks(
    http: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    headers: dict[str, str],
    heartbeat: float = HEARTBEAT_SECONDS,
    **options: Any,  # aiohttp's
) -> AsyncGenerator[Block]:
    """Yield the blocks of one connection. Raises ProblemError, EndedError, aiohttp.ClientError or TimeoutError."""
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_SECONDS, sock_read=heartbeat * SILENT_HEARTBEATS
    )
    headers = {"Accept": "text/event-stream", **headers}
    async with http.request(method, url, headers=headers, timeout=timeout, **options) as answer:
        if answer.status == 204:
            raise EndedError
        await raise_for_problem(answer)
        if answer.content_type != "text/event-stream":
            detail = f"expected an event stream, got {answer.content_type}: is this the gateway?"
            raise ProblemError(answer.status, {"detail": detail})
        parser = BlockParser()
        async for chunk in answer.content.iter_any():
            for block in parser.feed(chunk):
                yield block

"""A Python client for the gateway: sessions, idempotent sends, event streams that resume automatically, turns.

It shares no code with the gateway, only the API (docs/api.md), so it works with any deployment. It needs only aiohttp, and
importing it loads no part of the gateway. It is documented in docs/python.md.

```python
async with Client("http://127.0.0.1:8080") as client:
    print((await client.ask("What is 6 times 7?")).text)
    async with await client.open() as session:
        async for piece in session.stream("Count to five."):
            print(piece, end="")
```

`gateway.client.sync` has the same without `async`.
"""

from gateway.client.answer import Answer, FunctionCall, Usage
from gateway.client.blocks import Block, BlockParser
from gateway.client.client import Client
from gateway.client.errors import (
    ClientError,
    CursorExpiredError,
    InvalidRequestError,
    ProblemError,
    RateLimitedError,
    SessionGoneError,
    SupersededError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
    UpstreamError,
)
from gateway.client.session import EARLIEST, NOW, Event, Session
from gateway.client.turns import TurnStream

__all__ = [
    "EARLIEST",
    "NOW",
    "Answer",
    "Block",
    "BlockParser",
    "Client",
    "ClientError",
    "CursorExpiredError",
    "Event",
    "FunctionCall",
    "InvalidRequestError",
    "ProblemError",
    "RateLimitedError",
    "Session",
    "SessionGoneError",
    "SupersededError",
    "TurnStream",
    "UnauthorizedError",
    "UnavailableError",
    "UnreachableError",
    "UpstreamError",
    "Usage",
]

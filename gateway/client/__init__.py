"""A Python client for the gateway: sessions, sends that never double, events that resume by themselves, turns.

Shares nothing with the gateway but the wire (docs/api.md), so it works against any deployment. Needs aiohttp and nothing
else: importing it loads no part of the gateway. docs/python.md is its page.

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
from gateway.client.http import Client
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

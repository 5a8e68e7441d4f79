"""Other servers that a test needs, on loopback in its own process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


@asynccontextmanager
async def serving(app: web.Application, **options: Any) -> AsyncIterator[str]:
    """Serve an application on a free port, and return its URL. `options` are those of `AppRunner`."""
    runner = web.AppRunner(app, **{"shutdown_timeout": 0.1} | options)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()

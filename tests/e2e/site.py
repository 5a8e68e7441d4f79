"""Another site: the files of a folder, served from an origin that is not the gateway's."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[str]:
    """Serve a folder's files from an origin that is not the gateway's."""
    app = web.Application()
    app.router.add_static("/", folder)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()

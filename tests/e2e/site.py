"""Another site: the files of a folder, served from an origin that is not the gateway's."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from tests.serving import serving


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[str]:
    """Serve a folder's files from an origin that is not the gateway's."""
    app = web.Application()
    app.router.add_static("/", folder)
    async with serving(app, shutdown_timeout=0) as url:
        yield url

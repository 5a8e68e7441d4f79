"""The console page and the browser client: files, served as they are under a policy that lets them load nothing else.

The files are read once when the application is made; where there are none, the paths do not exist.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from aiohttp import web

FOLDER: Final = Path(__file__).with_name("console")

_TYPES: Final[Mapping[str, str]] = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}

_INDEX: Final = "index.html"

_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def add_routes(app: web.Application, folder: Path = FOLDER) -> None:
    """Serve the folder's files under their names, its index as `/`."""
    for path in sorted(folder.glob("*")):
        if path.suffix in _TYPES:
            name = "" if path.name == _INDEX else path.name
            app.router.add_get(f"/{name}", _file(path.read_bytes(), _TYPES[path.suffix]))


def _file(body: bytes, content_type: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def serve(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_HEADERS)

    return serve

"""The console page, the browser client and the documentation, served as static files.

A content security policy restricts them to files of this gateway. The files are read once, when the application is built. A
missing file has no route.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from aiohttp import web

FOLDER: Final = Path(__file__).with_name("console")

PAGES: Final = ("api", "clients", "python", "javascript", "continuity", "attach")
"""Pages of the documentation for users of this gateway. They are inside an installed package, and at the top of a checkout."""

_PACKAGE: Final = Path(__file__).parents[1]
DOCS: Final = next(
    (path for path in (_PACKAGE / "docs", _PACKAGE.parent / "docs") if path.is_dir()), _PACKAGE
)

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


def add_routes(app: web.Application, folder: Path = FOLDER, docs: Path = DOCS) -> None:
    """Serve the folder's files by name, its index as `/`, and the documentation as plain text."""
    for path in sorted(folder.glob("*")):
        if path.suffix in _TYPES:
            name = "" if path.name == _INDEX else path.name
            app.router.add_get(f"/{name}", _file(path.read_bytes(), _TYPES[path.suffix]))
    for page in PAGES:
        path = docs / f"{page}.md"
        if path.is_file():
            app.router.add_get(f"/docs/{path.name}", _file(path.read_bytes(), "text/plain"))


def _file(body: bytes, content_type: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def serve(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_HEADERS)

    return serve

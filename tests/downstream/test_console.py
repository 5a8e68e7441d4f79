"""The console's files."""

import re
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.downstream.console import FOLDER, PAGES, add_routes


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [("/", "text/html; charset=utf-8", "<p>hi</p>"), ("/relay.js", "text/javascript; charset=utf-8", "1;")],
)
async def test_files_are_served_under_a_strict_policy(
    tmp_path: Path, path: str, kind: str, body: str
) -> None:
    """Each file has its name and type; the page may load its own files and nothing else."""
    (tmp_path / "index.html").write_text("<p>hi</p>")
    (tmp_path / "relay.js").write_text("1;")
    (tmp_path / "notes.txt").write_text("not served")
    app = web.Application()
    add_routes(app, tmp_path, tmp_path)
    async with TestClient(TestServer(app)) as client:
        answer = await client.get(path)
        other = await client.get("/notes.txt")

        assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
        assert await answer.text() == body
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert other.status == 404


def test_missing_folder_is_no_page(tmp_path: Path) -> None:
    """Without the folder of the console there are no routes for it."""
    app = web.Application()
    add_routes(app, tmp_path / "nothing", tmp_path)

    assert list(app.router.routes()) == []


async def test_documentation_is_served_as_text() -> None:
    """Each page that the console links to is served and opens in a browser instead of being downloaded."""
    app = web.Application()
    add_routes(app)
    async with TestClient(TestServer(app)) as client:
        linked = set(re.findall(r'href="(docs/[^"]+)"', (FOLDER / "index.html").read_text()))
        for path in linked:
            answer = await client.get(f"/{path}")

            assert (answer.status, answer.content_type) == (200, "text/plain")
            assert (await answer.text()).startswith("# ")

    assert linked == {f"docs/{page}.md" for page in PAGES}


def test_bundlers_copy_no_file_of_the_npm_package() -> None:
    """Vite copies each file in `new URL("…", import.meta.url)` beside the bundle; relay.js was copied in this way."""
    modules = [*FOLDER.glob("relay*.js"), *FOLDER.glob("*.mjs")]

    assert len(modules) == 4
    assert [
        path.name for path in modules if re.search(r"new URL\([^()]*import\.meta", path.read_text())
    ] == []

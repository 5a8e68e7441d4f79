"""The console's files."""

from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.downstream.console import add_routes


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [("/", "text/html; charset=utf-8", "<p>hi</p>"), ("/relay.js", "text/javascript; charset=utf-8", "1;")],
)
async def test_files_are_served_under_a_strict_policy(
    tmp_path: Path, path: str, kind: str, body: str
) -> None:
    """Each under its name and type; the page may load its own files and nothing else."""
    (tmp_path / "index.html").write_text("<p>hi</p>")
    (tmp_path / "relay.js").write_text("1;")
    (tmp_path / "notes.txt").write_text("not served")
    app = web.Application()
    add_routes(app, tmp_path)
    async with TestClient(TestServer(app)) as client:
        answer = await client.get(path)
        other = await client.get("/notes.txt")

        assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
        assert await answer.text() == body
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert other.status == 404


def test_missing_folder_is_no_page(tmp_path: Path) -> None:
    """Without files there are no routes."""
    app = web.Application()
    add_routes(app, tmp_path / "nothing")

    assert list(app.router.routes()) == []

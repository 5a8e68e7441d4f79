"""The browser client as an npm package: its types, a bundler, and OpenAI's Agents SDK over it in a real Chromium."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import Chromium
from tests.e2e.farend import FarEnd
from tests.e2e.house import Caller, Serve, eventually
from tests.e2e.npm import npm_program
from tests.e2e.site import site

pytestmark = [pytest.mark.slow, pytest.mark.needs("node")]


@pytest.fixture
def chromium(part_path: Callable[[str], str], tmp_path: Path) -> Iterator[Chromium]:
    """Run a browser for one test."""
    browser = Chromium(part_path("chromium"), tmp_path / "browser")
    try:
        yield browser
    finally:
        browser.stop()


def test_types_are_those_of_the_code() -> None:
    """The compiler accepts a strict program that uses the channel and the transport, and reports its mistakes."""
    npm_program("tsc", "--project", ".")


@pytest.mark.needs("chromium")
async def test_agents_sdk_holds_a_tool_round(
    serve: Serve, far_end: FarEnd, chromium: Chromium, tmp_path: Path
) -> None:
    """In a page of another origin an agent's tool is called, its output is sent, and the answer arrives."""
    page_folder = tmp_path / "page"
    page_folder.mkdir()
    npm_program(
        "esbuild",
        "agents.ts",
        "--bundle",
        "--format=esm",
        "--preserve-symlinks",
        "--log-level=error",
        f"--outfile={page_folder / 'agents.js'}",
    )
    (page_folder / "page.html").write_text(
        '<!doctype html><title>Agents</title><button>End</button><script type="module" src="agents.js"></script>'
    )
    async with site(page_folder) as origin:
        gateway = await serve(far_end, access={"cors_origins": [origin]})
        async with (
            chromium.page(f"{origin}/page.html#gateway={gateway.url}") as page,
            Caller(gateway.url) as caller,
        ):
            text = await page.until("told.text.includes('21') && told.text")
            told = await page.evaluate("told")
            sessions = f"{gateway.admin_url}/sessions"
            async with caller.http.get(sessions) as answer:
                [session] = (await answer.json())["data"]
            log = await caller.until(session["id"], "response.done", 2)
            await page.click("button")

            async def is_closed() -> bool:
                _, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")
                return bool(now["state"] == "closed")

            await eventually(is_closed)
            status = await page.until("told.status === 'disconnected' && told.status")
            complaints = list(page.complaints)

    assert text == "Here is what I found: celsius is 21."
    assert told["calls"] == ["Paris"]
    assert told["errors"] == []
    assert told["status"] == "connected"
    assert [block.type for block in log if block.type == "error"] == []
    assert status == "disconnected"
    assert [one for one in complaints if "favicon" not in one] == []

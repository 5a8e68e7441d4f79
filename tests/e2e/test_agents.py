"""The browser client as an npm package: its types, a bundler, and OpenAI's Agents SDK over it in a real Chromium."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import require_packages
from tests.e2e.browser import Chromium
from tests.e2e.caller import Caller, Serve
from tests.e2e.npm import NPM, npm_program
from tests.e2e.site import site
from tests.farend import FarEnd
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.needs("node")]


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

            await until(is_closed)
            status = await page.until("told.status === 'disconnected' && told.status")
            complaints = list(page.complaints)

    assert text == "Here is what I found: celsius is 21."
    assert told["calls"] == ["Paris"]
    assert told["errors"] == []
    assert told["status"] == "connected"
    assert [block.type for block in log if block.type == "error"] == []
    assert status == "disconnected"
    assert [one for one in complaints if "favicon" not in one] == []


async def test_agents_sdk_goes_on_after_a_lost_call(tmp_path: Path, part_path: Callable[[str], str]) -> None:
    """A response that was lost with its call does not hold back the next one, though it has no response.done."""
    require_packages(NPM)
    script = NPM / f".lost-{tmp_path.name}.mjs"
    script.write_text(
        """
        import { RelayTransport } from "realtime-gateway-relay/agents";
        const [sent, log] = [[], []];
        let [read, wake] = [0, () => {}];
        const tell = (event) => { log.push(event); wake(); };
        const json = (value) => new Response(JSON.stringify(value), { status: 200 });
        async function fetch(url, { method, body }) {
          const path = new URL(url).pathname;
          if (path.endsWith("/sessions")) return json({ id: "gws_1", stream_url: "/v1/sessions/gws_1/events?ticket=gwt_1" });
          if (method === "POST") {
            for (const event of [JSON.parse(body)].flat()) {
              sent.push(event.type);
              if (event.type === "session.update") tell({ type: "session.updated", session: {} });
            }
            return json({});
          }
          while (read === log.length) await new Promise((done) => { wake = done; });
          const events = log.slice(read).map((event) => ({ id: `a-${read += 1}`, event }));
          return json({ events, cursor: `a-${read}` });
        }
        const transport = new RelayTransport({ gateway: "http://gateway", fetch, transports: ["poll"] });
        await transport.connect({ apiKey: "key" });
        transport.sendEvent({ type: "response.create" });
        transport.sendEvent({ type: "response.create" });
        tell({ type: "gateway.recovered", response: "interrupted", unknown: [] });
        const ends = Date.now() + 2000;
        while (sent.length < 3 && Date.now() < ends) await new Promise((done) => setTimeout(done, 5));
        console.log(sent.join());
        process.exit();
        """
    )
    try:
        process = await asyncio.create_subprocess_exec(
            part_path("node"),
            *("--experimental-detect-module", "--no-warnings"),
            *("--preserve-symlinks", "--preserve-symlinks-main", str(script)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 20)
    finally:
        script.unlink()

    assert output.decode() == "session.update,response.create,response.create\n"

"""The examples in deploy/examples, run as they stand by the programs that they are written for.

Each is also run over a network that loses its first create and its first send, and cuts its reads: it must print every
word once, and the far end must have been asked once.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from gateway.app import Gateway
from tests.e2e.browser import Chromium
from tests.e2e.cuts import cutting
from tests.e2e.farend import FarEnd
from tests.e2e.house import Serve

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"
SECONDS = 60.0
WORDS = " ".join(f"word{number}" for number in range(60))
QUESTION = f"Please repeat after me: {WORDS}"

STREAMS = {
    "curl": ["./curl.sh"],
    "stdlib": [sys.executable, "stdlib.py"],
    "httpx-sse": [sys.executable, "httpx_sse_example.py"],
    "eventsource": ["node", "node-eventsource.mjs"],
}
NEEDS = {"curl": "curl", "eventsource": "node"}


def examples() -> list[object]:
    """Give the examples that ask one question, each with the programs it needs."""
    return [
        pytest.param(command, id=name, marks=[pytest.mark.needs(NEEDS[name])] if name in NEEDS else [])
        for name, command in STREAMS.items()
    ]


def require_packages(command: list[str]) -> None:
    """Skip where the npm packages of an example are missing, fail where all parts must be there."""
    if command[0] != "node" or (EXAMPLES / "node_modules").is_dir():
        return
    reason = f"the npm packages of {EXAMPLES / 'package.json'} are not installed, and this test runs them"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


async def run(*command: str, gateway: str, said: str = "") -> str:
    """Run an example to its end and give what it printed; fail if it fails."""
    environ = {"PATH": os.environ["PATH"], "GATEWAY": gateway, "NO_PROXY": "*"}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environ, cwd=EXAMPLES
    )
    try:
        async with asyncio.timeout(SECONDS):
            output, complaints = await process.communicate(said.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, (output.decode(), complaints.decode())
    return output.decode()


class Breaking:
    """Loses the answer to the first create and to the first send, and cuts the first reads."""

    def __init__(self, *reads: int) -> None:
        self._left = {"/v1/sessions": [0], "/events": [0], "read": list(reads)}
        self.cuts: list[str] = []

    def __call__(self, line: str) -> int | None:
        method, target, _ = line.split(" ")
        path = target.partition("?")[0]
        kind = "read" if method == "GET" else next((end for end in self._left if path.endswith(end)), "")
        if method == "DELETE" or not self._left.get(kind):
            return None
        self.cuts.append(kind)
        return self._left[kind].pop(0)


async def asked(far_end: FarEnd, gateway: Gateway) -> list[int]:
    """Give how many responses each of the gateway's calls was asked for, by what reached the far end."""
    known = [call["id"] for call in (await far_end._ask("GET", "/calls"))["data"]]
    counts = []
    for call_id in known:
        frames = [json.loads(frame) for frame in await far_end.received(call_id)]
        if any(WORDS in json.dumps(frame) for frame in frames):
            counts.append(sum(frame["type"] == "response.create" for frame in frames))
    return counts


@pytest.mark.parametrize("command", examples())
@pytest.mark.slow
async def test_an_example_prints_the_answer(gateway: Gateway, command: list[str]) -> None:
    """It asks, prints the answer as it comes, ends well and leaves no session."""
    require_packages(command)
    output = await run(*command, "What is 6 times 7?", gateway=gateway.url)

    assert output.strip() == "That is 42."


@pytest.mark.parametrize("command", examples())
@pytest.mark.slow
async def test_an_example_loses_and_doubles_nothing(
    serve: Serve, emulate: Callable[..., FarEnd], command: list[str]
) -> None:
    """With answers lost and reads cut, every word is printed once and the service is asked once, in one session."""
    require_packages(command)
    far_end = emulate("--tokens-per-second", "200")
    gateway = await serve(far_end)
    network = Breaking(1800, 3000)
    async with cutting(gateway.url, network) as url:
        output = await run(*command, QUESTION, gateway=url)

    assert output.split() == WORDS.split()
    assert sorted(network.cuts) == ["/events", "/v1/sessions", "read", "read"]
    assert await asked(far_end, gateway) == [1]
    assert (await far_end.about())["opened"] == 1


@pytest.mark.slow
@pytest.mark.needs("curl")
async def test_the_loop_answers_each_line_once(serve: Serve, emulate: Callable[..., FarEnd]) -> None:
    """Its turns share a history, quotes survive, and what the network loses is asked again and answered once."""
    far_end = emulate("--tokens-per-second", "0")
    gateway = await serve(far_end)
    lines = ["What is 6 times 7?", 'Please repeat after me: a "quoted" \\ word', "What is 1 plus 1?"]
    network = Breaking(0, 40)
    async with cutting(gateway.url, network) as url:
        output = await run("./loop.sh", gateway=url, said="".join(f"{line}\n" for line in lines))

    assert output.splitlines() == ["That is 42.", 'a "quoted" \\ word', "That is 2."]
    assert sorted(network.cuts) == ["/events", "/v1/sessions", "read", "read"]
    assert (await far_end.about())["opened"] == 1


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def chromium(part_path: Callable[[str], str], tmp_path: Path) -> Iterator[Chromium]:
    """Run a browser for one test."""
    browser = Chromium(part_path("chromium"), tmp_path / "browser")
    try:
        yield browser
    finally:
        browser.stop()


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[str]:
    """Serve a folder's files, as whoever owns the page does, from an origin that is not the gateway's."""
    app = web.Application()
    app.router.add_static("/", folder)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.slow
@pytest.mark.needs("chromium")
async def test_the_page_talks_from_another_origin(serve: Serve, far_end: FarEnd, chromium: Chromium) -> None:
    """Served elsewhere, with its origin listed, the page holds a turn through relay.js without a complaint."""
    async with site(EXAMPLES) as origin:
        gateway = await serve(far_end, access={"cors_origins": [origin]})
        async with chromium.page(f"{origin}/page.html#gateway={gateway.url}") as page:
            await page.until("!document.querySelector('button').disabled")
            await page.type("What is 6 times 7?")
            await page.press("Enter")
            text = await page.until("document.querySelector('[data-done=completed]')?.textContent")
            complaints = list(page.complaints)

    assert text == "That is 42."
    assert [one for one in complaints if "favicon" not in one] == []

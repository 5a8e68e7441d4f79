"""Clients from npm that run in Node: libwebrtc and libdatachannel, and the official ones over a WebSocket.

Their packages are listed in `interop/package.json` and installed by `npm install --no-package-lock --prefix
tests/emulator/interop`.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import require_packages
from tests.emulator.conftest import INTEROP

DEADLINE_SECONDS = 30.0

pytestmark = [pytest.mark.slow, pytest.mark.needs("node")]


@pytest.fixture(autouse=True)
def _packages() -> None:
    require_packages(INTEROP)


async def run(program: str, script: str, *arguments: str) -> Any:
    """Run a script of `interop/` and return the object it prints."""
    process = await asyncio.create_subprocess_exec(
        program,
        str(INTEROP / script),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, out + err
    return json.loads(out)


@pytest.mark.parametrize("setup", ["active", "passive"])
@pytest.mark.parametrize("stack", ["libwebrtc", "libdatachannel"])
async def test_binary_stack_holds_a_turn(
    stack: str, setup: str, emulate: Callable[..., Any], part_path: Callable[[str], str]
) -> None:
    """Each stack connects, sends and gets an answer, in both DTLS roles."""
    emulator = await emulate(setup=setup)
    heard = await run(part_path("node"), f"{stack}.mjs", emulator.base_url, "Repeat after me: grüß dich")

    assert heard["text"] == "grüß dich"
    assert heard["types"][0] == "session.created"


@pytest.mark.parametrize("attached", [False, True])
async def test_official_client_speaks_and_calls_a_function(
    attached: bool, emulate: Callable[..., Any], call: Callable[..., Any], part_path: Callable[[str], str]
) -> None:
    """The `openai` package runs a text turn and a tool turn, in its own session and on another client's call."""
    emulator = await emulate()
    arguments = [(await call(emulator)).call_id] if attached else []
    heard = await run(part_path("node"), "openai-ws.mjs", emulator.base_url, *arguments)

    assert heard["done"] == ["hello", {"city": "Oslo"}, "Here is what I found: sky is clear."]
    assert heard["types"][0] == ("session.updated" if attached else "session.created")


async def test_official_agent_speaks_and_runs_its_tool(
    emulate: Callable[..., Any], part_path: Callable[[str], str]
) -> None:
    """`@openai/agents-realtime` runs a text turn, and its own tool when the service calls it."""
    emulator = await emulate()
    heard = await run(part_path("node"), "agents-ws.mjs", emulator.base_url)

    assert heard["said"] == ["hello", "Here is what I found: sky is clear."]
    assert heard["called"] == [{"city": "Oslo"}]

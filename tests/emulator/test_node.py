"""Two binary stacks from npm, libwebrtc and libdatachannel, as clients of the emulator.

Their packages are listed in `interop/package.json`; `npm install --no-package-lock --prefix tests/emulator/interop` brings
them.
"""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

INTEROP = Path(__file__).parent / "interop"
DEADLINE_SECONDS = 30.0

pytestmark = [pytest.mark.slow, pytest.mark.needs("node")]


@pytest.fixture(autouse=True)
def _packages() -> None:
    """Skip where the packages are missing, fail where all parts must be there."""
    if (INTEROP / "node_modules").is_dir():
        return
    reason = f"the npm packages of {INTEROP / 'package.json'} are not installed, and this test runs them"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.mark.parametrize("setup", ["active", "passive"])
@pytest.mark.parametrize("stack", ["libwebrtc", "libdatachannel"])
async def test_binary_stack_holds_a_turn(
    stack: str, setup: str, emulate: Callable[..., Any], part_path: Callable[[str], str]
) -> None:
    """Each stack connects, speaks and is answered, whichever side begins DTLS."""
    emulator = await emulate(setup=setup)
    process = await asyncio.create_subprocess_exec(
        part_path("node"),
        str(INTEROP / f"{stack}.mjs"),
        emulator.base_url,
        "Repeat after me: grüß dich",
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
    heard = json.loads(out)
    assert heard["text"] == "grüß dich"
    assert heard["types"][0] == "session.created"

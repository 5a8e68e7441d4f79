"""The gateway with other WebRTC implementations: libwebrtc and libdatachannel from npm's binary packages.

They answer calls as the service does, in `tests/emulator/interop/*-farend.mjs`. The tests cover signalling, ICE,
DTLS, SCTP and the channel between aiortc, as tuned by the gateway, and other implementations.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.conftest import require_packages
from tests.e2e.caller import Caller, Json, Serve, answer_of, say
from tests.emulator.conftest import INTEROP

START_SECONDS = 30.0
STOP_SECONDS = 20.0
# Just below the 256 KiB that both stacks accept in one message; their answers repeat it in one message as well.
LARGE = " ".join(["x" * 40_000] * 5)
MANY = "word " * 300

pytestmark = [pytest.mark.slow, pytest.mark.needs("node")]


@pytest.fixture(autouse=True)
def _packages() -> None:
    """Skip the test if the packages are missing; fail in CI."""
    require_packages(INTEROP)


@asynccontextmanager
async def far_end(node: str, stack: str) -> AsyncIterator[str]:
    """Run a far end and return its base URL."""
    process = await asyncio.create_subprocess_exec(
        node, str(INTEROP / f"{stack}-farend.mjs"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        found = re.search(r"listening on (\S+)", line.decode())
        assert found is not None, line
        yield found[1]
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


@pytest.mark.parametrize("stack", ["libwebrtc", "libdatachannel"])
async def test_gateway_holds_turns_with_a_far_end_of_another_make(
    stack: str, serve: Serve, part_path: Callable[[str], str]
) -> None:
    """Short, long and large texts are returned complete, several calls run at once, and a closed session hangs its
    call up."""
    async with far_end(part_path("node"), stack) as base_url:
        gateway = await serve(base_url)
        async with Caller(gateway.url) as caller:
            sessions = await asyncio.gather(*(caller.open() for _ in range(3)))
            for text in ("grüß dich", MANY, LARGE):
                read = await asyncio.gather(*(hold(caller, session, text) for session in sessions))
                assert read == [text] * len(sessions)
            for session in sessions:
                _, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")
                assert (now["state"], now["call_id"]) == ("connected", session["call_id"])
                answer, _ = await caller.ask("DELETE", f"/v1/sessions/{session['id']}")
                assert answer.status == 204


async def hold(caller: Caller, session: Json, text: str) -> str:
    """Send a text and return the answer."""
    receipt = await caller.send(session["id"], *say(text))
    return answer_of(
        block.value for block in await caller.until(session["id"], "response.done", after=receipt["head"])
    )

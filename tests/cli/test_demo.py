"""`gateway demo` holds a conversation, keeps serving and leaves no process behind."""

import asyncio
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from gateway.client import Client
from tests.cli.conftest import Start


def alive(pid: int) -> bool:
    """Return whether a process runs."""
    return Path(f"/proc/{pid}").exists()


@pytest.mark.slow
async def test_demo_holds_a_conversation_and_keeps_serving(start: Start) -> None:
    """It prints questions, answers and commands to try, then accepts any caller, and Ctrl-C ends both processes."""
    demo = await start("demo", "--port", "0")
    await demo.says("Serving until Ctrl-C")
    url = (await demo.says(r"listening on (http://\S+)"))[1]
    child = int((await demo.says(r"in process (\d+)"))[1])
    async with Client(url) as client:
        session = await client.open()
        served = (await session.look())["state"]
    running = alive(child)
    await demo.tell(signal.SIGINT)
    status = await demo.ended()

    assert "That is 42." in demo.output
    assert re.search(r"POST /v1/turns\n  Spell relay\.\n200 text/plain\n  .*r", demo.output, re.IGNORECASE)
    assert re.search(r"curl -N \S+/v1/turns -d", demo.output)
    assert (served, running, status, alive(child)) == ("connected", True, 0, False)
    assert "Traceback" not in demo.output


@pytest.mark.slow
async def test_demo_takes_another_port_and_says_so(start: Start) -> None:
    """If its port is in use, the demo takes another one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        demo = await start("demo", "--port", str(port))
        said = await demo.says(rf"Port {port} is in use; using (\d+) instead")
        url = await demo.says(r"listening on http://127\.0\.0\.1:(\d+)")
        await demo.tell(signal.SIGTERM)
        status = await demo.ended()

    assert said[1] == url[1]
    assert status == 0


@pytest.mark.slow
async def test_demo_says_that_an_address_is_not_of_this_machine(start: Start) -> None:
    """The configured host is named, with what to do."""
    demo = await start("demo", GATEWAY_SERVER__HOST="192.0.2.1", GATEWAY_ACCESS__ANONYMOUS="true")

    assert await demo.ended() == 1
    assert "no port of 192.0.2.1 is free; set server.host" in demo.output
    assert "Traceback" not in demo.output


async def test_demo_honours_settings(start: Start) -> None:
    """If keys are configured, the demo creates and shows one. It uses the operator's address, log and other
    settings."""
    environ = {
        "GATEWAY_ACCESS__KEYS": '[{"name": "ada", "sha256": "%s"}]' % ("0" * 64),
        "GATEWAY_SERVER__HOST": "0.0.0.0",
        "GATEWAY_SERVER__PORT": "0",
        "GATEWAY_ADMIN__PORT": "0",
        "GATEWAY_LOG__FORMAT": "json",
        "GATEWAY_LOG__LEVEL": "info",
        "OPENAI_API_KEY": "sk-real",
    }
    demo = await start("demo", **environ)
    await demo.says("Serving until Ctrl-C")
    port = (await demo.says(r"listening on http://0\.0\.0\.0:(\d+)"))[1]
    key = (await demo.says(r"KEY=(gwp_\S+)"))[1]
    async with Client(f"http://127.0.0.1:{port}", key=key) as client:
        served = (await (await client.open()).look())["state"]
        async with client.http.get(f"{client.url}/v1/sessions", headers={"Authorization": "x"}) as stranger:
            refused = stranger.status
    await demo.tell(signal.SIGTERM)
    status = await demo.ended()

    assert (served, refused, status) == ("connected", 401, 0)
    assert '"event": "session_opened"' in demo.output
    assert "sk-real" not in demo.output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_emulator_never_outlives_the_demo(start: Start, number: signal.Signals) -> None:
    """When a demo is killed, its child process ends too."""
    demo = await start("demo", "--port", "0")
    child = int((await demo.says(r"in process (\d+)"))[1])
    await demo.tell(number)
    await demo.ended()
    async with asyncio.timeout(10):
        while alive(child):
            await asyncio.sleep(0.01)  # The kernel does this asynchronously, so the test polls.


@pytest.mark.slow
async def test_demo_ends_with_its_emulator(start: Start) -> None:
    """Without an upstream the demo reports the problem and fails."""
    demo = await start("demo", "--port", "0")
    child = int((await demo.says(r"in process (\d+)"))[1])
    await demo.says("Serving until Ctrl-C")
    signal_child(child)
    status = await demo.ended()
    await demo.says("The demo has ended")

    assert status == 1
    assert "Traceback" not in demo.output


def signal_child(pid: int) -> None:
    """Kill a process that this test started indirectly."""
    os.kill(pid, signal.SIGKILL)

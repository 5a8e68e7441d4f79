"""`gateway emulate` is the emulator, started as the contract says."""

import signal
import socket

import aiohttp

from tests.cli.conftest import Start


async def test_emulator_serves_until_told(start: Start) -> None:
    """It says where it listens, asks for a key, and ends well on SIGTERM."""
    running = await start("emulate", "--port", "0", "--setup", "passive", "--consent", "lenient")
    url = (await running.says(r"emulator listening on (http://127\.0\.0\.1:\d+/v1)"))[1]
    async with aiohttp.ClientSession() as http, http.post(f"{url}/realtime/calls") as answer:
        refused = answer.status
    await running.tell(signal.SIGTERM)

    assert refused == 401
    assert await running.ended() == 0


async def test_emulator_without_its_port_fails(start: Start) -> None:
    """One line, exit status 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        running = await start("emulate", "--port", str(taken.getsockname()[1]))
        status = await running.ended()
        await running.says("cannot listen on 127")

    assert status == 1
    assert "Traceback" not in running.output

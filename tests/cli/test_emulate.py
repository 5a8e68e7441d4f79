"""`gateway emulate` is the emulator, started as the contract says."""

import signal
import socket

import aiohttp
import pytest

from tests.cli.conftest import Start

pytestmark = pytest.mark.slow


async def test_emulator_serves_until_told(start: Start) -> None:
    """It prints its address, requires a key, and ends cleanly on SIGTERM."""
    manner = ("--setup", "passive", "--consent", "lenient", "--no-item-done-quirk")
    running = await start("emulate", "--port", "0", *manner)
    url = (await running.says(r"emulator listening on (http://127\.0\.0\.1:\d+/v1)"))[1]
    async with aiohttp.ClientSession() as http, http.post(f"{url}/realtime/calls") as answer:
        refused = answer.status
    await running.tell(signal.SIGTERM)

    assert refused == 401
    assert await running.ended() == 0


async def test_emulator_without_its_port_fails(start: Start) -> None:
    """The error is one line, and the exit status is 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        running = await start("emulate", "--port", str(taken.getsockname()[1]))
        status = await running.ended()
        await running.says("cannot listen on 127.*: Address already in use; choose another address")

    assert status == 1
    assert "Traceback" not in running.output


async def test_emulator_takes_faults_and_keys(start: Start) -> None:
    """A fault given as a flag applies to every call, and a key that is not listed is refused."""
    flags = ("--fault", "signal_status=503", "--fault", "signal_retry_after=7", "--api-key", "sk-right")
    running = await start("emulate", "--port", "0", *flags)
    url = (await running.says(r"emulator listening on (http://127\.0\.0\.1:\d+/v1)"))[1]
    wrong, right = ({"Authorization": f"Bearer {key}"} for key in ("sk-wrong", "sk-right"))
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{url}/realtime/client_secrets", headers=wrong, json={}) as answer:
            refused = answer.status
        async with http.post(f"{url}/realtime/calls", headers=right, data={"sdp": "v=0"}) as answer:
            failed, later = answer.status, answer.headers["Retry-After"]
    await running.tell(signal.SIGTERM)

    assert (refused, failed, later) == (401, 503, "7")
    assert await running.ended() == 0


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--fault", "premonition=1", "no fault is named 'premonition'"),
        ("--record", __file__, "not a line of a recording"),
        ("--mcp", __file__, "is not an MCP server"),
    ],
)
async def test_emulator_refuses_flags_that_mean_nothing(
    start: Start, flag: str, value: str, says: str
) -> None:
    """For an invalid value, the message names the flag and what was expected; exit status 2."""
    running = await start("emulate", "--port", "0", flag, value)
    status = await running.ended()
    await running.says(flag)
    await running.says(says)

    assert status == 2

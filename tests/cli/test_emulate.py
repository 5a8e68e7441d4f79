"""`gateway emulate` is the emulator, started as the contract says."""

import signal
import socket
from pathlib import Path

import aiohttp
import pytest
from typer.testing import CliRunner

from gateway.cli import command_line
from gateway.emulator import EmulatorConfig, Faults
from tests.cli.conftest import Start
from tests.emulator.caller import Caller


def configured(patch: pytest.MonkeyPatch, *flags: str) -> EmulatorConfig:
    """Return the configuration of an emulator with these flags, without running it."""
    served: list[EmulatorConfig] = []

    async def serve(config: EmulatorConfig) -> None:
        served.append(config)

    patch.setattr("gateway.cli.emulate.serve", serve)
    result = CliRunner().invoke(command_line(["emulate"]), ["emulate", *flags])
    assert result.exit_code == 0, result.output
    return served[0]


def test_no_flags_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without flags the configuration has the defaults of its class."""
    monkeypatch.delenv("EMULATOR_BRAIN_KEY", raising=False)

    assert configured(monkeypatch) == EmulatorConfig()


def test_flags_reach_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flag sets its member of the configuration, and so does the environment's key of the brain."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMULATOR_BRAIN_KEY", "b")
    for name in ("a.jsonl", "b.jsonl", "m.json"):
        (tmp_path / name).touch()
    flags = (
        "--host 127.0.0.2 --port 1 --tokens-per-second 2.5 --consent lenient --setup passive --max-session-seconds 9 "
        "--record a.jsonl --record b.jsonl --api-key k --fault deaf=true --fault burst=3 --brain-url http://127.0.0.1:1/v1 "
        "--brain-model m --no-item-done-quirk --hear one --hear two --mcp m.json"
    )

    assert configured(monkeypatch, *flags.split()) == EmulatorConfig(
        "127.0.0.2", 1, 2.5, "lenient", "passive", 9.0, (Path("a.jsonl"), Path("b.jsonl")), ("k",),
        Faults(deaf=True, burst=3), "http://127.0.0.1:1/v1", "m", "b", item_done_quirk=False,
        hear=("one", "two"), mcp_servers=(Path("m.json"),),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_emulator_serves_until_told(start: Start, number: signal.Signals) -> None:
    """It prints its address and nothing else, and ends cleanly on a signal, also with a call open."""
    flags = ("--setup", "passive", "--consent", "lenient", "--no-item-done-quirk")
    running = await start("emulate", "--port", "0", *flags)
    caller = Caller((await running.says(r"emulator listening on (http://127\.0\.0\.1:\d+/v1)"))[1])
    try:
        await caller.open()
        caller.say("Count to 1000")
        await caller.until("response.output_text.delta", 5)
        await running.tell(number)
        status = await running.ended()
    finally:
        await caller.close()

    assert status == 0
    assert running.output.count("\n") == 1


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--fault", "premonition=1", "no fault is named 'premonition'"),
        ("--fault", "deaf", "fault 'deaf'"),
        ("--record", __file__, "is not a line of a recording"),
        ("--mcp", __file__, "is not an MCP server"),
    ],
)
def test_emulator_refuses_a_value_that_means_nothing(flag: str, value: str, says: str) -> None:
    """The message names the fault or the file, and what was expected; the exit status is 2."""
    result = CliRunner().invoke(command_line(["emulate"]), ["emulate", "--port", "0", flag, value])

    assert result.exit_code == 2
    assert says in " ".join(result.output.replace("│", " ").split())

"""The emulator as its own process."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.emulator.__main__ import parse
from gateway.emulator.config import EmulatorConfig
from gateway.emulator.faults import Faults
from tests.emulator.caller import Caller

STARTS_WITHIN_SECONDS = 20.0
ROOT = Path(__file__).resolve().parents[2]
# Runs in a network namespace with only `lo`: starts an emulator and holds one turn with it.
ALONE = """
import asyncio
from gateway.emulator import Emulator, EmulatorConfig
from tests.emulator.caller import Caller

async def main():
    emulator = Emulator(EmulatorConfig(port=0))
    await emulator.start()
    caller = Caller(emulator.base_url)
    try:
        await caller.open()
        print(await caller.ask("ping"))
    finally:
        await caller.close()
        await emulator.close()

asyncio.run(main())
"""


@asynccontextmanager
async def running(*flags: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run an emulator and return its process and its base URL, read from the line it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.emulator", "--port", "0", *flags,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), STARTS_WITHIN_SECONDS)).decode()
        match = re.fullmatch(r"emulator listening on (http://127\.0\.0\.1:\d+/v1)\n", line)
        assert match is not None, line
        yield process, match[1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def test_no_flags_are_the_defaults() -> None:
    """Without flags the configuration has the defaults of its class."""
    assert parse([]) == EmulatorConfig()


def test_flags_reach_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flag sets its member of the configuration."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    flags = (
        "--host 127.0.0.2 --port 1 --tokens-per-second 2.5 --consent lenient --setup passive --max-session-seconds 9 "
        "--record a.jsonl --record b.jsonl --api-key k --fault deaf=true --fault burst=3 --brain-url http://127.0.0.1:1/v1 "
        "--brain-model m --no-item-done-quirk"
    )

    assert parse(flags.split()) == EmulatorConfig(
        "127.0.0.2", 1, 2.5, "lenient", "passive", 9.0, (Path("a.jsonl"), Path("b.jsonl")), ("k",),
        Faults(deaf=True, burst=3), "http://127.0.0.1:1/v1", "m", None, item_done_quirk=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "flags",
    [
        "--fault deaf",
        "--fault nonsense=1",
        "--setup x",
        "--port x",
        "--record no.jsonl",
        f"--record {__file__}",
    ],
)
def test_wrong_flag_is_bad_usage(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown flag or fault is named, and the exit status is 2."""
    with pytest.raises(SystemExit) as exit_:
        parse(flags.split())

    assert exit_.value.code == 2
    assert flags.rsplit(maxsplit=1)[-1].split("=", maxsplit=1)[0] in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_it_cleanly_with_calls_open(number: signal.Signals) -> None:
    """SIGTERM and SIGINT end the process with status 0 and an empty stderr, and its clients are disconnected."""
    async with running() as (process, base_url):
        caller = Caller(base_url)
        try:
            await caller.open()
            caller.say("Count to 1000")
            await caller.until("response.output_text.delta", 5)
            process.send_signal(number)
            out, err = await asyncio.wait_for(process.communicate(), 10)
            await asyncio.wait_for(caller.ended.wait(), 10)
        finally:
            await caller.close()

    assert (process.returncode, out, err) == (0, b"", b"")


@pytest.mark.slow
async def test_port_that_is_taken_is_named() -> None:
    """A second emulator on the same port reports it in one line and ends with status 1."""
    async with running() as (_, base_url):
        port = base_url.rsplit(":", 1)[1].removesuffix("/v1")
        second = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.emulator", "--port", port, stderr=asyncio.subprocess.PIPE
        )
        _, err = await asyncio.wait_for(second.communicate(), STARTS_WITHIN_SECONDS)

    assert second.returncode == 1
    assert port in err.decode()
    assert err.count(b"\n") == 1


@pytest.mark.slow
@pytest.mark.needs("unshare", "ip")
async def test_it_works_where_there_is_only_lo() -> None:
    """In a network namespace with only `lo` a call connects and a turn works."""
    script = f'ip link set lo up && exec "{sys.executable}" -c "$ALONE"'
    process = await asyncio.create_subprocess_exec(
        "unshare", "--net", "--map-root-user", "sh", "-c", script,
        env=os.environ | {"ALONE": ALONE, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 30)
    if b"unshare" in err or b"ip:" in err:
        pytest.skip(f"this machine allows no network namespace: {err.decode().strip()}")

    assert out == b"Pong!\n", err.decode()

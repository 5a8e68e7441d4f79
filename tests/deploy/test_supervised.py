"""The gateway under systemd's unit, and as the first process of a container."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.config import Config
from tests.deploy.conftest import ROOT
from tests.e2e.caller import Caller, say
from tests.farend import FarEnd

UNIT = ROOT / "deploy/systemd/realtime-gateway.service"
STATIC = {"PYTHONUNBUFFERED": "1", "OPENAI_API_KEY": "sk-offline", "GATEWAY_DRAIN__TIMEOUT_SECONDS": "5"}
# The highest exposure that systemd-analyze rates as good; an ordinary service has 9.6.
EXPOSURE = 2.0


def settings(name: str) -> list[str]:
    """Return the unit's values of a setting."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


# --- systemd ----------------------------------------------------------------------------------------------------------


@pytest.mark.needs("systemd-analyze")
def test_systemd_takes_the_unit(part_path: Callable[[str], str], tmp_path: Path) -> None:
    """Every setting is known and well formed; only the program's path differs here."""
    (tmp_path / UNIT.name).write_text(UNIT.read_text().replace("/opt/gateway/bin/gateway", sys.executable))
    done = subprocess.run(
        [part_path("systemd-analyze"), "verify", "--man=no", str(tmp_path / UNIT.name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert UNIT.name not in done.stderr


@pytest.mark.needs("systemd-analyze")
def test_systemd_finds_the_unit_well_hardened(part_path: Callable[[str], str]) -> None:
    """The exposure is rated low."""
    done = subprocess.run(
        [part_path("systemd-analyze"), "security", "--offline=yes", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    rated = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert rated is not None, done.stdout + done.stderr
    assert float(rated[1]) <= EXPOSURE


def test_the_unit_outlasts_the_drain() -> None:
    """SIGKILL comes after the drain and ten seconds to close."""
    assert float(settings("TimeoutStopSec")[0]) >= Config().drain.timeout_seconds + 10


def test_the_unit_brings_every_secret_to_its_setting() -> None:
    """Each loaded credential is the file of some setting, and those settings exist."""
    loaded = {value.partition(":")[0] for value in settings("LoadCredential")}
    environ = dict(value.split("=", 1) for value in settings("Environment"))
    given = {name: value for name, value in environ.items() if name.startswith("GATEWAY_")}

    assert {value.removeprefix("%d/") for value in given.values() if value.startswith("%d/")} == loaded
    for name in given:
        section, key = name.removeprefix("GATEWAY_").lower().split("__")
        assert key in type(getattr(Config(), section)).model_fields
    (reload,) = settings("ExecReload")
    assert "-HUP" in reload


# --- as the first process ---------------------------------------------------------------------------------------------


class First:
    """`gateway serve` as process 1 of a PID namespace."""

    def __init__(self, unshare: str, log: Path, upstream: str) -> None:
        self._log = log
        with log.open("wb") as output:
            self._outer = subprocess.Popen(
                [
                    *(unshare, "--pid", "--fork", "--mount-proc", "--kill-child"),
                    *(sys.executable, "-m", "gateway", "serve", "--port", "0", "--admin-port", "0"),
                    *("--upstream-url", upstream),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], **STATIC},
            )

    def said(self, pattern: str) -> str:
        deadline = time.monotonic() + 30
        while (match := re.search(pattern, self._log.read_text())) is None:
            assert self._outer.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)
        return match[1]

    @property
    def pid(self) -> int:
        """Return its process ID outside the namespace."""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text()
        return int(children.split()[0])

    def number_inside(self) -> str:
        """Return its process ID in the namespace."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return str(re.findall(r"^NSpid:.*\s(\d+)$", status, re.MULTILINE)[0])

    def children(self) -> list[str]:
        """The child processes of all its threads, zombies included."""
        threads = Path(f"/proc/{self.pid}/task").iterdir()
        return [child for thread in threads for child in (thread / "children").read_text().split()]

    def wait(self) -> int:
        return self._outer.wait(30)

    def end(self) -> None:
        if self._outer.poll() is None:
            self._outer.kill()
            self._outer.wait(10)


@pytest.fixture
def first(part_path: Callable[[str], str], emulator: FarEnd, tmp_path: Path) -> Iterator[First]:
    """Run the gateway as process 1, where this user may make a namespace."""
    unshare = part_path("unshare")
    may = subprocess.run(
        [unshare, "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False
    )
    if may.returncode:
        pytest.skip("this user may not make a PID namespace")
    started = First(unshare, tmp_path / "log", emulator.base_url)
    try:
        yield started
    finally:
        started.end()


@pytest.mark.slow
@pytest.mark.needs("unshare")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_process_drains_when_it_is_told(first: First, number: signal.Signals) -> None:
    """As process 1 it handles SIGTERM and SIGINT, which the kernel would otherwise drop: it notifies its sessions
    and exits with 0."""
    url = first.said(r"(?<!admin )listening on (http://[\w.:]+)")
    async with Caller(url) as caller:
        session = await caller.open()
        await caller.send(session["id"], *say("Hello"))
        reading = asyncio.create_task(caller.until(session["id"], "gateway.closed"))
        await caller.until(session["id"], "response.done")
        number_inside = first.number_inside()
        os.kill(first.pid, number)
        read = await reading
    status = await asyncio.to_thread(first.wait)

    assert number_inside == "1"
    assert status == 0
    assert [block.type for block in read[-2:]] == ["gateway.draining", "gateway.closed"]


@pytest.mark.slow
@pytest.mark.needs("unshare")
async def test_the_first_process_starts_no_others(first: First) -> None:
    """With a session open it has no child process, running or zombie."""
    url = first.said(r"(?<!admin )listening on (http://[\w.:]+)")
    async with Caller(url) as caller:
        session = await caller.open()
        await caller.send(session["id"], *say("Hello"))
        await caller.until(session["id"], "response.done")
        children = first.children()

    assert children == []

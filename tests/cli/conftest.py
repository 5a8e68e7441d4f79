"""Runs commands as a user does: in separate processes."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.farend import FarEnd
from tests.programs import Served

DEADLINE_SECONDS = 60.0


@dataclass
class Running:
    """A running command and its output so far, errors included."""

    process: Process
    output: str = ""
    _fresh: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self) -> None:
        """Collect output until it ends."""
        assert self.process.stdout is not None
        while chunk := await self.process.stdout.read(65536):
            self.output += chunk.decode()
            self._fresh.set()

    async def says(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches."""
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not (found := re.search(pattern, self.output)):
                    self._fresh.clear()
                    await self._fresh.wait()
        except TimeoutError:
            raise AssertionError(f"{pattern!r} is not in:\n{self.output}") from None
        return found

    async def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for the command to end and return its exit status."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.process.wait()


Start = Callable[..., Awaitable[Running]]


def clean_environment(**changes: str) -> dict[str, str]:
    """Return an environment without configuration, proxy or key."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GATEWAY_", "OPENAI_")) and "proxy" not in name.lower()
    }
    # Wide enough that no line of help or error is wrapped.
    return {**kept, "COLUMNS": "200", "PYTHONUNBUFFERED": "1", **changes}


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Return a function that starts `gateway …`; processes that still run at the end are killed."""
    running: list[tuple[Running, asyncio.Task[None]]] = []

    async def begin(
        *arguments: str, stdin: int = DEVNULL, module: str = "gateway", **environ: str
    ) -> Running:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            stdin=stdin,
            stdout=PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=clean_environment(**environ),
        )
        command = Running(process)
        running.append((command, asyncio.create_task(command.read())))
        return command

    yield begin
    for command, reading in running:
        if command.process.returncode is None:
            command.process.kill()
        await command.process.wait()
        await reading


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an emulator and yield its base URL."""
    log = tmp_path_factory.mktemp("emulator") / "log"
    with FarEnd(log, "--tokens-per-second", "200") as far_end:
        yield far_end.base_url


@pytest.fixture(scope="module")
def gateway(emulator: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a gateway in front of the emulator and yield its URL."""
    log = tmp_path_factory.mktemp("gateway") / "log"
    with Served(log, emulator, environ={"GATEWAY_DRAIN__TIMEOUT_SECONDS": "1"}) as program:
        yield program.url

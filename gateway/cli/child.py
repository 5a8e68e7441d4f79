"""A child process for the emulator, or for a gateway under measurement. It never outlives this process.

The emulator must not share an interpreter with the gateway whose CPU time and memory are measured.
"""

import asyncio
import ctypes
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

START_SECONDS: Final = 20.0
STOP_SECONDS: Final = 5.0

_PR_SET_PDEATHSIG: Final = 1
_KEPT_LINES: Final = 20

EMULATOR: Final = ("gateway", "emulate", "--port", "0")


class ChildError(Exception):
    """The process did not start, or ended unexpectedly."""


class Child:
    """A process `python -m …`, which runs inside an `async with` block.

    It is ready when each regular expression of `wanted` has matched a line of its output. Each has one group; `found`
    contains the groups.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        wanted: Sequence[str],
        environ: Mapping[str, str] | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self._start_seconds = start_seconds
        self._arguments = arguments
        self._wanted = [re.compile(pattern) for pattern in wanted]
        self._environ = environ
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._tail: list[str] = []
        self.found: list[str] = []

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *self._arguments,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environ,
            # Ctrl-C goes only to the parent, which ends the child itself.
            start_new_session=True,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )
        try:
            async with asyncio.timeout(self._start_seconds):
                await self._become_ready()
        except BaseException as error:
            await self.stop()
            if isinstance(error, TimeoutError):
                raise ChildError(self._complaint(f"was not ready after {self._start_seconds:g} s")) from None
            raise
        self._reading = asyncio.create_task(self._drain(), name=f"output of {self._arguments[0]}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def wait(self) -> None:
        """Wait until the process ends by itself, then raise ChildError."""
        assert self._process is not None, "not started"
        status = await self._process.wait()
        raise ChildError(self._complaint(f"ended with status {status}"))

    async def stop(self) -> None:
        """End the process: with SIGTERM, then with SIGKILL."""
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})

    async def _become_ready(self) -> None:
        for pattern in self._wanted:
            while not (match := pattern.search(await self._line())):
                pass
            self.found.append(match[1])

    async def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise ChildError(self._complaint(f"ended with status {await self._process.wait()}"))
        text = line.decode("utf-8", "replace").rstrip()
        # The last lines, for the error if the process ends.
        self._tail = [*self._tail[1 - _KEPT_LINES :], text]
        return text

    async def _drain(self) -> None:
        """Keep reading the output, so that the process never blocks on a full pipe."""
        with suppress(ChildError, ValueError):
            while True:
                await self._line()

    def _complaint(self, what: str) -> str:
        said = "".join(f"\n  {line}" for line in self._tail)
        return f"{self._arguments[0]} {what}{said}"


def die_with_parent() -> None:
    """Ask Linux to end this process with its parent, even if that one is killed (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGTERM)  # The parent ended before the prctl call.


def emulator(*flags: str) -> Child:
    """Return an emulator on a free port; its base URL is `found[0]`."""
    return Child((*EMULATOR, *flags), [r"emulator listening on (\S+)"])


def offline_environment() -> dict[str, str]:
    """Return this environment without the user's gateway configuration, and with a dummy key."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "OPENAI_"))}
    return {**kept, "OPENAI_API_KEY": "sk-offline", "NO_PROXY": "*", "no_proxy": "*"}

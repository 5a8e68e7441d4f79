"""A process of its own for the emulator, or for a gateway that is measured; it never outlives this one.

The emulator must not share an interpreter with the gateway: upstream/tuning.py changes the WebRTC library under both.
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

EMULATOR: Final = ("gateway.emulator", "--port", "0")


class ChildError(Exception):
    """The process did not start, or ended by itself."""


class Child:
    """`python -m …`, from `async with` to its end.

    It is ready when each of `wanted`, a regular expression with one group, has matched a line of its output; `found`
    holds the groups.
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
            # Ctrl-C is for the parent, which ends its child when it has no more use for it.
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
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
        """Wait until it ends by itself, and raise ChildError then."""
        assert self._process is not None, "not started"
        status = await self._process.wait()
        raise ChildError(self._complaint(f"ended with status {status}"))

    async def stop(self) -> None:
        """End it: politely, then not."""
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
        # The last words, in case it dies.
        self._tail = [*self._tail[1 - _KEPT_LINES :], text]
        return text

    async def _drain(self) -> None:
        """Read on, so that it never waits for us."""
        with suppress(ChildError, ValueError):
            while True:
                await self._line()

    def _complaint(self, what: str) -> str:
        said = "".join(f"\n  {line}" for line in self._tail)
        return f"{self._arguments[0]} {what}{said}"


def _die_with_parent() -> None:
    """Ask Linux to end this process with its parent, even if that one is killed (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGTERM)  # It died in between.


def emulator(*flags: str) -> Child:
    """Give an emulator on a free port; its base URL is `found[0]`."""
    return Child((*EMULATOR, *flags), [r"emulator listening on (\S+)"])


def offline_environment() -> dict[str, str]:
    """Give this environment without anybody's configuration and key."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "OPENAI_"))}
    return {**kept, "OPENAI_API_KEY": "sk-offline", "NO_PROXY": "*", "no_proxy": "*"}

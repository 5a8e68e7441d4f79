"""The project's programs as their own processes: started, read until they print their address, and always ended.

It uses no asyncio, so one process can serve tests on many loops. The output of a program goes into a file, so
nothing has to read along, and a test can search it afterwards.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Self

from gateway.cli.child import die_with_parent, offline_environment

# Importing WebRTC takes most of a second on an idle core, and several on a busy one.
START_SECONDS = 30.0
STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.02


class Program:
    """`python -m …`, or another `command`, in its own session, so that its child processes end with it.

    In a `with` block it is stopped at the end.
    """

    def __init__(
        self,
        log: Path,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        command: str | None = None,
    ) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*([command] if command else [sys.executable, "-m"]), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=offline_environment() | dict(environ or {}),
                start_new_session=True,
                # It ends even if the test run is killed.
                preexec_fn=die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  # it calls one C function
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def output(self) -> str:
        """Everything it has printed."""
        return self.log.read_text("utf-8", "replace")

    def said(self, pattern: str) -> str:
        """Wait until its output matches and return the first group."""
        deadline = time.monotonic() + START_SECONDS
        while (match := re.search(pattern, self.output)) is None:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.output}"
            assert time.monotonic() < deadline, f"it did not say {pattern!r}: {self.output}"
            time.sleep(_LOOK_SECONDS)
        return match[1]

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self._signal(signal.SIGKILL)
        self.process.wait(STOP_SECONDS)

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """End it with SIGTERM, after so many seconds with SIGKILL, and return its exit status."""
        self._signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            return self.process.wait(STOP_SECONDS)

    def _signal(self, number: int) -> None:
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


class Served(Program):
    """`gateway serve` on free ports, in front of an upstream."""

    def __init__(
        self, log: Path, upstream_url: str, *flags: str, environ: Mapping[str, str] | None = None
    ) -> None:
        ports = ("--port", "0", "--admin-port", "0")
        super().__init__(
            log, "gateway", "serve", *ports, "--upstream-url", upstream_url, *flags, environ=environ
        )

    @cached_property
    def url(self) -> str:
        """The URL for clients. Waits until the gateway listens."""
        return self.said(r"(?<!admin )listening on (http://[\w.:]+)")

    @cached_property
    def admin_url(self) -> str:
        """The URL for the operator. Waits until the gateway listens."""
        return self.said(r"admin listening on (http://[\w.:]+)")

"""`gateway serve --workers N`: several processes on one port, to use all cores of a machine.

Each worker is a normal node of the cluster. Workers share only Redis and the port, whose connections the kernel
distributes. They reach each other over unix sockets in a folder that only this user can open. This process starts the workers,
forwards signals, and restarts a worker that ended by itself.
"""

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from gateway.cli.child import die_with_parent
from gateway.cli.running import EXIT_FAILED, EXIT_USAGE, fail
from gateway.cli.systemd import beat, notify_supervisor
from gateway.config import Config
from gateway.relay.tasks import Tasks

FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 30.0
"""Maximum pause before a worker is restarted. The pause doubles each time, and is reset after a minute of running."""
LONGEST_FOLDER: Final = 80
"""Of the 107 bytes that the path of a unix socket may have; the rest is for the name of the socket."""
_STABLE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.1
_READY_SECONDS: Final = 120.0

log = structlog.stdlib.get_logger()


class Workers:
    """The worker processes, until all have ended."""

    def __init__(self, commands: Sequence[Sequence[str]]) -> None:
        self._commands = commands
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._ending = False
        self.usage_error = False
        """A worker ended because of its configuration, so the others would too."""

    async def run(self) -> None:
        """Keep all workers running until a signal."""
        await asyncio.gather(*(self._keep(number) for number in range(len(self._commands))))

    def tell(self, number: signal.Signals) -> None:
        """Forward a signal to every worker."""
        if number in (signal.SIGTERM, signal.SIGINT):
            self._ending = True
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_SECONDS
        while not self._ending:
            began = loop.time()
            process = await asyncio.create_subprocess_exec(
                *self._commands[number],
                # Workers get signals only from this process, and end with it even if it is killed.
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
            self._processes[number] = process
            if self._ending:
                self.tell(signal.SIGTERM)
            status = await process.wait()
            del self._processes[number]
            if self._ending:
                return
            if status == EXIT_USAGE:
                self.usage_error = True
                self.tell(signal.SIGTERM)
                return
            log.error(
                "worker_ended", worker=number, status=status, seconds=pause, remedy="it is started again"
            )
            pause = FIRST_PAUSE_SECONDS if loop.time() - began > _STABLE_SECONDS else pause
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE_SECONDS, pause * 2)


async def run_workers(config: Config, count: int, flags: Sequence[str]) -> int:
    """Serve with several processes until SIGTERM or SIGINT. Return the exit status."""
    if not config.cluster.url:
        fail("--workers: needs cluster.url, since the workers share sessions over Redis", EXIT_USAGE)
    if config.cluster.port:
        fail(
            "cluster.port: must be 0 with --workers, since each worker needs its own port for the others",
            EXIT_USAGE,
        )
    if not hasattr(socket, "SO_REUSEPORT"):
        fail("--workers: this system cannot share a port (SO_REUSEPORT)")
    with _held_port(config.server.host, config.server.port) as held, _private_folder() as folder:
        port = held.getsockname()[1]
        admin = config.admin.port
        commands = [
            [
                *(sys.executable, "-m", "gateway", "serve", *flags, "--shared-port", "--port", str(port)),
                *("--admin-port", str(admin + number if admin else 0)),
                *("--peer-socket", str(folder / f"worker-{number}.sock")),
            ]
            for number in range(count)
        ]
        workers = Workers(commands)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, workers.tell, number)
        log.info("workers_started", count=count, port=port)
        beside = Tasks(lambda error: log.error("relay_failed", session="", left_out=0, exc_info=error))
        _ = beside.run(_ready(config.server.host, port)), beside.run(beat())
        try:
            await workers.run()
        finally:
            await beside.end()
    return EXIT_USAGE if workers.usage_error else 0


def _held_port(host: str, port: int) -> socket.socket:
    """Bind the port without listening on it, so that port 0 is the same port for all workers."""
    held: socket.socket | None = None
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        held = socket.socket(found[0][0], socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(found[0][4])
    except OSError as error:
        if held is not None:
            held.close()
        remedy = "stop the program that listens there, or choose another address: --host, --port"
        fail(f"cannot listen on {host}:{port}: {error.strerror or error}; {remedy}", EXIT_FAILED)
    return held


@contextmanager
def _private_folder() -> Iterator[Path]:
    """Make a folder that only this user can open, and remove it at the end. systemd's RuntimeDirectory= is preferred."""
    base = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or None
    try:
        folder = tempfile.mkdtemp(prefix="gateway-", dir=base)
    except OSError as error:
        fail(f"--workers: cannot make a folder for the workers' sockets: {error}; set TMPDIR")
    if len(folder) > LONGEST_FOLDER:
        os.rmdir(folder)
        fail(f"--workers: the path {folder} is too long for a unix socket; set TMPDIR to a shorter one")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _ready(host: str, port: int) -> None:
    """Notify the supervisor once a worker accepts connections. All addresses of a machine are reached as one of them, too."""
    deadline = asyncio.get_running_loop().time() + _READY_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(host or "127.0.0.1", port)
            writer.close()
            notify_supervisor("READY=1")
            return
        await asyncio.sleep(_LOOK_SECONDS)

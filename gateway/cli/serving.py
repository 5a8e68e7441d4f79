"""Runs a gateway for a command: configuration, signals and shutdown."""

import asyncio
import errno
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from gateway.app import Gateway
from gateway.cli.running import EXIT_FAILED, EXIT_USAGE, fail, raise_file_limit
from gateway.cli.systemd import beat, notify_supervisor
from gateway.config import Config, ConfigError, load
from gateway.config.reading import ignored_names
from gateway.relay.tasks import Tasks
from gateway.telemetry import configure_logging

log = structlog.stdlib.get_logger()

_WRONG_HOST: Final = "set server.host, admin.host and cluster.host to addresses of this machine"
_REMEDIES: Final = {
    errno.EADDRINUSE: "stop the program that listens there, or choose another port: --port, --admin-port",
    errno.EACCES: "choose a port from 1024 on, or let systemd give the service CAP_NET_BIND_SERVICE",
}


@contextmanager
def config_errors_exit() -> Iterator[None]:
    """On a ConfigError, print its problems and exit with status 2."""
    try:
        yield
    except ConfigError as error:
        fail("\ngateway: ".join(error.problems), EXIT_USAGE)


def configure(file: Path | None, flags: dict[str, dict[str, object]]) -> Config:
    """Read the configuration and set up logging, or exit with status 2. Flags that are None were not given."""
    given = {
        section: {name: value for name, value in keys.items() if value is not None}
        for section, keys in flags.items()
    }
    with config_errors_exit():
        config = load(file, flags=given)
    configure_logging(config.log.format, config.log.level)
    for name, right in ignored_names(os.environ):
        log.warning("setting_ignored", variable=name, remedy=f"rename it to {right}")
    return config


async def serve_until_told(
    config: Config,
    ready: Callable[[Gateway], Coroutine[Any, Any, None]] | None = None,
    *,
    shared: bool = False,
    peer_socket: str = "",
) -> int:
    """Serve until SIGTERM, SIGINT or `POST /drain`, then drain. A second signal ends at once. Return the exit status.

    `ready` runs concurrently once the gateway listens, and is cancelled at the end. If it raises, the gateway ends and the
    exception is raised here. SIGHUP reloads the keys file.
    """
    told, hurried = asyncio.Event(), asyncio.Event()

    def on_signal(name: str) -> None:
        # Set the event first: nothing that reports the signal may run before it.
        (hurried if told.is_set() else told).set()
        log.info("signal_received", signal=name)

    loop = asyncio.get_running_loop()
    raise_file_limit()
    with config_errors_exit():
        gateway = Gateway(config, shared=shared, peer_socket=peer_socket)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    reload_asked = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, reload_asked.set)
    try:
        with config_errors_exit():
            if not await started_before(told, gateway.start()):
                return 0
    except OSError as error:
        remedy = getattr(error, "remedy", None) or _REMEDIES.get(error.errno or 0, _WRONG_HOST)
        log.error("not_listening", error=error.strerror or str(error), remedy=remedy)
        return EXIT_FAILED
    gateway.collector.start()
    notify_supervisor("READY=1")
    beside_serving = Tasks(gateway.task_failed)
    _ = beside_serving.run(beat(), "supervisor-beat")
    _ = beside_serving.repeat(lambda: _reload_when_asked(gateway, reload_asked), "reload")
    beside = asyncio.ensure_future(ready(gateway) if ready else asyncio.Event().wait())
    try:
        await _first(told.wait(), gateway.asked_to_drain.wait(), _watch(beside))
        told.set()
        notify_supervisor("STOPPING=1")
        beside.cancel()
        await _first(gateway.drain(), hurried.wait())
    finally:
        beside.cancel()
        await asyncio.wait({beside})
        await gateway.collector.close()
        await gateway.close()
        await beside_serving.end()
    return 0


async def started_before(told: asyncio.Event, start: Coroutine[Any, Any, None]) -> bool:
    """Start, which may wait a minute for Redis, unless a signal comes first. Return whether it is started."""
    starting = asyncio.create_task(start)
    waiting = asyncio.create_task(told.wait())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in {starting, waiting}:
            task.cancel()
        await asyncio.wait({starting, waiting})
    if starting.cancelled():
        return False
    starting.result()
    return True


async def _reload_when_asked(gateway: Gateway, asked: asyncio.Event) -> None:
    """Reload at each SIGHUP. Several during one reload cause one more."""
    while True:
        await asked.wait()
        asked.clear()
        await gateway.reload()


async def _watch(task: "asyncio.Future[Any]") -> None:  # Any: its result is not used
    """Wait for a task to fail, without cancelling it."""
    await asyncio.wait({task})
    task.result()
    await asyncio.Event().wait()  # It succeeded, so something else decides when to stop.


async def _first(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Wait until one is done, then cancel and await the others. Raises the exception of the first one."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()

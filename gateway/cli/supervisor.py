"""Tells the system's supervisor how the gateway stands (sd_notify(3)), where it was started with `Type=notify`.

Knows nothing of the gateway. Without NOTIFY_SOCKET every call does nothing.
"""

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

BEATS: Final = 2
"""Signs of life in the time allowed, as sd_watchdog_enabled(3) advises: one may come late."""


def notify_supervisor(state: str) -> None:
    """Send one state, such as READY=1. A supervisor that does not listen is none of the clients' business."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        # The loop must not wait for a supervisor that does not read.
        channel.setblocking(False)
        # A leading @ means a name in the abstract namespace.
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall(state.encode())


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """Give the time after which the supervisor takes this process for stuck; None where it does not watch it."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    with suppress(ValueError):
        return max(0, int(environ.get("WATCHDOG_USEC", ""))) / 1e6 or None
    return None


async def beat() -> None:
    """Say for as long as it is not cancelled that the event loop runs."""
    seconds = watchdog_seconds(os.environ, os.getpid())
    while seconds:
        notify_supervisor("WATCHDOG=1")
        await asyncio.sleep(seconds / BEATS)

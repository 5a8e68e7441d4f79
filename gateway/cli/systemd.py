"""Reports the gateway's state to systemd (sd_notify(3)), if it was started with `Type=notify`.

Knows nothing of the gateway. Without NOTIFY_SOCKET every call does nothing.
"""

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

BEATS: Final = 2
"""Keep-alive messages per watchdog time-out, as sd_watchdog_enabled(3) advises, so that one may be late."""


def notify_supervisor(state: str) -> None:
    """Send one state, such as READY=1. Errors are ignored, since they must not affect clients."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        # The event loop must not block on a supervisor that does not read.
        channel.setblocking(False)
        # A leading @ means a name in the abstract namespace.
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall(state.encode())


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """Return the watchdog time-out of this process; None if it has no watchdog."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    with suppress(ValueError):
        return max(0, int(environ.get("WATCHDOG_USEC", ""))) / 1e6 or None
    return None


async def beat() -> None:
    """Report that the event loop runs, until cancelled."""
    seconds = watchdog_seconds(os.environ, os.getpid())
    while seconds:
        notify_supervisor("WATCHDOG=1")
        await asyncio.sleep(seconds / BEATS)

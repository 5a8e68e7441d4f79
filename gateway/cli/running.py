"""Runs a command's coroutine, and ends the program with a sentence where it cannot go on."""

import asyncio
import os
import ssl
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, NoReturn, TypeVar

T = TypeVar("T")

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


def run(
    main: Coroutine[Any, Any, T],
) -> T:  # Any: what a coroutine yields and is sent is asyncio's own affair
    """Run on uvloop where it exists, which halves the cost of a small write."""
    factory = None
    with suppress(ImportError):
        import uvloop  # not on every platform

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def why(error: Exception) -> str:
    """Say in the system's words why an address could not be reached or had, without the library's details."""
    found = getattr(error, "os_error", error)  # where aiohttp keeps the cause
    if isinstance(found, OSError) and not isinstance(found, ssl.SSLError):
        # asyncio puts a sentence of its own in place of the system's; a resolver's number is negative.
        words = os.strerror(found.errno) if found.errno and found.errno > 0 else found.strerror
        return words or str(found) or "time-out"
    return str(found) or "time-out"


def fail(message: str, status: int = EXIT_FAILED) -> NoReturn:
    """Say what is wrong and exit."""
    print(f"gateway: {message}", file=sys.stderr)
    sys.exit(status)

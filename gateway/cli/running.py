"""Runs a command's coroutine, and ends the program with a sentence where it cannot go on."""

import asyncio
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


def fail(message: str, status: int = EXIT_FAILED) -> NoReturn:
    """Say what is wrong and exit."""
    print(f"gateway: {message}", file=sys.stderr)
    sys.exit(status)

"""Runs a command's coroutine, and exits with an error message if it cannot continue."""

import asyncio
import os
import resource
import ssl
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from gateway.client import ProblemError

T = TypeVar("T")

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


def run(
    main: Coroutine[Any, Any, T],
) -> T:  # Any: the values a coroutine yields and is sent are internal to asyncio
    """Run on uvloop if it is installed, which halves the cost of a small write."""
    factory = None
    with suppress(ImportError):
        import uvloop  # not available on every platform

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def raise_file_limit() -> None:
    """Allow as many open files as this user may have. Calls and connections need one each; the soft limit is often 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def full_url(address: str) -> str:
    """Return a URL as it was typed, with `http://` before it if it has no scheme. Exit if it is not one of HTTP."""
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    parts = None
    with suppress(ValueError):  # brackets of IPv6 that do not match
        parts = urlsplit(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        fail(
            f"--url: {address!r} is not an http:// or https:// URL, such as http://127.0.0.1:8080", EXIT_USAGE
        )
    return url


def why(error: Exception) -> str:
    """Return the system's message on why an address is not reachable or available, without the library's details."""
    found = getattr(error, "os_error", error)  # aiohttp's attribute for the cause
    if isinstance(found, OSError) and not isinstance(found, ssl.SSLError):
        # asyncio replaces the system's message with its own; the error numbers of the resolver are negative.
        words = os.strerror(found.errno) if found.errno and found.errno > 0 else found.strerror
        return words or str(found) or "time-out"
    return str(found) or "time-out"


def refused(error: "ProblemError") -> str:
    """Return an error that the gateway answered, in the words of the command line."""
    return "A valid API key is needed: set --key or GATEWAY_KEY." if error.status == 401 else str(error)


def fail(message: str, status: int = EXIT_FAILED) -> NoReturn:
    """Print an error message and exit."""
    print(f"gateway: {message}", file=sys.stderr)
    sys.exit(status)

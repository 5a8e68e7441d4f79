r"""Escapes of lone surrogates in JSON text. No I/O.

RFC 8259 (8.2) allows `\ud800` without its other half; msgspec refuses it, and UTF-8 cannot hold it. Here such escapes are
found, and replaced by the escape of U+FFFD, which has the same length, so that places in the text stay the same.

Work that may take longer than a few milliseconds is a generator that yields wherever something else may run.
"""

import re
from collections.abc import Generator
from typing import Final

STEP_ESCAPES: Final = 2048
"""Escapes looked at between two yields: about 1 ms."""

# The escape of a lone surrogate, in a text without escaped backslashes (see `without_backslashes`).
_HALVES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)

MENDED_EXACTLY: Final = 512
"""Escapes of surrogates that `mended_roughly` looks at, in 0.3 ms. The members that decide an event's way come before."""

_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F]")


def mended(data: bytes) -> Generator[None, None, bytes | None]:
    """Replace lone surrogates by U+FFFD, of the same length; None if there are none."""
    if b"\\u" not in data or b"\0" in data:
        return None
    clear = without_backslashes(data)
    text, count = bytearray(clear), 0
    found = yield from lone(clear, 0)
    while found >= 0:
        text[found : found + 6] = rb"\ufffd"
        count += 1
        if not count % STEP_ESCAPES:
            yield
        found = yield from lone(clear, found + 6)
    return bytes(text.replace(b"\0\0", rb"\\")) if count else None


def mended_roughly(data: bytes) -> Generator[None, None, bytes]:
    """Replace lone surrogates by U+FFFD, in a step of at most 1 ms for each 256 KiB. Behind the first hundreds of surrogates,
    paired ones are replaced as well, by any other character."""
    clear = bytearray(without_backslashes(data))
    yield
    clear = clear.replace(rb"\uD", rb"\ud")
    yield
    found, count = clear.find(rb"\ud"), 0
    while found >= 0 and count < MENDED_EXACTLY:
        count += 1
        if _HALVES.match(clear, found):
            clear[found : found + 6] = rb"\ufffd"
        elif _PAIR.match(clear, found):
            found += 6
        found = clear.find(rb"\ud", found + 6)
    if found >= 0:
        clear[found:] = clear[found:].replace(rb"\ud", rb"\u0")
        yield
    return bytes(clear.replace(b"\0\0", rb"\\"))


def lone(clear: bytes, begin: int) -> Generator[None, None, int]:
    """Return where the next escape of a lone surrogate begins in a text without escaped backslashes; -1 for none."""
    count, found = 0, clear.find(b"\\u", begin)
    while found >= 0 and not _HALVES.match(clear, found):
        count += 1
        if not count % STEP_ESCAPES:
            yield
        found = clear.find(b"\\u", found + 6)
    return found


def without_backslashes(data: bytes) -> bytes:
    """Replace escaped backslashes with NUL characters, which JSON cannot contain."""
    return data.replace(rb"\\", b"\0\0")

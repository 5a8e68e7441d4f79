"""JSON responses: compact, and ASCII only, since a string may contain an unpaired surrogate."""

import json
from collections.abc import Mapping
from typing import Final

import msgspec
from aiohttp import web
from multidict import CIMultiDict

SERVER_NAME: Final = "realtime-gateway"
"""Value of the Server header. aiohttp's default reveals its own version and Python's."""

_write: Final = msgspec.json.Encoder().encode
_COMPACT: Final = json.JSONEncoder(separators=(",", ":"))


def compact(value: object) -> bytes:
    """Encode a value as JSON."""
    try:
        written = _write(value)
    except (
        TypeError,
        ValueError,
        OverflowError,
    ):  # half a surrogate pair, or a number out of msgspec's range
        return _COMPACT.encode(value).encode("ascii")
    return written if written.isascii() else _COMPACT.encode(value).encode("ascii")


def plain(number: float) -> float:
    """Return 15.0 as 15, since some JSON parsers distinguish the two."""
    return int(number) if number == int(number) else number


def json_answer(
    value: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a response with a JSON value."""
    # Set the header directly: with `content_type`, aiohttp would parse the header again.
    sent = CIMultiDict({"Content-Type": "application/json"})
    if headers:
        sent.update(headers)
    return web.Response(body=compact(value), status=status, headers=sent)

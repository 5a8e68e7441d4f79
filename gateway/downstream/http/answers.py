"""JSON answers in one spelling: compact, and all ASCII, since a value may hold half of a surrogate pair."""

import json
from collections.abc import Mapping
from typing import Final

from aiohttp import web

SERVER_NAME: Final = "realtime-gateway"
"""What the Server header says; aiohttp would tell its own and Python's version."""

_COMPACT: Final = json.JSONEncoder(separators=(",", ":"))


def compact(value: object) -> bytes:
    """Encode a value."""
    return _COMPACT.encode(value).encode("ascii")


def json_answer(
    value: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Answer with a value."""
    return web.Response(body=compact(value), content_type="application/json", status=status, headers=headers)

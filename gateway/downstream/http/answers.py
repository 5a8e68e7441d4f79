"""JSON answers in one spelling: compact, and all ASCII, since a value may hold half of a surrogate pair."""

import json
from collections.abc import Mapping
from typing import Final

from aiohttp import web
from multidict import CIMultiDict

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
    # Setting the header itself rather than `content_type` saves aiohttp's reading it back.
    sent = CIMultiDict({"Content-Type": "application/json"})
    if headers:
        sent.update(headers)
    return web.Response(body=compact(value), status=status, headers=sent)

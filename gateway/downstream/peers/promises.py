"""Opens a session once, even if repeats of the request reach other nodes (docs/api.md, 2 Sending: retries).

The directory stores the promise: the session's ID, chosen before it is opened, and afterwards the response without its
credentials, which every node can create again.
"""

import json
import secrets
import string
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

from aiohttp import web

from gateway.downstream.http.answers import compact
from gateway.downstream.http.app_keys import SESSIONS, TELEMETRY
from gateway.errors import OverloadError
from gateway.relay.journal import Directory

_ALPHABET: Final = string.ascii_letters + string.digits
_ID_LENGTH: Final = 24

Promise = tuple[str, str, str]
"""Principal, scoped key, fingerprint."""


async def once_of_all(
    request: web.Request,
    directory: Directory,
    promise: Promise,
    open_as: Callable[[str], Awaitable[Mapping[str, object]]],
) -> tuple[dict[str, object], bool]:
    """Open a session under an ID, or return the object of the first request and True.

    Raises `idempotency-in-progress` while the first is still opening, `idempotency-key-reused` for another body.
    """
    principal, key, fingerprint = promise
    session_id = new_session_id()
    first = await directory.promise(principal, key, fingerprint, session_id)
    if first is not None and first.answer is None:
        raise still_opening()
    if first is not None and first.answer is not None:
        if request.app[SESSIONS].has(first.session_id) or await directory.locate(
            first.session_id, fresh=True
        ):
            request.app[TELEMETRY].idempotent_replay()
            return dict(json.loads(first.answer)), True
        # A key is kept only as long as its session, so this counts as a first request.
        await directory.break_promise(principal, key, first.session_id)
        return await once_of_all(request, directory, promise, open_as)
    try:
        opened = dict(await open_as(session_id))
    except BaseException:
        await directory.break_promise(principal, key, session_id)
        raise
    with suppress(OverloadError):
        # Without it a repeat is refused until the promise expires. The session is open all the same.
        await directory.keep_promise(principal, key, fingerprint, session_id, compact(opened))
    return opened, False


def new_session_id() -> str:
    """Return an ID for a session that is not open yet."""
    return "gws_" + "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))


def still_opening() -> OverloadError:
    """Return the error for a repeat that comes while the first request opens its session."""
    detail = "The first request with this Idempotency-Key is still running."
    return OverloadError("idempotency-in-progress", detail, retry_after=1)

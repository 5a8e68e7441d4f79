"""Doing a request once, however often it is sent (draft-ietf-httpapi-idempotency-key-header).

For requests that are answered when they are done. Turns, to which a repeat attaches while they run, do it themselves.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from aiohttp import web

from gateway.downstream.auth.access import ACCESS, Grant
from gateway.downstream.http.app_keys import CLOCK, PEER_REQUEST, TELEMETRY
from gateway.downstream.http.body import idempotency_key
from gateway.errors import CallerError, OverloadError
from gateway.relay.idempotency import IdempotencyKeys
from gateway.relay.promise import NO_PROMISE, Promise

Answer = TypeVar("Answer")

UNGUESSABLE: Final = 22
"""Characters: 128 random bits in base64."""

REPLAYED = {"Idempotency-Replayed": "true"}


def scoped_key(request: web.Request, grant: Grant) -> str | None:
    """Give the request's key as the table knows it: another caller or path may use the same word."""
    key = idempotency_key(request)
    return None if key is None else f"{grant.principal.name}\n{request.rel_url.raw_path}\n{key}"


def require_unguessable(request: web.Request, grant: Grant) -> None:
    """Check the key of a request that opens a session, whose repeat is answered with that session.

    Anonymous callers share one principal, so to them the key is what proves whose session it is. Where strangers may be
    among them it must be too long to guess. Raises `invalid-parameter`.
    """
    key = idempotency_key(request)
    rules = request.app[ACCESS].rules
    served_beyond_loopback = rules.anonymous is not None or rules.hosts or rules.trusted_proxies
    if key is not None and len(key) < UNGUESSABLE and grant.principal.anonymous and served_beyond_loopback:
        raise CallerError(
            "invalid-parameter",
            f"Without an API key the Idempotency-Key must have at least {UNGUESSABLE} random characters here, since a "
            "repeat is answered with the session's credentials.",
        )


def fingerprint(request: web.Request, body: bytes) -> bytes:
    """Give what a repeat must equal."""
    return hashlib.sha256(request.rel_url.raw_path.encode() + b"\n" + body).digest()


def promise_of(request: web.Request, grant: Grant, body: bytes) -> Promise:
    """Return what the session is to keep together with what the request does."""
    key = scoped_key(request, grant)
    peer_request = request.get(PEER_REQUEST)
    if key is None and peer_request is None:
        return NO_PROMISE
    return Promise(key, None if key is None else fingerprint(request, body).hex(), peer_request)


async def once(
    request: web.Request,
    table: IdempotencyKeys,
    key: str | None,
    body: bytes,
    act: Callable[[], Awaitable[Answer]],
    answer_type: type[Answer],
    size: Callable[[Answer], int] = lambda _: 0,
) -> tuple[Answer, bool]:
    """Act, or return the answer of the first time and True. What raises had no effect, and may be tried again.

    `size` tells what an answer takes to keep. Raises `idempotency-in-progress` while the first is still running, `idempotency-key-reused` for another body.
    """
    if key is None:
        return await act(), False
    slot, new = table.claim(key, fingerprint(request, body), request.app[CLOCK].monotonic())
    if not new:
        if not isinstance(slot.answer, answer_type):
            raise OverloadError(
                "idempotency-in-progress",
                "The first request with this Idempotency-Key is still running.",
                retry_after=1,
            )
        request.app[TELEMETRY].idempotent_replay()
        return slot.answer, True
    try:
        answer = await act()
    except BaseException:
        table.release(key)
        raise
    table.keep(key, answer, size(answer))
    return answer, False

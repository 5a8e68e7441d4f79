"""Runs a request once, even if it is repeated (draft-ietf-httpapi-idempotency-key-header).

For requests that are answered when they are done. Turns have their own code, since a repeat attaches to a running turn.
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
from gateway.relay.requests import NO_PROMISE, Promise

Answer = TypeVar("Answer")

UNGUESSABLE: Final = 22
"""Characters: 128 random bits in base64."""

REPLAYED = {"Idempotency-Replayed": "true"}


def scoped_key(request: web.Request, grant: Grant) -> str | None:
    """Return the request's key, scoped to its caller and path: others may use the same key."""
    key = idempotency_key(request)
    return None if key is None else f"{grant.principal.name}\n{request.rel_url.raw_path}\n{key}"


def require_unguessable(request: web.Request, grant: Grant) -> None:
    """Check the key of a request that opens a session. A repeat is answered with that session and its credentials.

    Anonymous callers share one principal, so the key alone proves that the session is theirs. If the gateway can be reached
    from other machines, it must be too long to guess. Raises `invalid-parameter`.
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
    """Return the hash that a repeat must have: of its path and body."""
    return hashlib.sha256(request.rel_url.raw_path.encode() + b"\n" + body).digest()


def promise_of(request: web.Request, grant: Grant, body: bytes) -> Promise:
    """Return the promise that the session stores together with the effect of the request."""
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
    """Call `act`, or return the answer of the first call and True. If `act` raises, the request can be repeated.

    `size` returns the memory that a stored answer takes. Raises `idempotency-in-progress` while the first call is running,
    `idempotency-key-reused` for another body.
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

"""The Idempotency-Key of a request, and what a repeat must have in common with it
(draft-ietf-httpapi-idempotency-key-header)."""

import hashlib
from typing import Final

from aiohttp import web

from gateway.downstream.auth.access import ACCESS, Grant
from gateway.downstream.http.app_keys import PEER_REQUEST, SESSIONS
from gateway.downstream.http.body import idempotency_key
from gateway.errors import CallerError, GatewayError
from gateway.relay.requests import NO_PROMISE, Promise

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


def still_known(request: web.Request, session_id: str) -> bool:
    """Return whether a session still exists. A stored answer is kept no longer than its session."""
    try:
        request.app[SESSIONS].find(session_id, None)
    except GatewayError:
        return False
    return True

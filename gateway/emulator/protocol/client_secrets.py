"""Ephemeral keys (`ek_…`): creation, look-up and expiry. No I/O.

It does not know HTTP, and gets the time as an argument. A secret carries a session's configuration and opens any number of
calls until it expires. Its expiry does not affect a running call (Realtime: client_secrets).
"""

from dataclasses import dataclass
from typing import Any

from gateway.emulator.protocol.catalog import SESSION
from gateway.emulator.protocol.ids import IdSource
from gateway.emulator.protocol.shapes import Number, Record, Word

DEFAULT_TTL_SECONDS = 600
_TTL = Number(10, 7200, whole=True)
# The oldest are dropped first; no test needs more than this at once.
MAX_SECRETS = 10_000
REQUEST = Record(
    {
        "expires_after": Record({"anchor": Word(("created_at",)), "seconds": _TTL}),
        "session": SESSION,
    }
)


@dataclass(frozen=True, slots=True)
class Identity:
    """The owner of a key. `session` is the configuration in an ephemeral key, None for a standard key."""

    key: str
    project: str
    session: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Secret:
    """One ephemeral key, and the project of the key it was made with."""

    value: str
    expires_at: int
    session: dict[str, Any]
    project: str


class ClientSecrets:
    """The secrets that were made."""

    def __init__(self, ids: IdSource) -> None:
        self._ids = ids
        self._secrets: dict[str, Secret] = {}

    def create(self, request: dict[str, Any], now: int, project: str) -> Secret:
        """Make a secret from a request body; raises Refusal if the body is invalid."""
        REQUEST.check(request, "")
        ttl = (request.get("expires_after") or {}).get("seconds", DEFAULT_TTL_SECONDS)
        secret = Secret(self._ids.secret(), now + ttl, request.get("session") or {}, project)
        self._secrets[secret.value] = secret
        while len(self._secrets) > MAX_SECRETS:
            del self._secrets[next(iter(self._secrets))]
        return secret

    def find(self, value: str) -> Secret | None:
        """Find a secret, expired or not."""
        return self._secrets.get(value)

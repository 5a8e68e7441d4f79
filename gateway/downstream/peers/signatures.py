"""Authenticates nodes: every request between them is signed with a key derived from the signing keys.

The signature covers the method, the path with its query, the request's id, the time and the hash of the body. So an
intercepted request cannot be changed, and it is invalid after five minutes. The client's headers (credentials, cursor,
Idempotency-Key) are forwarded unchanged and checked by the owner as usual.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

HEADER: Final = "X-Gateway-Peer"
REQUEST: Final = "X-Gateway-Request"
"""An id of the request that stays the same when a node forwards it again."""

MAX_AGE_SECONDS: Final = 300
"""Larger than the clock differences within a data centre."""

_WORD: Final = re.compile(r"(\d{1,12}) ([0-9a-f]{64}) ([0-9a-f]{64})\Z")


class PeerSignatures:
    """Signs and checks requests between nodes. The first key signs; all of them verify."""

    def __init__(self, signing_keys: Sequence[bytes]) -> None:
        self._keys = [hmac.digest(key, b"realtime-gateway.peer", "sha256") for key in signing_keys]

    def sign(self, method: str, path: str, request_id: str, body: bytes, now: float) -> str:
        """Return the header's value."""
        at, digest = str(int(now)), hashlib.sha256(body).hexdigest()
        return f"{at} {digest} {_mac(self._keys[0], method, path, request_id, at, digest)}"

    def body_digest(self, word: str, method: str, path: str, request_id: str, now: float) -> str | None:
        """Return the signed SHA-256 of the body, or None if the signature is invalid or too old."""
        found = _WORD.match(word)
        if found is None or abs(now - int(found[1])) > MAX_AGE_SECONDS:
            return None
        at, digest, mac = found.groups()
        matches = [
            hmac.compare_digest(mac, _mac(key, method, path, request_id, at, digest)) for key in self._keys
        ]
        return digest if any(matches) else None


def _mac(key: bytes, *words: str) -> str:
    return hmac.new(key, "\n".join(words).encode(), hashlib.sha256).hexdigest()

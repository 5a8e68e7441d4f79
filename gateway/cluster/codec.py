"""How values are stored in Redis: plain, or sealed with AES-256-GCM under a key derived from the signing keys.

The first key seals and every key can open, so signing keys rotate here as they do for tickets. A sealed value begins with a
byte that no plain value begins with, so `cluster.encrypt` may be switched while sessions run: both kinds are read.
The additional data binds a value to its session: a value copied to another key cannot be opened.
"""

import os
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_SEALED: Final = b"\xff"
"""Never the first byte of a plain value, which is UTF-8."""

_NONCE_BYTES: Final = 12


class UnreadableError(Exception):
    """A value was sealed under a key that is not configured here, or was tampered with."""


class Codec:
    """Encodes and decodes values."""

    def __init__(self, signing_keys: Sequence[bytes], *, encrypt: bool) -> None:
        self._keys = [AESGCM(derived(key, b"values")) for key in signing_keys]
        self._encrypt = encrypt

    def encode(self, value: bytes, session_id: str) -> bytes:
        """Return the value as stored in Redis."""
        if not self._encrypt:
            return value
        nonce = os.urandom(_NONCE_BYTES)
        return _SEALED + nonce + self._keys[0].encrypt(nonce, value, session_id.encode())

    def decode(self, value: bytes, session_id: str) -> bytes:
        """Return the plain value. Raises UnreadableError."""
        if value[:1] != _SEALED:
            return value
        nonce, sealed = value[1 : 1 + _NONCE_BYTES], value[1 + _NONCE_BYTES :]
        for key in self._keys:
            try:
                return key.decrypt(nonce, sealed, session_id.encode())
            except InvalidTag:
                continue
        raise UnreadableError("no configured signing key opens this value")


def derived(signing_key: bytes, purpose: bytes) -> bytes:
    """Derive a key of 32 bytes for one purpose."""
    return HKDF(SHA256(), 32, None, b"realtime-gateway.cluster." + purpose).derive(signing_key)

"""Client secrets and tickets: signed tokens that name one session.

They are signed rather than stored, so that every node with the key can check them. They contain no time: they expire with
their session. Signing is deterministic, so a repeated create returns the same tokens. The first key signs and all of them
verify, so that keys can be rotated. Knows no requests, and only the ids of sessions.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Final, Literal

from itsdangerous import BadSignature, Signer

Credential = Literal["secret", "ticket"]

SESSION_PREFIX: Final = "gws_"
PREFIXES: Final[dict[Credential, str]] = {"secret": "gwk_", "ticket": "gwt_"}


_WORD: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\.[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]\Z")
"""Session and signature. Checked first, since base64 decoders ignore some invalid input: the last of 43 characters has two
bits more than the 256 of the signature, so without this check four tokens would be valid for each signed one."""


class Signatures:
    """Signs and verifies both kinds. A token of one kind is never valid as the other: each has its own derived key."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """The first of `keys` signs; each has at least 32 bytes."""
        if not keys or min(map(len, keys)) < 32:
            raise ValueError("a signing key has at least 32 bytes")
        # itsdangerous signs with the last of its keys.
        newest_last = list(reversed(keys))
        self._signers = {
            kind: Signer(
                newest_last,
                salt=f"realtime-gateway.{kind}",
                key_derivation="hmac",
                digest_method=hashlib.sha256,
            )
            for kind in PREFIXES
        }

    def sign(self, kind: Credential, session_id: str) -> str:
        """Return the token for a session."""
        word = self._signers[kind].sign(session_id.removeprefix(SESSION_PREFIX))
        return PREFIXES[kind] + word.decode("ascii")

    def read(self, word: str) -> tuple[Credential, str] | None:
        """Return the kind and the session id of a valid credential, else None."""
        for kind, prefix in PREFIXES.items():
            if word.startswith(prefix):
                rest = word.removeprefix(prefix)
                if not _WORD.match(rest):
                    return None
                try:
                    session = self._signers[kind].unsign(rest)
                except BadSignature:
                    return None
                return kind, SESSION_PREFIX + session.decode("ascii")
        return None


def looks_signed(word: str) -> bool:
    """Return whether a string has the form of a client secret or a ticket."""
    return word.startswith(tuple(PREFIXES.values()))

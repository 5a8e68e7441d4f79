"""Client secrets and tickets: signed words that name one session.

Signed rather than stored, so that every node that has the key can check them. They hold no time: they end with their
session. Signing is deterministic, so a repeated create gives the same words. The first key signs, all of them verify,
which is how keys are rotated. Knows no request and no session but its id.
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
"""Session and signature. Checked first, since base64 decoders pass over what is not theirs: of 43 characters the last holds
two bits beyond the 256, so that without this four words would be as good as each one that was signed."""


class Signatures:
    """Makes and reads both kinds. A word of one kind is never valid as the other: each has its own derived key."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """`keys` begins with the one that signs; each has at least 32 bytes."""
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
        """Make the word for a session."""
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

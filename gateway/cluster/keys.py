"""Names of the keys in Redis, and ids of stream entries. No I/O.

The session id is a hash tag, so a session's three keys share a slot of Redis Cluster and one script may touch them all.
No other keys are ever changed together.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple


class EntryId(NamedTuple):
    """The id of a stream entry: `<fence>-<number>`."""

    fence: int
    number: int

    def __str__(self) -> str:
        return f"{self.fence}-{self.number}"

    @classmethod
    def parse(cls, word: bytes) -> "EntryId":
        """Read Redis's spelling. Raises ValueError."""
        fence, _, number = word.partition(b"-")
        return cls(int(fence), int(number))


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names under one prefix."""

    prefix: str

    def journal(self, session_id: str) -> str:
        """Return the stream of the session's records."""
        return f"{self.prefix}{{{session_id}}}:j"

    def meta(self, session_id: str) -> str:
        """Return the hash with the session's fence, owner and principal."""
        return f"{self.prefix}{{{session_id}}}:m"

    def snapshot(self, session_id: str) -> str:
        """Return the string with the session's state as of a journal id."""
        return f"{self.prefix}{{{session_id}}}:s"

    def session(self, session_id: str) -> tuple[str, str, str]:
        """Return the journal, meta and snapshot, in the order in which scripts take them."""
        return self.journal(session_id), self.meta(session_id), self.snapshot(session_id)

    @property
    def nodes(self) -> str:
        """The hash of all nodes' beats."""
        return f"{self.prefix}{{nodes}}"

    def owned(self, node: str) -> str:
        """Return the set of a node's session ids."""
        return f"{self.prefix}n:{node}"

    def principal(self, name: str) -> str:
        """Return the sorted set of a principal's sessions by time of creation."""
        return f"{self.prefix}k:{name}"

    def live(self, principal: str) -> str:
        """Return the sorted set of a principal's sessions that are not closed, by the time of their opening."""
        return f"{self.prefix}l:{principal}"

    def bucket(self, principal: str, what: str) -> str:
        """Return the string with the tokens of one of a principal's rate limits."""
        return f"{self.prefix}b:{principal}:{what}"

    def spent(self, principal: str, day: int) -> str:
        """Return the hash with what a principal has spent on a day, counted from 1970."""
        return f"{self.prefix}t:{principal}:{day}"

    def promise(self, principal: str, key: str) -> str:
        """Return the string kept under an Idempotency-Key of a request that opens a session."""
        return f"{self.prefix}i:{principal}:{hashlib.sha256(key.encode()).hexdigest()}"

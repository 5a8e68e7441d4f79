"""Which nodes are alive, as judged by one observer. No I/O, no clock.

Each node changes its beat eight times in a lease. An observer calls a node dead when its beat stood still for the whole lease on
the observer's own clock, and only if Redis answered the observer without a break in that time. So clocks are never
compared, and a Redis outage, restart or failover makes no node look dead: the time before it is not counted.

A wrong judgement costs a call, never a double answer: the fence (see `appends`) excludes a second owner.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

BREAK_SHARE: Final = 0.375
"""Of the lease: a longer pause between two answers of Redis is a break, and observations before it are discarded."""


@dataclass(slots=True)
class _Seen:
    beat: int
    since: float


class Liveness:
    """One observer's knowledge of the other nodes."""

    def __init__(self, lease_seconds: float) -> None:
        self._lease = lease_seconds
        self._break = lease_seconds * BREAK_SHARE
        self._seen: dict[str, _Seen] = {}
        self._answered_at: float | None = None
        self._answered_since = 0.0

    def broken(self) -> None:
        """Redis did not answer: discard earlier observations."""
        self._answered_at = None

    def answered(self, now: float, beats: Mapping[str, int]) -> None:
        """Redis answered with every node's beat."""
        if self._answered_at is None or now - self._answered_at > self._break:
            self._answered_since = now
        self._answered_at = now
        for node in set(self._seen) - set(beats):
            del self._seen[node]
        for node, beat in beats.items():
            seen = self._seen.get(node)
            if seen is None:
                self._seen[node] = _Seen(beat, now)
            elif seen.beat != beat:
                seen.beat, seen.since = beat, now

    def dead(self, now: float) -> list[str]:
        """Return the nodes whose beat stood still for the lease while Redis answered throughout."""
        if self._answered_at is None or now - self._answered_at > self._break:
            return []
        return [
            node
            for node, seen in self._seen.items()
            if now - max(seen.since, self._answered_since) >= self._lease
        ]

    def age(self, node: str, now: float) -> float | None:
        """Return how long a node's beat has not changed, None for an unknown node."""
        seen = self._seen.get(node)
        return None if seen is None else now - seen.since


def ranked(session_id: str, nodes: Iterable[str]) -> list[str]:
    """Order nodes for one session (rendezvous hashing): all observers of the same nodes agree, and each node comes first
    for its share of the sessions."""
    return sorted(nodes, key=lambda node: hashlib.blake2b(f"{session_id}\n{node}".encode()).digest())

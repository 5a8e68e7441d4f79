"""Checks that each node can reach the others, so that the log names the remedy before a client's request fails.

A node sends a signed request to every other node soon after it sees it for the first time, and regularly afterwards. A failure
is reported once, and so is the end of it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from aiohttp import hdrs

from gateway.downstream.peers.splice import BrokenError, UnreachableError
from gateway.relay.journal import Directory, Peer

HELLO: Final = "/internal/hello"
"""With a session's ID behind it: asks whether the node has that session."""

CHECK_SECONDS: Final = 2.0
"""Time between looks for nodes that have joined."""
AGAIN_CHECKS: Final = 15
"""A node that was reached is asked again after so many looks; one that was not, with every look."""
ANSWER_SECONDS: Final = 5.0
REPORTED_AFTER: Final = 2
"""Failures in a row. The first one may be that of a node that is just ending."""

CLOSED: Final = "open its port for connections between the nodes, or correct its cluster.host, cluster.port or cluster.advertise_url"
SIGNED_OTHERWISE: Final = "use the same access.signing_key_file on every node, and set their clocks by NTP"

Fetch = Callable[[Peer, str, str], Awaitable[tuple[int, bytes]]]


class ReachTelemetry(Protocol):
    """Receives what the checks find. Methods return at once and never raise."""

    def peer_unreachable(self, node: str, url: str, reason: str, remedy: str) -> None:
        """Another node cannot be reached, or does not accept this node's requests."""

    def peer_reachable(self, node: str, url: str) -> None:
        """A node that was reported can be reached again."""


class Reach:
    """The checks of one node."""

    def __init__(self, directory: Directory, fetch: Fetch, telemetry: ReachTelemetry) -> None:
        self._directory = directory
        self._fetch = fetch
        self._telemetry = telemetry
        self._looks = 0
        self._due: dict[str, int] = {}
        """The nodes that were reached, and the number of the look at which each is asked again."""
        self._failures: dict[str, int] = {}
        """How often in a row each other node was not reached."""

    async def keep(self) -> None:
        """Check repeatedly."""
        while True:
            await self.look()
            await asyncio.sleep(CHECK_SECONDS)

    async def look(self) -> None:
        """Ask the nodes whose turn it is."""
        self._looks += 1
        peers = {peer.node: peer for peer in self._directory.peers}
        for known in (self._due, self._failures):
            for node in set(known) - set(peers):
                del known[node]
        due = [peer for node, peer in peers.items() if self._due.get(node, 0) <= self._looks]
        await asyncio.gather(*map(self._ask, due))

    async def _ask(self, peer: Peer) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                status, _ = await self._fetch(peer, hdrs.METH_GET, HELLO)
        except (UnreachableError, BrokenError, TimeoutError) as error:
            self._failed(peer, str(error) or "no answer", CLOSED)
            return
        if status == 403:
            self._failed(peer, "it refuses this node's signature", SIGNED_OTHERWISE)
            return
        self._due[peer.node] = self._looks + AGAIN_CHECKS
        if self._failures.pop(peer.node, 0) >= REPORTED_AFTER:
            self._telemetry.peer_reachable(peer.node, peer.url)

    def _failed(self, peer: Peer, reason: str, remedy: str) -> None:
        self._due.pop(peer.node, None)
        failures = self._failures[peer.node] = self._failures.get(peer.node, 0) + 1
        if failures == REPORTED_AFTER:
            self._telemetry.peer_unreachable(peer.node, peer.url, reason, remedy)

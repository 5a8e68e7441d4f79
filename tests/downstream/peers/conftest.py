"""Two nodes of one cluster over a directory that a test controls."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import aiohttp
import pytest

from gateway.downstream.admin import Operator
from gateway.downstream.auth.access import Access, AccessRules
from gateway.downstream.auth.credentials import Signatures
from gateway.downstream.http.limits import ServerLimits
from gateway.downstream.http.listener import Binding
from gateway.downstream.peers.elsewhere import Elsewhere
from gateway.downstream.peers.signatures import PeerSignatures
from gateway.downstream.reading.sse import frame
from gateway.downstream.reading.stream import StreamLimits
from gateway.downstream.server import Server, ServerDependencies
from gateway.errors import OverloadError
from gateway.relay.hub import Hub
from gateway.relay.journal import Directory, Location, Peer, Promised
from gateway.relay.limits import RelayLimits
from tests.downstream.harness import SIGNING_KEY, FarEnd, Harness
from tests.facts import Facts


class Table:
    """A directory with scripted answers."""

    def __init__(self) -> None:
        self.owners: dict[str, str] = {}
        self.urls: dict[str, str] = {}
        self.asked = asyncio.Event()
        self.node = "n_here"
        self.sure = True
        self.peers: list[Peer] = []
        self.promises: dict[str, Promised] = {}
        self.refusal: OverloadError | None = None
        """Raised when the answer to a promise is to be stored."""
        self.kept: dict[str, bytes] = {}
        """The snapshots of sessions, newest first."""

    async def locate(self, session_id: str, *, fresh: bool = False) -> Location | None:
        self.asked.set()
        owner = self.owners.get(session_id)
        return None if owner is None else Location(owner, self.urls.get(owner), live=True)

    async def locate_all(self, session_ids: Sequence[str]) -> Sequence[Location | None]:
        return [await self.locate(one) for one in session_ids]

    async def promise(self, principal: str, key: str, fingerprint: str, session_id: str) -> Promised | None:
        first = self.promises.setdefault(key, Promised(session_id, None))
        return None if first.session_id == session_id else first

    async def keep_promise(
        self, principal: str, key: str, fingerprint: str, session_id: str, answer: bytes
    ) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.promises[key] = Promised(session_id, answer)

    async def break_promise(self, principal: str, key: str, session_id: str) -> None:
        if key in self.promises and self.promises[key].session_id == session_id:
            del self.promises[key]

    async def sessions_of(self, principal: str) -> list[str]:
        return [*self.owners, *self.kept]

    async def sessions_on(self, nodes: Sequence[str]) -> list[str]:
        return list(self.kept)

    async def created_at(self, session_ids: Sequence[str]) -> dict[str, int]:
        return {one: 1 for one in session_ids if one in self.kept}

    async def snapshots(self, session_ids: Sequence[str]) -> dict[str, bytes]:
        return {one: self.kept[one] for one in session_ids}


@dataclass
class Pair:
    """`owner` has the sessions; requests go to `edge`."""

    owner: Harness
    edge: Harness
    table: Table

    async def open(self) -> str:
        """Open a session on the owner, known to both."""
        created = await self.owner.open()
        session_id = str(created["id"])
        self.table.owners[session_id] = "owner"
        return session_id


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """Return two nodes without keys, which also listen on unix sockets for each other."""
    table = Table()
    harnesses = [await _node(table, tmp_path / name) for name in ("owner", "edge")]
    table.urls = {"owner": harnesses[0].server.peers_url, "edge": harnesses[1].server.peers_url}
    yield Pair(harnesses[0], harnesses[1], table)
    for harness in harnesses:
        await harness.http.close()
        await harness.server.close()
        await harness.hub.close()


async def _node(table: Table, socket: Path) -> Harness:
    facts, far_end = Facts(), FarEnd()
    telemetry = facts.port
    hub = Hub(far_end, frame, telemetry, replace(RelayLimits(), parting_seconds=0.05))
    access = Access(AccessRules(), Signatures([SIGNING_KEY]), hub._clock.monotonic)
    peers = PeerSignatures([SIGNING_KEY])
    elsewhere = Elsewhere(cast("Directory", table), peers, facts, patience_seconds=1.0)
    operator = Operator(metrics=lambda _: (b"", "text/plain"), drain=lambda: None)
    # A client that closes its side counts as gone, so tests of that need not wait.
    limits = ServerLimits(half_close_seconds=0)
    parts = ServerDependencies(
        hub, telemetry, access, operator, StreamLimits(15.0, 300.0), limits, elsewhere=elsewhere
    )
    server = Server(parts)
    await server.listen_to_peers(Binding(unix_path=str(socket)))
    await server.start(Binding(), Binding())
    http = aiohttp.ClientSession(skip_auto_headers=["Content-Type"])
    return Harness(parts, server, hub, access, far_end, facts, http)

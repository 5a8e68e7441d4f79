"""A node without a gateway, and a session without a call, for tests of the cluster package."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import cast

from gateway.cluster.beat import Status
from gateway.cluster.journal import RedisJournal
from gateway.cluster.node import ClusterNode
from gateway.cluster.settings import ClusterSettings, Target
from gateway.relay.events.records import Accepted, Record, ServerEvent
from gateway.relay.requests import Principal

SIGNING_KEY = b"0123456789abcdef0123456789abcdef"


class Told:
    """Telemetry that records what it is told."""

    def __init__(self) -> None:
        self.repairs: list[str] = []
        self.takeovers: list[str] = []
        self.fences = 0
        self.unsettled = 0
        self.ups: list[bool] = []
        self.failures: list[BaseException] = []
        self.lost: list[tuple[str, int]] = []
        self.unreadable: list[tuple[str, int]] = []

    def journal_settled(self, seconds: float) -> None: ...
    def cluster_nodes(self, counts: Mapping[str, int]) -> None: ...
    def forwarded(self, kind: str, outcome: str, seconds: float) -> None: ...
    def handed_over(self, session: str, outcome: str) -> None: ...
    def node_lost(self, node: str, sessions: int, *, draining: bool) -> None:
        self.lost.append((node, sessions))

    def sessions_unreadable(self, node: str, sessions: int) -> None:
        self.unreadable.append((node, sessions))

    def journal_unsettled(self, size: int) -> None:
        self.unsettled = size

    def taken_over(self, session: str, outcome: str, seconds: float) -> None:
        self.takeovers.append(outcome)

    def journal_repaired(self, session: str, kind: str) -> None:
        self.repairs.append(kind)

    def fenced(self, session: str) -> None:
        self.fences += 1

    def relay_failed(self, session: str, error: BaseException) -> None:
        self.failures.append(error)

    def redis_up(self, up: bool, reason: str) -> None:
        self.ups.append(up)


class FakeSession:
    """A session that emits events and accepts batches; its dump is the number of batches it accepted."""

    def __init__(self, journal: RedisJournal, sequence: int = 0, accepted: int = 0) -> None:
        self.journal = journal
        self.log: list[ServerEvent] = []
        self.sequence = sequence
        self.accepted = accepted
        self.was_fenced = False
        self.shown = sequence
        journal.bind(self)

    def settled(self) -> None:
        assert self.journal.settled >= self.shown, "what was shown is not taken back"
        self.shown = self.journal.settled

    def fenced(self) -> None:
        self.was_fenced = True

    def dump(self, version: int) -> bytes:
        return b"%d %d" % (self.accepted, self.sequence)

    def kept(self, after: int) -> Iterable[Record]:
        return [event for event in self.log if event.sequence > after]

    def say(self, text: str) -> None:
        self.sequence += 1
        event = ServerEvent(self.sequence, 0, "said", text)
        self.log.append(event)
        self.journal.add(event)

    async def accept(self) -> None:
        self.accepted += 1
        self.journal.add(Accepted(self.accepted, ["{}"]))
        await self.journal.flushed()


@asynccontextmanager
async def node(url: str, **settings: object) -> AsyncIterator[ClusterNode]:
    """Run a node that reads these versions (`reads`, (1,)); its telemetry is a `Told`."""
    told = Told()
    reads = cast(tuple[int, ...], settings.pop("reads", (1,)))
    made = ClusterNode(
        ClusterSettings(Target.parse(url), **settings),  # type: ignore[arg-type]  # a test's keywords
        [SIGNING_KEY],
        told,
        lambda: Status(
            "http://127.0.0.1:1",
            "test",
            "serving",
            0,
            100,
            reads,
            str(settings.get("peer_socket", "")),
        ),
        lambda: "ep0" + str(len(told.ups) % 10),
    )
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def told(of: ClusterNode) -> Told:
    """Return a node's telemetry."""
    found = of._telemetry
    assert isinstance(found, Told)
    return found


async def opened(on: ClusterNode, session_id: str, principal: str = "one") -> FakeSession:
    """Open a session on a node."""
    await on.directory.reserve(session_id, Principal(principal))
    journal = on.directory.journal(session_id, principal, "ep00")
    assert isinstance(journal, RedisJournal)
    session = FakeSession(journal)
    session.say("greeting")
    await on.directory.create(session_id, journal)
    return session

"""A node's heartbeat, eight times in a lease, and what it sees of the others.

One hash holds a field for each node. Writing the own field and reading all of them is two commands a beat, however many
sessions there are. Time is CLOCK_BOOTTIME, which also counts while the machine is suspended (PEP 418): a node that slept
must know that its lease is over.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.cluster.connections import AwayError, Connections, DeniedError
from gateway.cluster.keys import Keys
from gateway.cluster.liveness import Liveness
from gateway.cluster.resp import ReplyError
from gateway.relay.tasks import Tasks

BEAT_SHARE: Final = 0.125
"""Of the lease: how often a node beats."""

SURE_SHARE: Final = 0.75
"""Of the lease: an owner whose last answered beat was sent longer ago does not send, dial or acknowledge, because it may
be replaced soon."""

LATE_BEATS: Final = 5
FORGOTTEN_SECONDS: Final = 30.0
"""How long owners may take to write their sessions again after Redis has lost its data."""


def boottime() -> float:
    """Return seconds since the machine started, suspension included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True, slots=True)
class Status:
    """What a node publishes about itself."""

    url: str
    version: str
    state: str
    """`serving` or `draining`."""
    sessions: int
    room: int
    reads: tuple[int, ...]
    """Versions of records and snapshots that it can read."""
    socket: str = ""
    """Path of the unix socket on which it also listens, for nodes whose sockets are in the same folder."""


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A node as another one sees it. `age` is the time since its beat changed, in seconds."""

    node: str
    status: Status
    age: float
    late: bool
    dead: bool

    @property
    def state(self) -> str:
        """`live`, `draining`, `unsure` (its beat is late) or `lost`."""
        if self.dead:
            return "lost"
        if self.status.state == "draining":
            return "draining"
        return "unsure" if self.late else "live"


class Beat:
    """Beats from `start` to `close`."""

    def __init__(
        self,
        node: str,
        keys: Keys,
        connections: Connections,
        status: Callable[[], Status],
        lease_seconds: float,
        problem: Callable[[str], None],
        failed: Callable[[BaseException], None],
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        """`problem` is called with the reason why Redis did not answer a beat, `failed` with an exception that nobody
        expected, `lost` if Redis has lost its data."""
        self.node = node
        self._keys = keys
        self._connections = connections
        self._status = status
        self._problem = problem
        self._lost = lost
        self._lease = lease_seconds
        self.interval = lease_seconds * BEAT_SHARE
        """Seconds between beats."""
        self._liveness = Liveness(lease_seconds)
        self._count = 0
        self._answered_sent_at = self._forgotten_at = float("-inf")
        self._seen: dict[str, Status] = {}
        self._beats: Mapping[str, int] = {}
        self._tasks = Tasks(failed)
        self.answered = False
        """Redis answered the last beat."""
        self.beaten = asyncio.Event()
        """Set after every answered beat; the waiter clears it."""

    async def once(self) -> None:
        """Write a beat and read the others'. Raises AwayError, DeniedError or ReplyError."""
        self._count += 1
        sent_at = boottime()
        own = json.dumps({"beat": self._count, **_members(self._status())}, separators=(",", ":"))
        replies = await self._connections.pipeline(
            [("HSET", self._keys.nodes, self.node, own), ("HGETALL", self._keys.nodes)]
        )
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise reply
        found = {node.decode(): _parsed(value) for node, value in _pairs(replies[1])}
        beats = {node: seen[0] for node, seen in found.items() if seen is not None}
        self._beats = beats
        now = boottime()
        if replies[0] and self._seen:  # The field is new, although this is not the first beat.
            self._forgotten_at = now
            self._lost()
        self._liveness.answered(now, {node: beat for node, beat in beats.items() if node != self.node})
        self._seen = {node: seen[1] for node, seen in found.items() if seen is not None}
        self._answered_sent_at = sent_at
        self.answered = True
        self.beaten.set()

    def broken(self) -> None:
        """The Redis that answered so far is not the primary any more: what it said says nothing about the other nodes."""
        self.answered = False
        self._answered_sent_at = float("-inf")
        self._liveness.broken()

    def start(self) -> None:
        """Start the periodic beat."""
        _ = self._tasks.repeat(self._beat_for_ever, "cluster-beat")

    async def close(self) -> None:
        """Stop beating, and remove the node from the list, so that no other node waits for it."""
        await self._tasks.end()

    @property
    def sure(self) -> bool:
        """No other node can consider this one dead."""
        return boottime() - self._answered_sent_at <= self._lease * SURE_SHARE

    async def forgotten(self) -> bool:
        """Return whether Redis has lost its data a moment ago, so that a missing session may be one that its owner is about
        to write again. Raises AwayError, DeniedError or ReplyError."""
        if boottime() - self._forgotten_at <= FORGOTTEN_SECONDS:
            return True
        return not await self._connections.command("HEXISTS", self._keys.nodes, self.node)

    @property
    def nodes(self) -> list[NodeSeen]:
        """All nodes, this one included."""
        now = boottime()
        dead = set(self._liveness.dead(now))
        return [
            NodeSeen(node, status, age, age > self.interval * LATE_BEATS, node in dead)
            for node, status in sorted(self._seen.items())
            for age in (self._liveness.age(node, now) or 0.0,)
        ]

    def status_of(self, node: str) -> Status | None:
        """Return what a node last published about itself, None for one that is not on the list."""
        return self._seen.get(node)

    def age(self, node: str) -> float | None:
        """Return how long a node's beat has not changed, None for an unknown node."""
        return self._liveness.age(node, boottime())

    def lives(self, node: str) -> bool:
        """Return whether a node is on the list and not considered dead."""
        return node in self._seen and node not in self._liveness.dead(boottime())

    def dead(self) -> list[str]:
        """Return the nodes that are to be replaced."""
        return self._liveness.dead(boottime())

    def taking_over(self) -> list[str]:
        """Return the live nodes that take sessions over, this one included. One that has not yet beaten for a lease could not
        judge that another node is lost."""
        return [
            seen.node
            for seen in self.nodes
            if seen.status.state == "serving"
            and not seen.dead
            and self._beats.get(seen.node, 0) * BEAT_SHARE > 1
        ]

    async def forget(self, node: str) -> None:
        """Remove a node from the list."""
        await self._connections.command("HDEL", self._keys.nodes, node)

    async def _beat_for_ever(self) -> None:
        while True:
            began = boottime()
            pause = self.interval
            try:
                await self.once()
            except (AwayError, DeniedError, ReplyError) as error:
                self.answered = False
                self._liveness.broken()
                self._problem(str(error))
                pause = self.interval / 2
            await asyncio.sleep(max(0.05, pause - (boottime() - began)))


def _members(status: Status) -> Mapping[str, object]:
    return {
        "url": status.url,
        "version": status.version,
        "state": status.state,
        "sessions": status.sessions,
        "room": status.room,
        "reads": list(status.reads),
        **({"socket": status.socket} if status.socket else {}),
    }


def _parsed(value: bytes) -> tuple[int, Status] | None:
    """Parse a node's field; None for one that no version of the gateway wrote."""
    try:
        found: dict[str, Any] = json.loads(value)  # Any: checked member by member
        status = Status(
            url=str(found["url"]),
            version=str(found["version"]),
            state=str(found["state"]),
            sessions=int(found["sessions"]),
            room=int(found["room"]),
            reads=tuple(int(version) for version in found["reads"]),
            socket=str(found.get("socket", "")),
        )
        return int(found["beat"]), status
    except (ValueError, KeyError, TypeError):
        return None


def _pairs(reply: Any) -> list[tuple[bytes, bytes]]:  # Any: redis-py returns a dict or a flat list
    if isinstance(reply, dict):
        return list(reply.items())
    return list(zip(reply[::2], reply[1::2], strict=True))

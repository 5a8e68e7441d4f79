"""Taking over the sessions of a lost node.

Each observer reads the lost node's list and takes the sessions for which it ranks first among the nodes that serve; the
one that ranks next waits, and takes what is still unclaimed then. Any node may claim: the fence lets one
through. A session is readable as soon as it is adopted; its call comes later, through the gate.

Work is done in steps, and the loop gets its turn every few milliseconds, so that this node's own sessions are not delayed.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from gateway.cluster.beat import boottime
from gateway.cluster.claims import Claimed, GoneError, Stored, TakenError
from gateway.cluster.connections import AwayError, DeniedError
from gateway.cluster.gate import DialGate
from gateway.cluster.liveness import ranked
from gateway.cluster.node import ClusterNode
from gateway.cluster.resp import ReplyError
from gateway.relay.tasks import Tasks
from gateway.relay.telemetry import ClusterTelemetry

RANK_SECONDS: Final = 1.5
"""How long each node waits for the one that ranks before it."""
STEP: Final = 32
"""Sessions claimed together."""
STEPS_AT_ONCE: Final = 2
"""While one waits for Redis, the sessions of the other are adopted."""
TURN_SECONDS: Final = 0.003
"""How long sessions are adopted before other work gets its turn. One without a large log takes less than 1 ms."""
UNREADABLE_SECONDS: Final = 5.0
"""Time between looks at the sessions of a lost node that another version wrote. A node of that version takes them at once."""
MAX_FAILED: Final = 10_000
_WATCH_SECONDS: Final = 0.05
_AGAIN_SECONDS: Final = 0.25
"""Between looks at what the nodes that rank first have left."""


class UnreadableError(Exception):
    """The session was written by a version that this one cannot read."""


class Adopt(Protocol):
    """Adopts a claimed session."""

    async def __call__(self, stored: Stored) -> str:
        """Make the session readable here. Returns `taken`, or `closed` for one that had ended. Raises UnreadableError."""


class Takeover:
    """Watches for lost nodes from `start` to `close`."""

    def __init__(
        self,
        node: ClusterNode,
        telemetry: ClusterTelemetry,
        adopt: Adopt,
        may_take: Callable[[], bool],
        on_lost: Callable[[str], None] = lambda _: None,
        gate: DialGate | None = None,
    ) -> None:
        """`may_take` says whether this node takes sessions at the moment: one that drains does not. `on_lost` is called
        with the URL of a lost node. `gate` spreads the calls of the sessions."""
        self._node = node
        self._telemetry = telemetry
        self._adopt = adopt
        self._may_take = may_take
        self._on_lost = on_lost
        self._gate = gate or DialGate()
        self._tasks = Tasks(lambda error: telemetry.relay_failed("", error))
        self._working: set[str] = set()
        """Lost nodes whose sessions are being taken over."""
        self._emptied: set[str] = set()
        """Lost nodes of which nothing is left, until they are off the list."""
        self._doubtful: dict[str, float] = {}
        """Sessions that this node may have claimed without adopting them, and since when their node is lost."""
        self._turn_ends = 0.0
        self._failed: dict[str, None] = {}
        """Sessions that could not be adopted here, oldest first: each is a bug that was logged."""
        self._told: set[str] = set()
        """Lost nodes that were reported, until they are off the list."""
        self._again_at: dict[str, float] = {}
        """When to look again at lost nodes whose sessions another version wrote."""

    def start(self) -> None:
        """Start watching."""
        _ = self._tasks.repeat(self._watch, "cluster-takeover")

    async def close(self) -> None:
        """Stop watching; claimed sessions stay claimed."""
        await self._tasks.end()

    def replace(self, lost: str) -> None:
        """Begin to take over a node's sessions. Safe to call twice."""
        if lost not in self._working and lost != self._node.id:
            self._working.add(lost)
            task = self._tasks.run(self._replace(lost), f"cluster-replace-{lost}")
            task.add_done_callback(lambda _: self._working.discard(lost))

    async def take(self, session_id: str, owner: str, since: float) -> str:
        """Claim one session and adopt it; returns the outcome. Raises AwayError."""
        [outcome] = (await self._take_some([session_id], owner, since)).values()
        return outcome

    async def _take_some(self, session_ids: list[str], owner: str, since: float) -> dict[str, str]:
        """Claim sessions and adopt them; return their outcomes. Raises AwayError; those that were claimed all the same are
        found later."""
        outcomes: dict[str, str] = {}
        try:
            async for session_id, claimed in self._node.directory.claims.each(session_ids, owner):
                outcomes[session_id] = await self._outcome(session_id, claimed, since)
                await self._yield()
        except (AwayError, DeniedError, ReplyError):
            self._doubtful |= {one: since for one in session_ids if one not in outcomes}
            raise
        return outcomes

    async def _yield(self) -> None:
        """Let other work have its turn if sessions were adopted for long enough."""
        now = time.monotonic()
        if now >= self._turn_ends:
            await asyncio.sleep(0)
            self._turn_ends = time.monotonic() + TURN_SECONDS

    async def _settle_doubts(self) -> None:
        """Adopt the sessions whose claims succeeded without an answer: this node owns them, so no other adopts them."""
        claims = self._node.directory.claims
        while self._doubtful:
            some = list(self._doubtful)[:STEP]
            try:
                claimed = await claims.many([one for one in some if not self._node.holds(one)], self._node.id)
            except (AwayError, DeniedError, ReplyError):
                return  # They are tried again soon.
            for one in claimed:
                if isinstance(one, Stored):
                    await self._outcome(one.session_id, one, self._doubtful[one.session_id])
                await self._yield()
            for session_id in some:
                del self._doubtful[session_id]

    async def _outcome(self, session_id: str, claimed: Claimed, since: float) -> str:
        """Adopt a session that was claimed, and return what became of it."""
        if isinstance(claimed, GoneError):
            return "closed"
        if isinstance(claimed, TakenError):
            if str(claimed) == self._node.id and session_id not in self._failed:
                self._doubtful.setdefault(session_id, since)
            return "unreadable" if str(claimed).startswith("written by") else "lost_race"
        outcome = await self._adopted(claimed)
        self._telemetry.taken_over(session_id, outcome, boottime() - since)
        return outcome

    async def _adopted(self, stored: Stored) -> str:
        try:
            return await self._adopt(stored)
        except UnreadableError:
            self._give_up(stored.session_id)
            return "unreadable"
        except Exception as error:  # noqa: BLE001  # one session that cannot be adopted must not stop the others
            self._give_up(stored.session_id)
            self._telemetry.relay_failed(stored.session_id, error)
            return "failed"

    def _give_up(self, session_id: str) -> None:
        """Leave a claimed session on this node's list, from which another node may take it with a better version of this
        code. The oldest of very many is forgotten, and would be tried once more."""
        self._failed[session_id] = None
        if len(self._failed) > MAX_FAILED:
            del self._failed[next(iter(self._failed))]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            dead = set(self._node.beat.dead())
            for one in dead:
                status = self._node.beat.status_of(one)
                if status is not None:
                    self._on_lost(self._node.directory.url_of(status))
            if not self._may_take() or not self._node.beat.sure:
                continue
            if self._doubtful:
                await self._settle_doubts()
            self._emptied &= dead
            self._told &= dead
            self._again_at = {lost: at for lost, at in self._again_at.items() if lost in dead}
            for lost in dead - self._emptied:
                if self._again_at.get(lost, 0.0) <= boottime():
                    self.replace(lost)

    async def _replace(self, lost: str) -> None:
        """Take this node's share of the sessions, rank by rank, until none is left."""
        node = self._node
        since = boottime() - (node.beat.age(lost) or 0.0)
        began = boottime()
        try:
            ids = await node.directory.claims.owned_by(lost)
            first, unreadable = lost not in self._told, 0
            self._told.add(lost)
            if first:
                status = node.beat.status_of(lost)
                draining = status is not None and status.state == "draining"
                self._telemetry.node_lost(lost, len(ids), draining=draining)
            waiting = dict(zip(ids, await self._ranks(ids), strict=True))
            while waiting:
                if not self._still(lost):
                    return
                turn = (boottime() - began) / RANK_SECONDS
                mine = [one for one, rank in waiting.items() if rank <= turn]
                with self._gate.hold():
                    unreadable += await self._take_all(mine, lost, since)
                for one in mine:
                    del waiting[one]
                await asyncio.sleep(_AGAIN_SECONDS)
                waiting = await self._unclaimed(waiting, lost)
            if not await node.directory.claims.owned_by(lost):
                self._emptied.add(lost)
                await node.beat.forget(lost)
            elif unreadable:
                self._again_at[lost] = boottime() + UNREADABLE_SECONDS
                if first:
                    self._telemetry.sessions_unreadable(lost, unreadable)
        except (AwayError, DeniedError, ReplyError):
            return  # The node is checked again as long as it is on the list.

    def _still(self, lost: str) -> bool:
        return lost in self._node.beat.dead() and self._may_take()

    async def _ranks(self, session_ids: list[str]) -> list[int]:
        """Return this node's rank for each session among the nodes that take sessions over."""
        nodes, own, ranks = self._node.beat.taking_over(), self._node.id, list[int]()
        for session_id in session_ids:
            order = ranked(session_id, nodes)
            ranks.append(order.index(own) if own in order else len(order))
            await self._yield()
        return ranks

    async def _unclaimed(self, waiting: dict[str, int], lost: str) -> dict[str, int]:
        """Drop the sessions that another node has taken by now."""
        if not waiting:
            return waiting
        left = set(await self._node.directory.claims.owned_by(lost))
        return {one: rank for one, rank in waiting.items() if one in left}

    async def _take_all(self, ids: list[str], lost: str, since: float) -> int:
        """Take sessions in steps. Return how many another version wrote."""
        gate = asyncio.Semaphore(STEPS_AT_ONCE)
        claims = self._node.directory.claims

        async def step(some: list[str]) -> int:
            async with gate:
                try:
                    outcomes = await self._take_some(some, lost, since)
                except (AwayError, DeniedError, ReplyError):
                    return 0
            done = [one for one, outcome in outcomes.items() if outcome != "unreadable"]
            await claims.dismiss(lost, done)
            return len(outcomes) - len(done)

        return sum(await asyncio.gather(*(step(ids[at : at + STEP]) for at in range(0, len(ids), STEP))))

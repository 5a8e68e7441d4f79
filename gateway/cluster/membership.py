"""A node's part in the cluster, from joining to leaving: it adopts sessions of lost nodes, and hands its own over.

Hand-over, session by session: a peer dials a call beside the present one (`prepare`); this node waits for a pause, holds
new events and writes everything to the journal; the peer claims the session, folds its journal and continues with the
prepared call (`take`); this node ends its streams, and their readers reconnect and find the session on the peer. If a step
before the claim fails, this node keeps the session. Sessions that cannot be moved that way in time are released: a peer
takes them over as if this node were lost, without waiting for the lease.
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Literal

from gateway.cluster.beat import NodeSeen, boottime
from gateway.cluster.claims import GoneError, Stored
from gateway.cluster.connections import AwayError, DeniedError
from gateway.cluster.gate import DialGate
from gateway.cluster.journal import RedisJournal
from gateway.cluster.liveness import ranked
from gateway.cluster.node import ClusterNode
from gateway.cluster.resp import ReplyError
from gateway.cluster.takeover import Takeover, UnreadableError
from gateway.errors import GatewayError, OverloadError
from gateway.relay.calls.succession import Prepared
from gateway.relay.events.records import UnreadableRecord
from gateway.relay.hub import Hub
from gateway.relay.journal import Peer
from gateway.relay.ports import Dialer
from gateway.relay.session import Session
from gateway.relay.state.fold import SessionState
from gateway.relay.state.saved import Saved, fold_in_steps
from gateway.relay.tasks import Tasks, in_turns
from gateway.relay.telemetry import ClusterTelemetry

AT_ONCE: Final = 16
"""Sessions handed over at once: each is a call dialled on a peer."""
PER_SECOND: Final = 25.0
"""Sessions handed over a second, if the time allows it. Each costs the peers 10 to 20 ms of CPU, and while that is all they do,
clients that come back wait for an answer."""
STARTED_SHARE: Final = 0.5
"""Share of the time in which all hand-overs are started; the rest is for responses that are waited for."""
HANG_UP_POLL_SECONDS: Final = 0.1
HANG_UPS_PER_SECOND: Final = 50.0
"""Of calls whose node was lost. OpenAI ends them as well, when nothing more arrives from that node."""
PREPARED_SECONDS: Final = 60.0
"""How long a prepared call is kept if its session is not handed over."""
TAKE_SECONDS: Final = 15.0
"""How long a peer may take to claim a session. Its clients wait meanwhile; then this node goes on with it."""
READABLE_SECONDS: Final = 1.0
"""How long a session that is released may wait until peers of an older version can read it."""
RESERVED_SHARE: Final = 0.25
"""Share of the drain's time for releasing what could not be handed over."""

Errand = Literal["prepare", "take"]

Call = Callable[[Peer, Errand, bytes], Awaitable[bool]]
"""Asks a peer to prepare or take, with a JSON body. Returns whether it did; never raises."""

_FAILURES: Final = (AwayError, DeniedError, ReplyError)


class Membership:
    """Joins, takes over, hands over, leaves."""

    def __init__(
        self,
        node: ClusterNode,
        hub: Hub,
        dialer: Dialer,
        telemetry: ClusterTelemetry,
        call: Call,
        on_lost: Callable[[str], None],
        on_adopted: Callable[[str], None],
        gate: DialGate,
    ) -> None:
        """`on_lost` is called with the URL of a lost node, `on_adopted` with the id of a session that was adopted. `gate`
        spreads the calls of sessions that are taken over."""
        self.node = node
        self._hub = hub
        self._dialer = dialer
        self._telemetry = telemetry
        self._call = call
        self._on_adopted = on_adopted
        self._gate = gate
        self._takeover = Takeover(node, telemetry, self.adopt, lambda: not hub.draining, on_lost, gate)
        self._lost_calls: deque[str] = deque()
        self._hanging_up = False
        self._prepared: dict[str, Prepared] = {}
        self._tasks = Tasks(lambda error: telemetry.relay_failed("", error))

    async def start(self) -> None:
        """Join. Raises AwayError, DeniedError or ReplyError."""
        self.node.on_fenced = self._hub.drop
        await self.node.start()
        self._takeover.start()

    async def close(self) -> None:
        """Leave. Safe to call twice."""
        await self._takeover.close()
        for session_id in list(self._prepared):
            await self._abandon(session_id)
        self._lost_calls.clear()  # OpenAI ends them without being asked; hundreds of them would delay the stop.
        await self._tasks.ended()  # A hang-up and an abandoned call have time-outs of their own.
        await self.node.leave()
        await self.node.close()

    @property
    def nodes(self) -> list[NodeSeen]:
        """All nodes, this one included."""
        return self.node.nodes

    # --- taking over --------------------------------------------------------------------------------------------------

    async def adopt(self, stored: Stored) -> str:
        """Make a claimed session readable here, and start replacing its call. Returns `taken` or `closed`; raises
        UnreadableError."""
        try:
            saved = await self._folded(stored)
        except UnreadableRecord as error:
            raise UnreadableError(str(error)) from error
        stored.journal.claimed(stored.fence, stored.snapshot_at, saved.state.head)
        # A call that was prepared for a session which is closed by now is abandoned by `_expire`.
        prepared = None if saved.state.closed else self._prepared.pop(stored.session_id, None)
        call_id, attached = saved.state.call.call_id, saved.state.opening.attach_to is not None
        self._hub.adopt(saved, stored.journal, prepared)
        self.node.take(stored.journal)
        self._on_adopted(stored.session_id)
        if prepared is None and call_id is not None and not attached and saved.state.closed is None:
            # The lost node may only be paused: its channel closes, and it learns that it was replaced.
            self._lost_calls.append(call_id)
            if not self._hanging_up:
                self._hanging_up = True
                _ = self._tasks.run(self._hang_up_lost_calls(), "cluster-hang-up")
        return "taken" if saved.state.closed is None else "closed"

    async def _folded(self, stored: Stored) -> Saved:
        """Fold a session. Other work has its turn in between, because a log may hold 10,000 events."""
        prices = self._hub.limits.prices
        return await in_turns(fold_in_steps(stored.snapshot, stored.before, stored.after, prices))

    async def _hang_up_lost_calls(self) -> None:
        """End the calls of lost nodes, one after another, once all sessions are readable."""
        try:
            while self._lost_calls:
                if self._gate.held:
                    await asyncio.sleep(HANG_UP_POLL_SECONDS)
                    continue
                await self._dialer.hang_up(self._lost_calls.popleft(), None)
                await asyncio.sleep(1 / HANG_UPS_PER_SECOND)
        finally:
            self._hanging_up = False

    # --- for peers that hand over -------------------------------------------------------------------------------------

    async def prepare(self, session_id: str, bearer: str | None) -> None:
        """Dial a call for a session that a peer is about to hand over. Raises GatewayError."""
        try:
            snapshot = await self.node.directory.claims.peek(session_id)
            state = SessionState.load(snapshot, self._hub.limits.prices)
        except (*_FAILURES, GoneError, UnreadableRecord) as error:
            raise OverloadError("recovering", "The session cannot be read here.", retry_after=1) from error
        await self._abandon(session_id)
        prepared = await self._hub.prepare(state.opening, state.mirror.session, bearer)
        # A request may arrive twice, so another call may have been prepared meanwhile.
        other, self._prepared[session_id] = self._prepared.get(session_id), prepared
        asyncio.get_running_loop().call_later(PREPARED_SECONDS, self._expire, session_id, prepared)
        if other is not None:
            await other.abandon()

    async def take(self, session_id: str, owner: str) -> None:
        """Claim a session from a peer that gives it up, with the call that was prepared or without. Raises
        GatewayError."""
        try:
            outcome = await self._takeover.take(session_id, owner, boottime())
            await self.node.directory.claims.dismiss(owner, [session_id])
        except _FAILURES as error:
            raise OverloadError("recovering", "Redis does not answer.", retry_after=1) from error
        if outcome not in ("taken", "closed"):
            raise OverloadError("recovering", f"The session was not taken: {outcome}.", retry_after=1)

    def _expire(self, session_id: str, prepared: Prepared) -> None:
        if self._prepared.get(session_id) is prepared:
            _ = self._tasks.run(self._abandon(session_id), "cluster-abandon")

    async def _abandon(self, session_id: str) -> None:
        prepared = self._prepared.pop(session_id, None)
        if prepared is not None:
            await prepared.abandon()

    # --- handing over -------------------------------------------------------------------------------------------------

    async def hand_over_all(self, timeout: float) -> None:
        """Hand every session to a peer within `timeout` seconds. Those that no peer takes stay here, and those whose only
        client waits here for a turn, and could not find them at a peer."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        deadline = end - timeout * RESERVED_SHARE
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(session: Session, pause: float) -> None:
            await asyncio.sleep(pause)
            async with gate:
                await self._hand_over(session, deadline)

        # Idle sessions first: active responses are waited for.
        sessions = sorted(self._movable(), key=lambda session: session.busy)
        pause = pause_between(len(sessions), deadline - loop.time())
        await asyncio.gather(*(one(session, number * pause) for number, session in enumerate(sessions)))
        for session in self._movable():
            await self._let_go(session, end)

    def _movable(self) -> list[Session]:
        return [session for session in self._hub.live_sessions() if session.returnable]

    async def _hand_over(self, session: Session, deadline: float) -> None:
        """Move one session to the first peer that takes it."""
        left = deadline - asyncio.get_running_loop().time()
        outcome = "refused"
        peers = self._peers(session.id)
        if not peers:
            return
        for peer in peers[:2]:
            if left <= 0 or not session.live:
                return
            await self._readable(session, left)
            body = _body(id=session.id, bearer=session.bearer)
            if not await self._ask(peer, "prepare", body, left):
                left = deadline - asyncio.get_running_loop().time()
                continue
            left = deadline - asyncio.get_running_loop().time()
            outcome = await self._move(session, peer, max(0.1, left))
            if outcome != "failed":
                break
        self._telemetry.handed_over(session.id, outcome)

    async def _move(self, session: Session, peer: Peer, timeout: float) -> str:
        """Hold the session in a pause, and let a peer that has a call for it claim it."""
        try:
            async with asyncio.timeout(timeout):
                if not await session.prepare_release():
                    return "failed"
        except (TimeoutError, GatewayError):
            session.resume()
            return "failed"
        body = _body(id=session.id, owner=self.node.id)
        if await self._ask(peer, "take", body, TAKE_SECONDS) or await self._is_gone(session.id):
            self._release(session)
            return "taken"
        session.resume()
        return "failed"

    async def _ask(self, peer: Peer, errand: Errand, body: bytes, seconds: float) -> bool:
        """Ask a peer, and return whether it did it within so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                return await self._call(peer, errand, body)
        except TimeoutError:
            return False

    async def _let_go(self, session: Session, end: float) -> None:
        """Let a peer take a session over as if this node were lost, until `end` (loop time)."""
        loop = asyncio.get_running_loop()
        await self._readable(session, min(READABLE_SECONDS, end - loop.time()))
        for peer in self._peers(session.id):
            left = min(TAKE_SECONDS, end - loop.time())
            if await self._ask(peer, "take", _body(id=session.id, owner=self.node.id), left):
                self._telemetry.handed_over(session.id, "taken")
                self._release(session)
                return

    async def _readable(self, session: Session, timeout: float) -> None:
        """Wait until peers of an older version can read a session. A peer that cannot refuses it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.node.readable(session.id)

    async def _is_gone(self, session_id: str) -> bool:
        """Return whether another node owns a session by now. A missing answer does not decide it, nor does a Redis that has
        lost the session: then it is only here."""
        try:
            location = await self.node.directory.locate(session_id, fresh=True)
        except OverloadError:
            return False
        return location is not None and location.node not in ("", self.node.id)

    def _release(self, session: Session) -> None:
        session.released()
        journal = session.journal
        if isinstance(journal, RedisJournal):
            self.node.forget(journal)
            # Requests whose records were not sent any more go to the new owner. They would wait until this node has ended, and a
            # load balancer would answer 502.
            journal.refused()
        self._hub.drop(session.id)

    def _peers(self, session_id: str) -> list[Peer]:
        """Return the peers that could take a session, in its order."""
        able = {peer.node: peer for peer in self.node.directory.peers if peer.serving and peer.room > 0}
        return [able[node] for node in ranked(session_id, able)]


def pause_between(sessions: int, seconds: float) -> float:
    """Return the seconds between the beginnings of two hand-overs, of so many within a time."""
    return min(1 / PER_SECOND, seconds * STARTED_SHARE / max(1, sessions))


def _body(**members: str | None) -> bytes:
    return json.dumps(members).encode()

"""A journal and a directory in memory, and a service that answers, for sessions that move between nodes."""

import asyncio
from collections.abc import Sequence
from typing import Any

from gateway.errors import OverloadError
from gateway.relay.events.records import VERSION, Border, Record, encode, sequence_of
from gateway.relay.journal import JournalOwner, Location, Peer, Promised
from gateway.relay.limits import RelayLimits
from gateway.relay.requests import Principal
from gateway.relay.state.saved import Saved, fold
from tests.relay.fakes import FakeCall, Harness


class MemoryJournal:
    """Stores every record at once, or only when `settle` is called."""

    keeps = True

    def __init__(self, settled: int = 0) -> None:
        self.before: list[bytes] = []
        """Records before the snapshot."""
        self.records: list[bytes] = []
        self.snapshot = b""
        self.settled = settled
        self.sure = True
        self.holding = False
        self.sealed = False
        self._owner: JournalOwner | None = None
        self._newest = settled

    @property
    def owner(self) -> JournalOwner:
        assert self._owner is not None
        return self._owner

    async def owned(self) -> bool:
        return True

    def bind(self, owner: JournalOwner) -> None:
        self._owner = owner

    def add(self, record: Record) -> None:
        self.records.append(encode(record))
        self._newest = max(self._newest, sequence_of(record))
        if not self.holding:
            self.settle()

    def settle(self) -> None:
        self.settled = self._newest
        self.owner.settled()

    def oldest(self, sequence: int) -> None:
        """Do nothing: no record is dropped here."""

    async def flushed(self) -> None:
        if not self.sure:
            raise OverloadError("recovering", "Not now.", retry_after=1)
        while self.holding:
            await asyncio.sleep(0.01)

    def seal(self, retention_seconds: float) -> None:
        self.sealed = True


class MemoryDirectory:
    """The journals of one node."""

    node = "n_1"
    peers: Sequence[Peer] = ()
    sure = True

    def __init__(self) -> None:
        self.journals: dict[str, MemoryJournal] = {}
        self.refusal: OverloadError | None = None
        self.reserving_seconds = 0.0
        self.released: list[str] = []

    def journal(self, session_id: str, principal: str, epoch: str) -> MemoryJournal:
        return self.journals.setdefault(session_id, MemoryJournal())

    async def reserve(self, session_id: str, principal: Principal) -> None:
        await asyncio.sleep(self.reserving_seconds)
        if self.refusal is not None:
            raise self.refusal

    async def create(self, session_id: str, journal: Any) -> None:
        journal.snapshot = journal.owner.dump(VERSION)
        journal.before, journal.records = journal.records, []

    async def release(self, session_id: str, principal: str) -> None:
        self.released.append(session_id)

    async def locate(self, session_id: str, *, fresh: bool = False) -> Location | None:
        return None

    async def locate_all(self, session_ids: Sequence[str]) -> Sequence[Location | None]:
        return [await self.locate(one) for one in session_ids]

    async def sessions_of(self, principal: str) -> list[str]:
        return []

    async def sessions_on(self, nodes: Sequence[str]) -> list[str]:
        return []

    async def created_at(self, session_ids: Sequence[str]) -> dict[str, int]:
        return {}

    async def snapshots(self, session_ids: Sequence[str]) -> dict[str, bytes]:
        return {}

    async def promise(self, principal: str, key: str, fingerprint: str, session_id: str) -> Promised | None:
        return None

    async def keep_promise(
        self, principal: str, key: str, fingerprint: str, session_id: str, answer: bytes
    ) -> None:
        """Do nothing: there are no promises here."""

    async def break_promise(self, principal: str, key: str, session_id: str) -> None:
        """Do nothing: there are no promises here."""


def node(**limits: Any) -> tuple[Harness, MemoryDirectory]:
    """Return a running hub that is one of several nodes. The caller closes it."""
    directory = MemoryDirectory()
    harness = Harness(RelayLimits(**limits), directory=directory)
    harness.dialer.prepare = answering
    harness.hub.start()
    return harness, directory


def answering(call: FakeCall) -> None:
    """Let a call take items as the service does, and acknowledge everything."""

    def take(own: dict[str, Any]) -> None:
        call.say("conversation.item.added", item=own)
        call.say("conversation.item.done", item=own)

    def answer(event: Any) -> None:
        call.acknowledged = len(call.sent)
        if event["type"] == "conversation.item.create":
            own = {"id": f"item_{len(call.sent)}", **event["item"], "status": "completed"}
            asyncio.get_running_loop().call_soon(take, own)

    call.on_send = answer


def taken(journal: MemoryJournal, count: int | None = None, epoch: str = "z001") -> Saved:
    """Return the session on another node that claims the journal after this many records."""
    records = journal.records if count is None else journal.records[:count]
    return fold(journal.snapshot, journal.before, [*records, encode(Border("n_2", epoch))])

"""One connection to a primary, and the journals that are appended over it.

Everything added in one turn of the loop is sent in one write at its end. An answer that is missing for
`UNANSWERED_SECONDS` drops the connection. On every new connection each journal is compared with Redis before anything is
appended, since it is unknown whether the appends under way were applied, or whether this is still the same Redis.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from typing import Any, Final, Protocol

from gateway.cluster import commands, scripts
from gateway.cluster.appends import Outcome
from gateway.cluster.connections import AwayError, Connections, DeniedError
from gateway.cluster.journal import RedisJournal, Rewrite
from gateway.cluster.keys import EntryId
from gateway.cluster.resp import Reply, ReplyError, Wire
from gateway.relay.tasks import Tasks

UNANSWERED_SECONDS: Final = 3.0
MEND_AGAIN_SECONDS: Final = 1.0
WAIT_MS: Final = 500
"""Deadline of one WAIT. Redis answers nothing else on the connection meanwhile, so it must be well below `STALLED_SECONDS`."""
WAIT_AGAIN_SECONDS: Final = 0.05
CHECK_AT_ONCE: Final = 256
REWRITES_AT_ONCE: Final = 8
"""Each holds a second copy of a whole log in memory."""

_RETRY_SECONDS: Final = (0.05, 0.25)
"""Between attempts to connect, with jitter, so that nodes do not reconnect all at once."""

_FENCED: Final = "ERR The ID specified in XADD is equal or smaller"

Address = tuple[str, int] | str


class Events(Protocol):
    """What an appender reports to its node. Methods return at once and never raise."""

    def journal_settled(self, seconds: float) -> None:
        """An append was answered this long after it was sent."""

    def journal_repaired(self, journal: RedisJournal, kind: str) -> None:
        """A session was written again; `kind` is `tail` or `emptied`."""

    def fenced(self, journal: RedisJournal) -> None:
        """Another node owns a session that this one held."""

    def moved(self, journal: RedisJournal) -> None:
        """The keys of a journal have moved to another primary."""

    def redis_up(self, up: bool, reason: str) -> None:
        """The connection for appends was made or lost."""

    def failed(self, error: BaseException) -> None:
        """A task ended with an exception that nobody expected."""


class Appender:
    """Appends for one primary, from `start` to `close`."""

    def __init__(
        self,
        find: Callable[[], Awaitable[Address]],
        connections: Connections,
        events: Events,
        expiry_ms: int,
        node: str,
        index: Callable[[RedisJournal], Awaitable[None]],
        wait_replicas: int = 0,
    ) -> None:
        """`find` returns where the primary is now; `index` puts a session on the lists that a takeover reads."""
        self._find, self._connections, self._events = find, connections, events
        self._expiry_ms, self._node, self._index = expiry_ms, node, index
        self._wait_replicas = wait_replicas
        self._wire: Wire | None = None
        self._gone = asyncio.Event()
        self._journals: set[RedisJournal] = set()
        self._dirty: dict[RedisJournal, None] = {}
        self._sending = self._closing = False
        self._loop = asyncio.get_running_loop()
        self._rewriting = asyncio.Semaphore(REWRITES_AT_ONCE)
        self._mending: set[RedisJournal] = set()
        self._tasks = Tasks(events.failed)
        self._answers: list[tuple[RedisJournal, Reply, float]] = []
        self._waiting = False
        """A WAIT is under way. Several would be answered one after another, each after its time."""
        self._replicating = asyncio.Lock()

    def start(self) -> None:
        """Connect, and keep connected."""
        _ = self._tasks.repeat(self._keep, "cluster-appender")

    async def close(self) -> None:
        """Close the connection and drop what was not appended."""
        self._closing = True
        await self._tasks.end()
        if self._wire is not None:
            self._wire.drop()

    @property
    def up(self) -> bool:
        """Connected."""
        return self._wire is not None

    @property
    def journals(self) -> Collection[RedisJournal]:
        """The journals that are appended over this connection."""
        return self._journals

    @property
    def stalled_for(self) -> float:
        """Seconds since the oldest command that is not answered was sent."""
        since = self._wire.oldest_unanswered if self._wire is not None else None
        return 0.0 if since is None else self._loop.time() - since

    def watch(self) -> None:
        """Drop a connection that does not answer; called about once a second."""
        if self._wire is not None and self.stalled_for > UNANSWERED_SECONDS:
            self._wire.drop()

    def reconnect(self, since: float) -> None:
        """Drop a connection made before this moment (loop time), so that all journals are compared again."""
        if self._wire is not None and self._wire.made_at < since:
            self._wire.drop()

    def take(self, journal: RedisJournal) -> None:
        """Append this journal from now on. It is compared with Redis first unless it was just created."""
        self._journals.add(journal)
        if not journal.appends.ready and journal.appends.fence:
            self._look_into(journal)
        self.dirty(journal)

    def compare(self, journal: RedisJournal) -> None:
        """Find out whether another node has taken the session over, which otherwise the next append would tell."""
        if journal in self._journals and self._wire is not None:
            self._look_into(journal)

    def leave(self, journal: RedisJournal) -> None:
        """Stop appending this journal."""
        self._journals.discard(journal)
        self._dirty.pop(journal, None)

    def dirty(self, journal: RedisJournal) -> None:
        """Send what waits in this journal at the end of this turn of the loop."""
        self._dirty[journal] = None
        if not self._sending:
            self._sending = True
            self._loop.call_soon(self._send)

    # --- appending ----------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        self._sending = False
        wire = self._wire
        if wire is None:
            self._dirty.clear()  # Each is checked again when there is a connection.
            return
        dirty, self._dirty = self._dirty, {}
        now = self._loop.time()
        parts: list[bytes] = []
        asked: list[Callable[[Reply], None]] = []
        for journal in dirty:
            append = journal.appends.next()
            if append is not None:
                parts.append(
                    commands.append(journal.keys[0].encode(), append.fence, append.keep_from, append.items)
                )
                asked.append(partial(self._answered, journal, now))
        if not parts:
            return
        if self._wait_replicas and not self._waiting:
            self._waiting = True
            parts.append(commands.wait(self._wait_replicas, WAIT_MS))
            asked.append(self._replicated)
        wire.send_many(b"".join(parts), asked)

    def _answered(self, journal: RedisJournal, sent_at: float, reply: Reply) -> None:
        if not self._wait_replicas or isinstance(reply, ReplyError):
            self._apply(journal, sent_at, reply)
            return
        self._answers.append((journal, reply, sent_at))
        if not self._waiting:  # It was sent while an earlier one was waited for.
            self._wait_again(self._wire)

    def _replicated(self, reply: Reply) -> None:
        """Process the number of replicas that have the appends. If too few, nothing counts as kept yet; ask again."""
        if not self._enough(reply):
            self._loop.call_later(WAIT_AGAIN_SECONDS, self._wait_again, self._wire)
            return
        self._waiting = False
        answers, self._answers = self._answers, []
        for journal, answer, sent_at in answers:
            self._apply(journal, sent_at, answer)

    def _wait_again(self, wire: Wire | None) -> None:
        if wire is not None and wire is self._wire:
            self._waiting = True
            wire.send(commands.wait(self._wait_replicas, WAIT_MS), self._replicated)

    def _enough(self, reply: Reply) -> bool:
        return isinstance(reply, int) and reply >= self._wait_replicas

    async def until_replicated(self, journal: RedisJournal) -> None:
        """Wait until enough replicas have all that the primary has now. Raises AwayError when the connection is lost before."""
        async with self._replicating:
            while self._wait_replicas:
                # Any command comes first: WAIT counts from the connection's last one.
                *_, reply = await self._ask(
                    [commands.check(journal.keys), commands.wait(self._wait_replicas, WAIT_MS)]
                )
                if self._enough(reply):
                    return
                await asyncio.sleep(WAIT_AGAIN_SECONDS)

    def _apply(self, journal: RedisJournal, sent_at: float, reply: Reply) -> None:
        if isinstance(reply, ReplyError):
            self._failed(journal, reply)
            return
        self._events.journal_settled(self._loop.time() - sent_at)
        outcome = journal.answered(EntryId.parse(reply) if isinstance(reply, bytes) else None)
        if outcome is Outcome.BEHIND or journal.must_rewrite:
            self._look_into(journal)
        elif not journal.appends.idle:
            self.dirty(journal)

    def _failed(self, journal: RedisJournal, error: ReplyError) -> None:
        text = str(error)
        if text.startswith(_FENCED):
            self._fenced(journal)
            return
        journal.appends.unsettled()
        if text.startswith(("MOVED", "ASK")):
            self._events.moved(journal)
        elif self._wire is not None:
            # Redis is away, or the error is unexpected: look up the primary again and compare.
            self._events.redis_up(False, text)
            self._wire.drop()

    def _fenced(self, journal: RedisJournal) -> None:
        self.leave(journal)
        self._events.fenced(journal)
        journal.refused()

    # --- connecting, comparing, writing again -------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            try:
                self._gone.clear()
                wire = await self._connections.wire(await self._find(), self._lost)
            except (AwayError, DeniedError) as error:
                self._events.redis_up(False, str(error))
                await asyncio.sleep(random.uniform(*_RETRY_SECONDS))  # noqa: S311  # spread, not secrecy
                continue
            self._wire = wire
            self._events.redis_up(True, "")
            self._answers.clear()
            self._waiting = False
            for journal in self._journals:
                journal.appends.unsettled()
            try:
                await self._check(list(self._journals))
            except BaseException as error:
                wire.drop()
                if not isinstance(error, AwayError):
                    raise
            await self._gone.wait()
            self._wire = None

    def _lost(self) -> None:
        self._wire = None
        self._gone.set()
        if not self._closing:
            self._events.redis_up(False, "the connection was lost")

    async def _check(self, journals: Iterable[RedisJournal]) -> None:
        todo = [journal for journal in journals if journal.appends.fence and not journal.appends.fenced]
        for at in range(0, len(todo), CHECK_AT_ONCE):
            some = todo[at : at + CHECK_AT_ONCE]
            replies = await self._ask([commands.check(journal.keys) for journal in some])
            await self.until_replicated(some[0])
            for journal, reply in zip(some, replies, strict=True):
                if not self._compare(journal, reply):
                    self._look_into(journal)

    def _compare(self, journal: RedisJournal, reply: Reply) -> bool:
        """Process the answer of a check; False if the state must be written again, or the check repeated."""
        if isinstance(reply, ReplyError):
            if str(reply).startswith(("MOVED", "ASK")):
                self._events.moved(journal)
                return True
            return False
        mine, fence, last = self._standing(reply)
        before = journal.appends.size
        outcome = journal.appends.checked(mine, fence, last)
        if outcome is Outcome.FENCED:
            self._fenced(journal)
            return True
        if outcome is Outcome.BEHIND or journal.must_rewrite:
            journal.appends.unsettled()
            return False
        journal.after(outcome, before)
        self.dirty(journal)
        return True

    def _standing(self, reply: Reply) -> tuple[bool, int | None, EntryId | None]:
        if not isinstance(reply, list):
            raise AwayError(f"unexpected answer to a check: {reply!r}")
        owner, fence, last = reply
        return (
            owner == self._node.encode(),
            int(fence) if isinstance(fence, bytes) else None,
            EntryId.parse(last) if isinstance(last, bytes) else None,
        )

    def _look_into(self, journal: RedisJournal) -> None:
        """Compare a journal with Redis and write its state again if needed, in a separate task."""
        journal.appends.unsettled()
        if journal not in self._mending:
            self._mending.add(journal)
            _ = self._tasks.run(self._mend(journal), f"cluster-mend-{journal.identity.session_id}")

    async def _mend(self, journal: RedisJournal) -> None:
        """Drops the connection if Redis does not answer: every journal is compared again on the next one."""
        try:
            async with self._rewriting, journal.mending:
                if journal in self._journals:  # else it left meanwhile, and Redis must not get it again
                    await self._compare_and_write(journal)
        except AwayError:
            if self._wire is not None:
                self._wire.drop()
        except Exception:
            # A bug, which is reported. Without another attempt the session would refuse requests for ever.
            self._loop.call_later(MEND_AGAIN_SECONDS, self.compare, journal)
            raise
        finally:
            self._mending.discard(journal)

    async def _compare_and_write(self, journal: RedisJournal) -> None:
        [reply] = await self._ask([commands.check(journal.keys)])
        if isinstance(reply, ReplyError):
            raise AwayError(str(reply))
        mine, fence, last = self._standing(reply)
        if journal.appends.replaced(mine, fence):
            self._fenced(journal)
        elif not journal.appends.fenced:
            right = journal.appends.right_up_to(mine, fence, last)
            await self._write_again(journal, right, "emptied" if last is None else "tail")

    async def _write_again(self, journal: RedisJournal, right: int, kind: str) -> None:
        written = journal.rewrite(right)
        identity = journal.identity
        arguments = (
            *(self._node, journal.appends.fence, written.version, identity.principal, identity.created),
            *(self._expiry_ms, written.border, written.blob, len(written.appends)),
            journal.appends.yields_at,
        )
        try:
            await self._index(journal)
            answer = await self._connections.script(scripts.REPAIR, journal.keys, arguments, bulk=True)
        except ReplyError as error:
            raise AwayError(str(error)) from error
        if answer[0] == 0:
            self._fenced(journal)
            return
        await self._append_log(journal, int(answer[1]), written)
        self._events.journal_repaired(journal, kind)

    async def _append_log(self, journal: RedisJournal, fence: int, written: Rewrite) -> None:
        key = journal.keys[0].encode()
        for number, items in enumerate(written.appends, 1):
            [reply] = await self._ask([commands.append(key, fence, None, items)])
            if isinstance(reply, ReplyError) and str(reply).startswith(_FENCED):
                self._fenced(journal)
                return
            if reply != b"%d-%d" % (fence, number):
                raise AwayError(f"unexpected answer to an append: {reply!r}")
        await self.until_replicated(journal)
        journal.rewritten(fence, written)

    async def _ask(self, commands: list[bytes]) -> list[Reply]:
        """Send commands and wait for their answers. Raises AwayError when the connection is lost before."""
        wire = self._wire
        if wire is None:
            raise AwayError("not connected")
        answers = [wire.ask(one) for one in commands]
        gone = asyncio.create_task(self._gone.wait())
        try:
            for answer in answers:
                waited: set[asyncio.Future[Any]] = {answer, gone}  # Any: of two kinds
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    raise AwayError("the connection was lost")
            return [answer.result() for answer in answers]
        finally:
            gone.cancel()
            await asyncio.wait({gone})

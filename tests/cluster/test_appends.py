"""One journal's state machine, alone and against a model of Redis that can lose writes."""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.cluster.appends import MAX_APPEND_BYTES, Append, Appends, Item, Outcome
from gateway.cluster.keys import EntryId
from tests.cluster.model_redis import Fenced, ModelRedis


def item(sequence: int = 0, body: bytes = b"x") -> Item:
    """Make a record."""
    return Item(b"r", body, sequence)


def ready(fence: int = 1) -> Appends:
    """Make a journal that exists in Redis."""
    appends = Appends()
    appends.begin(fence)
    return appends


def test_nothing_is_sent_before_the_session_exists() -> None:
    """Records wait for the session to be created."""
    appends = Appends()
    appends.add(item())

    assert appends.next() is None


def test_one_append_is_under_way_at_a_time() -> None:
    """Records added during an append are sent with the next one."""
    appends = ready()
    appends.add(item(1))
    first = appends.next()
    appends.add(item(2))
    appends.add(item(3))

    assert first == Append(1, None, [item(1)])
    assert appends.next() is None
    assert appends.answered(EntryId(1, 1)) is Outcome.KEPT
    assert (appends.kept, appends.sequence_kept) == (1, 1)
    second = appends.next()
    assert second is not None
    assert second.items == [item(2), item(3)]


def test_append_is_bounded_in_bytes() -> None:
    """Large records go one by one."""
    appends = ready()
    for sequence in (1, 2):
        appends.add(item(sequence, bytes(MAX_APPEND_BYTES)))
    append = appends.next()

    assert append is not None
    assert len(append.items) == 1


def test_number_too_low_or_nil_means_that_redis_forgot() -> None:
    """A lower number than expected, and no stream at all, both call for a rewrite."""
    for answer, right in ((EntryId(1, 1), 0), (None, 0)):
        appends, outcome = ready(), None
        for sequence in (1, 2):
            appends.add(item(sequence))
            appends.next()
            outcome = appends.answered(EntryId(1, 1) if sequence == 1 else answer)
        assert outcome is Outcome.BEHIND
        assert not appends.ready
        assert appends.right_up_to(True, 1, EntryId(1, 1)) == right


def test_check_settles_what_was_applied_before_the_connection_broke() -> None:
    """An append that is already in Redis is not sent again."""
    appends = ready()
    appends.add(item(1))
    appends.next()
    appends.unsettled()
    assert appends.next() is None

    assert appends.checked(mine=True, fence=1, last=EntryId(1, 1)) is Outcome.KEPT
    assert appends.sequence_kept == 1


def test_check_sends_again_what_was_not_applied() -> None:
    """An append that is not in Redis is sent again, before everything else."""
    appends = ready()
    appends.add(item(1))
    appends.next()
    appends.add(item(2))
    appends.unsettled()

    assert appends.checked(mine=True, fence=1, last=EntryId(1, 0)) is Outcome.AGAIN
    append = appends.next()
    assert append is not None
    assert append.items == [item(1), item(2)]


def test_check_by_a_replaced_owner_ends_it() -> None:
    """If Redis holds a higher fence of another node, the journal accepts nothing more."""
    appends = ready()
    appends.add(item(1))
    appends.unsettled()

    assert appends.checked(mine=False, fence=2, last=EntryId(2, 0)) is Outcome.FENCED
    appends.add(item(2))
    assert appends.idle
    assert appends.next() is None


def test_check_after_a_failover_that_forgot_the_claim_is_behind() -> None:
    """The owner's fence is above the one in Redis: it claims the session again."""
    appends = ready(5)

    assert appends.checked(mine=False, fence=4, last=EntryId(4, 3)) is Outcome.BEHIND
    assert appends.checked(mine=True, fence=6, last=EntryId(6, 0)) is Outcome.BEHIND
    assert appends.checked(mine=True, fence=5, last=EntryId(5, 9)) is Outcome.BEHIND
    assert appends.checked(mine=False, fence=None, last=None) is Outcome.BEHIND


def test_trimming_keeps_the_log_and_the_snapshot() -> None:
    """Trimming keeps everything from the log's first entry or the snapshot, whichever is earlier."""
    appends = ready()
    for sequence in range(1, 6):
        appends.add(item(sequence))
        appends.next()
        appends.answered(EntryId(1, sequence))
    appends.log_starts_at(4)
    appends.add(item(6))
    assert appends.next() == Append(1, None, [item(6)])
    appends.answered(EntryId(1, 6))
    appends.snapshot_kept(EntryId(1, 2))
    appends.add(item(7))
    before = appends.next()
    appends.answered(EntryId(1, 7))
    appends.snapshot_kept(EntryId(1, 7))
    appends.add(item(8))
    after = appends.next()

    assert before is not None
    assert before.keep_from == EntryId(1, 2)
    assert after is not None
    assert after.keep_from == EntryId(1, 4)


def test_forgetting_what_waits_leaves_what_is_under_way() -> None:
    """Records that wait are dropped, but the append under way stays and counts towards the size."""
    appends = ready()
    appends.add(item(1))
    appends.next()
    appends.add(item(2))
    appends.forget_pending()

    assert appends.size == 1
    assert not appends.idle


def test_records_that_are_no_events_leave_the_log_where_it_was() -> None:
    """Records that are not events, such as an accepted batch, are kept, and readers see nothing new."""
    appends = ready()
    appends.add(item())
    appends.next()

    assert appends.answered(EntryId(1, 1)) is Outcome.KEPT
    assert (appends.kept, appends.sequence_kept) == (1, 0)


def test_a_claim_that_redis_forgot_yields_to_one_with_the_same_fence() -> None:
    """Two nodes may claim the same session if a failover forgot the first claim. The first one has acknowledged nothing
    yet; once an append of it is kept, it writes its state again instead."""
    fresh, used = Appends(), Appends()
    for appends in (fresh, used):
        appends.claimed(2, 7)
    used.add(item(8))
    used.next()
    assert used.answered(EntryId(2, 1)) is Outcome.KEPT
    for appends in (fresh, used):
        appends.unsettled()

    assert fresh.yields_at == 2
    assert fresh.checked(mine=False, fence=2, last=EntryId(2, 3)) is Outcome.FENCED
    assert used.yields_at == 3
    assert used.checked(mine=False, fence=2, last=EntryId(2, 3)) is Outcome.BEHIND


class Owner:
    """A node that holds the session: its memory of the log, and its journal."""

    def __init__(self, node: str, fence: int, log: dict[int, bytes], *, claimed: bool = True) -> None:
        self.node = node
        self.log = dict(log)
        self.appends = Appends()
        begin = self.appends.claimed if claimed else self.appends.begin
        begin(fence, sequence=max(log, default=0))
        self.shown = self.appends.sequence_kept
        self.flying: Append | None = None
        self.awake = True
        self.gone = False


class Takeovers(RuleBasedStateMachine):
    """Two nodes, one session, and a Redis that may lose its last writes or all of them.

    Law 1: a node shows something new only while Redis names it and its fence.

    Law 2: what an owner has shown is never withdrawn. It is in Redis, or the owner writes it again as long as it is
    alive and not replaced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.redis = ModelRedis()
        self.redis.create("A")
        self.past: list[ModelRedis] = [self.redis.copy()]
        self.owners = [Owner("A", 1, {}, claimed=False)]
        self.words = 0

    def living(self) -> list[Owner]:
        return [owner for owner in self.owners if not owner.gone]

    @rule(which=st.integers(0, 3), count=st.integers(1, 3))
    def say(self, which: int, count: int) -> None:
        for owner in self.living()[which : which + 1]:
            for _ in range(count):
                self.words += 1
                sequence = max(owner.log, default=0) + 1
                owner.log[sequence] = b"%d" % self.words
                owner.appends.add(item(sequence, owner.log[sequence]))

    @rule(which=st.integers(0, 3))
    def send(self, which: int) -> None:
        for owner in self.living()[which : which + 1]:
            append = owner.appends.next()
            if append is not None:
                owner.flying = append

    @rule(which=st.integers(0, 3), answered=st.booleans(), applied=st.booleans())
    def apply(self, which: int, answered: bool, applied: bool) -> None:
        """The append under way reaches Redis or not, and its answer comes back or not."""
        for owner in self.living()[which : which + 1]:
            append, owner.flying = owner.flying, None
            if append is None:
                continue
            if not applied:
                owner.appends.unsettled()
                continue
            try:
                entry = self.redis.xadd(append)
            except Fenced:
                owner.appends.refused()
                owner.gone = True
                continue
            self.remember()
            if not answered:
                owner.appends.unsettled()
            elif owner.appends.answered(entry) is Outcome.KEPT:
                self.show(owner)

    @rule(which=st.integers(0, 3), answered=st.booleans())
    def check(self, which: int, answered: bool) -> None:
        """The owner reconnects and compares; its rewrite may be cut off in the middle."""
        for owner in self.living()[which : which + 1]:
            if owner.flying is not None or owner.appends.ready:
                continue
            redis = self.redis
            last = redis.last if redis.fence is not None else None
            outcome = owner.appends.checked(redis.node == owner.node, redis.fence, last)
            if outcome is Outcome.FENCED:
                owner.gone = True
            elif outcome is Outcome.BEHIND:
                self.rewrite(owner, last, answered=answered)
            else:
                self.show(owner)

    def rewrite(self, owner: Owner, last: EntryId | None, *, answered: bool) -> None:
        right = owner.appends.right_up_to(self.redis.node == owner.node, self.redis.fence, last)
        added, yields_at = owner.appends.repair(), owner.appends.yields_at
        items: Sequence[Item] = [item(s, text) for s, text in owner.log.items() if s > right]
        fence = self.redis.repair(owner.node, owner.appends.fence, right, yields_at)
        self.remember()
        if fence is None:
            owner.appends.refused()
            owner.gone = True
            return
        if not answered:
            return
        if items:
            self.redis.xadd(Append(fence, None, items))
            self.remember()
        head = items[-1].sequence if items else right
        owner.appends.repaired(fence, 1 if items else 0, added, head)
        self.show(owner)

    @precondition(lambda self: len(self.owners) < 5)
    @rule()
    def take_over(self) -> None:
        """Another node considers the last owner dead, claims the session, and continues from Redis's data."""
        former = self.redis.node
        node = chr(ord("A") + len(self.owners))
        fence = self.redis.claim(node, former, 0)
        if fence is None:
            return
        self.remember()
        self.owners.append(Owner(node, fence, self.redis.log()))

    @precondition(lambda self: len(self.past) > 1)
    @rule(back=st.integers(1, 6), everything=st.booleans())
    def forget(self, back: int, everything: bool) -> None:
        """A failover or a restart loses the last writes or all of them, and every connection is cut."""
        self.redis = ModelRedis() if everything else self.past[-min(back, len(self.past))].copy()
        self.remember()
        for owner in self.living():
            owner.flying = None
            owner.appends.unsettled()

    def remember(self) -> None:
        self.past = [*self.past[-7:], self.redis.copy()]

    def show(self, owner: Owner) -> None:
        assert owner.appends.sequence_kept >= owner.shown, "what was shown is not taken back"
        if owner.appends.sequence_kept > owner.shown:
            named = (self.redis.node, self.redis.fence)
            assert named == (owner.node, owner.appends.fence), "a node speaks that does not own the session"
        owner.shown = owner.appends.sequence_kept

    @invariant()
    def what_was_shown_is_in_redis_or_will_be(self) -> None:
        for owner in self.living():
            if (
                owner.appends.ready
                and self.redis.node == owner.node
                and self.redis.fence == owner.appends.fence
            ):
                log = self.redis.log()
                sequences = range(1, owner.shown + 1)
                assert all(log.get(s) == owner.log.get(s) for s in sequences), "shown and not kept"


Takeovers.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestTakeovers = Takeovers.TestCase

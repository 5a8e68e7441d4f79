"""gateway/relay/events/eventlog.py: the rules of the log."""

import json
import string
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.relay.events.eventlog import (
    MAX_EPOCHS,
    Epoch,
    EventId,
    EventLog,
    Framing,
    GapReason,
    Logged,
    Page,
)
from gateway.relay.events.records import GatewayEvent, ServerEvent
from tests.relay.fakes import frame

WORD = string.digits + string.ascii_lowercase + "-"


def bare_frame(id: str, name: str | None, text: str) -> tuple[bytes, int]:
    """Frame without any addition, so that sizes are those of the texts."""
    return text.encode(), 0


def make(max_events: int = 100, max_bytes: int = 10_000, framing: Framing = bare_frame) -> EventLog:
    """Make a log with the given limits."""
    return EventLog("k3f9", framing, max_events, max_bytes)


def at(sequence: int) -> EventId:
    """Return a position in the log."""
    return EventId("k3f9", sequence)


def said(texts: Iterable[str], first: int = 1) -> list[ServerEvent]:
    """Return events as a journal has them."""
    return [ServerEvent(sequence, 0, "x", text) for sequence, text in enumerate(texts, first)]


class LogMachine(RuleBasedStateMachine):
    """Appends and trims in any order, compared with a list that drops nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.log = make(max_events=7, max_bytes=60)
        self.all: list[str] = []
        self.dropped = 0

    @rule(text=st.text(string.ascii_letters, max_size=80))
    def append(self, text: str) -> None:
        self.dropped += self.log.append("x", text, 0.0)
        self.all.append(text)

    @rule(size=st.integers(0, 100))
    def trim(self, size: int) -> None:
        before = self.log.size
        self.dropped += self.log.trim(size)
        assert before - self.log.size >= min(size, before) or len(self.log) == 1

    @invariant()
    def the_kept_are_a_suffix_and_add_up(self) -> None:
        kept = self.all[self.dropped :]
        assert len(self.log) == len(kept)
        assert self.log.size == sum(len(text) for text in kept)
        assert self.log.spare == self.log.size - (len(kept[-1]) if kept else 0)
        assert self.log.head == at(len(self.all))
        assert self.log.oldest == at(self.dropped + 1)

    @invariant()
    def bounds_hold_but_for_the_newest(self) -> None:
        assert len(self.log) <= 7
        assert self.log.size <= 60 or len(self.log) == 1

    @invariant()
    def every_cursor_gets_a_suffix_or_a_true_gap(self) -> None:
        for sequence in range(len(self.all) + 3):
            page = self.log.read(at(sequence), 1000, 1000)
            texts = [entry.block.decode() for entry in page.entries]
            if sequence > len(self.all):
                assert page.gap is not None
                assert (page.gap.reason, page.gap.missed) == (GapReason.UNKNOWN, None)
                assert texts == self.all[self.dropped :]
            elif sequence < self.dropped:
                assert page.gap is not None
                assert (page.gap.reason, page.gap.missed) == (GapReason.OVERRUN, self.dropped - sequence)
                assert texts == self.all[self.dropped :]
            else:
                assert page.gap is None
                assert texts == self.all[sequence:]
            assert page.cursor == self.log.head
            assert [entry.sequence for entry in page.entries] == list(
                range(len(self.all) - len(texts) + 1, len(self.all) + 1)
            )


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=40, stateful_step_count=30)


@dataclass
class Model:
    """A simple model of the log: every event ever appended, by name."""

    epochs: list[tuple[str, int]]
    """(name, first sequence), oldest first."""
    events: list[str] = field(default_factory=list)
    dropped: int = 0
    settled: int = 0

    def name(self, sequence: int) -> str:
        """Return the epoch of an event; for the position before all events, the oldest epoch."""
        names = [name for name, first in self.epochs if first <= sequence]
        return names[-1] if names else self.epochs[0][0]

    def end(self, epoch: str) -> int | None:
        """Return the last sequence of an epoch that may be shown, or None for an epoch that never began."""
        for index, (name, _) in enumerate(self.epochs):
            if name == epoch:
                last = len(self.events) if index + 1 == len(self.epochs) else self.epochs[index + 1][1] - 1
                return min(last, self.settled)
        return None


class EpochMachine(RuleBasedStateMachine):
    """Appends, takeovers, a journal that confirms late, trims and reloads in any order, compared with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.settles = False
        self.log = make(max_events=7, max_bytes=60)
        self.model = Model([("k3f9", 1)])
        self.number = 0

    @initialize(settles=st.booleans())
    def choose(self, settles: bool) -> None:
        self.settles = settles
        self.log = self.fresh()

    def fresh(self) -> EventLog:
        return EventLog("k3f9", bare_frame, 7, 60, settles=self.settles)

    @rule(text=st.text(string.ascii_letters, max_size=20))
    def append(self, text: str) -> None:
        self.model.dropped += self.log.append("x", text, 0.0)
        self.model.events.append(text)
        if not self.settles:
            self.model.settled += 1

    @rule(part=st.floats(0, 1))
    def settle(self, part: float) -> None:
        goal = int(len(self.model.events) * part)
        advanced = self.log.settle(goal)
        assert advanced == (self.settles and goal > self.model.settled)
        self.model.settled = max(self.model.settled, goal)

    @rule(size=st.integers(0, 40))
    def trim(self, size: int) -> None:
        self.model.dropped += self.log.trim(size)

    @rule()
    def take_over(self) -> None:
        """Begin an epoch in the same log, as its owner does when it claims a session again."""
        self.number += 1
        assert self.log.begin(f"e{self.number}") == 0
        self.model.epochs.append((f"e{self.number}", len(self.model.events) + 1))

    @rule(lost=st.integers(0, 3))
    def fail_over(self, lost: int) -> None:
        """Load what a journal kept into a new log; the newest unsettled events may be lost."""
        model = self.model
        kept = max(model.settled, model.dropped, len(model.events) - lost)
        events = said(model.events[model.dropped : kept], model.dropped + 1)
        epochs = [epoch for epoch in model.epochs if epoch[1] <= kept + 1]
        self.log = self.fresh()
        assert self.log.load([Epoch(*epoch) for epoch in epochs], model.dropped + 1, events) == 0
        self.model = Model(epochs, model.events[:kept], model.dropped, kept)
        self.take_over()

    @invariant()
    def the_table_and_the_ends_are_the_models(self) -> None:
        model, log = self.model, self.log
        oldest = min(model.dropped, model.settled) + 1
        assert [tuple(epoch) for epoch in log.epochs] == model.epochs
        assert log.appended == len(model.events)
        assert log.settled == model.settled
        assert log.head == EventId(model.name(model.settled), model.settled)
        assert log.oldest == EventId(model.name(oldest), oldest)

    @invariant()
    def every_cursor_of_every_epoch_reads_what_the_contract_says(self) -> None:
        model = self.model
        oldest = min(model.dropped, model.settled) + 1
        for epoch in [*(name for name, _ in model.epochs), "never"]:
            end = model.end(epoch)
            for sequence in range(len(model.events) + 2):
                after = EventId(epoch, sequence)
                page = self.log.read(after, 1000, 1000)
                expected: tuple[GapReason, int | None] | None = None
                if end is None:
                    expected = (GapReason.FOREIGN, None)
                elif sequence > end:
                    expected = (GapReason.UNKNOWN, None)
                elif sequence < oldest - 1:
                    expected = (GapReason.OVERRUN, oldest - 1 - sequence)
                assert (page.gap and (page.gap.reason, page.gap.missed)) == expected
                begin = sequence if expected is None else oldest - 1
                self.read_on(page, begin)

    def read_on(self, page: Page, begin: int) -> None:
        """Follow pages to the head: each page has one epoch, and together they have everything settled from `begin`
        on."""
        model = self.model
        read: list[str] = []
        while page.entries:
            assert {model.name(entry.sequence) for entry in page.entries} == {page.cursor.epoch}
            assert page.cursor.sequence == page.entries[-1].sequence
            assert page.more == (page.cursor.sequence < model.settled)
            read += [entry.block.decode() for entry in page.entries]
            page = self.log.read(page.cursor, 1000, 1000)
            assert page.gap is None or model.dropped > model.settled
        assert page.cursor == self.log.head
        assert read == model.events[max(begin, model.dropped) : model.settled]


TestEpochMachine = EpochMachine.TestCase
TestEpochMachine.settings = settings(max_examples=60, stateful_step_count=20)


@given(
    texts=st.lists(st.text(string.ascii_letters, max_size=30), max_size=25),
    cuts=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 90)), min_size=1),
)
def test_paging_gives_every_event_once_in_order(texts: list[str], cuts: list[tuple[int, int]]) -> None:
    """Continuing from each page's cursor gives every event once, for any page size."""
    log = make()
    for text in texts:
        log.append("x", text, 0.0)
    read: list[str] = []
    cursor = at(0)
    for turn in range(len(texts)):
        events, size = cuts[turn % len(cuts)]
        page = log.read(cursor, events, size)
        assert page.gap is None
        assert 1 <= len(page.entries) <= events or cursor == log.head
        assert sum(len(e.block) for e in page.entries) <= size or len(page.entries) == 1 or log.size <= size
        read += [entry.block.decode() for entry in page.entries]
        cursor = page.cursor

    assert read == texts


@given(st.lists(st.text(max_size=20).map(json.dumps), min_size=1, max_size=10))
def test_framing_decides_only_the_block(texts: list[str]) -> None:
    """The events are the same under any framing, which only decides their blocks."""
    logs = [make(framing=bare_frame), make(framing=frame)]
    for log in logs:
        for text in texts:
            log.append("x", text, 1.5, turn=2, name="gateway.x")

    pages = [log.read(at(0), 100, 100_000).entries for log in logs]
    assert [[e.block[e.start :].decode() for e in page] for page in pages] == [texts, texts]
    assert pages[1][0].block.startswith(b"k3f9-1 gateway.x|")
    assert (pages[0][0].type, pages[0][0].turn, pages[0][0].at) == ("x", 2, 1.5)


@given(st.text(WORD, min_size=1, max_size=64))
def test_any_word_of_an_ids_characters_is_read(word: str) -> None:
    """Any text of an id's characters is parsed as an id or as foreign, never an error."""
    parsed = EventId.parse(word)

    assert EventId.parse(str(parsed)) == parsed


@given(st.text(WORD, min_size=1, max_size=20), st.integers(0, 10**30))
def test_ids_read_back_as_written(epoch: str, sequence: int) -> None:
    """Parsing the text of an ID returns the ID."""
    assert EventId.parse(str(EventId(epoch, sequence))) == EventId(epoch, sequence)


@pytest.mark.parametrize("text", ["", "K3F9-1", "k3f9-1\n", "k3f9 1", "é-1", "a" * 65, "k-\u0661"])
def test_other_characters_are_refused(text: str) -> None:
    """A text with characters that no log uses is refused."""
    with pytest.raises(ValueError, match="characters"):
        EventId.parse(text)


@pytest.mark.parametrize("word", ["k3f9", "k3f9-", "-", "k3f9-1x", "banana"])
def test_a_word_that_is_no_id_is_foreign_and_kept(word: str) -> None:
    """An ID without a number is a position in no log, even with the log's own epoch."""
    log = make()
    log.append("x", "a", 0.0)
    page = log.read(EventId.parse(word), 10, 1000)

    assert page.gap is not None
    assert (str(page.gap.requested), page.gap.reason, page.gap.missed) == (word, GapReason.FOREIGN, None)
    assert len(page.entries) == 1


def test_a_foreign_epoch_goes_on_from_the_oldest() -> None:
    """A cursor of another log gets a gap with reason `foreign`, and reading starts at the oldest event."""
    log = make(max_events=2)
    for text in "abc":
        log.append("x", text, 0.0)
    page = log.read(EventId("other", 2), 10, 1000)

    assert page.gap == (EventId("other", 2), at(2), None, GapReason.FOREIGN)
    assert [entry.block for entry in page.entries] == [b"b", b"c"]


def test_a_read_before_an_event_begins_with_it() -> None:
    """The position before the oldest event is where a read of everything starts."""
    log = make(max_events=2)
    for text in "abc":
        log.append("x", text, 0.0)
    page = log.read(log.oldest.before, 10, 1000)

    assert (page.gap, [entry.sequence for entry in page.entries]) == (None, [2, 3])


def test_an_empty_log_has_nothing_and_no_gap() -> None:
    """Before the first event, oldest is head + 1 and a read from the start is empty."""
    log = make()
    page = log.read(at(0), 10, 10)

    assert (log.head, log.oldest, len(log), log.spare) == (at(0), at(1), 0, 0)
    assert page == Page([], at(0), None, sealed=False)


def test_the_newest_event_is_kept_however_large() -> None:
    """A single event above the byte limit replaces all others and stays."""
    log = make(max_bytes=10)
    log.append("x", "abc", 0.0)
    dropped = log.append("x", "d" * 50, 0.0)

    assert (dropped, len(log), log.size) == (1, 1, 50)
    assert log.trim(50) == 0


def test_a_sealed_log_says_so_on_its_last_page_alone() -> None:
    """A page is sealed only if nothing will ever follow it."""
    log = make()
    for text in "ab":
        log.append("x", text, 0.0)
    log.seal()

    assert not log.read(at(0), 1, 100).sealed
    assert log.read(at(1), 1, 100).sealed
    assert log.read(at(2), 1, 100).sealed


def test_a_sealed_log_takes_nothing() -> None:
    """Appending after the seal is a mistake of the gateway."""
    log = make()
    log.seal()

    with pytest.raises(ValueError, match="sealed"):
        log.append("x", "a", 0.0)


def test_memory_of_dropped_events_is_given_back() -> None:
    """However many events pass, the list behind the log stays at twice the number of kept events."""
    log = make(max_events=10)
    for number in range(1000):
        log.append("x", str(number), 0.0)

    assert len(log._entries) <= 21


# --- epochs -----------------------------------------------------------------------------------------------------------


def taken_over() -> EventLog:
    """Make a log of two epochs: k3f9-1 to k3f9-2, then next-3."""
    log = make(framing=frame)
    for text in "ab":
        log.append("x", text, 0.0)
    log.begin("next")
    log.append("x", "c", 0.0)
    return log


def test_a_sequence_goes_on_in_the_next_epoch() -> None:
    """Each event has the epoch in which it was appended, and the next number."""
    log = taken_over()
    first = log.read(at(0), 10, 1000)
    second = log.read(first.cursor, 10, 1000)

    assert [entry.block.partition(b" ")[0] for entry in (*first.entries, *second.entries)] == [
        b"k3f9-1",
        b"k3f9-2",
        b"next-3",
    ]
    assert (first.cursor, second.cursor, log.head) == (at(2), EventId("next", 3), EventId("next", 3))


@pytest.mark.parametrize("name", ["k3f9", "next"])
def test_a_border_has_two_names(name: str) -> None:
    """The position between two epochs has an ID in each of them."""
    page = taken_over().read(EventId(name, 2), 10, 1000)

    assert (page.gap, [entry.sequence for entry in page.entries]) == (None, [3])


def test_an_epoch_without_events_leaves_the_head_where_it_was() -> None:
    """A cursor at the head stays at the head, whichever epochs have begun since."""
    log = taken_over()
    log.begin("third")

    assert log.head == EventId("next", 3)
    assert log.read(EventId("third", 3), 10, 1000) == Page([], EventId("next", 3), None, sealed=False)


def test_a_cursor_above_its_epochs_end_is_unknown() -> None:
    """A cursor above its epoch's end names an event that a former owner showed and that was lost; the number of lost
    events is unknown."""
    page = taken_over().read(at(3), 10, 1000)

    assert page.gap == (at(3), at(1), None, GapReason.UNKNOWN)
    assert [entry.sequence for entry in page.entries] == [1, 2]


def test_a_log_remembers_64_epochs() -> None:
    """The epoch before them is foreign, and its events are dropped, because their IDs are no longer known."""
    log = taken_over()
    for number in range(MAX_EPOCHS - 2):
        assert log.begin(f"e{number}") == 0
    kept = log.read(at(2), 10, 1000)
    dropped = log.begin("last")
    gone = log.read(at(2), 10, 1000)

    assert kept.gap is None
    assert (dropped, len(log), len(log.epochs)) == (2, 1, MAX_EPOCHS)
    assert gone.gap == (at(2), EventId("next", 3), None, GapReason.FOREIGN)


def test_a_log_whose_epochs_are_all_forgotten_is_empty() -> None:
    """When all epochs are forgotten the log is empty, and sequences continue."""
    log = make()
    log.append("x", "a", 0.0)
    dropped = sum(log.begin(f"e{number}") for number in range(MAX_EPOCHS))
    log.append("x", "b", 0.0)

    assert (dropped, len(log), log.size) == (1, 1, 1)
    assert log.oldest == log.head == EventId(f"e{MAX_EPOCHS - 1}", 2)


def test_an_epochs_name_is_used_once() -> None:
    """An epoch's name is used once, because otherwise an ID could mean two events."""
    log = taken_over()

    with pytest.raises(ValueError, match="already"):
        log.begin("k3f9")


def test_a_sealed_log_begins_no_epoch() -> None:
    """A sealed log begins no epoch, because nothing follows."""
    log = taken_over()
    log.seal()

    with pytest.raises(ValueError, match="sealed"):
        log.begin("third")


# --- settling ---------------------------------------------------------------------------------------------------------


def test_readers_see_what_is_settled() -> None:
    """An event is shown once the journal has confirmed it."""
    log = EventLog("k3f9", bare_frame, 10, 1000, settles=True)
    for text in "abc":
        log.append("x", text, 0.0)
    before = log.read(at(0), 10, 1000)
    moved = [log.settle(2), log.settle(1)]
    after = log.read(at(0), 10, 1000)

    assert (before.entries, before.cursor, log.appended) == ([], at(0), 3)
    assert moved == [True, False]
    assert [entry.sequence for entry in after.entries] == [1, 2]
    assert (log.head, log.oldest) == (at(2), at(1))


def test_a_seal_is_seen_with_the_last_event() -> None:
    """A reader that stops at the seal has read everything."""
    log = EventLog("k3f9", bare_frame, 10, 1000, settles=True)
    log.append("x", "a", 0.0)
    log.seal()
    before = (log.sealed, log.read(at(0), 10, 1000).sealed)
    log.settle(1)

    assert before == (False, False)
    assert (log.sealed, log.read(at(0), 10, 1000).sealed) == (True, True)


def test_events_dropped_before_they_settled_are_a_gap_afterwards() -> None:
    """The log's bounds also hold while the journal does not answer; dropped events are reported as a gap afterwards."""
    log = EventLog("k3f9", bare_frame, 2, 1000, settles=True)
    for text in "abcde":
        log.append("x", text, 0.0)
    before = log.read(at(0), 10, 1000)
    log.settle(5)
    after = log.read(at(0), 10, 1000)

    assert before == Page([], at(0), None, sealed=False)
    assert (after.gap, len(after.entries)) == ((at(0), at(4), 3, GapReason.OVERRUN), 2)


def test_an_event_must_be_appended_to_settle() -> None:
    """If a journal confirms more than it was given, that is a mistake of the gateway."""
    with pytest.raises(ValueError, match="not appended"):
        make().settle(1)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_loaded_log_reads_as_the_one_it_was_recorded_from() -> None:
    """Blocks, IDs, types and turns are the same; the arrival times are those of another process."""
    events: list[Logged] = [
        ServerEvent(6, 4, "a", "1"),
        GatewayEvent(7, "gateway.b", "2"),
        ServerEvent(8, 0, "c", "3"),
    ]
    log = make(framing=frame)
    dropped = log.load([Epoch("k3f9", 1), Epoch("next", 8)], 6, events)
    first = log.read(at(5), 10, 1000)
    second = log.read(first.cursor, 10, 1000)

    assert dropped == 0
    assert [(e.sequence, e.type, e.turn, e.at) for e in first.entries] == [
        (6, "a", 4, 0.0),
        (7, "gateway.b", 0, 0.0),
    ]
    assert first.entries[1].block.startswith(b"k3f9-7 gateway.b|")
    assert [(e.sequence, e.block.partition(b" ")[0]) for e in second.entries] == [(8, b"next-8")]
    assert log.read(at(2), 10, 1000).gap == (at(2), at(6), 3, GapReason.OVERRUN)


def test_a_loaded_log_keeps_its_own_bounds() -> None:
    """A loaded log uses its own limits, because another node may be configured to keep less."""
    log = make(max_events=2)

    assert log.load([Epoch("k3f9", 1)], 1, said("abc")) == 1
    assert log.oldest == at(2)


def test_a_table_longer_than_the_bound_is_cut() -> None:
    """Another version of the gateway may record more epochs than the limit; events that only those name are dropped."""
    table = [Epoch("k3f9", 1), *(Epoch(f"e{number}", 2) for number in range(MAX_EPOCHS))]
    log = make()

    assert log.load(table, 1, said("ab")) == 1
    assert log.oldest == EventId(f"e{MAX_EPOCHS - 1}", 2)


@pytest.mark.parametrize(
    "table",
    [[], [Epoch("k3f9", 3)], [Epoch("k3f9", 1), Epoch("next", 5)], [Epoch("k3f9", 2), Epoch("next", 1)]],
)
def test_a_table_that_does_not_fit_the_events_is_refused(table: list[Epoch]) -> None:
    """A table is refused if events have no epoch or epochs begin beyond the events."""
    with pytest.raises(ValueError, match="table"):
        make().load(table, 2, said("ab", 2))


@pytest.mark.parametrize("used", ["append", "begin"])
def test_only_a_new_log_is_loaded(used: str) -> None:
    """A log is loaded once, before anything else is done with it."""
    log = make()
    if used == "append":
        log.append("x", "a", 0.0)
    else:
        log.begin("next")

    with pytest.raises(ValueError, match="not empty"):
        log.load([Epoch("k3f9", 1)], 1, [])


@pytest.mark.parametrize(("after", "kept"), [(0, [2, 3]), (2, [3]), (3, [])])
def test_what_is_kept_can_be_recorded_again(after: int, kept: list[int]) -> None:
    """A snapshot has every kept event after a sequence, with its turn, and marks the gateway's own events."""
    log = make(max_events=2)
    log.append("x", "1", 0.0)
    log.append("x", "2", 0.0, turn=7)
    log.append("gateway.x", "3", 0.0, name="gateway.x")
    records = list(log.records(after, lambda block, start: block[start:].decode()))
    expected: dict[int, object] = {2: ServerEvent(2, 7, "x", "2"), 3: GatewayEvent(3, "gateway.x", "3")}

    assert records == [expected[sequence] for sequence in kept]

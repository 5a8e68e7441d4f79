"""gateway/relay/eventlog.py: the log's laws."""

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.relay.eventlog import EventId, EventLog, Framing, GapReason
from tests.relay.fakes import frame

WORD = string.digits + string.ascii_lowercase + "-"


def bare_frame(id: str, name: str | None, text: str) -> tuple[bytes, int]:
    """Frame by nothing, so that sizes are those of the texts."""
    return text.encode(), 0


def make(max_events: int = 100, max_bytes: int = 10_000, framing: Framing = bare_frame) -> EventLog:
    """Make a log with its own bounds."""
    return EventLog("k3f9", framing, max_events, max_bytes)


def at(sequence: int) -> EventId:
    """Give a place in the log."""
    return EventId("k3f9", sequence)


class LogMachine(RuleBasedStateMachine):
    """Any order of appends and trims, beside a list that forgets nothing."""

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


@given(
    texts=st.lists(st.text(string.ascii_letters, max_size=30), max_size=25),
    cuts=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 90)), min_size=1),
)
def test_paging_gives_every_event_once_in_order(texts: list[str], cuts: list[tuple[int, int]]) -> None:
    """Reading on from each page's cursor gives everything once, whatever the page sizes."""
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
    """The same events read back the same under any framing; ids and names are the framing's business."""
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
    """What a log could have given out by its characters is an id or a foreign word, never an error."""
    parsed = EventId.parse(word)

    assert EventId.parse(str(parsed)) == parsed


@given(st.text(WORD, min_size=1, max_size=20), st.integers(0, 10**30))
def test_ids_read_back_as_written(epoch: str, sequence: int) -> None:
    """An id's text gives the id again."""
    assert EventId.parse(str(EventId(epoch, sequence))) == EventId(epoch, sequence)


@pytest.mark.parametrize("text", ["", "K3F9-1", "k3f9-1\n", "k3f9 1", "é-1", "a" * 65, "k-\u0661"])
def test_other_characters_are_refused(text: str) -> None:
    """A text with other characters was never given out by anybody."""
    with pytest.raises(ValueError, match="characters"):
        EventId.parse(text)


@pytest.mark.parametrize("word", ["k3f9", "k3f9-", "-", "k3f9-1x", "banana"])
def test_a_word_that_is_no_id_is_foreign_and_kept(word: str) -> None:
    """A word without a number is no place in any log, even where it is the log's own epoch."""
    log = make()
    log.append("x", "a", 0.0)
    page = log.read(EventId.parse(word), 10, 1000)

    assert page.gap is not None
    assert (str(page.gap.requested), page.gap.reason, page.gap.missed) == (word, GapReason.FOREIGN, None)
    assert len(page.entries) == 1


def test_a_foreign_epoch_goes_on_from_the_oldest() -> None:
    """A cursor of another owner's log is told so and starts at the oldest event."""
    log = make(max_events=2)
    for text in "abc":
        log.append("x", text, 0.0)
    page = log.read(EventId("other", 2), 10, 1000)

    assert page.gap == (EventId("other", 2), at(2), None, GapReason.FOREIGN)
    assert [entry.block for entry in page.entries] == [b"b", b"c"]


def test_an_empty_log_has_nothing_and_no_gap() -> None:
    """Before the first event, oldest is head + 1 and a read from the start is empty."""
    log = make()
    page = log.read(at(0), 10, 10)

    assert (log.head, log.oldest, len(log), log.spare) == (at(0), at(1), 0, 0)
    assert page == ([], at(0), None, False)


def test_the_newest_event_is_kept_however_large() -> None:
    """One event above the byte bound drops all others but stays."""
    log = make(max_bytes=10)
    log.append("x", "abc", 0.0)
    dropped = log.append("x", "d" * 50, 0.0)

    assert (dropped, len(log), log.size) == (1, 1, 50)
    assert log.trim(50) == 0


def test_a_sealed_log_says_so_on_its_last_page_alone() -> None:
    """A page is sealed when nothing will ever follow it."""
    log = make()
    for text in "ab":
        log.append("x", text, 0.0)
    log.seal()

    assert not log.read(at(0), 1, 100).sealed
    assert log.read(at(1), 1, 100).sealed
    assert log.read(at(2), 1, 100).sealed


def test_a_sealed_log_takes_nothing() -> None:
    """Appending after the seal is a mistake of the gateway's."""
    log = make()
    log.seal()

    with pytest.raises(ValueError, match="sealed"):
        log.append("x", "a", 0.0)


def test_memory_of_dropped_events_is_given_back() -> None:
    """However many events pass, the list behind the log stays at twice what is kept."""
    log = make(max_events=10)
    for number in range(1000):
        log.append("x", str(number), 0.0)

    assert len(log._entries) <= 21

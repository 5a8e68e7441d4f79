"""Marks never promise too much, however many were removed."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.cluster.keys import EntryId
from gateway.cluster.marks import Marks


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(2, 8), st.integers(0, 60))
def test_answers_are_careful(steps: list[int], most: int, asked: int) -> None:
    """Whatever the marks report as held is held, and whatever they report as free of later events is."""
    marks, truth, sequence = Marks(most), [], 0
    marks.reset(EntryId(1, 0), 0)
    for number, step in enumerate(steps, 1):
        sequence += step
        truth.append(sequence)
        marks.add(EntryId(1, number), sequence)

    held = marks.sequence_at(EntryId(1, asked))
    before = marks.entry_before(asked)

    assert len(marks) <= most + 1
    assert held is not None
    assert held <= ([0, *truth][min(asked, len(truth))])
    if before is not None and before.number:
        assert truth[before.number - 1] < asked


def test_nothing_is_known_before_the_first_mark() -> None:
    """For an entry before all marks, nothing is known."""
    marks = Marks()
    marks.reset(EntryId(3, 0), 7)

    assert marks.sequence_at(EntryId(2, 9)) is None
    assert marks.entry_before(7) is None


def test_forgetting_keeps_the_last_mark_before() -> None:
    """Marks of dropped events are removed, except the one that still bounds them."""
    marks = Marks()
    marks.reset(EntryId(1, 0), 0)
    for number in range(1, 6):
        marks.add(EntryId(1, number), number * 10)
    marks.forget_before(35)
    marks.forget_before(1)

    assert len(marks) == 3
    assert marks.entry_before(35) == EntryId(1, 3)

"""gateway/relay/state/answers.py: answers kept for repeats are limited in number, bytes and age."""

import pytest

from gateway.errors import CallerError, UpstreamError
from gateway.relay.events.eventlog import EventId
from gateway.relay.requests import Promise, Receipt
from gateway.relay.state.answers import MAX_AGE_SECONDS, MAX_BYTES, MAX_KEYS, MAX_REQUEST_IDS, Answers
from gateway.relay.state.turn import Turn, TurnRequest

RECEIPT = Receipt(1, 1, 1, EventId("e1", 0))


def finished(number: int, size: int = 0) -> Turn:
    """Return a turn that ended with an answer of this many bytes."""
    turn = Turn(number, f"t{number}", TurnRequest(()))
    done = {"id": "r", "status": "completed", "metadata": {"gateway_turn": turn.id}, "text": "x" * size}
    turn.look("response.created", {"response": done})
    turn.look("response.done", {"response": done})
    turn.finish(EventId("e1", number))
    return turn


def test_the_oldest_answer_goes_at_the_bound_of_keys() -> None:
    """At the limit of keys the oldest answer is dropped, and the newest are kept."""
    answers = Answers()
    for number in range(MAX_KEYS + 3):
        answers.keep(Promise(f"k{number}", "f"), RECEIPT, 0.0)

    assert [answers.find(Promise(f"k{number}", "f")) is None for number in (0, 2, 3)] == [True, True, False]


def test_what_is_kept_stays_within_the_bound_of_bytes() -> None:
    """Sixty turns of 60 KB use no more than the limit, and a repeat of the newest is answered."""
    answers = Answers()
    turns = [finished(number, 60_000) for number in range(60)]
    for turn in turns:
        answers.keep(Promise(f"k{turn.number}", "f"), turn, 0.0)
        assert answers.size <= MAX_BYTES

    assert answers.find(Promise("k59", "f")) is turns[-1]
    assert answers.find(Promise("k0", "f")) is None


def test_an_answer_is_forgotten_when_it_is_old_and_finished() -> None:
    """An old answer is dropped if its turn is finished. A running turn is kept, because a repeat must attach to it."""
    answers, running = Answers(), Turn(1, "t", TurnRequest(()))
    answers.keep(Promise("old", "f"), RECEIPT, 0.0)
    answers.keep(Promise("running", "f"), running, 0.0)
    answers.expire(MAX_AGE_SECONDS + 1.0)

    assert answers.find(Promise("old", "f")) is None
    assert answers.find(Promise("running", "f")) is running


def test_request_ids_are_bounded() -> None:
    """The oldest is forgotten first."""
    answers = Answers()
    for number in range(MAX_REQUEST_IDS + 1):
        answers.keep(Promise(None, None, f"r{number}"), RECEIPT, 0.0)

    assert answers.find(Promise(None, None, "r0")) is None
    assert answers.find(Promise(None, None, "r1")) == RECEIPT._replace(replayed=True)


def test_a_key_with_another_body_is_refused() -> None:
    """The first request's answer is not returned for another request."""
    answers = Answers()
    answers.keep(Promise("k", "f"), RECEIPT, 0.0)
    with pytest.raises(CallerError, match="another path or body"):
        answers.find(Promise("k", "g"))


def test_the_table_comes_back_as_it_was_dumped() -> None:
    """A table that was dumped and loaded has the receipts, the finished turns and the running ones, which are the
    turns of the queue."""
    answers, running = Answers(), Turn(2, "t", TurnRequest(()))
    failed = Turn(3, "f", TurnRequest(()))
    failed.finish(EventId("e1", 1), UpstreamError("upstream-rejected", "No."))
    for name, answer in (("a", RECEIPT), ("b", finished(1)), ("c", running), ("d", failed)):
        answers.keep(Promise(name, "f", f"r{name}"), answer, 1.0)
    dumped = answers.dump({2: running})
    again = Answers.load(dumped, {2: running})

    assert again.dump({2: running}) == dumped
    assert again.find(Promise("c", "f")) is running
    assert again.find(Promise("b", "f")) is again.find(Promise(None, None, "rb"))


def test_turns_that_run_are_never_dropped_for_room() -> None:
    """Running turns are kept whatever their size; once they finish, the oldest are dropped."""
    answers = Answers()
    turns = [Turn(number, f"t{number}", TurnRequest(())) for number in range(3)]
    for turn in turns:
        turn.size = MAX_BYTES // 2
        answers.keep(Promise(f"k{turn.number}", "f"), turn, 0.0)
    assert answers.find(Promise("k0", "f")) is turns[0]
    turns[0].finish(EventId("e1", 1))
    answers.expire(1.0)

    assert answers.find(Promise("k0", "f")) is None
    assert answers.find(Promise("k2", "f")) is turns[2]


def test_a_key_that_is_given_again_is_counted_once() -> None:
    """A key that is used again is counted once, with the newer answer and its age."""
    answers = Answers()
    answers.keep(Promise("k", "f"), RECEIPT, 0.0)
    size = answers.size
    answers.keep(Promise("k", "f"), RECEIPT, MAX_AGE_SECONDS)
    answers.expire(MAX_AGE_SECONDS + 1.0)

    assert answers.size == size
    assert answers.find(Promise("k", "f")) is not None

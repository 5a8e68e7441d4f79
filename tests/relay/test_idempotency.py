"""gateway/relay/idempotency.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.relay.idempotency import SLOT_BYTES, IdempotencyKeys
from gateway.relay.memory import Budget


def test_a_new_key_is_the_claimers() -> None:
    """The first request with a key runs."""
    slot, new = IdempotencyKeys().claim("k", b"body", 0.0)

    assert new
    assert slot.answer is None


def test_a_repeat_while_running_finds_what_it_may_attach_to() -> None:
    """A second request with the key gets the first one's slot, to which it may attach."""
    keys = IdempotencyKeys()
    first, _ = keys.claim("k", b"body", 0.0)
    first.running = "the turn"
    second, new = keys.claim("k", b"body", 0.0)

    assert (second, new) == (first, False)
    assert second.running == "the turn"


def test_a_repeat_afterwards_finds_the_answer() -> None:
    """A stored answer is returned for every repeat, and the running request is released."""
    keys = IdempotencyKeys()
    slot, _ = keys.claim("k", b"body", 0.0)
    slot.running = object()
    keys.keep("k", "answer", 10)
    again, new = keys.claim("k", b"body", 0.0)

    assert (again.answer, again.running, new) == ("answer", None, False)


def test_the_same_key_for_another_request_is_refused() -> None:
    """A key with another request is refused (contract 1.2)."""
    keys = IdempotencyKeys()
    keys.claim("k", b"body", 0.0)

    with pytest.raises(GatewayError) as caught:
        keys.claim("k", b"other", 0.0)
    assert caught.value.code == "idempotency-key-reused"


def test_a_released_key_is_new_again() -> None:
    """A request without effect leaves nothing, even if it is released twice."""
    keys = IdempotencyKeys()
    keys.claim("k", b"body", 0.0)
    keys.release("k")
    keys.release("k")

    assert keys.claim("k", b"other", 0.0)[1]


def test_at_the_bound_the_oldest_answer_is_forgotten() -> None:
    """Answers are dropped in the order of their requests; running requests stay."""
    keys = IdempotencyKeys(max_keys=3)
    for key in "abc":
        keys.claim(key, b"", 0.0)
    keys.keep("b", "answer", 10)
    keys.keep("c", "answer", 10)
    keys.claim("d", b"", 0.0)

    assert [keys.claim(key, b"", 0.0)[1] for key in "ac"] == [False, False]
    assert keys.claim("b", b"", 0.0)[1]


def test_where_all_are_running_one_more_is_refused() -> None:
    """Running requests are never dropped, so there is no room for another."""
    keys = IdempotencyKeys(max_keys=1)
    keys.claim("a", b"", 0.0)

    with pytest.raises(GatewayError) as caught:
        keys.claim("b", b"", 0.0)
    assert (caught.value.code, caught.value.retry_after) == ("capacity", 1)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["claim", "keep", "release"]))))
def test_a_running_request_is_never_run_twice(steps: list[tuple[str, str]]) -> None:
    """In any order, a key is new only if no request runs with it, and the limit holds."""
    keys, running = IdempotencyKeys(max_keys=3), set[str]()
    for key, step in steps:
        if step == "claim":
            try:
                _, new = keys.claim(key, b"", 0.0)
            except GatewayError:
                assert len(running) == 3
                continue
            assert not (new and key in running)
            if new:
                running.add(key)
        elif key in running:
            running.remove(key)
            keys.keep(key, "answer", 10) if step == "keep" else keys.release(key)
        assert len(keys._slots) <= 3


def test_an_answer_is_kept_for_a_day() -> None:
    """After a day an answer is dropped and its key is new; a running request is not dropped."""
    keys = IdempotencyKeys()
    for key in "ab":
        keys.claim(key, b"", 0.0)
    keys.keep("a", "answer", 10)

    assert not keys.claim("a", b"", 86_399.0)[1]
    assert keys.claim("a", b"", 86_400.0)[1]
    assert not keys.claim("b", b"", 86_400.0)[1]


def test_answers_are_bounded_in_bytes() -> None:
    """The oldest answers are dropped by bytes, also for one that is larger than the limit by itself."""
    keys = IdempotencyKeys(max_bytes=10_000)
    for key in "abc":
        keys.claim(key, b"", 0.0)
        keys.keep(key, "answer", 4_000)

    assert keys.claim("a", b"", 0.0)[1]
    assert keys.size <= 10_000 + SLOT_BYTES

    keys.claim("huge", b"", 0.0)
    keys.keep("huge", "answer", 20_000)

    assert keys.size == SLOT_BYTES


def test_answers_are_charged_to_the_memory_budget() -> None:
    """Everything is returned to the budget with the table."""
    budget = Budget(10_000)
    keys = IdempotencyKeys(budget.open("ada"))
    keys.claim("a", b"", 0.0)
    keys.keep("a", "answer", 3_000)
    assert budget.held_by("ada") == keys.size == 3_000 + SLOT_BYTES

    keys.release("a")
    assert budget.held == 0

    keys.claim("b", b"", 0.0)
    keys.close()
    keys.close()
    assert budget.held == 0


def test_without_room_in_the_budget_a_key_is_refused() -> None:
    """Without room in the budget a key is refused before the request has an effect, because its repeat could not be
    answered."""
    budget = Budget(1_000)
    budget.open("bob").grow(900)
    keys = IdempotencyKeys(budget.open("ada"))

    with pytest.raises(GatewayError) as caught:
        keys.claim("a", b"", 0.0)
    assert caught.value.code == "capacity"
    assert keys.size == 0

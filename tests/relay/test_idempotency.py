"""gateway/relay/idempotency.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.relay.idempotency import IdempotencyKeys


def test_a_new_key_is_the_claimers() -> None:
    """The first request with a key runs."""
    slot, new = IdempotencyKeys().claim("k", b"body")

    assert new
    assert slot.answer is None


def test_a_repeat_while_running_finds_what_it_may_attach_to() -> None:
    """A second request with the key is given the first one's slot."""
    keys = IdempotencyKeys()
    first, _ = keys.claim("k", b"body")
    first.running = "the turn"
    second, new = keys.claim("k", b"body")

    assert (second, new) == (first, False)
    assert second.running == "the turn"


def test_a_repeat_afterwards_finds_the_answer() -> None:
    """A kept answer stands for every repeat, and what ran is let go."""
    keys = IdempotencyKeys()
    slot, _ = keys.claim("k", b"body")
    slot.running = object()
    keys.keep("k", "answer")
    again, new = keys.claim("k", b"body")

    assert (again.answer, again.running, new) == ("answer", None, False)


def test_the_same_key_for_another_request_is_refused() -> None:
    """One key, one request: contract 1.2."""
    keys = IdempotencyKeys()
    keys.claim("k", b"body")

    with pytest.raises(GatewayError) as caught:
        keys.claim("k", b"other")
    assert caught.value.code == "idempotency-key-reused"


def test_a_released_key_is_new_again() -> None:
    """A request without effect leaves nothing, also when it is released twice."""
    keys = IdempotencyKeys()
    keys.claim("k", b"body")
    keys.release("k")
    keys.release("k")

    assert keys.claim("k", b"other")[1]


def test_at_the_bound_the_oldest_answer_is_forgotten() -> None:
    """Answers leave in the order in which their requests came; running ones stay."""
    keys = IdempotencyKeys(max_keys=3)
    for key in "abc":
        keys.claim(key, b"")
    keys.keep("b", "answer")
    keys.keep("c", "answer")
    keys.claim("d", b"")

    assert [keys.claim(key, b"")[1] for key in "ac"] == [False, False]
    assert keys.claim("b", b"")[1]


def test_where_all_are_running_one_more_is_refused() -> None:
    """Running requests are never forgotten, so there is no room."""
    keys = IdempotencyKeys(max_keys=1)
    keys.claim("a", b"")

    with pytest.raises(GatewayError) as caught:
        keys.claim("b", b"")
    assert (caught.value.code, caught.value.retry_after) == ("capacity", 1)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["claim", "keep", "release"]))))
def test_a_running_request_is_never_run_twice(steps: list[tuple[str, str]]) -> None:
    """Whatever the order, a key is new only where nobody runs under it, and the bound holds."""
    keys, running = IdempotencyKeys(max_keys=3), set[str]()
    for key, step in steps:
        if step == "claim":
            try:
                _, new = keys.claim(key, b"")
            except GatewayError:
                assert len(running) == 3
                continue
            assert not (new and key in running)
            if new:
                running.add(key)
        elif key in running:
            running.remove(key)
            keys.keep(key, "answer") if step == "keep" else keys.release(key)
        assert len(keys._slots) <= 3

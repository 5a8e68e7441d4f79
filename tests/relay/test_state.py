"""gateway/relay/state.py: the table, and the words of the contract."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.relay.state import TRANSITIONS, CloseReason, IllegalTransition, Input, State, advance


@given(st.lists(st.sampled_from(Input)))
def test_any_order_of_inputs_leaves_a_listed_state(inputs: list[Input]) -> None:
    """Every input is either a row of the table or refused; closed is never left."""
    state = State.CONNECTING
    for happened in inputs:
        before = state
        try:
            state = advance(state, happened)
        except IllegalTransition:
            assert (before, happened) not in TRANSITIONS
        assert state in set(State)
        assert before is not State.CLOSED or state is State.CLOSED


@pytest.mark.parametrize("state", [s for s in State if s is not State.CLOSED])
def test_every_living_state_can_be_closed(state: State) -> None:
    """Whatever a session does, it can be ended."""
    assert advance(state, Input.CLOSED) is State.CLOSED


@pytest.mark.parametrize("happened", Input)
def test_nothing_happens_to_what_is_closed(happened: Input) -> None:
    """Closed is final."""
    with pytest.raises(IllegalTransition, match=f"{happened} in state closed"):
        advance(State.CLOSED, happened)


def test_states_are_the_words_of_the_contract() -> None:
    """Contract 1.1 lists the states."""
    assert [str(state) for state in State] == ["connecting", "connected", "recovering", "closed"]


def test_close_reasons_are_the_words_of_the_contract() -> None:
    """Contract 2 lists the close reasons."""
    words = (
        "client detached idle expired upstream_rejected upstream_lost upstream_closed limit drained internal"
    )

    assert [str(reason) for reason in CloseReason] == words.split()


def test_retrying_helps_but_where_somebody_decided() -> None:
    """What the client, OpenAI or a limit decided is decided again; everything else may go better."""
    final = {reason for reason in CloseReason if not reason.retryable}

    assert final == {CloseReason.CLIENT, CloseReason.UPSTREAM_REJECTED, CloseReason.LIMIT}

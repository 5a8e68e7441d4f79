"""gateway/relay/calls/lifecycle.py: the table of phases and inputs, and its diagram in the documentation."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.relay.calls.lifecycle import (
    HEARING,
    HOLDING,
    STATE_OF,
    TABLE,
    Action,
    Impossible,
    Input,
    Phase,
    advance,
    diagram,
    page,
)
from gateway.relay.states import State

PAGE = Path(__file__).parents[3] / "docs" / "state-table.md"


@given(st.lists(st.sampled_from(Input)))
def test_any_order_of_inputs_is_a_row_or_impossible(inputs: list[Input]) -> None:
    """Every input in any order has a row in the table or is impossible, and a session that has ended stays ended."""
    phase = Phase.DIALLING
    for happened in inputs:
        try:
            step = advance(phase, happened)
        except Impossible:
            assert (phase, happened) not in TABLE
            continue
        assert phase is not Phase.ENDED
        phase = step.phase


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.ENDED])
def test_every_phase_can_end_and_be_reached(phase: Phase) -> None:
    """A session can be closed in every phase, and every phase can be reached."""
    starts = {Phase.DIALLING, Phase.DOWN, Phase.SWITCHING}

    assert advance(phase, Input.END).phase is Phase.ENDED
    assert phase in starts | {step.phase for step in TABLE.values()}


def test_events_are_held_from_one_step_to_another() -> None:
    """Every change to a holding phase has the action `hold`, and every change from one has `release`."""
    for (phase, happened), step in TABLE.items():
        if happened is not Input.END:
            begins = step.phase in HOLDING and phase not in HOLDING
            ends = phase in HOLDING and step.phase not in HOLDING
            assert (Action.HOLD in step.actions) == begins, (phase, happened)
            assert (Action.RELEASE in step.actions) == ends, (phase, happened)


def test_a_call_is_left_wherever_it_is_not_listened_to_any_more() -> None:
    """A call that is no longer listened to is left, because otherwise its last events would reach the log or be
    taken for the next call's."""
    for (phase, happened), step in TABLE.items():
        if happened is not Input.END:
            left = phase in HEARING and step.phase not in HEARING
            assert (Action.LEAVE in step.actions) == left, (phase, happened)


def test_clients_are_told_when_the_state_changes() -> None:
    """Each change to and from recovering has an event in the log."""
    for (phase, _), step in TABLE.items():
        before, after = STATE_OF[phase], STATE_OF[step.phase]
        recovering = after is State.RECOVERING and before is not State.RECOVERING
        assert (Action.TELL_RECOVERING in step.actions) == recovering
        if before is State.RECOVERING and after is State.CONNECTED:
            assert Action.TELL_RECOVERED in step.actions


def test_the_page_shows_the_table() -> None:
    """The page in docs is generated from the table. Update it with `python -c "from gateway.relay.calls import
    lifecycle; print(lifecycle.page(), end='')"`."""
    assert PAGE.read_text("utf-8") == page()
    assert diagram() in page()

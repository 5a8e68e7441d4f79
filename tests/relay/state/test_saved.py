"""gateway/relay/state/saved.py: a session is folded in steps."""

from unittest import mock

from gateway.relay.events.records import Acknowledged, ServerEvent, encode
from gateway.relay.state import saved
from tests.relay.state.test_mirror import fresh_state


def test_a_long_journal_is_folded_in_steps() -> None:
    """Other work may run after a number of records, and the result is that of one step."""
    state = fresh_state()
    state.apply(ServerEvent(1, 0, "x", "{}"))
    before = [encode(ServerEvent(1, 0, "x", "{}")), encode(Acknowledged(1))]
    after = [encode(ServerEvent(number, 0, "x", "{}")) for number in (2, 3, 4)]
    blob = state.dump()
    whole = saved.fold(blob, before, after)
    with mock.patch.object(saved, "STEP_RECORDS", 2):
        pauses = sum(1 for _ in saved.fold_in_steps(blob, before, after))
        found = saved.fold(blob, before, after)

    assert pauses == 2
    assert found.state.head == 4
    assert found.events == whole.events

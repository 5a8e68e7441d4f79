"""gateway/relay/atrest.py: a session as its last snapshot describes it."""

from dataclasses import replace

from gateway.relay.atrest import last_known
from gateway.relay.states import CloseReason, State
from tests.relay.fakes import Harness


async def test_a_snapshot_shows_the_session_as_its_owner_did(harness: Harness) -> None:
    """All members are those of the owner, except what only a running node knows: state, call and receivers."""
    session = await harness.open(metadata={"name": "one"})
    shown, owned = last_known(session.dump(), harness.limits), session.view()

    assert shown.state == State.RECOVERING
    assert shown == replace(
        owned,
        state=State.RECOVERING,
        call_id=None,
        call_expires_at=None,
        max_event_bytes=None,
    )


async def test_a_snapshot_of_a_closed_session_has_its_reason(harness: Harness) -> None:
    """A closed session is shown as closed, with the reason."""
    session = await harness.open()
    await session.close(CloseReason.CLIENT)
    shown = last_known(session.dump(), harness.limits)

    assert (shown.state, shown.close_reason) == (State.CLOSED, CloseReason.CLIENT)

"""How much memory a hostile caller or far end can make one session hold: measured bytes compared with the stated
limit."""

import tracemalloc

from gateway.relay.limits import RelayLimits
from gateway.relay.ports import CallRequest
from gateway.relay.state.mirror import MAX_BYTES
from gateway.relay.states import CloseReason
from tests.relay.fakes import Harness

MIB = 1024 * 1024


async def test_closed_sessions_do_not_keep_their_session_objects() -> None:
    """Forty sessions that were created with 1 MiB and deleted hold less than four session objects, while their logs
    can be read."""
    harness = Harness(RelayLimits(template={}))
    harness.hub.start()
    tracemalloc.start()
    try:
        for number in range(40):
            session = await harness.open(
                session={"type": "realtime", "instructions": f"{number}" + "x" * MIB}
            )
            await session.close(CloseReason.CLIENT)
            # The far end's memory of its call does not count as the relay's.
            harness.call.request = CallRequest({})
            harness.dialer.calls.clear()
            harness.dialer.requests.clear()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        await harness.hub.close()

    assert held < 4 * MIB
    assert harness.hub.budget.held < MIB


async def test_a_conversation_without_end_holds_what_the_mirror_may() -> None:
    """32 MiB of items leave at most the mirror's limit of text, charged to the caller, and the log's own limit."""
    harness = Harness(RelayLimits(log_max_bytes=MIB))
    harness.hub.start()
    session = await harness.open()
    call = harness.call
    tracemalloc.start()
    try:
        for number in range(32):
            content = [{"type": "input_text", "text": f"{number}" + "x" * MIB}]
            item = {"id": f"i{number}", "type": "message", "role": "user", "content": content}
            call.say("conversation.item.added", item=item)
            assert session.state.mirror.size <= MAX_BYTES + MIB
            assert harness.hub.budget.held_by(session.view().principal) >= session.state.mirror.size
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        await harness.hub.close()

    assert held < MAX_BYTES + 4 * MIB

"""How much memory a hostile caller or far end can make one session hold: measured bytes compared with the stated
limit."""

import tracemalloc

from gateway.relay.limits import RelayLimits
from gateway.relay.ports import CallRequest
from gateway.relay.state.mirror import MAX_BYTES
from gateway.relay.states import CloseReason
from tests.relay.fakes import House

MIB = 1024 * 1024


async def test_closed_sessions_do_not_keep_their_session_objects() -> None:
    """Forty sessions that were created with 1 MiB and deleted hold less than four session objects, while their logs
    can be read."""
    house = House(RelayLimits(template={}))
    house.hub.start()
    tracemalloc.start()
    try:
        for number in range(40):
            session = await house.open(session={"type": "realtime", "instructions": f"{number}" + "x" * MIB})
            await session.close(CloseReason.CLIENT)
            # The far end's memory of its call does not count as the relay's.
            house.call.request = CallRequest({})
            house.dialer.calls.clear()
            house.dialer.requests.clear()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        await house.hub.close()

    assert held < 4 * MIB
    assert house.hub.budget.held < MIB


async def test_a_conversation_without_end_holds_what_the_mirror_may() -> None:
    """32 MiB of items leave at most the mirror's limit of text, charged to the caller, and the log's own limit."""
    house = House(RelayLimits(log_max_bytes=MIB))
    house.hub.start()
    session = await house.open()
    call = house.call
    tracemalloc.start()
    try:
        for number in range(32):
            content = [{"type": "input_text", "text": f"{number}" + "x" * MIB}]
            item = {"id": f"i{number}", "type": "message", "role": "user", "content": content}
            call.say("conversation.item.added", item=item)
            assert session.state.mirror.size <= MAX_BYTES + MIB
            assert house.hub.budget.held_by(session.view().principal) >= session.state.mirror.size
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        await house.hub.close()

    assert held < MAX_BYTES + 4 * MIB

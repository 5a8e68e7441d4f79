"""Many sessions at once in one process: their resources, all of which are released."""

import asyncio
import os
import threading

import pytest

from gateway.app import Gateway
from tests.e2e.caller import Caller, Json, Serve, say
from tests.e2e.holdings import Holdings, back_to, settled
from tests.farend import FarEnd

SESSIONS = 500
AT_ONCE = 10
# A session without readers needs one UDP socket. The rest is shared: listeners, a few connections to the far end.
DESCRIPTORS_EACH = 1
DESCRIPTORS_SHARED = 50
TASKS_EACH = 6


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_five_hundred_sessions_leave_nothing(serve: Serve, far_end: FarEnd) -> None:
    """After 500 sessions were opened, used and deleted, tasks, descriptors and threads are as before, and no session
    had a thread of its own."""
    gateway = await serve(far_end)
    # The first session creates what all share: connections, a certificate, the resolver's thread.
    await round_trip(gateway, 1)
    before = await settled()

    while_open = await round_trip(gateway, SESSIONS)

    assert while_open.threads == before.threads
    assert while_open.descriptors - before.descriptors <= SESSIONS * DESCRIPTORS_EACH + DESCRIPTORS_SHARED
    assert while_open.tasks - before.tasks <= SESSIONS * TASKS_EACH
    assert while_open.peer_connections - before.peer_connections == SESSIONS
    await back_to(before, seconds=45)
    assert (await far_end.about())["calls"] == 0


async def round_trip(gateway: Gateway, count: int) -> Holdings:
    """Open this many sessions, use each, count resources, delete all, and return the resources that were in use."""
    caller = Caller(gateway.url)
    gate = asyncio.Semaphore(AT_ONCE)

    async def use(number: int) -> Json:
        async with gate:
            session = await caller.open()
            await caller.send(session["id"], *say(f"What is {number} plus {number}?"))
            read = await caller.until(session["id"], "response.done")
            text = read[-1].value["response"]["output"][0]["content"][0]["text"]
            assert str(2 * number) in text.replace(",", "")
            return session

    async def delete(session: Json) -> None:
        async with gate:
            answer, _ = await caller.ask("DELETE", f"/v1/sessions/{session['id']}")
            assert answer.status == 204

    try:
        sessions = await asyncio.gather(*(use(number) for number in range(count)))
        async with asyncio.timeout(20):  # A stream that is left at once is noticed within seconds.
            while (await settled()).descriptors > count * DESCRIPTORS_EACH + DESCRIPTORS_SHARED:
                await asyncio.sleep(0.5)
        held = Holdings.now()
        assert threading.active_count() == held.threads
        assert len(os.listdir("/proc/self/task")) < count or count == 1
        await asyncio.gather(*map(delete, sessions))
    finally:
        await caller.http.close()
    return held

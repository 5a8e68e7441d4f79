"""What is acknowledged is not delivered yet: a call that delivers nothing is replaced, and events that never arrived are
named."""

import pytest

from tests.e2e.caller import Caller, Serve
from tests.farend import FarEnd
from tests.upstream.badpath import Path, bad_path
from tests.upstream.farend import farend

pytestmark = pytest.mark.slow

APPENDS = 20


async def test_call_that_acknowledges_and_delivers_nothing_is_replaced(serve: Serve) -> None:
    """A far end answers checks and its data is acknowledged, but a missing message stops delivery: cause `stalled`."""
    async with farend() as url:
        gateway = await serve(url, relay={"stall_timeout_seconds": 0.5})
        async with Caller(gateway.url) as caller, Caller(gateway.admin_url) as operator:
            session = await caller.open()
            item = {"type": "conversation.item.create", "item": {"type": "message"}}
            # The far end sends every event back, after this in vain.
            await caller.send(session["id"], {"type": "skip", "do": "skip"}, item)
            reads = await caller.until(session["id"], "gateway.recovered")
            _, metrics = await operator.ask("GET", "/metrics")

    own = [read.value for read in reads if read.type.startswith("gateway.")]
    assert [(event["type"], event["cause"]) for event in own] == [
        ("gateway.recovering", "stalled"),
        ("gateway.recovered", "stalled"),
    ]
    assert 'recoveries_total{cause="stalled",outcome="recovered"} 1.0' in metrics.decode()


async def test_events_without_answers_are_named_if_they_never_arrived(serve: Serve, far_end: FarEnd) -> None:
    """Events of the call, a `response.done` among them, do not confirm appends and a cancel that the far end never got."""
    path = Path()
    appends = [
        {"type": "input_audio_buffer.append", "event_id": f"append{number}", "audio": "AAAA" * 10}
        for number in range(APPENDS)
    ]
    cancel = {"type": "response.cancel", "event_id": "cancel", "response_id": "resp_of_which_nobody_knows"}
    async with bad_path(far_end.base_url, path) as url:
        gateway = await serve(url)
        async with Caller(gateway.url) as caller:
            session = await caller.open()
            call_id = str(session["call_id"])
            await caller.until(session["id"], "session.created")
            path.mute = True
            receipt = await caller.send(session["id"], *appends, cancel)
            done = '{"type":"response.done","response":{"id":"resp_other","status":"completed"}}'
            await far_end.send(call_id, done)
            await caller.until(session["id"], "response.done", after=receipt["head"])
            await far_end.fault(call_id, do="hang_up")
            await caller.until(session["id"], "gateway.recovering", after=receipt["head"])
            path.mute = False
            reads = await caller.until(session["id"], "gateway.recovered", after=receipt["head"])
            arrived = await far_end.received(call_id)

    assert [event["event_id"] for event in reads[-1].value["unknown"]] == [
        *(append["event_id"] for append in appends),
        "cancel",
    ]
    assert arrived == []

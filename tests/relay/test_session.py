"""gateway/relay/session.py: one session, from its opening to its last event."""

import asyncio
import json
from typing import Any

import pytest

from gateway.errors import GatewayError
from gateway.relay.events.eventlog import EventId
from gateway.relay.events.jsontext import LARGE_BYTES
from gateway.relay.ports import LossCause
from gateway.relay.requests import Receipt
from gateway.relay.session import Session
from gateway.relay.state.turn import Turn, TurnRequest
from gateway.relay.states import CloseReason, State
from tests.relay.conftest import Build
from tests.relay.fakes import START_UNIX, FakeReceiver, Harness, client_event, logged, types_of
from tests.waiting import until

HELLO = TurnRequest(
    [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]
)


async def refused(session: Session, *events: Any) -> GatewayError:
    """Return the error with which a batch is refused; nothing of it may be sent or counted."""
    before = session.diagnostics()["accepted"]
    with pytest.raises(GatewayError) as caught:
        await session.submit(events or [client_event("x")])
    assert session.diagnostics()["accepted"] == before
    return caught.value


def turn_entries(session: Session, turn: Turn) -> list[str]:
    """Return the types of a turn's events, as its reader gets them."""
    assert turn.after is not None
    assert turn.last is not None
    page = session.reader.read(turn.after, 1000, 1 << 30)
    return [e.type for e in page.entries if e.turn == turn.number and e.sequence <= turn.last.sequence]


# --- sending ----------------------------------------------------------------------------------------------------------


async def test_a_batch_goes_up_as_it_came(harness: Harness) -> None:
    """A batch is sent in order, byte for byte; the receipt's numbers continue, and its head was taken before."""
    session = await harness.open()
    batch = [client_event("conversation.item.create", item={}), client_event("unknown.type")]
    first = await session.submit(batch)
    harness.call.say("x")
    second = await session.submit(batch[:1])

    assert harness.call.sent == [batch[0].text, batch[1].text, batch[0].text]
    assert first == Receipt(2, 1, 2, EventId(first.head.epoch, 1))
    assert second == Receipt(1, 3, 3, EventId(first.head.epoch, 2))
    assert harness.facts.of("event_up")[1] == ("unknown.type", batch[1].size)


async def test_reading_after_a_receipts_head_shows_all_it_caused(harness: Harness) -> None:
    """A read after the receipt's head also shows what the far end answered while the batch was sent."""
    session = await harness.open()
    harness.call.on_send = lambda event: harness.call.say("answer")
    receipt = await session.submit([client_event("x")])

    page = session.reader.read(receipt.head, 10, 1 << 20)
    assert [entry.type for entry in page.entries] == ["answer"]


async def test_back_pressure_refuses_what_does_not_fit(build: Build) -> None:
    """A batch that does not fit is refused whole; a smaller one that fits is still accepted."""
    harness = build(high_water_bytes=1000)
    session = await harness.open()
    harness.call.buffered = 900
    error = await refused(session, client_event("x", a="b" * 50), client_event("x", a="b" * 50))
    await session.submit([client_event("x", a="b" * 50)])

    assert (error.code, error.retry_after) == ("upstream-backpressure", 1)
    assert len(harness.call.sent) == 1


async def test_one_large_batch_passes_where_nothing_is_buffered(build: Build) -> None:
    """A batch above the high-water mark is accepted if nothing is buffered, because it could never be sent
    otherwise."""
    harness = build(high_water_bytes=100)
    session = await harness.open()
    await session.submit([client_event("x", a="b" * 500)])
    harness.call.buffered = 0
    await session.submit([client_event("x", a="b" * 500)])

    assert len(harness.call.sent) == 2


async def test_an_event_above_the_size_bound_is_refused(build: Build) -> None:
    """An event above the limit, in bytes of UTF-8, is refused with its whole batch."""
    harness = build(max_event_bytes=40)
    session = await harness.open()
    await session.submit([client_event("x", a="a" * 10)])
    error = await refused(session, client_event("x"), client_event("x", a="a" * 50))

    assert (error.code, error.members) == ("too-large", {"limit": 40})
    assert error.detail.startswith("Event 1 ")


async def test_a_bug_in_the_channel_does_not_make_the_session_deaf(harness: Harness) -> None:
    """If the channel raises an unexpected exception, the session still hears the far end."""
    session = await harness.open()

    def fail(event: object) -> None:
        raise RuntimeError(event)

    harness.call.on_send = fail
    with pytest.raises(RuntimeError):
        await session.submit([client_event("x")])
    harness.call.say("y")

    assert types_of(session)[-1] == "y"


async def test_what_the_channel_refuses_is_not_counted(harness: Harness) -> None:
    """Events that the channel refuses are not counted, because the far end has its own limit."""
    session = await harness.open()
    harness.call.max_message_bytes = 20
    error = await refused(session, client_event("x", a="b" * 50))

    assert error.code == "too-large"


@pytest.mark.parametrize(
    ("event", "pointer"),
    [
        (client_event("session.update", session={"model": "x"}), "/session/model"),
        (client_event("session.update", session=None), "/session/model"),
        (client_event("session.update", Session={"MODEL": "x"}), "/session/model"),
        (client_event("session.update", session=[{"model": "x"}]), "/session/model"),
        (client_event("response.create", response={"model": None}), "/response/model"),
        (client_event("response.create", response="x"), "/response/model"),
    ],
)
async def test_locked_members_are_refused_in_any_event(build: Build, event: Any, pointer: str) -> None:
    """Locked members are found at every position and in any form; in a batch the pointer names the event."""
    session = await build(session_locked=("model",)).open()
    alone = await refused(session, event)
    beside = await refused(session, client_event("x"), event)

    assert (alone.code, alone.flaws[0].pointer) == ("member-locked", pointer)
    assert beside.flaws[0].pointer == "/1" + pointer


async def test_events_that_set_nothing_locked_pass(build: Build) -> None:
    """A response.create without members, another member, and another event are accepted."""
    harness = build(session_locked=("model",))
    session = await harness.open()
    batch = [
        client_event("response.create"),
        client_event("response.create", response={}),
        client_event("session.update", session={"voice": "x"}),
        client_event("conversation.item.create", item={"model": "x"}),
    ]
    receipt = await session.submit(batch)

    assert receipt.accepted == 4


async def test_a_large_turn_is_written_and_sent_in_different_turns_of_the_loop(harness: Harness) -> None:
    """Writing and sending a turn of a megabyte take milliseconds each, so other work runs between the two, and between the
    parts of a long text."""
    session = await harness.open()
    content = [{"type": "input_text", "text": "\n" * 600_000}]
    asked = asyncio.create_task(
        session.turn(TurnRequest([{"type": "message", "role": "user", "content": content}]))
    )
    sent = []
    while not asked.done():
        await asyncio.sleep(0)
        sent.append(len(harness.call.sent))

    assert sent.count(0) > 2
    assert sent[-1] > 0
    assert harness.call.events[0]["item"]["content"] == content


# --- receiving --------------------------------------------------------------------------------------------------------


async def test_a_server_event_is_logged_as_it_came(harness: Harness) -> None:
    """A server event is logged byte for byte, white space and escapes included, and counted."""
    session = await harness.open()
    text = '{ "type" : "response.output_text.delta",\t"delta":"\\u00e9é" }'
    harness.call.say_text(text)
    entry = session.reader.read(EventId(session.reader.head.epoch, 1), 1, 1 << 20).entries[0]

    assert entry.block[entry.start :].decode() == text
    assert (entry.type, entry.turn) == ("response.output_text.delta", 0)
    assert harness.facts.of("event_down")[-1] == ("response.output_text.delta", len(text.encode()))


def large_event(type: str = "conversation.item.added") -> str:
    """Return a server event that is taken in steps."""
    content = [{"type": "input_text", "text": "é\n" * LARGE_BYTES}]
    item = {"id": "item_1", "type": "message", "role": "user", "status": "completed", "content": content}
    return json.dumps({"type": type, "item": item})


async def test_a_large_frame_taken_in_steps_is_relayed_as_a_small_one(build: Build) -> None:
    """The last of its steps logs it and applies it to the state; those before do not depend on the session."""
    harness = build()
    at_once, in_steps = await harness.open(), await harness.open()
    text = large_event()
    first, second = harness.dialer.calls
    first.say_text(text)
    steps = list(second.say_in_steps(text))

    assert len(steps) >= 4
    assert logged(in_steps.reader) == logged(at_once.reader)
    assert in_steps.state.mirror.size > LARGE_BYTES
    assert in_steps.state.mirror.dump() == at_once.state.mirror.dump()
    assert harness.facts.of("event_down")[-1] == harness.facts.of("event_down")[-2]


async def test_until_its_last_step_a_large_frame_has_not_arrived(harness: Harness) -> None:
    """The log is as before while a large frame is read, and what is held for that is in the memory budget."""
    session = await harness.open()
    text, budget = large_event(), harness.hub.budget
    head, before = session.reader.head, budget.held
    steps = harness.call.say_in_steps(text)
    next(steps)

    assert budget.held >= before + len(text)
    assert session.reader.head == head
    for _ in steps:
        assert session.reader.head == head
    assert session.reader.head.sequence == head.sequence + 1
    session.tick(harness.clock.monotonic())
    assert budget.held < before + len(text)


async def test_a_large_frame_of_a_session_that_ended_meanwhile_is_dropped(harness: Harness) -> None:
    """The session ends without waiting for it, and the memory for it is free."""
    session = await harness.open()
    steps = harness.call.say_in_steps(large_event())
    next(steps)
    await session.close(CloseReason.CLIENT)
    head = session.reader.head
    for _ in steps:
        pass

    assert session.reader.head == head
    assert harness.hub.budget.held == 0


async def test_a_large_frame_that_nobody_takes_to_the_end_frees_its_memory(harness: Harness) -> None:
    """A transport whose call is closed drops the steps that are left."""
    session = await harness.open()
    before = harness.hub.budget.held
    steps = harness.call.say_in_steps(large_event())
    next(steps)
    del steps

    assert harness.hub.budget.held == before
    assert session.live


@pytest.mark.parametrize("text", ["[" + "1," * LARGE_BYTES + "1]", '{"type":"x"' + " " * LARGE_BYTES])
async def test_a_large_frame_that_is_no_object_is_counted(harness: Harness, text: str) -> None:
    """It is not relayed, as a small one."""
    session = await harness.open()
    head = session.reader.head
    for _ in harness.call.say_in_steps(text):
        pass

    assert session.reader.head == head
    assert harness.facts.of("frame_unrelayed") == [(session.id, len(text))]


@pytest.mark.parametrize("text", ["", "no json", "[]", "7", '{"type":NaN}'])
async def test_a_frame_that_is_no_object_is_counted_and_not_relayed(harness: Harness, text: str) -> None:
    """A frame that is not an object, or not even text, is counted and dropped."""
    session = await harness.open()
    harness.call.say_text(text)
    harness.call.say_unreadable(5)

    assert types_of(session) == ["session.created"]
    assert harness.facts.of("frame_unrelayed") == [(session.id, len(text)), (session.id, 5)]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"type":7}',
        '{"type":"error"}',
        '{"type":"error","error":"x"}',
        '{"type":"response.created"}',
        '{"type":"response.done","response":[]}',
        '{"type":"session.created","session":7}',
        '{"type":"session.updated","session":{"expires_at":"soon","model":[]}}',
        '{"type":"conversation.item.added","item":{"id":{}}}',
        '{"type":"conversation.item.added","item":{"id":"i"},"previous_item_id":[]}',
        '{"type":"error","error":{"event_id":{}}}',
        '{"type":"conversation.item.done"}',
        '{"type":"conversation.item.deleted","item_id":[]}',
        '{"type":"conversation.item.truncated","item_id":null}',
        '{"type":"conversation.item.input_audio_transcription.completed","content_index":-1}',
        '{"type":"response.output_text.delta"}',
    ],
)
async def test_events_of_odd_shapes_are_relayed_and_raise_nothing(harness: Harness, text: str) -> None:
    """Events of unusual shapes are relayed, and the fixture fails the test for any error of the gateway."""
    session = await harness.open()
    await session.turn(HELLO)
    harness.call.say_text(text)

    assert logged(session.reader)[-1] == json.loads(text)


async def test_a_mistake_in_the_handler_does_not_reach_the_far_end(harness: Harness) -> None:
    """An exception in the handler would close the peer connection, so it is caught and reported."""
    session = await harness.open()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    session.reader.subscribe(broken)
    harness.call.say("x")
    (fact,) = harness.facts.of("relay_failed")

    assert (fact[0], type(fact[1])) == (session.id, ZeroDivisionError)
    session.log._wakes.clear()
    harness.facts.all.clear()


async def test_a_stale_generation_is_not_heard(harness: Harness) -> None:
    """Events of a call that is not the current one are ignored."""
    session = await harness.open()
    session._line.received(7, '{"type":"x"}')
    session._line.lost(7, LossCause.CONNECTION_FAILED)

    assert types_of(session) == ["session.created"]
    assert session.live


async def test_an_upstream_error_is_counted_by_its_code(harness: Harness) -> None:
    """An upstream error is counted by its code, or by its type if it has none."""
    session = await harness.open()
    harness.call.say("error", error={"type": "t", "code": "c"})
    harness.call.say("error", error={"type": "t", "code": None})

    assert harness.facts.of("upstream_error") == [("c",), ("t",)]
    assert session.live


async def test_responses_are_timed_and_metered(harness: Harness) -> None:
    """A response is measured from the request to the first delta, from its creation to its end, and by its usage."""
    session = await harness.open(session={"model": "m"})
    await session.submit([client_event("response.create")])
    await asyncio.sleep(0.2)
    harness.call.start()
    await asyncio.sleep(0.3)
    harness.call.say("response.output_text.delta", response_id="resp_1", delta="a")
    harness.call.finish()

    assert harness.facts.of("first_delta") == [(pytest.approx(0.5),)]
    assert harness.facts.of("response_done") == [("completed", pytest.approx(0.3))]
    ((principal, cost),) = harness.facts.of("charged")
    assert (principal, cost.model, cost.tokens) == ("somebody", "m", 3)


async def test_audio_in_a_text_session_is_noticed(build: Build) -> None:
    """Audio in a text session is reported. Whether it is a text session depends on the current session object, not
    only on the create."""
    harness = build(template={"output_modalities": ["text"]}, continuity=False)
    await harness.open()
    harness.call.say("session.updated", session={"output_modalities": ["audio"]})
    usage = {"input_token_details": {"audio_tokens": 1}}
    harness.call.finish(usage=usage)
    harness.call.say("session.updated", session={"output_modalities": ["text"]})
    harness.call.finish(usage=usage)

    assert len(harness.facts.of("audio_tokens_in_text_session")) == 1


# --- receivers and deadlines ------------------------------------------------------------------------------------------


async def test_one_receiver_too_many_supersedes_the_longest_silent(build: Build) -> None:
    """A receiver above the limit supersedes the one that was silent for longest, never the newest."""
    session = await build(max_receivers=2).open()
    receivers = [FakeReceiver(silent_since) for silent_since in (5.0, 1.0, 0.0)]
    for receiver in receivers:
        session.attach(receiver)
    session.detach(receivers[1])

    assert [receiver.superseded for receiver in receivers] == [0, 1, 0]
    assert session.view().receivers == 2


async def test_a_session_nobody_attends_ends_detached(harness: Harness) -> None:
    """It ends after its own grace period, counted from the last authenticated request."""
    session = await harness.open(detach_grace_seconds=10)
    await asyncio.sleep(8)
    session.touch()
    await asyncio.sleep(8)
    assert session.live

    assert await harness.closed(session) is CloseReason.DETACHED
    assert session.closed_at == pytest.approx(18, abs=1.5)


async def test_a_reader_holds_its_session(harness: Harness) -> None:
    """The grace period begins when the last reader leaves, however often that happens."""
    session = await harness.open(detach_grace_seconds=10)
    receiver = FakeReceiver(0.0)
    session.attach(receiver)
    assert session.attended
    await asyncio.sleep(100)
    assert session.live
    session.detach(receiver)
    await asyncio.sleep(5)
    session.detach(receiver)

    assert await harness.closed(session, 20) is CloseReason.DETACHED
    assert session.closed_at == pytest.approx(110, abs=1.5)


async def test_a_turn_holds_its_session(harness: Harness) -> None:
    """The client of a JSON answer is no reader, so a turn that takes longer than the grace period holds the session; the
    period begins when the turn ends."""
    session = await harness.open(detach_grace_seconds=10)
    turn = await session.turn(HELLO)
    harness.call.start("resp_1", turn.id)
    await asyncio.sleep(30)
    assert session.live
    harness.call.finish("resp_1")
    await asyncio.sleep(8)
    assert session.live

    assert await harness.closed(session, 5) is CloseReason.DETACHED


async def test_a_session_in_which_nothing_happens_ends_idle(build: Build) -> None:
    """An event in either direction restarts the idle time, a reader does not."""
    harness = build(idle_timeout_seconds=30)
    session = await harness.open()
    session.attach(FakeReceiver(0.0))
    await asyncio.sleep(25)
    await session.submit([client_event("x")])
    await asyncio.sleep(25)
    harness.call.say("x")
    await asyncio.sleep(25)
    assert session.live

    assert await harness.closed(session, 10) is CloseReason.IDLE


async def test_a_session_has_its_longest_life(build: Build) -> None:
    """A session at its maximum age ends even while a response runs; the client knew the time."""
    harness = build(max_session_seconds=60, idle_timeout_seconds=60)
    session = await harness.open()
    session.attach(FakeReceiver(0.0))

    assert session.view().expires_at == START_UNIX + 60
    assert await harness.closed(session, 65) is CloseReason.EXPIRED
    assert session.closed_at == pytest.approx(60, abs=1.5)


async def test_without_continuity_the_calls_end_is_announced_once(build: Build) -> None:
    """The event is logged `expiring_seconds` before the call's end."""
    harness = build(continuity=False)
    harness.dialer.greeting = {"expires_at": int(START_UNIX) + 300}
    session = await harness.open()
    session.attach(FakeReceiver(0.0))
    await asyncio.sleep(175)
    assert "gateway.expiring" not in types_of(session)
    await asyncio.sleep(10)

    assert logged(session.reader)[1:] == [{"type": "gateway.expiring", "call_expires_at": START_UNIX + 300}]
    assert session.view().call_expires_at == START_UNIX + 300


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_a_closed_session_says_so_last(harness: Harness) -> None:
    """The last event is logged, the log is sealed, and later events of the far end are ignored."""
    session = await harness.open()
    call = harness.call
    call.closing = lambda: asyncio.sleep(1)
    await session.close(CloseReason.CLIENT)
    call.say("x")
    call.say_text("no json")

    assert logged(session.reader)[-1] == {
        "type": "gateway.closed",
        "reason": "client",
        "retryable": False,
        "upstream": None,
    }
    assert session.reader.sealed
    assert harness.facts.of("relay_failed") == []
    await until(lambda: not harness.hub._tasks)
    assert call.closings == [True]


async def test_closing_may_be_repeated_and_the_first_reason_stands(harness: Harness) -> None:
    """Closing may be repeated by any caller at any time."""
    session = await harness.open()
    await asyncio.gather(session.close(CloseReason.CLIENT), session.close(CloseReason.INTERNAL))
    await session.close(CloseReason.IDLE)

    assert session.view().close_reason is CloseReason.CLIENT
    assert types_of(session).count("gateway.closed") == 1
    assert harness.facts.of("session_state") == [
        (None, State.CONNECTING),
        (State.CONNECTING, State.CONNECTED),
        (State.CONNECTED, State.CLOSED),
    ]
    ((view, seconds),) = harness.facts.of("session_closed")
    assert (view.close_reason, seconds) == (CloseReason.CLIENT, pytest.approx(0, abs=1))


async def test_nothing_is_accepted_from_a_closed_session(harness: Harness) -> None:
    """A batch to a closed session is 410 with the reason; other calls have no effect."""
    session = await harness.open()
    turn = await session.turn(HELLO)
    await session.close(CloseReason.CLIENT)
    session.touch()
    await session.withdraw(turn)
    for attempt in (session.submit([client_event("x")]), session.turn(HELLO)):
        with pytest.raises(GatewayError) as caught:
            await attempt
        assert caught.value.code == "session-closed"
        assert caught.value.members == {"reason": CloseReason.CLIENT}
    with pytest.raises(GatewayError) as refused:
        session.restart()
    assert refused.value.code == "session-closed"


async def test_no_restart_that_would_forget_the_conversation(harness: Harness) -> None:
    """Without continuity a restart is refused, because a new call would lack the history."""
    session = await harness.open()
    with pytest.raises(GatewayError, match="continuity"):
        session.restart()

    assert len(harness.dialer.calls) == 1


@pytest.mark.parametrize(
    ("cause", "reason", "hung_up"),
    [
        (LossCause.CHANNEL_CLOSED, CloseReason.UPSTREAM_CLOSED, False),
        (LossCause.CONSENT_EXPIRED, CloseReason.UPSTREAM_LOST, True),
        (LossCause.CONNECTION_FAILED, CloseReason.UPSTREAM_LOST, True),
    ],
)
async def test_without_continuity_a_lost_call_ends_its_session(
    harness: Harness, cause: LossCause, reason: CloseReason, hung_up: bool
) -> None:
    """The event has the cause and the last refusal; the call is hung up unless OpenAI ended it."""
    session = await harness.open()
    harness.call.say("error", error={"code": "session_expired", "message": "60 minutes"})
    harness.call.lose(cause)

    assert await harness.closed(session) is reason
    assert logged(session.reader)[-1]["upstream"] == {
        "cause": cause,
        "code": "session_expired",
        "message": "60 minutes",
    }
    await until(lambda: not harness.hub._tasks)
    assert harness.call.closings == [hung_up]


async def test_what_is_being_answered_is_cancelled_and_pays_its_bill(harness: Harness) -> None:
    """A running response is cancelled even if earlier ones were done: the log ends with its usage, and nothing is
    unrecorded."""
    session = await harness.open()
    call = harness.call
    call.start("resp_0")
    call.finish("resp_0")
    call.start("resp_1")
    call.start("resp_2", conversation=None)

    async def pay() -> None:
        await asyncio.sleep(0.5)
        call.finish("resp_1", "cancelled")
        call.finish("resp_2", "cancelled")

    paying = asyncio.create_task(pay())
    await session.close(CloseReason.CLIENT)
    await paying

    assert [event["response_id"] for event in call.events] == ["resp_1", "resp_2"]
    assert call.types() == ["response.cancel"] * 2
    assert types_of(session)[-3:] == ["response.done", "response.done", "gateway.closed"]
    assert len(harness.facts.of("charged")) == 3
    assert harness.facts.of("usage_unrecorded") == []


async def test_a_bill_that_does_not_come_is_not_waited_for_long(harness: Harness) -> None:
    """The wait for the usage is short; if it does not arrive, the response counts as unrecorded."""
    session = await harness.open()
    harness.call.start()
    begun = harness.clock.monotonic()
    await session.close(CloseReason.CLIENT)

    assert harness.clock.monotonic() - begun == pytest.approx(harness.limits.parting_seconds, abs=0.1)
    assert harness.facts.of("usage_unrecorded") == [()]


async def test_a_bill_is_not_asked_for_where_the_call_is_gone(harness: Harness) -> None:
    """If the call is lost, no cancel is sent."""
    session = await harness.open()
    harness.call.start()
    harness.call.lose()
    begun = harness.clock.monotonic()
    await harness.closed(session)

    assert harness.clock.monotonic() - begun < 0.5
    assert harness.facts.of("usage_unrecorded") == [()]


async def test_a_channel_that_fails_at_parting_does_not_hold_the_end(harness: Harness) -> None:
    """If the cancel cannot be sent, there is nothing to wait for."""
    session = await harness.open()
    harness.call.start()
    harness.call.open = False
    await session.close(CloseReason.CLIENT)

    assert types_of(session)[-1] == "gateway.closed"


async def test_nothing_is_accepted_while_a_session_parts(harness: Harness) -> None:
    """While the cancelled response ends, its events are still logged, but new batches are refused."""
    session = await harness.open()
    harness.call.start()
    closing = asyncio.create_task(session.close(CloseReason.CLIENT))
    await asyncio.sleep(0.5)
    error = await refused(session)
    harness.call.say("response.output_text.delta", response_id="resp_1", delta="a")
    await closing

    assert error.code == "session-closed"
    assert types_of(session)[-2:] == ["response.output_text.delta", "gateway.closed"]


async def test_a_cancelled_owner_still_closes(harness: Harness) -> None:
    """A loop that shuts down cancels every task, but the call must still be closed."""
    session = await harness.open()
    (task,) = harness.hub._tasks
    task.cancel()
    await asyncio.wait({task})

    assert session.view().close_reason is CloseReason.DRAINED
    assert harness.call.closings == [True]


# --- turns ------------------------------------------------------------------------------------------------------------


async def test_a_turn_is_found_by_its_events_alone(harness: Harness) -> None:
    """A turn gets the events of its items and its response, and no others."""
    session = await harness.open()
    turn = await session.turn(HELLO)
    item_id = harness.call.events[0]["item"]["id"]
    harness.call.say("conversation.item.added", item={"id": item_id})
    harness.call.say("conversation.item.added", item={"id": "other"})
    harness.call.start("resp_1", turn.id)
    harness.call.start("resp_x", conversation=None)
    harness.call.say("response.output_text.delta", response_id="resp_x", delta="no")
    harness.call.say("response.output_text.delta", response_id="resp_1", delta="yes")
    harness.call.finish("resp_1")
    harness.call.finish("resp_x")

    assert turn_entries(session, turn) == [
        "conversation.item.added",
        "response.created",
        "response.output_text.delta",
        "response.done",
    ]
    assert turn.result is not None
    assert turn.result["status"] == "completed"


async def test_a_turn_waits_for_a_clients_response(harness: Harness) -> None:
    """A turn waits for a client's response and is sent as soon as that is done."""
    session = await harness.open()
    harness.call.start("resp_c")
    turn = await session.turn(HELLO)
    assert harness.call.sent == []
    harness.call.finish("resp_c")

    assert harness.call.types() == ["conversation.item.create", "response.create"]
    assert turn.after == session.reader.head


async def test_a_turn_that_was_second_asks_again_once_when_the_other_is_done(harness: Harness) -> None:
    """A turn that came second asks again when the other response is done, not at once."""
    session = await harness.open()
    turn = await session.turn(HELLO)
    event_id = harness.call.events[-1]["event_id"]
    error = {"event_id": event_id, "code": "conversation_already_has_active_response"}
    harness.call.say("error", error=error)
    assert len(harness.call.sent) == 2
    harness.call.start("resp_c")
    await asyncio.sleep(5)
    assert len(harness.call.sent) == 2
    harness.call.finish("resp_c")
    assert harness.call.types()[2:] == ["response.create"]
    harness.call.start("resp_1", turn.id)
    harness.call.finish("resp_1")

    assert turn.failure is None
    assert "error" not in turn_entries(session, turn)


async def test_a_turn_refused_for_a_response_nobody_sees_asks_once_a_second(harness: Harness) -> None:
    """If the service keeps refusing, the turn asks once a second instead of in a loop."""
    session = await harness.open()
    call = harness.call

    def refuse(event: Any) -> None:
        if event["type"] == "response.create":
            code = "conversation_already_has_active_response"
            call.say("error", error={"event_id": event["event_id"], "code": code})

    call.on_send = refuse
    await session.turn(HELLO)
    await asyncio.sleep(10)

    assert call.types().count("response.create") <= 12


async def test_a_turn_whose_item_is_refused_ends_with_the_refusal(harness: Harness) -> None:
    """Later events of its response are not part of the turn, and the next turn waits until the response is over."""
    session = await harness.open()
    turn, following = await session.turn(HELLO), await session.turn(HELLO)
    call = harness.call
    call.say(
        "error", error={"event_id": call.events[0]["event_id"], "code": "invalid_value", "message": "No."}
    )
    assert turn.failure is not None
    assert turn.failure.code == "upstream-rejected"
    assert following.after is None
    call.start("resp_1", turn.id)
    assert call.types()[2:] == ["response.cancel"]
    call.finish("resp_1", "cancelled")

    assert turn_entries(session, turn) == ["error"]
    assert following.after == session.reader.head
    assert session.live


async def test_a_turn_too_slow_is_cancelled(build: Build) -> None:
    """A turn that is too slow is 504 with its phase, and the conversation continues when the response is done."""
    harness = build(turn_timeout_seconds=20)
    session = await harness.open()
    turn = await session.turn(HELLO)
    harness.call.start("resp_1", turn.id)
    await asyncio.sleep(10)
    following = await session.turn(HELLO)
    await asyncio.sleep(12)

    assert turn.failure is not None
    assert turn.failure.code == "upstream-timeout"
    assert harness.call.events[-1]["response_id"] == "resp_1"
    assert following.after is None
    harness.call.finish("resp_1", "cancelled")
    assert following.after is not None


async def test_one_turn_too_many_is_refused(build: Build) -> None:
    """One turn runs and a limited number wait."""
    session = await build(max_waiting_turns=2).open()
    for _ in range(3):
        await session.turn(HELLO)

    with pytest.raises(GatewayError) as caught:
        await session.turn(HELLO)
    assert caught.value.code == "turn-queue-full"


async def test_a_turn_may_not_set_what_is_locked(build: Build) -> None:
    """A turn may not set a locked member beside its input."""
    session = await build(session_locked=("tools",)).open()

    with pytest.raises(GatewayError) as caught:
        await session.turn(TurnRequest([], {"tools": []}))
    assert (caught.value.code, caught.value.flaws[0].pointer) == ("member-locked", "/tools")


async def test_a_withdrawn_turn_is_cancelled(harness: Harness) -> None:
    """A turn is cancelled when its caller has left."""
    session = await harness.open()
    turn = await session.turn(HELLO)
    harness.call.start("resp_1", turn.id)
    await session.withdraw(turn)

    assert harness.call.events[-1]["response_id"] == "resp_1"


async def test_the_sessions_end_fails_its_turns(harness: Harness) -> None:
    """It is `session-closed` if the gateway or a client closed it, `upstream-failed` if the call was lost."""
    closed, lost = await harness.open(), await harness.open()
    turns = [await session.turn(HELLO) for session in (closed, lost) for _ in range(2)]
    await closed.close(CloseReason.CLIENT)
    harness.call.lose()
    await harness.closed(lost)

    codes = [turn.failure.code for turn in turns if turn.failure]
    assert codes == ["session-closed", "session-closed", "upstream-failed", "upstream-failed"]
    assert turns[0].last == closed.reader.head


async def test_a_turn_that_the_channel_refuses_is_finished_at_once(harness: Harness) -> None:
    """If the channel refuses a turn, the turn that the caller receives is already finished with the error."""
    session = await harness.open()
    harness.call.max_message_bytes = 10
    turn = await session.turn(HELLO)

    assert turn.finished
    assert turn.failure is not None
    assert turn.failure.code == "too-large"

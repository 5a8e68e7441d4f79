"""gateway/relay/calls/line.py and succession.py: a session survives its calls."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.errors import GatewayError, OverloadError, UpstreamError
from gateway.relay.calls.succession import delays
from gateway.relay.ports import LossCause
from gateway.relay.session import Session
from gateway.relay.state.turn import TurnRequest
from gateway.relay.states import CloseReason, State
from tests.relay.conftest import Build
from tests.relay.fakes import START_UNIX, FakeCall, FakeReceiver, Harness, client_event, logged, types_of
from tests.waiting import until

HELLO = TurnRequest([{"type": "message", "role": "user"}])


def item(item_id: str, text: str = "Hello") -> dict[str, Any]:
    """Return a user's message."""
    return {
        "id": item_id,
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": text}],
    }


def service(call: FakeCall) -> None:
    """Let a call take items as the service does."""

    def take(own: dict[str, Any]) -> None:
        call.say("conversation.item.added", item=own)
        call.say("conversation.item.done", item=own)

    def answer(event: dict[str, Any]) -> None:
        if event["type"] == "conversation.item.create":
            own = {"id": f"item_{len(call.sent)}", **event["item"], "status": "completed"}
            asyncio.get_running_loop().call_soon(take, own)

    call.on_send = answer  # type: ignore[assignment]


@pytest.fixture
async def harness(build: Build) -> Harness:
    """Return a running hub whose calls take items."""
    harness = build()
    harness.dialer.prepare = service
    return harness


async def attended(harness: Harness, **members: Any) -> Session:
    """Open a session that has a reader."""
    session = await harness.open(**members)
    session.attach(FakeReceiver(0.0))
    return session


async def say(session: Session, *ids: str) -> None:
    """Let a client create items."""
    await session.submit([client_event("conversation.item.create", item=item(item_id)) for item_id in ids])
    await asyncio.sleep(0.01)


def gateway_events(session: Session) -> list[dict[str, Any]]:
    """Return the gateway's own events in a log."""
    return [event for event in logged(session.reader) if event["type"].startswith("gateway.")]


def after(seconds: float, then: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    """Wait, then do something, inside a dial."""

    async def gate() -> None:
        await asyncio.sleep(seconds)
        then()

    return gate


# --- after a loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", LossCause)
async def test_a_lost_call_is_replaced_by_one_that_knows_the_conversation(
    harness: Harness, cause: LossCause
) -> None:
    """The session keeps its ID, and the log reports the loss and the recovery."""
    session = await attended(harness)
    await say(session, "a", "b")
    old = harness.call
    old.lose(cause)
    assert session.view().state is State.RECOVERING
    await until(lambda: session.view().state is State.CONNECTED)

    assert [event["item"]["id"] for event in harness.call.events] == ["a", "b"]
    assert gateway_events(session) == [
        {"type": "gateway.recovering", "cause": cause},
        {
            "type": "gateway.recovered",
            "cause": cause,
            "call_id": "rtc_2",
            "items_restored": 2,
            "items_lost": 0,
            "renamed": {},
            "response": None,
            "unknown": [],
            "refused": [],
        },
    ]
    assert session.view().call_id == "rtc_2"
    assert old.closings == [cause is not LossCause.CHANNEL_CLOSED]
    assert [args[1:3] for args in harness.facts.of("recovered")] == [(cause, "recovered")]


async def test_what_is_sent_meanwhile_follows_on_the_new_call(harness: Harness) -> None:
    """Held events are accepted at once and sent in order, after the conversation."""
    session = await attended(harness)
    await say(session, "a")
    harness.dialer.gate = lambda: asyncio.sleep(2)
    harness.call.lose()
    await say(session, "b", "c")
    await session.submit([client_event("response.create")])
    await until(lambda: session.view().state is State.CONNECTED)

    types = harness.call.types()
    assert [event["item"]["id"] for event in harness.call.events[:3]] == ["a", "b", "c"]
    assert types[3:] == ["response.create"]
    assert session.diagnostics()["accepted"] == 4


async def test_what_waits_for_a_new_call_is_bounded(build: Build) -> None:
    """The waiting events are limited in number and bytes; more are refused as recovering, with Retry-After."""
    harness = build(held_max_events=2, held_max_bytes=2000)
    session = await attended(harness)
    harness.dialer.gate = lambda: asyncio.sleep(2)
    harness.call.lose()
    await session.submit([client_event("x"), client_event("x")])
    for batch in ([client_event("x")], [client_event("x", a="b" * 3000)]):
        with pytest.raises(OverloadError) as caught:
            await session.submit(batch)
        assert (caught.value.code, caught.value.retry_after) == ("recovering", 1)


async def test_what_was_in_flight_is_told_as_unknown(harness: Harness) -> None:
    """An event that was in flight is reported as unknown by its number and its event_id, so that its sender can
    check whether it was taken."""
    session = await attended(harness)
    harness.call.on_send = None
    await session.submit([client_event("conversation.item.create", event_id="mine", item=item("a"))])
    harness.call.lose()
    await until(lambda: session.view().state is State.CONNECTED)

    (_, recovered) = gateway_events(session)
    assert recovered["unknown"] == [{"number": 1, "event_id": "mine", "type": "conversation.item.create"}]


async def test_what_nothing_answers_is_told_unless_it_was_acknowledged(harness: Harness) -> None:
    """For events that nothing answers, such as audio or unknown types, the transport's acknowledgement counts,
    because it is end to end; a later event does not."""
    session = await attended(harness)
    await session.submit([client_event("input_audio_buffer.append"), client_event("some.future.event")])
    harness.call.acknowledged = 2
    harness.call.say("rate_limits.updated")
    await session.submit([client_event("some.future.event", event_id="last")])
    harness.call.lose()
    await until(lambda: session.view().state is State.CONNECTED)

    (_, recovered) = gateway_events(session)
    assert recovered["unknown"] == [{"number": 3, "event_id": "last", "type": "some.future.event"}]


async def test_what_a_session_leaves_unsent_or_unconfirmed_is_told_at_its_end(harness: Harness) -> None:
    """The session's last event names the accepted events that found no call, and those that may not have been taken."""
    session = await attended(harness)
    harness.call.on_send = None
    await session.submit([client_event("conversation.item.create", event_id="handed", item=item("a"))])
    harness.call.lose()
    await session.submit([client_event("response.create", event_id="held")])
    await session.close(CloseReason.CLIENT)

    closed = gateway_events(session)[-1]
    assert closed["unknown"] == [{"number": 1, "event_id": "handed", "type": "conversation.item.create"}]
    assert closed["unsent"] == [{"number": 2, "event_id": "held", "type": "response.create"}]


async def test_a_session_that_left_nothing_says_no_more_than_its_reason(harness: Harness) -> None:
    """The members are present only if they are not empty."""
    session = await attended(harness)
    await say(session, "a")
    await session.close(CloseReason.CLIENT)

    assert set(gateway_events(session)[-1]) == {"type", "reason", "retryable", "upstream"}


async def test_a_response_cut_off_is_told_and_counted(harness: Harness) -> None:
    """The turn of the interrupted response fails, and the next turn is sent on the new call."""
    session = await attended(harness)
    turn, following = await session.turn(HELLO), await session.turn(HELLO)
    harness.call.start("resp_1", turn.id)
    harness.call.lose()
    assert turn.failure is not None
    assert turn.failure.code == "upstream-failed"
    await until(lambda: following.after is not None)

    assert gateway_events(session)[1]["response"] == "interrupted"
    assert harness.facts.of("usage_unrecorded") == [()]
    assert harness.call.types()[-1] == "response.create"


async def test_a_response_cut_off_is_asked_for_again_where_that_was_wanted(harness: Harness) -> None:
    """With `on_interrupted: retry` the responses are requested again before other waiting events."""
    session = await attended(harness, retry_interrupted=True)
    asked = client_event("response.create", event_id="again")
    await session.submit([asked])
    harness.call.start("resp_1")
    harness.call.lose()
    await session.submit([client_event("x")])
    await until(lambda: session.view().state is State.CONNECTED)

    assert gateway_events(session)[1]["response"] == "retried"
    assert harness.call.types() == ["response.create", "x"]


async def test_a_question_that_was_not_confirmed_is_asked_again_with_its_response(harness: Harness) -> None:
    """Without the question the answer would be pointless, so both are sent again; what is sent again is not unknown."""
    session = await attended(harness, retry_interrupted=True)
    harness.call.on_send = None
    await session.submit(
        [client_event("conversation.item.create", item=item("a")), client_event("response.create")]
    )
    harness.call.lose()
    await until(lambda: session.view().state is State.CONNECTED)

    recovered = gateway_events(session)[1]
    assert (recovered["response"], recovered["unknown"]) == ("retried", [])
    assert harness.call.types() == ["conversation.item.create", "response.create"]


@pytest.mark.parametrize("retry", [True, False])
async def test_a_refused_question_is_not_asked_again_by_a_loss(harness: Harness, retry: bool) -> None:
    """After a refused question a loss repeats nothing, because only the response was requested, and nothing is
    unknown."""
    session = await attended(harness, retry_interrupted=retry)
    await session.submit([client_event("response.create")])
    harness.call.say("error", error={"code": "invalid_value", "event_id": None})
    await asyncio.sleep(8)
    harness.call.lose()
    await until(lambda: session.view().state is State.CONNECTED)

    recovered = gateway_events(session)[1]
    assert (recovered["response"], recovered["unknown"]) == (None, [])
    assert harness.call.types() == []


async def test_a_question_held_back_is_asked_once(harness: Harness) -> None:
    """A question that was held back is asked once, even if the old call is lost in the middle of the hand-over."""
    session = await attended(harness, retry_interrupted=True)
    await say(session, "a")
    old, taken = harness.call, asyncio.Event()

    def prepare(call: FakeCall) -> None:
        call.on_send = lambda event: taken.set()

    harness.dialer.prepare = prepare
    harness.hub.restart(session.id)
    await taken.wait()
    await session.submit([client_event("response.create")])
    harness.dialer.prepare = service
    old.lose()
    await until(lambda: session.view().call_id == "rtc_3", 60)

    assert gateway_events(session)[-1]["response"] is None
    assert [call.types().count("response.create") for call in harness.dialer.calls] == [0, 0, 1]


async def test_a_question_unconfirmed_at_a_hand_over_fails_its_turn(harness: Harness) -> None:
    """The turn fails at once, and the log names its events."""
    session = await attended(harness)
    turn = await session.turn(HELLO)
    harness.hub.restart(session.id)
    await until(lambda: turn.finished, 20)

    assert turn.failure is not None
    assert turn.failure.code == "upstream-failed"
    recovered = gateway_events(session)[-1]
    assert recovered["response"] == "interrupted"
    assert [event["type"] for event in recovered["unknown"]] == ["response.create"]


async def test_what_is_sent_on_a_channel_that_just_closed_waits_for_the_next_call(harness: Harness) -> None:
    """The loss is reported a moment later; otherwise the next tick detects it."""
    session = await attended(harness)
    harness.call.open = False
    await say(session, "a")
    assert session.diagnostics()["accepted"] == 1
    await until(lambda: session.view().call_id == "rtc_2")

    assert gateway_events(session)[0] == {"type": "gateway.recovering", "cause": "connection_failed"}
    assert harness.call.types() == ["conversation.item.create"]


async def test_what_waited_is_sent_however_full_the_new_channel_is(build: Build) -> None:
    """Waiting events were accepted, so they are sent even if the new channel is full; refusing them would lose them."""
    harness = build(high_water_bytes=10)
    harness.dialer.prepare = lambda call: setattr(call, "buffered", 5)
    session = await attended(harness)
    harness.dialer.gate = lambda: asyncio.sleep(2)
    harness.call.lose()
    await session.submit([client_event("x", text="y" * 100)])
    await until(lambda: session.view().state is State.CONNECTED)

    assert harness.call.types() == ["x"]


async def test_what_the_new_call_cannot_take_for_its_size_is_told(harness: Harness) -> None:
    """Events that are too large for the new call are reported by number, and the others are sent."""
    session = await attended(harness)
    harness.dialer.prepare = lambda call: setattr(call, "max_message_bytes", 100)
    harness.dialer.gate = lambda: asyncio.sleep(2)
    harness.call.lose()
    await session.submit([client_event("x", text="y" * 100, event_id="big"), client_event("z")])
    await until(lambda: session.view().state is State.CONNECTED)

    assert gateway_events(session)[1]["refused"] == [{"number": 1, "event_id": "big", "type": "x"}]
    assert harness.call.types() == ["z"]


async def test_a_call_lost_in_the_moment_it_is_taken_leaves_what_waited_waiting(harness: Harness) -> None:
    """If the new call is lost at once, the waiting events are sent once, on the call after it."""
    session = await attended(harness)
    await say(session, "a")
    numbers = itertools.count()

    def prepare(call: FakeCall) -> None:
        service(call)
        if next(numbers) == 0:
            asyncio.get_running_loop().call_later(0.5, setattr, call, "open", False)

    harness.dialer.prepare = prepare
    harness.dialer.greets = False
    harness.call.lose()
    await session.submit([client_event("response.create")])
    await until(lambda: session.view().call_id == "rtc_3", 20)

    assert [call.types().count("response.create") for call in harness.dialer.calls] == [0, 0, 1]
    assert gateway_events(session)[-1]["response"] is None


async def test_a_rate_limit_is_waited_out(harness: Harness) -> None:
    """The session waits as long as the service says, within the time for a recovery."""
    session = await attended(harness)
    harness.dialer.refusal = UpstreamError("upstream-rate-limited", "Later.", retry_after=30)
    harness.call.lose()
    await asyncio.sleep(25)
    assert len(harness.dialer.requests) == 2
    harness.dialer.refusal = None
    await until(lambda: session.view().state is State.CONNECTED, 10)


async def test_a_dial_that_hangs_does_not_outlast_the_time_for_a_recovery(harness: Harness) -> None:
    """The session ends when the recovery time is over, not when the dial fails."""
    session = await attended(harness)
    harness.dialer.gate = lambda: asyncio.sleep(3600)
    harness.call.lose()

    assert await harness.closed(session, 120) is CloseReason.UPSTREAM_LOST
    assert session.closed_at == pytest.approx(harness.limits.recovery_timeout_seconds, abs=1)


async def test_a_dead_call_that_closes_slowly_does_not_delay_the_next(harness: Harness) -> None:
    """Hanging up a call that does not answer takes place in parallel with dialling."""
    session = await attended(harness)
    old = harness.call
    old.closing = lambda: asyncio.sleep(5)
    old.lose()
    await until(lambda: session.view().state is State.CONNECTED, 2)

    assert old.closings == [True]


async def test_nothing_is_mirrored_without_continuity(build: Build) -> None:
    """Without continuity nothing needs the mirror."""
    harness = build(continuity=False)
    session = await attended(harness)
    await say(session, "a")
    harness.call.say("conversation.item.added", item=item("a"))
    await session.submit([client_event("response.create")])

    assert session.state.mirror.seed().items == []


async def test_calls_are_tried_until_one_comes(harness: Harness) -> None:
    """With growing pauses, for as long as the limit says."""
    session = await attended(harness)
    harness.dialer.refusal = UpstreamError("upstream-failed", "No.")
    harness.call.lose()
    await asyncio.sleep(20)
    assert 4 < len(harness.dialer.requests) < 12
    harness.dialer.refusal = None
    await until(lambda: session.view().state is State.CONNECTED, 20)

    generations = [request.generation for request in harness.dialer.requests]
    assert generations == sorted(set(generations))


async def test_a_session_without_a_call_for_too_long_ends(harness: Harness) -> None:
    """The session ends with the reason for a lost call; a new session may work."""
    session = await attended(harness)
    harness.dialer.refusal = UpstreamError("upstream-failed", "No.")
    harness.call.lose(LossCause.CONSENT_EXPIRED)

    assert await harness.closed(session, 120) is CloseReason.UPSTREAM_LOST
    assert session.closed_at == pytest.approx(harness.limits.recovery_timeout_seconds, abs=10)
    assert gateway_events(session)[-1]["upstream"] == {"cause": "consent_expired"}
    assert [args[2] for args in harness.facts.of("recovered")] == ["failed"]


async def test_a_refused_call_ends_the_session(harness: Harness) -> None:
    """If the service refuses the new call, a retry would be refused again; its message is passed on."""
    session = await attended(harness)
    harness.dialer.refusal = UpstreamError("upstream-rejected", "No.", members={"upstream": {"status": 401}})
    harness.call.lose()

    assert await harness.closed(session) is CloseReason.UPSTREAM_REJECTED
    assert gateway_events(session)[-1]["upstream"] == {"status": 401}


async def test_a_new_call_that_is_lost_while_it_is_seeded_is_followed_by_another(harness: Harness) -> None:
    """If the new call is lost while it is seeded, another one follows, and nothing of the lost one remains."""
    session = await attended(harness)
    await say(session, "a")
    numbers = itertools.count()

    def prepare(call: FakeCall) -> None:
        if next(numbers) == 0:
            call.on_send = lambda event: call.lose()
        else:
            service(call)

    harness.dialer.prepare = prepare
    harness.call.lose()
    await until(lambda: session.view().state is State.CONNECTED)

    assert session.view().call_id == "rtc_3"
    assert harness.dialer.calls[1].closings == [False]


async def test_a_new_call_that_takes_nothing_is_given_up(harness: Harness) -> None:
    """A new call that takes no items is given up after the time for seeding."""
    session = await attended(harness)
    await say(session, "a")
    harness.dialer.prepare = None
    harness.call.lose()
    await asyncio.sleep(harness.limits.seeding_seconds - 1)
    harness.dialer.prepare = service
    await until(lambda: session.view().state is State.CONNECTED)

    assert harness.dialer.calls[1].closings == [True]


async def test_a_call_whose_probe_fails_is_replaced_and_the_next_one_is_probed_too(harness: Harness) -> None:
    """A probe that raises is reported. It must not be the session's last one."""
    session = await attended(harness)

    async def fail(timeout: float) -> bool:
        raise RuntimeError("the socket is closed")

    for _ in range(2):
        calls = len(harness.dialer.calls)
        harness.call.probe = fail  # type: ignore[method-assign]  # the fault
        await session.submit([client_event("response.cancel")])
        await until(lambda: len(harness.dialer.calls) == calls + 1, seconds=20)  # noqa: B023  # it ends in this round
        await until(lambda: session.view().state is State.CONNECTED)
    failures = harness.facts.of("relay_failed")
    harness.facts.all = [fact for fact in harness.facts.all if fact[0] != "relay_failed"]

    assert len(failures) == 2


async def test_a_lost_call_that_fails_to_close_is_reported(harness: Harness) -> None:
    """The session recovers all the same."""
    session = await attended(harness)

    async def fail() -> None:
        raise RuntimeError("the socket is closed")

    harness.call.closing = fail
    harness.call.lose()
    await until(lambda: len(harness.dialer.calls) == 2)
    await until(lambda: session.view().state is State.CONNECTED)
    failures = harness.facts.of("relay_failed")
    harness.facts.all = [fact for fact in harness.facts.all if fact[0] != "relay_failed"]

    assert [repr(error) for _, error in failures] == ["RuntimeError('the socket is closed')"]


async def test_a_new_call_that_takes_a_long_conversation_slowly_is_not_given_up(harness: Harness) -> None:
    """An attempt that makes progress continues, even if all items together take longer than the limit for one."""
    session = await attended(harness)
    await say(session, *"abcd")
    loop = asyncio.get_running_loop()

    def prepare(call: FakeCall) -> None:
        service(call)
        take, late = call.on_send, itertools.count(1)
        assert take is not None

        def answer_late(event: Any) -> None:
            loop.call_later(next(late) * (harness.limits.seeding_seconds - 1), take, event)

        call.on_send = answer_late

    harness.dialer.prepare = prepare
    harness.call.lose()
    await until(lambda: session.view().state is State.CONNECTED, seconds=100)

    assert session.view().call_id == "rtc_2"
    assert gateway_events(session)[-1]["items_restored"] == 4


async def test_an_id_the_new_call_refuses_is_told_as_renamed(harness: Harness) -> None:
    """The log reports the new ID, because the client knows the item by the old one."""
    session = await attended(harness)
    await say(session, "a")

    def prepare(call: FakeCall) -> None:
        service(call)
        take = call.on_send
        assert take is not None

        def answer(event: Any) -> None:
            if event.get("item", {}).get("id") == "a":
                call.say("error", error={"event_id": event["event_id"], "code": "x"})
            else:
                take(event)

        call.on_send = answer

    harness.dialer.prepare = prepare
    harness.call.lose()
    await until(lambda: session.view().state is State.CONNECTED)

    recovered = gateway_events(session)[1]
    assert (recovered["items_restored"], recovered["renamed"]) == (1, {"a": "item_2"})


async def test_what_a_new_call_says_while_it_is_seeded_is_not_logged(harness: Harness) -> None:
    """Events of the seeding are not logged, because no client caused them; nor is the greeting, which may come
    shortly after the channel opens."""
    session = await attended(harness)
    harness.dialer.greets = False
    harness.dialer.greeting = {}

    def prepare(call: FakeCall) -> None:
        asyncio.get_running_loop().call_later(0.1, lambda: call.greet(expires_at=int(START_UNIX) + 9999))

    harness.dialer.prepare = prepare
    harness.call.lose()
    await until(lambda: session.view().state is State.CONNECTED)
    await asyncio.sleep(1)

    assert types_of(session) == ["session.created", "gateway.recovering", "gateway.recovered"]
    assert session.view().call_expires_at == START_UNIX + 9999


async def test_a_new_call_that_never_greets_is_taken_all_the_same(harness: Harness) -> None:
    """A new call that sends no greeting is used all the same, as for the first call."""
    session = await attended(harness)
    harness.dialer.greets = False
    harness.call.lose()
    await until(lambda: session.view().state is State.CONNECTED, 3)

    assert session.live


async def test_a_session_that_ends_while_it_recovers_leaves_nothing(harness: Harness) -> None:
    """The dial is cancelled, and the events that waited are dropped with the session."""
    session = await attended(harness)
    harness.dialer.gate = lambda: asyncio.sleep(3600)
    harness.call.lose()
    await asyncio.sleep(1)
    await session.close(CloseReason.CLIENT)
    await until(lambda: not harness.hub._tasks)

    assert [args[2] for args in harness.facts.of("recovered")] == ["ended"]
    assert len(harness.dialer.calls) == 1


async def test_a_callers_new_credential_is_used_for_the_next_call(harness: Harness) -> None:
    """Contract 3: any later POST of the session may bring one."""
    session = await attended(harness, bearer="ek_1")
    session.renew("ek_2")
    harness.call.lose()
    await until(lambda: session.view().state is State.CONNECTED)

    assert [request.bearer for request in harness.dialer.requests] == ["ek_1", "ek_2"]


# --- before a planned end ---------------------------------------------------------------------------------------------


async def test_a_call_about_to_end_is_replaced_in_a_pause(harness: Harness) -> None:
    """In a pause clients notice the replacement only by the log; the old call is hung up."""
    harness.dialer.greeting = {"expires_at": int(START_UNIX) + 3600}
    session = await attended(harness)
    await say(session, "a")
    old = harness.call
    old.start()
    harness.dialer.greeting = {"expires_at": int(START_UNIX) + 7200}
    await asyncio.sleep(3600 - 120 + 10)
    assert session.view().call_id == "rtc_1"
    old.finish()
    await until(lambda: session.view().call_id == "rtc_2", 10)

    assert session.view().state is State.CONNECTED
    assert [event["type"] for event in gateway_events(session)] == ["gateway.recovered"]
    assert gateway_events(session)[0]["cause"] == "rotation"
    assert session.view().call_expires_at == START_UNIX + 7200
    await until(lambda: old.closings == [True])


async def test_a_response_that_does_not_end_is_cut_for_a_call_that_does(harness: Harness) -> None:
    """If a response does not end it is cut half a minute before the call's end, and not by the service."""
    harness.dialer.greeting = {"expires_at": int(START_UNIX) + 3600}
    session = await attended(harness)
    harness.call.start()
    await asyncio.sleep(3600 - 31)
    assert session.view().call_id == "rtc_1"
    await until(lambda: session.view().call_id == "rtc_2", 10)

    assert gateway_events(session)[0]["response"] == "interrupted"


async def test_a_hand_over_that_fails_is_tried_again(harness: Harness) -> None:
    """The old call still works, and events are sent on it."""
    session = await attended(harness)
    harness.dialer.refusal = UpstreamError("upstream-failed", "No.")
    harness.hub.restart(session.id)
    await until(lambda: bool(harness.facts.of("recovered")))
    await say(session, "a")

    assert [args[1:3] for args in harness.facts.of("recovered")] == [("restart", "failed")]
    assert harness.call.types() == ["conversation.item.create"]
    assert gateway_events(session) == []


async def test_an_operators_restart_keeps_the_history(harness: Harness) -> None:
    """The new call has the same items, and two requests for a restart lead to one."""
    session = await attended(harness)
    await say(session, "a")
    harness.hub.restart(session.id)
    harness.hub.restart(session.id)
    await until(lambda: session.view().call_id == "rtc_2")
    await asyncio.sleep(10)

    assert len(harness.dialer.calls) == 2
    assert harness.call.types() == ["conversation.item.create"]


async def test_a_session_update_during_a_hand_over_reaches_the_new_call(harness: Harness) -> None:
    """The new call was created with the session object as it was when the dial began, so it gets what changed since."""
    session = await attended(harness)
    old = harness.call
    old.start()
    harness.hub.restart(session.id)
    await until(lambda: len(harness.dialer.calls) == 2)
    await session.submit([client_event("session.update", session={"instructions": "Be brief."})])
    old.say("session.updated", session={"instructions": "Be brief."})
    old.finish()
    await until(lambda: session.view().call_id == "rtc_2")

    (update,) = harness.call.events
    assert update["session"] == {"type": "realtime", "instructions": "Be brief."}


async def test_a_session_that_was_to_be_parked_too_long_ago_goes_on(harness: Harness) -> None:
    """If the pause comes after the caller's deadline, nothing is held for another node."""
    session = await attended(harness)
    harness.call.start()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await session.prepare_release()
    session.resume()
    harness.call.finish()
    await asyncio.sleep(5)
    await session.submit([client_event("x")])

    assert harness.call.types() == ["x"]


async def test_a_session_that_leaves_this_node_while_a_call_is_dialled_closes_it(harness: Harness) -> None:
    """If another node takes the session at the moment when a new call opens, the call is closed and no bug is reported."""
    session = await attended(harness)
    harness.dialer.prepare = lambda call: session.fenced()
    harness.call.lose()
    await until(lambda: bool(harness.call.closings))

    assert harness.facts.of("relay_failed") == []


async def test_a_call_lost_during_its_hand_over_is_recovered(harness: Harness) -> None:
    """If the call is lost during its hand-over, the session has a call in the end, and the log reports it."""
    session = await attended(harness)
    harness.dialer.gate = after(1, harness.dialer.calls[0].lose)
    harness.hub.restart(session.id)
    await until(lambda: session.view().state is State.RECOVERING)
    harness.dialer.gate = None
    await until(lambda: session.view().state is State.CONNECTED)
    await until(lambda: all(call.closings for call in harness.dialer.calls[:-1]))

    assert [event["type"] for event in gateway_events(session)] == ["gateway.recovering", "gateway.recovered"]
    assert harness.call.open


async def test_an_answer_that_begins_while_events_are_held_is_not_cut(harness: Harness) -> None:
    """If an answer begins after the hand-over started, because its question was in flight, it is not cut."""
    session = await attended(harness)
    await say(session, "a")
    old = harness.call
    await session.submit([client_event("response.create")])
    harness.hub.restart(session.id)
    await until(lambda: session._line.holding)
    old.start()
    await asyncio.sleep(5)
    assert (session.view().call_id, session._line.holding) == ("rtc_1", False)
    old.say("conversation.item.added", item=item("answer"))
    old.finish()
    await until(lambda: session.view().call_id == "rtc_2")

    assert [event["item"]["id"] for event in harness.call.events] == ["a", "answer"]
    assert gateway_events(session)[0]["response"] is None


async def test_an_answer_cut_by_the_clock_says_no_more(harness: Harness) -> None:
    """Events of the old call during the seeding would be missing in the new one, so clients do not see them."""
    harness.dialer.greeting = {"expires_at": int(START_UNIX) + 3600}
    session = await attended(harness)
    await say(session, "a")
    old = harness.call
    old.start()
    harness.dialer.prepare = lambda call: setattr(call, "on_send", lambda event: old.finish())
    await asyncio.sleep(3600 - 32)
    await until(lambda: session.view().state is State.RECOVERING, 30)
    harness.dialer.prepare = service
    await until(lambda: session.view().state is State.CONNECTED, 60)

    assert "response.done" not in types_of(session)
    assert [event["type"] for event in gateway_events(session)] == ["gateway.recovering", "gateway.recovered"]
    assert gateway_events(session)[-1]["response"] == "interrupted"
    assert [args[1:3] for args in harness.facts.of("recovered")] == [
        ("rotation", "failed"),
        ("rotation", "recovered"),
    ]


async def test_a_call_replaced_in_the_middle_of_a_response_is_so_at_once(harness: Harness) -> None:
    """One event reports the replacement, and events of the seeding are not taken for the old call's."""
    harness.dialer.greeting = {"expires_at": int(START_UNIX) + 3600}
    session = await attended(harness)
    await say(session, "a")
    harness.call.start()
    before = types_of(session)
    await asyncio.sleep(3600 - 32)
    harness.dialer.greeting = {"expires_at": int(START_UNIX) + 7200}
    await until(lambda: "gateway.recovered" in types_of(session), 10)

    assert types_of(session) == [*before, "gateway.recovered"]
    assert session.view().call_id == "rtc_2"
    assert [args[1:3] for args in harness.facts.of("recovered")] == [("rotation", "recovered")]


async def test_a_successor_is_told_apart_where_the_old_call_is_lost_meanwhile(harness: Harness) -> None:
    """If the old call is lost meanwhile, the new call's answers to the seeding are not logged, and it becomes the
    current call, which is also the recovery."""
    session = await attended(harness)
    await say(session, "a")
    before, old, seeded = types_of(session), harness.call, list[str]()
    harness.dialer.prepare = lambda call: setattr(
        call, "on_send", lambda event: seeded.append(event["item"]["id"])
    )
    harness.hub.restart(session.id)
    await until(lambda: seeded == ["a"])
    old.lose()
    for kind in ("added", "done"):
        harness.dialer.calls[1].say(f"conversation.item.{kind}", item=item("a"))
    await until(lambda: session.view().state is State.CONNECTED)

    assert types_of(session) == [*before, "gateway.recovering", "gateway.recovered"]
    assert session.view().call_id == "rtc_2"


async def test_a_conversation_that_moves_during_the_seeding_is_seeded_again(harness: Harness) -> None:
    """The service may add items by itself, so if the conversation changes during the seeding, the new call is seeded
    again."""
    harness.dialer.greeting = {"expires_at": int(START_UNIX) + 3600}
    session = await attended(harness)
    await say(session, "a")
    old = harness.call

    def prepare(call: FakeCall) -> None:
        service(call)
        take = call.on_send
        assert take is not None

        def move(event: Any) -> None:
            if len(harness.dialer.calls) == 2:
                old.say("conversation.item.added", item=item("b"))
            take(event)

        call.on_send = move

    harness.dialer.prepare = prepare
    await asyncio.sleep(3600 - 122)
    await until(lambda: session.view().call_id != "rtc_1", 20)

    assert session.view().call_id == "rtc_3"
    assert [event["item"]["id"] for event in harness.call.events] == ["a", "b"]


async def test_a_session_that_ends_during_a_hand_over_closes_both_calls(harness: Harness) -> None:
    """The new one and the old one."""
    session = await attended(harness)
    harness.call.start()
    harness.hub.restart(session.id)
    await until(lambda: len(harness.dialer.calls) == 2)
    await session.close(CloseReason.CLIENT)
    await until(lambda: not harness.hub._tasks)

    assert [call.closings for call in harness.dialer.calls] == [[True], [True]]


# --- silence ----------------------------------------------------------------------------------------------------------


async def test_a_silent_call_that_owes_an_answer_is_probed_and_replaced(harness: Harness) -> None:
    """A silent call that owes an answer is replaced within eight seconds, long before its consent expires."""
    session = await attended(harness)
    harness.call.start()
    harness.call.alive = False
    begun = harness.clock.monotonic()
    await until(lambda: "gateway.recovering" in types_of(session), 20)

    assert harness.clock.monotonic() - begun < 8
    assert harness.facts.of("consent_failed") == [()]


async def test_a_silent_call_is_probed_after_whatever_it_was_sent(harness: Harness) -> None:
    """A probe is sent even if no answer is due: the sender must learn whether the call is alive."""
    session = await attended(harness)
    harness.call.alive = False
    await asyncio.sleep(60)
    begun = harness.clock.monotonic()
    await session.submit([client_event("input_audio_buffer.append")])
    await until(lambda: "gateway.recovering" in types_of(session), 20)

    assert harness.clock.monotonic() - begun < 8


async def test_a_cancel_cut_off_with_its_response_is_told_and_not_sent_again(harness: Harness) -> None:
    """After a loss a cancel is reported and not sent again, because it would cancel the response that is requested
    again."""
    session = await attended(harness, retry_interrupted=True)
    await session.submit([client_event("response.create"), client_event("response.cancel", event_id="c")])
    harness.call.start("resp_1")
    harness.call.lose()
    await until(lambda: session.view().state is State.CONNECTED)

    recovered = gateway_events(session)[1]
    assert recovered["response"] == "retried"
    assert recovered["unknown"] == [{"number": 2, "event_id": "c", "type": "response.cancel"}]
    assert harness.call.types() == ["response.create"]


async def test_a_silent_call_that_answers_its_probe_stays(harness: Harness) -> None:
    """A silent call that answers its probe stays, because a model may think for long."""
    session = await attended(harness)
    harness.call.start()
    await asyncio.sleep(60)

    assert session.view().call_id == "rtc_1"
    assert session.view().state is State.CONNECTED


async def test_a_silent_call_that_owes_nothing_is_left_alone(harness: Harness) -> None:
    """A call that owes nothing may be silent, as in a quiet conversation."""
    session = await attended(harness)
    harness.call.alive = False
    await asyncio.sleep(60)

    assert session.view().state is State.CONNECTED


async def test_a_session_may_end_during_a_probe(harness: Harness) -> None:
    """If the session ends during a probe, the probe is cancelled."""
    session = await attended(harness)
    harness.call.start()
    harness.call.alive = False
    await asyncio.sleep(5)
    await session.close(CloseReason.CLIENT)
    await until(lambda: not harness.hub._tasks)

    assert harness.facts.of("consent_failed") == []


def test_pauses_between_tries_grow_to_a_bound() -> None:
    """The first try is at once, and later pauses are random, so that sessions do not retry at the same time."""
    drawn = list(itertools.islice(delays(), 12))

    assert drawn[0] == 0
    assert all(0.125 <= delay <= 8 for delay in drawn[1:])
    assert drawn[-1] >= 4


async def test_a_session_without_a_call_takes_no_batch(harness: Harness) -> None:
    """A session that is not open yet refuses a batch."""
    harness.dialer.gate = lambda: asyncio.sleep(5)
    opening = asyncio.create_task(harness.open())
    await asyncio.sleep(1)
    (session,) = harness.hub._opening.values()
    with pytest.raises(GatewayError) as caught:
        await session.submit([client_event("x")])
    await opening

    assert caught.value.code == "upstream-failed"

"""gateway/relay/calls/steps.py and line.py: no call stands still, and every event that is sent is accounted for."""

import asyncio
from collections.abc import Callable

import pytest

from gateway.errors import OverloadError
from gateway.relay.ports import LossCause
from gateway.relay.requests import Principal
from gateway.relay.state.deliveries import MAX_IN_FLIGHT
from gateway.relay.state.turn import TurnRequest
from gateway.relay.states import CloseReason, State
from tests.relay.calls.test_line import attended, gateway_events, item, service
from tests.relay.conftest import Build
from tests.relay.fakes import START_UNIX, FakeCall, Harness, client_event, logged, types_of
from tests.waiting import until

HELLO = TurnRequest(
    [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]
)


@pytest.fixture
async def harness(build: Build) -> Harness:
    """Return a running hub whose calls take items."""
    harness = build()
    harness.dialer.prepare = service
    return harness


# --- a call that stalls -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owe", [lambda call: call.start(), lambda call: None])
async def test_a_call_that_acknowledges_and_delivers_nothing_is_replaced(
    harness: Harness, owe: Callable[[FakeCall], None]
) -> None:
    """Such a call answers its probes, so only the missing events show the stall."""
    session = await attended(harness)
    harness.call.on_send = None
    await session.submit([client_event("conversation.item.create", item=item("a"))])
    owe(harness.call)
    harness.call.undelivered = True
    await asyncio.sleep(harness.limits.stall_timeout_seconds - 2)
    assert session.view().state is State.CONNECTED
    await until(lambda: "gateway.recovered" in types_of(session), 10)

    assert gateway_events(session)[0] == {"type": "gateway.recovering", "cause": "stalled"}
    assert harness.facts.of("upstream_lost") == [(session.id, LossCause.STALLED)]
    assert [args[1:3] for args in harness.facts.of("recovered")] == [("stalled", "recovered")]


@pytest.mark.parametrize("undelivered", [False, True])
async def test_a_model_that_thinks_and_a_call_that_owes_nothing_are_left_alone(
    harness: Harness, undelivered: bool
) -> None:
    """Silence alone is not a stall, nor is a partial event while no answer is due."""
    session = await attended(harness)
    if not undelivered:
        harness.call.start()
    harness.call.undelivered = undelivered
    await asyncio.sleep(200)

    assert session.view().call_id == "rtc_1"


# --- the end of a call ------------------------------------------------------------------------------------------------


async def test_a_clock_that_is_ahead_makes_no_new_calls(harness: Harness) -> None:
    """An end in the past is ignored and logged once."""
    harness.dialer.greeting = {"expires_at": int(START_UNIX) - 3600}
    session = await attended(harness)
    harness.call.say("session.updated", session={"expires_at": int(START_UNIX) - 3601})
    await asyncio.sleep(600)

    assert len(harness.dialer.calls) == 1
    assert session.view().call_expires_at is None
    assert harness.facts.of("call_expiry_ignored") == [(session.id, int(START_UNIX) - 3600)]


async def test_calls_that_end_at_once_are_replaced_at_a_distance(harness: Harness) -> None:
    """If the clock is ahead by nearly a call's duration, every new call seems to end at once; replacements still
    keep a distance."""

    def prepare(call: FakeCall) -> None:
        service(call)
        harness.dialer.greeting = {"expires_at": int(START_UNIX + harness.clock.monotonic()) + 2}

    harness.dialer.prepare = prepare
    harness.dialer.greeting = {"expires_at": int(START_UNIX) + 2}
    await attended(harness)
    await asyncio.sleep(60)

    assert 2 <= len(harness.dialer.calls) <= 21


# --- what is in flight ------------------------------------------------------------------------------------------------


async def test_nothing_accepted_is_forgotten(harness: Harness) -> None:
    """If more events are in flight than can be tracked, a batch is refused; every accepted event is delivered or
    named."""
    session = await attended(harness)
    harness.call.on_send = None
    accepted = 0
    refused: OverloadError | None = None
    for number in range(3000):
        try:
            await session.submit([client_event("input_audio_buffer.append", event_id=f"e{number}")])
            accepted += 1
        except OverloadError as error:
            refused = error
            break
    assert refused is not None
    assert (refused.code, refused.retry_after, accepted) == ("upstream-backpressure", 1, MAX_IN_FLIGHT)
    harness.call.acknowledged = 24
    await session.submit([client_event("input_audio_buffer.append")])
    harness.call.lose()
    await until(lambda: session.view().state is State.CONNECTED)

    unknown = gateway_events(session)[1]["unknown"]
    assert [account["number"] for account in unknown] == list(range(25, MAX_IN_FLIGHT + 2))


async def test_a_large_event_in_flight_takes_the_memory_of_its_text(harness: Harness) -> None:
    """Events without an ID of 1 MiB are limited in bytes and charged to the budget."""
    session = await attended(harness)
    harness.call.on_send = None
    for _ in range(4):
        await session.submit([client_event("response.cancel", a="x" * 1_000_000)])
    with pytest.raises(OverloadError) as caught:
        await session.submit([client_event("response.cancel", a="x" * 1_000_000)])

    assert caught.value.code == "upstream-backpressure"
    assert session.diagnostics()["memory_bytes"] < 6_000_000  # type: ignore[operator]
    await session.close(CloseReason.CLIENT)
    await until(lambda: harness.hub.budget.held == 0)


# --- a response that was asked for ------------------------------------------------------------------------------------


async def test_a_response_asked_for_and_not_begun_is_cancelled_and_counted(harness: Harness) -> None:
    """A response that is cancelled before it begins is billed anyway, so an estimate is charged to the caller's day."""
    session = await attended(harness, principal=Principal("ann", tokens_per_day=100_000))
    harness.call.on_send = None
    await session.submit([client_event("response.create")])
    await session.close(CloseReason.CLIENT)

    assert harness.call.events[-1] == {"type": "response.cancel"}
    assert harness.facts.of("usage_unrecorded") == [()]
    assert harness.hub._services.allowance.spent("ann", START_UNIX).tokens > 0


async def test_a_lost_call_counts_what_was_asked_for_and_not_begun(harness: Harness) -> None:
    """If a call is lost, a requested response that has not begun is counted, because the service may have begun it."""
    session = await attended(harness)
    harness.call.on_send = None
    await session.submit([client_event("response.create")])
    harness.call.lose()
    await until(lambda: session.view().state is State.CONNECTED)

    assert harness.facts.of("usage_unrecorded") == [()]


# --- turns ------------------------------------------------------------------------------------------------------------


async def test_turns_that_wait_have_their_time(build: Build) -> None:
    """The deadline counts from the request, also behind a response that never ends and while there is no call."""
    harness = build(turn_timeout_seconds=5)
    session = await attended(harness)
    harness.call.start()
    turns = [await session.turn(HELLO) for _ in range(3)]
    await asyncio.sleep(7)
    assert [turn.failure.code for turn in turns if turn.failure] == ["upstream-timeout"] * 3
    harness.dialer.gate = lambda: asyncio.sleep(30)
    harness.call.lose()
    waiting = await session.turn(HELLO)
    await asyncio.sleep(7)

    assert waiting.failure is not None
    assert waiting.failure.code == "upstream-timeout"


async def test_a_turn_is_followed_where_metadata_is_not_echoed(harness: Harness) -> None:
    """If metadata is not echoed, the response can only be the turn's."""
    session = await attended(harness)
    turn = await session.turn(HELLO)
    harness.call.start("resp_1", None)
    harness.call.finish("resp_1")

    assert turn.result is not None
    assert turn.result["id"] == "resp_1"


# --- another application's call ---------------------------------------------------------------------------------------------


async def test_an_attached_session_takes_only_what_names_its_own_for_a_confirmation(harness: Harness) -> None:
    """Other applications use the call, too. After a loss nothing is seeded, only replies that name the session's own
    events confirm them, and the call's end ends the session."""
    session = await attended(harness, call_id="rtc_other")
    call = harness.call
    assert (call.request.attach_to, call.request.session) == ("rtc_other", {})
    assert session.view().attached
    call.on_send = None
    await session.submit(
        [client_event("conversation.item.create", item=item("mine")), client_event("response.create")]
    )
    call.say("conversation.item.added", item=item("theirs"))
    call.say("response.created", response={"id": "theirs"})
    call.say("response.done", response={"id": "theirs", "status": "completed"})
    call.lose()
    await until(lambda: session.view().state is State.CONNECTED)
    recovered = gateway_events(session)[-1]
    assert [account["number"] for account in recovered["unknown"]] == [1, 2]
    assert (recovered["items_restored"], harness.call.sent) == (0, [])
    harness.call.lose(LossCause.CHANNEL_CLOSED)

    assert await harness.closed(session) is CloseReason.UPSTREAM_CLOSED


async def test_leaving_an_attached_session_leaves_the_call(harness: Harness) -> None:
    """A session that ends leaves the attached call running unless its end is requested."""
    for hang_up in (None, True):
        session = await attended(harness, call_id="rtc_other")
        call = harness.call
        await session.close(CloseReason.CLIENT, hang_up=hang_up)
        await until(lambda: bool(call.closings))  # noqa: B023  # awaited in the same round
        assert call.closings == [bool(hang_up)]
        assert logged(session.reader)[-1]["reason"] == "client"

"""gateway/relay/hub.py: opening, finding, limits, retention, drain."""

import asyncio
import gc
import weakref
from typing import Any

import pytest

from gateway.errors import GatewayError, UpstreamError
from gateway.relay.events.records import VERSION, sequence_of
from gateway.relay.limits import MAX_DETACH_GRACE_SECONDS, MIN_DETACH_GRACE_SECONDS
from gateway.relay.ports import LossCause
from gateway.relay.requests import Principal
from gateway.relay.sessionobject import template
from gateway.relay.state.turn import TurnRequest
from gateway.relay.states import CloseReason, State
from tests.relay.conftest import Build
from tests.relay.fakes import SOMEBODY, START_UNIX, FakeCall, FakeReceiver, Harness, logged, types_of
from tests.relay.journals import MemoryJournal, node
from tests.waiting import until

OTHER = Principal("other")
HELLO = TurnRequest([{"type": "message", "role": "user", "content": []}])


async def refused(harness: Harness, **members: Any) -> GatewayError:
    """Return the error with which a create is refused; nothing of it may be left."""
    before = len(harness.hub.all_sessions())
    with pytest.raises(GatewayError) as caught:
        await harness.open(**members)
    await until(lambda: all(call.closings or not call.open for call in harness.dialer.calls[before:]))
    await until(lambda: not harness.hub._opening)
    assert len(harness.hub.all_sessions()) == before
    return caught.value


# --- opening ----------------------------------------------------------------------------------------------------------


def refusals(harness: Harness) -> list[tuple[str, str]]:
    """The recorded refusals of sessions: principal and error code."""
    return [(principal, error.code) for principal, error in harness.facts.of("session_refused")]


async def test_an_opened_session_has_been_greeted(harness: Harness) -> None:
    """An opened session is connected, knows its model, and has session.created as its first event."""
    session = await harness.open(session={"model": "gpt-x"}, metadata={"a": 1})
    view = session.view()

    assert view.state is State.CONNECTED
    assert (view.model, view.call_id, view.created_at) == ("gpt-x", "rtc_1", int(START_UNIX))
    assert (view.expires_at, view.close_reason, view.metadata) == (None, None, {"a": 1})
    assert str(view.oldest).endswith("-1")
    assert types_of(session) == ["session.created"]


async def test_an_opening_waits_for_the_greeting_but_not_for_long(harness: Harness) -> None:
    """A create waits only briefly for the greeting, because the channel works without it."""
    harness.dialer.greets = False
    begun = harness.clock.monotonic()
    session = await harness.open()

    assert harness.clock.monotonic() - begun == pytest.approx(harness.limits.greeting_seconds, abs=0.1)
    assert session.view().state is State.CONNECTED


async def test_the_template_is_merged_under_what_is_wanted(build: Build) -> None:
    """The wanted session object is merged over the template, and the call is created with the result."""
    harness = build(template=template({"output_modalities": ["text"], "audio": {"input": {"x": 1}}}))
    await harness.open(session={"audio": {"input": {"y": None}}}, bearer="ek_1")
    (request,) = harness.dialer.requests

    assert request.session == {
        "type": "realtime",
        "output_modalities": ["text"],
        "audio": {"input": {"x": 1, "y": None}},
    }
    assert (request.bearer, request.safety_identifier) == ("ek_1", "somebody")
    assert "ek_1" not in repr(request)


async def test_anonymous_callers_have_no_safety_identifier(harness: Harness) -> None:
    """Anonymous callers have no safety identifier, because all of them would share it."""
    await harness.open(principal=Principal("anonymous", anonymous=True))

    assert harness.dialer.requests[0].safety_identifier is None


@pytest.mark.parametrize(
    "code", ["upstream-rejected", "upstream-rate-limited", "upstream-failed", "upstream-timeout"]
)
async def test_a_failed_dial_is_told_and_leaves_nothing(harness: Harness, code: Any) -> None:
    """The dialer's own error reaches the caller, and log, place and task are released."""
    harness.dialer.refusal = UpstreamError(code, "No.")
    error = await refused(harness)

    assert error is harness.dialer.refusal
    assert harness.hub._broker.size == 0
    assert refusals(harness) == [("somebody", code)]
    assert harness.facts.of("session_opened") == []
    assert harness.facts.of("session_closed") == []


async def test_a_dialer_that_breaks_is_a_gateway_that_failed(build: Build) -> None:
    """A bug in the dialer is reported, and the caller gets an internal error without details."""
    harness = build()

    async def broken() -> None:
        raise ZeroDivisionError

    harness.dialer.gate = broken
    error = await refused(harness)

    assert error.code == "internal"
    assert "ZeroDivisionError" not in error.detail
    assert [type(args[1]) for args in harness.facts.of("relay_failed")] == [ZeroDivisionError]
    harness.facts.all.clear()


async def test_a_caller_who_leaves_while_dialling_leaves_nothing(harness: Harness) -> None:
    """If the caller leaves while the call is dialled the session is closed, because nobody would learn its id."""
    cut = asyncio.Event()

    async def dialling() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cut.set()

    harness.dialer.gate = dialling
    opening = asyncio.create_task(harness.open())
    await asyncio.sleep(1)
    opening.cancel()
    await asyncio.wait({opening})
    await until(cut.is_set)

    assert opening.cancelled()
    await until(lambda: not harness.hub._tasks)
    assert (harness.hub._opening, harness.hub.all_sessions(), harness.hub._broker._logs) == ({}, [], set())


@pytest.mark.parametrize("continuity", [True, False])
@pytest.mark.parametrize("cause", LossCause)
async def test_a_call_lost_before_its_greeting_fails_the_opening(
    build: Build, continuity: bool, cause: LossCause
) -> None:
    """A call lost during the create is not recovered: the create fails."""
    harness = build(continuity=continuity)
    harness.dialer.greets = False
    opening = asyncio.create_task(harness.open())
    await until(lambda: bool(harness.dialer.calls))
    await asyncio.sleep(0)
    harness.call.lose(cause)
    with pytest.raises(GatewayError) as caught:
        await opening

    assert caught.value.code == "upstream-failed"
    await until(lambda: not harness.hub._tasks)
    assert (harness.hub._opening, harness.hub.all_sessions()) == ({}, [])


async def test_a_call_lost_inside_the_dial_fails_the_opening(harness: Harness) -> None:
    """The far end may end the call before the dialer returns."""

    def lose(call: FakeCall) -> None:
        call.lose(LossCause.CHANNEL_CLOSED)

    harness.dialer.prepare = lose
    error = await refused(harness)

    assert error.code == "upstream-failed"


async def test_a_call_lost_in_the_moment_of_opening_is_no_session(harness: Harness) -> None:
    """If the call is lost at the moment of opening the create fails, although the channel was open briefly."""
    harness.facts.__dict__["session_opened"] = lambda *_: harness.call.lose()
    error = await refused(harness)

    assert error.code == "upstream-failed"


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_a_full_gateway_refuses(build: Build) -> None:
    """At the limit a create is 503 with Retry-After; a place is free again when a session ends."""
    harness = build(max_sessions=1)
    session = await harness.open()
    error = await refused(harness)
    await session.close(CloseReason.CLIENT)
    await harness.open()

    assert (error.code, error.retryable, error.retry_after) == ("capacity", True, 5)


async def test_sessions_being_opened_hold_their_place(build: Build) -> None:
    """Sessions being opened count, because otherwise simultaneous creates would exceed the limit."""
    harness = build(max_sessions=2)
    openings = await asyncio.gather(*(harness.open() for _ in range(4)), return_exceptions=True)

    assert [isinstance(one, GatewayError) for one in openings] == [False, False, True, True]


async def test_a_key_has_its_own_bound(harness: Harness) -> None:
    """A key's own limit does not affect others."""
    bounded = Principal("bounded", max_sessions=1)
    await harness.open(principal=bounded)
    await harness.open()
    error = await refused(harness, principal=bounded)

    assert error.code == "session-limit"


async def test_full_logs_refuse_new_sessions_and_close_none(build: Build) -> None:
    """Contract 5: at log_total_bytes new sessions get 503."""
    harness = build(log_total_bytes=2000)
    session = await harness.open()
    harness.call.say("x", a="b" * 3000)
    error = await refused(harness)

    assert error.code == "capacity"
    assert session.live


async def test_locked_members_are_refused_at_create(build: Build) -> None:
    """A locked member is refused at create before anything is dialled."""
    harness = build(session_locked=("model",))
    error = await refused(harness, session={"model": "x"})

    assert (error.code, error.flaws[0].pointer) == ("member-locked", "/session/model")
    assert harness.dialer.requests == []


@pytest.mark.parametrize("seconds", [MIN_DETACH_GRACE_SECONDS, MAX_DETACH_GRACE_SECONDS])
async def test_a_grace_within_its_range_is_taken(harness: Harness, seconds: int) -> None:
    """Both ends of the range are allowed."""
    session = await harness.open(detach_grace_seconds=seconds)

    assert session.view().detach_grace_seconds == seconds


@pytest.mark.parametrize("seconds", [MIN_DETACH_GRACE_SECONDS - 1, MAX_DETACH_GRACE_SECONDS + 1])
async def test_a_grace_beyond_its_range_is_refused(harness: Harness, seconds: int) -> None:
    """A grace outside its range is refused with a pointer."""
    error = await refused(harness, detach_grace_seconds=seconds)

    assert (error.code, error.flaws[0].pointer) == ("invalid-parameter", "/detach_grace_seconds")


# --- finding ----------------------------------------------------------------------------------------------------------


async def test_a_session_is_found_by_its_owner_and_by_its_id(harness: Harness) -> None:
    """For other callers it does not exist."""
    session = await harness.open()

    assert harness.hub.find(session.id, SOMEBODY) is session
    assert harness.hub.find(session.id, None) is session
    for session_id, principal in [(session.id, OTHER), ("gws_none", SOMEBODY), ("gws_none", None)]:
        with pytest.raises(GatewayError) as caught:
            harness.hub.find(session_id, principal)
        assert caught.value.code == "session-unknown"


async def test_lists_are_newest_first(harness: Harness) -> None:
    """A caller's list has its own sessions and the operator's all, the newest first."""
    first, others, last = await harness.open(), await harness.open(principal=OTHER), await harness.open()

    assert [view.id for view in harness.hub.page(SOMEBODY, 20)[0]] == [last.id, first.id]
    assert [view.id for view in harness.hub.all_sessions()] == [last.id, others.id, first.id]


async def test_diagnostics_are_of_known_sessions(harness: Harness) -> None:
    """The diagnostics of a session have counters, and no conversation text."""
    session = await harness.open()
    harness.call.say("error", error={"type": "t", "code": "c", "message": "secret words"})
    diagnostics = harness.hub.diagnostics(session.id)

    assert (diagnostics["accepted"], diagnostics["log_events"], diagnostics["last_error_code"]) == (0, 2, "c")
    assert "secret" not in str(diagnostics)
    for ask in (harness.hub.diagnostics, harness.hub.restart):
        with pytest.raises(GatewayError) as caught:
            ask("gws_none")
        assert caught.value.code == "session-unknown"


async def test_a_closed_session_is_kept_while_its_log_is(harness: Harness) -> None:
    """When the log of a closed session is dropped, the session is unknown and its bytes are free."""
    session = await harness.open()
    await session.close(CloseReason.CLIENT)
    await asyncio.sleep(harness.limits.log_retention_seconds - 2)
    assert harness.hub.find(session.id, SOMEBODY) is session
    assert session.reader.sealed
    await asyncio.sleep(4)

    with pytest.raises(GatewayError) as caught:
        harness.hub.find(session.id, SOMEBODY)
    assert caught.value.code == "session-unknown"
    assert (harness.hub._broker.size, harness.hub._broker._logs, harness.hub._tasks) == (0, set(), {})


@pytest.mark.parametrize("several_nodes", [False, True])
async def test_a_forgotten_session_is_freed_without_a_garbage_collection(
    build: Build, several_nodes: bool
) -> None:
    """A session, its line and its journal do not keep each other alive, so hundreds of them are no work for the
    collector. A journal that still has to be written again gets what it needs."""
    harness = node()[0] if several_nodes else build()
    session = await harness.open()
    harness.call.say("some.event")
    parts = [weakref.ref(part) for part in (session, session._line)]
    journal, state = session.journal, session.state
    gc.disable()
    try:
        await session.close(CloseReason.CLIENT)
        harness.call._sink = None  # type: ignore[assignment]  # as a real call does when it is closed
        del session
        await asyncio.sleep(harness.limits.log_retention_seconds + 4)

        assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()
        await harness.hub.close()
    if isinstance(journal, MemoryJournal):
        journal.settle()
        journal.owner.fenced()
        assert journal.owner.dump(VERSION) == state.dump(VERSION)
        assert [sequence_of(record) for record in journal.owner.kept(1)] == list(range(2, state.head + 1))


async def test_the_logs_growth_is_told_at_every_tick(harness: Harness) -> None:
    """The counts in telemetry equal those of the open sessions."""
    session = await harness.open()
    await asyncio.sleep(1.5)
    harness.call.say("x")
    await asyncio.sleep(1)
    told = harness.facts.of("log_grew")

    assert (sum(events for events, _ in told), sum(size for _, size in told)) == (2, session.log.size)


async def test_one_bad_session_does_not_stop_the_others_deadlines(harness: Harness) -> None:
    """The error is reported, and the other sessions of the round are still handled."""
    bad, good = await harness.open(), await harness.open(detach_grace_seconds=10)

    def broken(now: float) -> None:
        raise ZeroDivisionError

    bad.tick = broken  # type: ignore[method-assign]
    reason = await harness.closed(good, seconds=30)

    assert reason is CloseReason.DETACHED
    assert harness.facts.of("relay_failed")[0][0] == bad.id
    harness.facts.all.clear()


# --- drain and close --------------------------------------------------------------------------------------------------


async def test_draining_refuses_new_sessions(harness: Harness) -> None:
    """A draining gateway refuses new sessions with 503 and Retry-After, because another node may take the retry."""
    await harness.hub.drain(1)
    error = await refused(harness)

    assert (error.code, error.retry_after) == ("draining", 2)


async def test_a_drain_tells_the_running_and_ends_them(harness: Harness) -> None:
    """The last event of the log has the reason, and says that a new session can help."""
    session = await harness.open()
    await harness.hub.drain(25.0)
    draining, closed = logged(session.reader)[-2:]

    assert draining == {"type": "gateway.draining", "deadline_seconds": 25}
    assert isinstance(draining["deadline_seconds"], int)  # some JSON parsers distinguish 25 from 25.0
    assert closed == {"type": "gateway.closed", "reason": "drained", "retryable": True, "upstream": None}


async def test_a_node_that_could_not_hand_over_notifies_its_sessions(harness: Harness) -> None:
    """A node is marked as draining before its hand-over; the sessions that stay are then drained as in one process."""
    session = await harness.open()
    harness.hub.draining = True
    await harness.hub.drain(25)

    assert types_of(session)[-2:] == ["gateway.draining", "gateway.closed"]


async def test_a_drain_ends_unattended_sessions_at_once(harness: Harness) -> None:
    """Sessions without readers end at once, because no client would come back for them."""
    session = await harness.open()
    begun = harness.clock.monotonic()
    await harness.hub.drain(25)

    assert session.closed_at is not None
    assert session.closed_at - begun < 1
    assert harness.clock.monotonic() - begun < 2


async def test_a_drain_spreads_attended_sessions(harness: Harness) -> None:
    """Sessions with readers end over the first part of the drain, so that their clients do not reconnect
    simultaneously."""
    sessions = [await harness.open() for _ in range(40)]
    for session in sessions:
        session.attach(FakeReceiver(0.0))
    begun = harness.clock.monotonic()
    await harness.hub.drain(100)
    ends = [session.closed_at - begun for session in sessions if session.closed_at is not None]

    assert len(ends) == 40
    assert max(ends) <= 61
    assert max(ends) - min(ends) > 20


async def test_a_drain_waits_for_a_response(harness: Harness) -> None:
    """A drain waits for a running response, so that clients come back with complete answers."""
    session = await harness.open()
    harness.call.start()
    drain = asyncio.create_task(harness.hub.drain(25))
    await asyncio.sleep(20)
    assert session.live
    harness.call.finish()
    await asyncio.sleep(1)
    await drain

    assert session.view().close_reason is CloseReason.DRAINED
    assert harness.call.types() == []


async def test_a_drain_waits_for_a_turn_whose_response_has_not_begun(harness: Harness) -> None:
    """The turn was accepted, and its client waits for the answer."""
    session = await harness.open()
    turn = await session.turn(HELLO)
    drain = asyncio.create_task(harness.hub.drain(25))
    await asyncio.sleep(20)
    assert session.live
    harness.call.start("resp_1", turn.id)
    harness.call.finish("resp_1")
    await drain

    assert turn.failure is None
    assert session.view().close_reason is CloseReason.DRAINED


async def test_a_drain_does_not_wait_for_ever(harness: Harness) -> None:
    """At the deadline a response is cancelled, and has a moment to report its usage."""
    session = await harness.open()
    call = harness.call
    call.start()
    call.on_send = lambda event: call.finish(str(event["response_id"]), "cancelled")
    begun = harness.clock.monotonic()
    await harness.hub.drain(25)

    assert harness.clock.monotonic() - begun == pytest.approx(25, abs=1.5)
    assert types_of(session)[-2:] == ["response.done", "gateway.closed"]
    assert harness.facts.of("usage_unrecorded") == []


async def test_a_second_drain_is_harmless(harness: Harness) -> None:
    """A second drain may shorten the first, and notifies no session again."""
    session = await harness.open()
    session.attach(FakeReceiver(0.0))
    harness.call.start()
    first = asyncio.create_task(harness.hub.drain(1000))
    await asyncio.sleep(1)
    await harness.hub.drain(5)
    await asyncio.wait_for(first, 1005)

    assert types_of(session).count("gateway.draining") == 1
    assert session.closed_at == pytest.approx(6, abs=2)


async def test_an_opening_that_meets_a_drain_is_refused(harness: Harness) -> None:
    """A create that meets a drain is refused and its call is closed, because another node can take it."""
    await harness.open()
    harness.call.start()  # keeps the drain waiting
    harness.dialer.gate = lambda: asyncio.sleep(3)
    opening = asyncio.create_task(harness.open())
    await asyncio.sleep(1)
    await harness.hub.drain(25)

    assert isinstance(opening.exception(), GatewayError)
    assert refusals(harness) == [("somebody", "draining")]
    assert harness.call.closings == [True]
    assert len(harness.hub.all_sessions()) == 1


async def test_an_opening_still_dialling_when_the_drain_is_over_is_refused(harness: Harness) -> None:
    """A create that is still dialling at the end of the drain is refused."""
    harness.dialer.gate = lambda: asyncio.sleep(3600)
    opening = asyncio.create_task(harness.open())
    await asyncio.sleep(1)
    await harness.hub.drain(25)
    with pytest.raises(GatewayError) as caught:
        await opening

    assert (caught.value.code, caught.value.retryable) == ("draining", True)
    assert refusals(harness) == [("somebody", "draining")]
    assert not harness.hub._tasks


async def test_closing_ends_every_session_and_its_call(harness: Harness) -> None:
    """Closing works without a drain before it, and may be repeated."""
    sessions = [await harness.open() for _ in range(3)]
    await harness.hub.close()
    await harness.hub.close()

    assert [session.view().close_reason for session in sessions] == [CloseReason.DRAINED] * 3
    assert [call.closings for call in harness.dialer.calls] == [[True]] * 3
    assert not harness.hub._tasks


async def test_a_hub_that_never_ticked_can_be_closed(build: Build) -> None:
    """A hub that never ticked, for example after a failed start, can be closed."""
    harness = Harness(build().limits)
    await harness.hub.close()

    assert harness.hub.draining


async def test_a_tick_of_many_sessions_lets_other_work_have_its_turn(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of sessions tick in parts, and one that leaves in between is passed over."""
    monkeypatch.setattr("gateway.relay.hub.TICKED_AT_ONCE", 1)
    first, second = await harness.open(), await harness.open()
    ticked: list[str] = []
    monkeypatch.setattr(second, "tick", lambda now: ticked.append("second"))

    def leave(now: float) -> None:
        ticked.append("first")
        asyncio.get_running_loop().call_soon(harness.hub.drop, second.id)

    monkeypatch.setattr(first, "tick", leave)
    await asyncio.sleep(2.5)

    assert set(ticked) == {"first"}

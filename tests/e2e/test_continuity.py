"""A conversation survives its peer connection: losses of every kind, planned hand-overs, and the events that clients
get."""

import asyncio
import time

import pytest

from gateway.app import Gateway
from tests.e2e.caller import Caller, Emulate, Json, Read, Serve, answer_of, number, say
from tests.farend import FarEnd

NAME = "My name is Ada."
ASK = "What is my name?"


async def tell(caller: Caller, session: Json, text: str) -> tuple[str, str]:
    """Send a text and return the answer's text and the id of its response.done."""
    receipt = await caller.send(session["id"], *say(text))
    reads = await caller.until(session["id"], "response.done", after=receipt["head"])
    return answer_of(read.value for read in reads), str(reads[-1].id)


async def call_of(caller: Caller, session: Json) -> str:
    """Return the session's current call."""
    _, said = await caller.ask("GET", f"/v1/sessions/{session['id']}")
    return str(said["call_id"])


def assert_whole(reads: list[Read]) -> None:
    """Check that ids are ascending without a gap: nothing was lost or doubled."""
    numbers = [number(read.id) for read in reads]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


async def cut_in_mid_answer(caller: Caller, far_end: FarEnd, session: Json, failure: str) -> str:
    """Start a long answer, cut the call while it streams, and return the cursor before the question."""
    call = await call_of(caller, session)
    await far_end.fault(call, tokens_per_second=50)
    receipt = await caller.send(session["id"], *say("Count to 50."))
    await caller.until(session["id"], "response.output_text.delta", count=3, after=receipt["head"])
    await far_end.fault(call, do=failure)
    return str(receipt["head"])


@pytest.mark.parametrize("failure", ["close_channel", "hang_up"])
async def test_facts_told_before_a_loss_are_used_after_it(
    caller: Caller, far_end: FarEnd, failure: str
) -> None:
    """The model's next answer uses the conversation of the lost call, and the interrupted response is reported."""
    session = await caller.open()
    await tell(caller, session, NAME)
    first_call = await call_of(caller, session)

    after = await cut_in_mid_answer(caller, far_end, session, failure)
    reads = await caller.until(session["id"], "gateway.recovered", after=after)
    recovered = reads[-1].value
    answer, _ = await tell(caller, session, ASK)

    assert "Ada" in answer
    assert recovered["call_id"] == await call_of(caller, session) != first_call
    assert (recovered["items_restored"], recovered["items_lost"]) == (3, 1)
    assert recovered["response"] == "interrupted"
    assert_whole(reads)


async def test_an_idle_call_that_is_closed_is_replaced(caller: Caller, far_end: FarEnd) -> None:
    """A lost call is noticed although nothing is sent, and clients do not see the seeding."""
    session = await caller.open()
    _, last = await tell(caller, session, NAME)

    await far_end.fault(await call_of(caller, session), do="hang_up")
    reads = await caller.until(session["id"], "gateway.recovered", after=last)

    kinds = [read.type for read in reads]
    assert kinds.index("gateway.recovering") < kinds.index("gateway.recovered")
    assert not [kind for kind in kinds if kind.startswith(("conversation.item", "session."))]


@pytest.mark.slow
async def test_a_far_end_that_vanishes_is_noticed_within_8_seconds(caller: Caller, far_end: FarEnd) -> None:
    """While a response is due and the call is silent, a probe detects the loss."""
    session = await caller.open()
    _, last = await tell(caller, session, NAME)

    began = time.monotonic()
    await cut_in_mid_answer(caller, far_end, session, "vanish")
    await caller.until(session["id"], "gateway.recovering", after=last)
    noticed = time.monotonic() - began
    await caller.until(session["id"], "gateway.recovered", after=last)
    answer, _ = await tell(caller, session, ASK)

    assert noticed < 8.5
    assert "Ada" in answer


@pytest.mark.slow
async def test_events_sent_while_there_is_no_call_follow_on_the_next(serve: Serve, emulate: Emulate) -> None:
    """Events accepted during a recovery are sent after the seeding, in order."""
    far_end = emulate("--tokens-per-second", "0")
    gateway = await serve(far_end)
    caller = Caller(gateway.url)
    try:
        session = await caller.open()
        _, last = await tell(caller, session, NAME)
        await far_end.faults(signal_delay_seconds=1.0)
        await far_end.fault(await call_of(caller, session), do="hang_up")
        await caller.until(session["id"], "gateway.recovering", after=last)

        receipt = await caller.send(session["id"], *say(ASK))
        reads = await caller.until(session["id"], "response.done", after=receipt["head"])

        assert "Ada" in answer_of(read.value for read in reads)
        assert_whole(reads)
    finally:
        await caller.http.close()


async def test_an_interrupted_response_is_asked_again_if_that_was_wanted(
    caller: Caller, far_end: FarEnd
) -> None:
    """With `on_interrupted: retry` the client gets its answer without asking again."""
    session = await caller.open(on_interrupted="retry")

    after = await cut_in_mid_answer(caller, far_end, session, "hang_up")
    reads = await caller.until(session["id"], "response.done", after=after)

    recovered = next(read.value for read in reads if read.type == "gateway.recovered")
    again = reads[[read.type for read in reads].index("gateway.recovered") :]
    assert recovered["response"] == "retried"
    assert "50" in answer_of(read.value for read in again)


async def test_an_operator_restarts_a_call_unnoticed(gateway: Gateway, caller: Caller) -> None:
    """A hand-over appears to clients as one gateway.recovered and nothing else."""
    session = await caller.open()
    _, last = await tell(caller, session, NAME)
    first_call = await call_of(caller, session)
    operator = Caller(gateway.admin_url)
    try:
        answer, _ = await operator.ask("POST", f"/sessions/{session['id']}/restart")
        reads = await caller.until(session["id"], "gateway.recovered", after=last)
    finally:
        await operator.http.close()
    text, _ = await tell(caller, session, ASK)

    assert answer.status in (202, 204)
    assert [read.type for read in reads if read.type.startswith("gateway.")] == ["gateway.recovered"]
    assert reads[-1].value["cause"] == "restart"
    assert await call_of(caller, session) != first_call
    assert "Ada" in text


@pytest.mark.slow
async def test_calls_that_end_by_time_are_replaced_before(serve: Serve, emulate: Emulate) -> None:
    """With calls of 12 s a session continues across several of them, and every answer is complete."""
    # With shorter calls a busy machine has too little time to replace them.
    far_end = emulate("--tokens-per-second", "0", "--max-session-seconds", "12")
    gateway = await serve(far_end)
    caller = Caller(gateway.url)
    try:
        session = await caller.open()
        await tell(caller, session, NAME)
        calls = {await call_of(caller, session)}
        async with asyncio.timeout(45):
            while len(calls) < 3:
                answer, _ = await tell(caller, session, ASK)
                assert "Ada" in answer
                await asyncio.sleep(0.3)
                calls.add(await call_of(caller, session))
        answer, last = await tell(caller, session, ASK)
        # All events in one read: a long-poll may return fewer than there are.
        reads = await caller.take(session["id"], number(last), after="earliest")
        own = [read.value for read in reads if read.type.startswith("gateway.")]

        assert "Ada" in answer
        assert [event["type"] for event in own] == ["gateway.recovered"] * len(own)
        assert len(own) >= 2
        assert {event["cause"] for event in own} == {"rotation"}
        assert_whole(reads)
    finally:
        await caller.http.close()


@pytest.mark.slow
async def test_a_killed_far_end_is_replaced_by_the_next(serve: Serve, emulate: Emulate) -> None:
    """After SIGKILL in the middle of a response, a new process at the same address continues the conversation."""
    far_end = emulate("--tokens-per-second", "20")
    port = far_end.base_url.rsplit(":", 1)[1].split("/")[0]
    gateway = await serve(far_end)
    caller = Caller(gateway.url)
    try:
        session = await caller.open()
        _, last = await tell(caller, session, NAME)
        await caller.send(session["id"], *say("Count to 50."))
        far_end.program.kill()
        emulate("--port", port, "--tokens-per-second", "0")

        reads = await caller.until(session["id"], "gateway.recovered", after=last)
        answer, _ = await tell(caller, session, ASK)

        assert "Ada" in answer
        assert reads[-1].value["items_lost"] == 0
        assert_whole(reads)
    finally:
        await caller.http.close()

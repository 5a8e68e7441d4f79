"""Conversations held with nothing but curl, through `gateway serve`, over a real data channel."""

import json
from contextlib import aclosing
from typing import Any

import pytest

from gateway.client import Block
from tests.e2e.caller import Caller, Serve, answer_of, number, say
from tests.e2e.curl import curl, curled
from tests.farend import FarEnd

pytestmark = pytest.mark.needs("curl")

Json = dict[str, Any]
EVENT_STREAM = ("-H", "Accept: text/event-stream")
# About 40 tokens at 50 per second: long enough to be seen arriving, and to be cut.
SLOW = {"tokens_per_second": 50}
LONG_QUESTION = "Write 30 words about rivers"


def value(block: Block) -> Json:
    """Return the parsed data of a block."""
    assert block.data is not None
    said: Json = json.loads(block.data)
    return said


async def open_session(url: str) -> Json:
    """Open a session by curl."""
    session: Json = json.loads(await curled("-X", "POST", f"{url}/v1/sessions"))
    return session


async def post(url: str, session: Json, *events: Json) -> Json:
    """Post client events by curl and return the receipt."""
    path = f"{url}/v1/sessions/{session['id']}/events"
    receipt: Json = json.loads(await curled(path, "-d", json.dumps(events)))
    return receipt


async def close(url: str, session: Json) -> None:
    """Delete a session by curl."""
    await curled("-X", "DELETE", f"{url}/v1/sessions/{session['id']}")


@pytest.mark.parametrize("accept", [["-H", "Accept: text/plain"], []], ids=["text/plain", "as curl sends it"])
async def test_the_shortest_conversation_is_one_curl(served: str, accept: list[str]) -> None:
    """`curl -N …/v1/turns -d Hello` prints the answer and nothing else."""
    said = await curled("-N", f"{served}/v1/turns", *accept, "-d", "Hello")

    assert said.strip() == "Hello! How can I help you?"


async def test_a_turn_streams_while_the_answer_is_made(served: str, far_end: FarEnd) -> None:
    """The beginning of a text answer arrives before the answer is complete."""
    await far_end.faults(**SLOW)
    async with curl("-N", f"{served}/v1/turns", "-H", "Accept: text/plain", "-d", LONG_QUESTION) as asking:
        first = await asking.some()
        rest = await asking.rest()

        assert await asking.status() == 0
    assert first
    assert len(rest) > len(first)


async def test_a_failure_in_mid_answer_makes_curl_fail(served: str, far_end: FarEnd) -> None:
    """A text answer that is cut off does not look complete: curl exits with 18."""
    await far_end.faults(response_error="server_error", fail_after_deltas=5)
    async with curl("-N", f"{served}/v1/turns", "-H", "Accept: text/plain", "-d", LONG_QUESTION) as asking:
        said = await asking.rest()

        assert await asking.status() == 18
    assert said


async def test_two_curls_hold_a_conversation(served: str) -> None:
    """One curl reads the event stream, others post events, and the second answer uses the first question."""
    session = await open_session(served)
    async with (
        curl("-N", f"{served}{session['events_url']}", *EVENT_STREAM) as reader,
        aclosing(reader.blocks()) as blocks,
    ):
        answers = []
        for question in ("My name is Ada.", "What is my name?"):
            receipt = await post(served, session, *say(question))
            assert receipt["accepted"] == 2
            async for block in blocks:
                if value(block)["type"] == "response.done":
                    answers.append(value(block)["response"]["output"][0]["content"][0]["text"])
                    break
    await close(served, session)

    assert answers[0] == "Nice to meet you, Ada!"
    assert "Ada" in answers[1]


async def test_a_reader_killed_in_mid_response_misses_nothing(served: str, far_end: FarEnd) -> None:
    """A killed reader that resumes after its last event id has every event once, in order."""
    await far_end.faults(**SLOW)
    session = await open_session(served)
    events = f"{served}{session['events_url']}"
    before: list[Block] = []
    async with (
        curl("-N", events, *EVENT_STREAM) as reader,
        aclosing(reader.blocks()) as blocks,
    ):
        await post(served, session, *say(LONG_QUESTION))
        async for block in blocks:
            if block.name == "message":
                before.append(block)
            if sum(value(seen)["type"] == "response.output_text.delta" for seen in before) == 5:
                break
        reader.kill()
    after: list[Block] = []
    last = before[-1].id
    async with (
        curl("-N", events, *EVENT_STREAM, "-H", f"Last-Event-ID: {last}") as reader,
        aclosing(reader.blocks()) as blocks,
    ):
        opening = value(await anext(blocks))
        async for block in blocks:
            after.append(block)
            if value(block)["type"] == "response.done":
                break
    await close(served, session)

    numbers = [number(block.id) for block in [*before, *after]]
    done = value(after[-1])["response"]["output"][0]["content"][0]["text"]
    assert (opening["type"], opening["resumed"], opening["missed"]) == ("gateway.open", True, 0)
    assert opening["requested"] == last
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert answer_of(map(value, [*before, *after])) == done


async def test_a_reader_that_was_away_too_long_is_told_what_it_missed(serve: Serve, far_end: FarEnd) -> None:
    """If the log is smaller than the gap, `gateway.gap` says where the gap begins, where the log begins, and how
    many events are gone."""
    kept = 10
    gateway = await serve(far_end, relay={"log_max_events": kept})
    caller = Caller(gateway.url)
    session = await caller.open()
    path = f"{gateway.url}{session['events_url']}"
    await caller.send(session["id"], *say(LONG_QUESTION))
    # A live reader is never behind here, so the counts are exact.
    everything = await caller.until(session["id"], "rate_limits.updated", after=session["head"])
    last = everything[-1].id
    async with (
        curl("-N", path, *EVENT_STREAM, "-H", f"Last-Event-ID: {session['head']}") as reader,
        aclosing(reader.blocks()) as blocks,
    ):
        opening = value(await anext(blocks))
        gap = await anext(blocks)
        rest = []
        async for block in blocks:
            rest.append(block)
            if block.id == last:
                break
    await caller.http.close()

    told = value(gap)
    missed = number(last) - number(session["head"]) - kept
    assert len(rest) == kept
    assert (gap.name, told["type"]) == ("gateway.gap", "gateway.gap")
    assert told["requested"] == session["head"]
    assert told["oldest"] == rest[0].id
    assert told["missed"] == opening["missed"] == missed
    assert number(gap.id) == number(rest[0].id) - 1
    assert [number(block.id) for block in rest] == list(range(number(last) - kept + 1, number(last) + 1))

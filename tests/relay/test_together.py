"""gateway/relay/core.py and calls/steps.py: server events that arrive together are as if they came one by one."""

import json
from typing import Any, cast

import pytest

from gateway.relay.events.frames import Read
from gateway.relay.state.turn import TurnRequest
from tests.relay.conftest import Build
from tests.relay.fakes import Harness, client_event, logged, types_of
from tests.relay.journals import MemoryJournal, node

QUESTION = TurnRequest(
    [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "?"}]}]
)


def said(type: str, **members: Any) -> str:
    """Return a server event."""
    return json.dumps({"type": type, **members})


def delta(response: str) -> str:
    """Return a delta of a response."""
    return said("response.output_text.delta", response_id=response, delta="é")


def created(response: str, turn: str | None = None) -> str:
    """Return the beginning of a response, which belongs to a turn or to none."""
    return said(
        "response.created",
        response={
            "id": response,
            "conversation_id": "c",
            "metadata": {"gateway_turn": turn} if turn else None,
        },
    )


def done(response: str) -> str:
    """Return the end of a response."""
    return said(
        "response.done", response={"id": response, "status": "completed", "usage": {"total_tokens": 3}}
    )


def script(turn: str) -> list[str]:
    """Return events of a turn's response and of another one, with deltas before, between and after both."""
    return [
        *(delta("a"), said("unheard.of"), created("a"), delta("a"), delta("a"), "no json", delta("a")),
        *(created("b", turn), delta("a"), delta("b"), delta("b"), said("error", error={"code": "odd"})),
        *(
            said("response.output_item.added", response_id="b", item={"id": "i"}),
            delta("b"),
            "{}",
            delta("a"),
        ),
        *(done("a"), delta("b"), delta("b"), done("b"), delta("a"), said("x", a="\\ud800"), delta("b")),
    ]


async def heard(harness: Harness, size: int) -> tuple[Any, ...]:
    """Return all that a session shows after the script came in groups of this size, 0 for single events."""
    session = await harness.open()
    turn = await session.turn(QUESTION)
    events = script(turn.id)
    for begin in range(0, len(events), size or 1):
        if size:
            harness.call.say_together(events[begin : begin + size])
        else:
            harness.call.say_text(events[begin])
    entries = session.reader.read(session.reader.oldest.before, 100, 1 << 20).entries
    journal = session.journal
    sizes = [len(text.encode()) for fact in harness.facts.of("events_down") for _, text, _ in fact[0]]
    sizes += [size for _, size in harness.facts.of("event_down")]
    diagnostics = cast(dict[str, Any], session.diagnostics())
    return (
        [(entry.sequence, entry.type, entry.turn, entry.block[entry.start :]) for entry in entries],
        journal.records if isinstance(journal, MemoryJournal) else None,
        sorted(sizes),
        len(harness.facts.of("first_delta")),
        harness.facts.of("frame_unrelayed"),
        {name: diagnostics[name] for name in ("log_events", "log_bytes", "usage", "responses_active")},
        turn.finished,
        session.state.head,
    )


@pytest.mark.parametrize("several_nodes", [False, True])
async def test_events_may_be_grouped_in_any_way(build: Build, several_nodes: bool) -> None:
    """Log, tags of turns, journal, metrics and state are the same however the events arrive."""

    async def outcome(size: int) -> tuple[Any, ...]:
        if not several_nodes:
            return await heard(build(), size)
        harness, _ = node()
        harness.dialer.prepare = None
        try:
            return await heard(harness, size)
        finally:
            await harness.hub.close()

    alone = await outcome(0)

    assert len(alone[0]) >= len(script("")) - 1
    for size in (1, 2, 3, 7, 100):
        assert await outcome(size) == alone


async def test_what_came_with_the_event_that_ended_a_call_is_of_that_call(build: Build) -> None:
    """An event whose handling loses the call leaves the rest of its packet without a call: it is not logged."""
    harness = build()
    session = await harness.open()
    call = harness.call
    call.start()
    await session.turn(QUESTION)
    call.on_send = lambda event: call.lose()
    call.say_together([delta("resp_1"), done("resp_1"), said("too.late")])

    assert types_of(session)[-3:] == ["response.output_text.delta", "response.done", "gateway.recovering"]


async def test_events_that_come_while_a_batch_is_sent_wait_for_it(harness: Harness) -> None:
    """Events that arrive out of `send` are applied after the batch that caused them, in their order."""
    session = await harness.open()
    harness.call.on_send = lambda event: harness.call.say_together([said("one"), said("two")])
    receipt = await session.submit([client_event("x")])

    assert [event["type"] for event in logged(session.reader)][-2:] == ["one", "two"]
    assert receipt.head.sequence == session.state.head - 2


async def test_a_bug_in_one_event_does_not_lose_those_that_came_with_it(build: Build) -> None:
    """An event whose handling raises is reported, and the others of its packet are relayed."""
    harness = build()
    session = await harness.open()
    arrived = session.arrived

    def broken(text: str, read: Read | None = None) -> None:
        if "error" in text:
            raise RuntimeError("a bug")
        arrived(text, read)

    session.arrived = broken  # type: ignore[method-assign]
    harness.call.say_together([said("one"), said("error"), said("two"), said("three")])
    failures = [error for _, error in harness.facts.of("relay_failed")]
    harness.facts.all.clear()

    assert [event["type"] for event in logged(session.reader)][-3:] == ["one", "two", "three"]
    assert [str(error) for error in failures] == ["a bug"]

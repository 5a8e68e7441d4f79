"""Section 1.7: attaching to a call that another application made."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.conformance.conftest import Deployment
from tests.conformance.wire import LONG_QUESTION, RESPONSE, Json, Session, Wire, item
from tests.emulator.caller import TEXT_SESSION, Caller

UPDATE: Json = {
    "type": "session.update",
    "session": {"type": "realtime", "instructions": "Answer in uppercase."},
}
TOOL: Json = {
    "type": "function",
    "name": "get_weather",
    "description": "Look up the weather for a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest_asyncio.fixture
async def peer(deployment: Deployment) -> AsyncIterator[Caller]:
    """Return a peer that has a WebRTC call directly with the service."""
    if deployment.upstream_url is None or deployment.upstream_key is None:
        pytest.skip("somebody else's call needs the service: --upstream-url and --upstream-key")
    caller = Caller(deployment.upstream_url, deployment.upstream_key)
    try:
        await caller.open()
        yield caller
    finally:
        await caller.close()


@pytest_asyncio.fixture
async def attached(wire: Wire, peer: Caller) -> AsyncIterator[Session]:
    """Return a session that is attached to the peer's call."""
    async with wire.session(call_id=peer.call_id) as session:
        yield session


async def closed(session: Session) -> Json:
    """Wait for the last event of a session."""
    event: Json = (await session.until("gateway.closed"))[-1]["event"]
    return event


def types(entries: list[Json]) -> list[str]:
    """Return the types of what was read."""
    return [entry["event"]["type"] for entry in entries]


# --- attaching


async def test_the_session_object_says_that_it_is_attached(
    wire: Wire, attached: Session, peer: Caller
) -> None:
    """The create is answered with 201 when the WebSocket is open, and has the call's id. `attached` is false for an
    ordinary session."""
    created = attached.created

    assert attached.answer.status == 201
    assert (created["attached"], created["call_id"], created["state"]) == (True, peer.call_id, "connected")
    assert (await attached.look())["attached"] is True
    async with wire.session() as own:
        assert own.created["attached"] is False


async def test_a_session_beside_a_call_is_refused(wire: Wire, peer: Caller) -> None:
    """A create with a call and a session object is refused, because the call has its session; `session.update`
    changes that."""
    answer = await wire.call("POST", "/v1/sessions", {"call_id": peer.call_id, "session": {}})

    problem = answer.problem(400, "invalid-parameter")
    assert "session.update" in problem["detail"]


@pytest.mark.parametrize("call_id", ["", "rtc 1", "../calls", "x" * 300, 7, None, ["rtc_1"]])
async def test_what_is_no_call_id_is_refused(wire: Wire, call_id: Any) -> None:
    """A call id consists of letters, digits, `_` and `-` and is short; anything else is refused."""
    answer = await wire.call("POST", "/v1/sessions", {"call_id": call_id})

    answer.problem(400, "invalid-parameter")


async def test_an_unknown_call_is_404(wire: Wire) -> None:
    """A call may become known only after some seconds. After that time an unknown call is 404."""
    started = asyncio.get_running_loop().time()
    answer = await wire.call("POST", "/v1/sessions", {"call_id": "rtc_u1_nobodymadethis"})

    assert answer.problem(404, "call-unknown")["retryable"] is False
    assert asyncio.get_running_loop().time() - started < 10


async def test_another_accounts_call_is_404(wire: Wire, deployment: Deployment) -> None:
    """A call of another project is 404, like one that never existed."""
    if deployment.stranger_key is None or deployment.upstream_url is None:
        pytest.skip("another account's call needs that account's key; the emulator takes any")
    stranger = Caller(deployment.upstream_url, deployment.stranger_key)
    try:
        await stranger.open()
        answer = await wire.call("POST", "/v1/sessions", {"call_id": stranger.call_id})
    finally:
        await stranger.close()

    answer.problem(404, "call-unknown")


async def test_a_call_of_a_moment_ago_is_found(wire: Wire, deployment: Deployment) -> None:
    """Attaching directly after the call was made works, before its connection is established."""
    if deployment.upstream_url is None or deployment.upstream_key is None:
        pytest.skip("somebody else's call needs the service: --upstream-url and --upstream-key")
    caller = Caller(deployment.upstream_url, deployment.upstream_key)
    try:
        await caller.open(connect=False)
        async with wire.session(call_id=caller.call_id) as session:
            await session.send(UPDATE)
            await session.until("session.updated")
    finally:
        await caller.close()


# --- talking


async def test_events_come_from_the_moment_of_attaching(wire: Wire, peer: Caller) -> None:
    """Earlier events are not replayed: no `session.created`, no items, no answers."""
    await peer.ask("My name is Ada.")
    async with wire.session(call_id=peer.call_id) as session:
        await session.send(UPDATE)
        read = types(await session.until("session.updated"))

    assert read == ["session.updated"]


async def test_both_sides_hear_what_either_causes(attached: Session, peer: Caller) -> None:
    """The attached session's turn reaches the peer, and the peer's reaches the session."""
    await attached.send(UPDATE, item("What is my name?"), RESPONSE)
    await attached.until("rate_limits.updated")
    head = (await attached.look())["head"]
    await peer.ask("Hello")
    theirs = await attached.until("response.done", after=head)

    assert "session.updated" in peer.types
    assert "conversation.item.added" in types(theirs)


async def test_no_sound_comes(wire: Wire, deployment: Deployment) -> None:
    """A spoken answer arrives as a transcript, without audio."""
    if deployment.upstream_url is None or deployment.upstream_key is None:
        pytest.skip("somebody else's call needs the service: --upstream-url and --upstream-key")
    caller = Caller(deployment.upstream_url, deployment.upstream_key)
    try:
        await caller.open(TEXT_SESSION | {"output_modalities": ["audio"]})
        async with wire.session(call_id=caller.call_id) as session:
            await session.send(item("Say hello."), RESPONSE)
            read = types(await session.until("response.done"))
    finally:
        await caller.close()

    assert "response.output_audio_transcript.delta" in read
    assert "response.output_audio.delta" not in read


async def test_attaching_while_a_response_runs(wire: Wire, peer: Caller) -> None:
    """Attaching while a response runs yields the rest of it, up to its end."""
    peer.say(LONG_QUESTION)
    await peer.until("response.output_text.delta")
    async with wire.session(call_id=peer.call_id) as session:
        read = types(await session.until("response.done"))

    assert "response.created" not in read
    assert "response.output_text.delta" in read


async def test_two_sessions_attach_to_one_call(wire: Wire, attached: Session, peer: Caller) -> None:
    """Each session receives what the other causes, and closing one does not affect the other."""
    async with wire.session(call_id=peer.call_id) as other:
        await attached.send(item("Hello"), RESPONSE)
        one, two = await asyncio.gather(attached.until("response.done"), other.until("response.done"))
        assert types(one) == types(two)
    await attached.send(UPDATE)
    await attached.until("session.updated")


async def test_tools_are_answered_from_plain_http(attached: Session, peer: Caller) -> None:
    """The peer asks, the session reads the function call and returns its output, and the peer gets the answer."""
    await attached.send({"type": "session.update", "session": {"type": "realtime", "tools": [TOOL]}})
    await attached.until("session.updated")
    peer.say("What is the weather in Oslo?")
    called = (await attached.until("response.function_call_arguments.done"))[-1]["event"]
    await attached.until("response.done")
    output = {"type": "function_call_output", "call_id": called["call_id"], "output": '{"sky":"clear"}'}
    await attached.send({"type": "conversation.item.create", "item": output}, RESPONSE)
    done = await peer.until("response.done", 2)

    assert "clear" in done["response"]["output"][-1]["content"][0]["text"]


async def test_a_turn_is_held_on_an_attached_session(attached: Session, peer: Caller) -> None:
    """Turns work as in every session, also a repeat with the same key."""
    answers = [
        await attached.wire.call(
            "POST",
            f"{attached.path}/turns",
            {"input": "What is 6 times 7?"},
            headers={"Accept": "application/json", "Idempotency-Key": "one-turn"},
        )
        for _ in range(2)
    ]

    assert [answer.status for answer in answers] == [200, 200]
    assert "42" in answers[0].json["output_text"]
    assert answers[1].headers["Idempotency-Replayed"] == "true"
    assert peer.types.count("response.done") == 1


async def test_a_ticket_reads_an_attached_session(attached: Session) -> None:
    """Streams and filters work as in every session."""
    ticket = await attached.ticket()
    async with attached.wire.with_key(None).stream(
        attached.events, query={"ticket": ticket, "types": "session.*"}
    ) as stream:
        await attached.send(UPDATE, item("Hello"))
        blocks = await stream.until("session.updated")

    assert [block.type for block in blocks] == ["gateway.open", "session.updated"]


async def test_large_events_pass_both_ways(attached: Session) -> None:
    """An event as large as the gateway takes goes up in one frame, and comes down again in one."""
    text = "x" * (attached.created["limits"]["max_event_bytes"] - 1000)
    receipt = await attached.send(item(text, id="large"))
    await attached.until("conversation.item.added", after=receipt["head"])
    receipt = await attached.send({"type": "conversation.item.retrieve", "item_id": "large"})
    read = await attached.until("conversation.item.retrieved", after=receipt["head"])

    assert read[-1]["event"]["item"]["content"][0]["text"] == text


async def test_megabytes_come_in_one_event(attached: Session, offline: Caller) -> None:
    """An event of 3 MB, such as an item with its audio, arrives in one piece."""
    event = {"type": "conversation.item.retrieved", "padding": "x" * 3_000_000}
    await offline.tell("send", {"frames": [json.dumps(event)]})
    read = await attached.until("conversation.item.retrieved")

    assert read[-1]["event"] == event


# --- the end


async def test_delete_leaves_the_call_alone(wire: Wire, peer: Caller) -> None:
    """Closing the session does not end the call, and everything sent before has arrived."""
    async with wire.session(call_id=peer.call_id) as session:
        await session.send(UPDATE)
        assert (await wire.call("DELETE", session.path)).status == 204
        assert (await closed(session))["reason"] == "client"
    await peer.until("session.updated")

    assert await peer.ask("ping")


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("POST", "/close")])
async def test_hang_up_ends_the_call_where_asked(wire: Wire, peer: Caller, method: str, path: str) -> None:
    """`?hang_up=true` ends the call for all participants."""
    async with wire.session(call_id=peer.call_id) as session:
        answer = await wire.call(method, session.path + path, query={"hang_up": "true"})
        assert answer.status == 204
    await asyncio.wait_for(peer.ended.wait(), 20)

    assert await peer.hang_up() == 404


@pytest.mark.parametrize("value", ["yes", "1", "", "TRUE"])
async def test_hang_up_is_true_or_false(attached: Session, value: str) -> None:
    """Anything else is refused, and nothing is closed."""
    answer = await attached.wire.call("DELETE", attached.path, query={"hang_up": value})

    answer.problem(400, "invalid-parameter")
    assert (await attached.look())["state"] == "connected"


async def test_the_peers_hang_up_closes_the_session(attached: Session, peer: Caller) -> None:
    """When the peer hangs up, the session closes with the reason `upstream_closed`."""
    assert await peer.hang_up() == 200

    assert (await closed(attached))["reason"] == "upstream_closed"


async def test_the_calls_hour_closes_the_session(attached: Session, peer: Caller, offline: Caller) -> None:
    """A call that reaches its maximum duration ends, and the session with it."""
    await offline_fault(peer, do="expire")

    assert (await closed(attached))["reason"] == "upstream_closed"


@pytest.fixture
def offline(peer: Caller, deployment: Deployment) -> Caller:
    """Return the peer, if faults can be injected into the service."""
    if not deployment.offline:
        pytest.skip("the service of this deployment cannot be told to go wrong")
    return peer


async def offline_fault(peer: Caller, **fault: Any) -> None:
    """Inject a fault into the call."""
    await peer.tell("fault", fault)


async def test_a_cut_connection_is_made_again(attached: Session, offline: Caller) -> None:
    """An end without a close frame counts as a lost connection: the session attaches again, and no event is unknown."""
    await attached.send(UPDATE)
    await attached.until("session.updated")
    await offline_fault(offline, do="cut_sockets")
    recovered = (await attached.until("gateway.recovered"))[-1]["event"]
    await attached.send(item("Hello"), RESPONSE)
    await attached.until("response.done")

    assert (recovered["cause"], recovered["call_id"]) == ("connection_failed", offline.call_id)
    assert recovered["unknown"] == []


async def test_what_the_call_has_taken_is_not_unknown(attached: Session, offline: Caller) -> None:
    """When a connection is cut in the middle of a response, events that the far end's WebSocket received count as
    delivered, although nothing answered them, and are not sent again."""
    await offline_fault(offline, first_delta_seconds=30)
    await attached.send(item("Hello") | {"event_id": "answered"}, RESPONSE | {"event_id": "asked"})
    await attached.until("response.created")
    await offline_fault(offline, do="silence")
    await attached.send(item("Lost") | {"event_id": "lost"})
    while not any("Lost" in frame for frame in (await offline.look("/received"))["data"]):
        await asyncio.sleep(0.05)
    # The acknowledgement of the received events follows within a fraction of a second.
    await asyncio.sleep(1.5)
    await offline_fault(offline, do="cut_sockets")
    entries = await attached.until("gateway.recovered")
    recovering = next(e["event"] for e in entries if e["event"]["type"] == "gateway.recovering")
    recovered = entries[-1]["event"]
    received = (await offline.look("/received"))["data"]

    assert recovering["cause"] == recovered["cause"] == "connection_failed"
    assert recovered["unknown"] == []
    assert sum('"lost"' in frame for frame in received) == 1


async def test_an_end_without_a_word_is_found_out(attached: Session, offline: Caller) -> None:
    """If a call ends without a close frame, the session tries to attach once more and then finds that the call is
    over."""
    await offline_fault(offline, sockets_end="eof", do="hang_up")
    last = await closed(attached)

    assert last["reason"] == "upstream_closed"

"""Calls over real ICE, DTLS and SCTP, with a stock aiortc client."""

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from aioice import stun

from tests.emulator.caller import TEXT_SESSION, Caller

Emulate = Callable[..., Any]
Call = Callable[..., Any]


@pytest.mark.parametrize("setup", ["active", "passive"])
async def test_text_turn_over_a_real_channel(setup: str, emulate: Emulate, call: Call) -> None:
    """A turn works with the far end as DTLS client and as DTLS server."""
    caller: Caller = await call(await emulate(setup=setup))

    assert f"a=setup:{setup}" in caller.answer
    assert await caller.ask("Say hello.") == "Hello there!"
    assert caller.types[0] == "session.created"


async def test_session_is_named_after_its_call(emulate: Emulate, call: Call) -> None:
    """The call `rtc_X` has the session `sess_X`, which ends an hour after it started."""
    caller: Caller = await call(await emulate())
    session = caller.events[0]["session"]

    assert session["id"] == caller.call_id.replace("rtc_", "sess_", 1)
    assert session["expires_at"] == int(caller.answer.split("o=- ")[1].split()[1]) + 3600


async def test_raw_offer_gets_a_default_session(emulate: Emulate, call: Call) -> None:
    """A raw offer without a session object opens an audio session of the default model."""
    caller: Caller = await call(await emulate(), session=None)

    assert caller.events[0]["session"]["model"] == "gpt-realtime-2.1"
    assert caller.events[0]["session"]["output_modalities"] == ["audio"]


async def test_negotiated_channel_is_used_with_dcid(emulate: Emulate, call: Call) -> None:
    """With `?dcid=7` the session uses channel 7 without an OPEN message."""
    caller: Caller = await call(await emulate(), dcid=7)

    assert await caller.ask("ping") == "Pong!"


async def test_text_survives_the_way_unchanged(emulate: Emulate, call: Call) -> None:
    """Non-ASCII text, emoji, line ends and a lone surrogate are returned unchanged."""
    caller: Caller = await call(await emulate())
    text = "Grüße, 世界 👩\u200d🚀\nzweite Zeile\ttab"

    assert await caller.ask(f"Repeat after me: {text}") == text
    assert await caller.ask('Repeat after me: a"b\\c</script>') == 'a"b\\c</script>'
    caller.send(
        '{"type":"conversation.item.create","item":{"id":"lone","type":"message","role":"user",'
        '"content":[{"type":"input_text","text":"\\ud83d"}]}}'
    )
    assert (await caller.until("conversation.item.done", 5))["item"]["content"][0]["text"] == "\ud83d"


@pytest.mark.slow
async def test_large_events_pass_both_ways(emulate: Emulate, call: Call) -> None:
    """An item of 600 KB reaches the far end and is returned if the offer allows it."""
    caller: Caller = await call(await emulate(), offer_size=4 * 1024 * 1024)
    text = "x" * 600_000

    caller.send(
        {
            "type": "conversation.item.create",
            "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]},
        }
    )

    assert (await caller.until("conversation.item.done"))["item"]["content"][0]["text"] == text


async def test_event_above_the_offered_size_is_dropped_without_a_word(emulate: Emulate, call: Call) -> None:
    """An event above the offer's max-message-size never arrives; the session continues and counts it."""
    caller: Caller = await call(await emulate(), offer_size=2000)
    caller.say("Repeat after me: " + "word " * 500)
    await caller.until("rate_limits.updated")

    look = await caller.look()
    assert "response.output_text.delta" in caller.types
    assert "response.done" not in caller.types
    assert look["oversized"] >= 5


async def test_hang_up_ends_a_call_once(emulate: Emulate, call: Call) -> None:
    """The first hangup closes the channel with 200; the second gets 404."""
    caller: Caller = await call(await emulate())

    assert await caller.hang_up() == 200
    assert await caller.hang_up() == 404
    await asyncio.wait_for(caller.ended.wait(), 10)


async def test_ended_call_sends_nothing_more(
    emulate: Emulate, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response in progress sends no further delta, however long closing the connection takes."""
    emulator = await emulate()
    caller: Caller = await call(emulator)
    one = emulator.service.calls[caller.call_id]
    sent: list[str] = []
    monkeypatch.setattr(one.peer, "send", sent.append)
    one.end("hung up")
    one._send("after")
    await asyncio.wait_for(caller.ended.wait(), 10)

    assert sent == []


async def test_ended_call_begins_no_response(
    emulate: Emulate, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that arrives while the call closes is recorded but has no effect, because its response would outlive
    the call."""
    emulator = await emulate()
    caller: Caller = await call(emulator)
    one = emulator.service.calls[caller.call_id]
    heard: list[str | bytes] = []
    monkeypatch.setattr(one.voice, "receive", heard.append)
    one.end("hung up")
    one.hear('{"type":"response.create"}')
    await asyncio.wait_for(caller.ended.wait(), 10)

    assert heard == []
    assert one.received.frames()[-1] == '{"type":"response.create"}'


async def test_call_ends_when_its_client_leaves(emulate: Emulate, call: Call) -> None:
    """A client that closes its connection leaves no call behind."""
    emulator = await emulate()
    caller: Caller = await call(emulator)
    await caller.peer.close()

    async with asyncio.timeout(10):
        while emulator.service.calls:
            await asyncio.sleep(0.01)
    assert (await caller.look())["end_reason"] in ("peer closed", "channel closed")


async def test_session_ends_with_its_last_words(emulate: Emulate, call: Call) -> None:
    """At its end a session sends `session_expired`, and then the peer is gone."""
    # It ends at a whole second, as the service's do: one of 1 s may end before the channel is open.
    caller: Caller = await call(await emulate(max_session_seconds=2))
    error = await caller.until("error")

    assert error["error"] == {
        "type": "invalid_request_error",
        "code": "session_expired",
        "message": "Your session hit the maximum duration of 1 minutes.",
        "param": None,
        "event_id": None,
    }
    await asyncio.wait_for(caller.ended.wait(), 10)


async def test_many_calls_at_once_cost_no_thread(emulate: Emulate, call: Call) -> None:
    """Twenty simultaneous calls need no additional thread, and one task each."""
    emulator = await emulate()
    threads = threading.active_count()
    callers: list[Caller] = [await call(emulator) for _ in range(20)]
    answers = await asyncio.gather(*(c.ask(f"Repeat after me: {n}") for n, c in enumerate(callers)))

    assert answers == [str(n) for n in range(20)]
    assert threading.active_count() == threads


async def test_consent_without_nomination_is_ignored_when_strict(emulate: Emulate, call: Call) -> None:
    """Once connected, a consent check without USE-CANDIDATE is not answered, and one with it is."""
    caller: Caller = await call(await emulate())
    connection = caller.peer.sctp.transport.transport._connection  # type: ignore[union-attr] # connected by now
    pair = connection._nominated[1]

    async def check(nominate: bool) -> None:
        request = connection.build_request(pair, nominate=nominate)
        key = str(connection.remote_password).encode()
        await pair.protocol.request(request, pair.remote_addr, integrity_key=key, retransmissions=0)

    with pytest.raises(stun.TransactionTimeout):
        await check(nominate=False)
    await check(nominate=True)
    assert (await caller.look())["checks_ignored"] == 1


async def test_consent_without_nomination_is_answered_when_lenient(emulate: Emulate, call: Call) -> None:
    """`consent="lenient"` answers every valid check."""
    caller: Caller = await call(await emulate(consent="lenient"))
    connection = caller.peer.sctp.transport.transport._connection  # type: ignore[union-attr] # connected by now
    pair = connection._nominated[1]
    request = connection.build_request(pair, nominate=False)
    key = str(connection.remote_password).encode()

    response, _ = await pair.protocol.request(request, pair.remote_addr, integrity_key=key, retransmissions=0)

    assert response.attributes["XOR-MAPPED-ADDRESS"] == pair.local_addr


@pytest.mark.slow
@pytest.mark.parametrize("nominate", [False, True])
async def test_session_outlives_consent_only_with_nomination(
    nominate: bool, emulate: Emulate, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stock client's consent checks are no longer answered by a strict far end; a client that nominates in them
    stays connected."""
    monkeypatch.setattr("aioice.ice.CONSENT_INTERVAL", 0.1)
    monkeypatch.setattr("aioice.ice.CONSENT_FAILURES", 3)
    caller: Caller = await call(await emulate())
    connection = caller.peer.sctp.transport.transport._connection  # type: ignore[union-attr] # connected by now
    if nominate:
        build = connection.build_request
        monkeypatch.setattr(connection, "build_request", lambda pair, nominate: build(pair, nominate=True))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(caller.ended.wait(), 3.0)

    assert caller.ended.is_set() is not nominate
    if nominate:
        assert await caller.ask("ping") == "Pong!"


async def test_frames_of_no_use_are_answered_and_survived(emulate: Emulate, call: Call) -> None:
    """Binary frames, invalid JSON, invalid UTF-8 and JSON that is not an object each get an error; the next turn
    works."""
    caller: Caller = await call(await emulate())
    assert caller.channel is not None
    caller.channel.send(b"\x00\xff")
    caller.send("nonsense")
    caller.send("[]")
    sctp = caller.peer.sctp
    assert sctp is not None
    sctp._data_channel_queue.append((caller.channel, 51, b'{"type":"\xff"}'))
    await sctp._data_channel_flush()

    await caller.until("error", 4)
    assert await caller.ask("ping") == "Pong!"


async def test_record_keeps_frames_verbatim(emulate: Emulate, call: Call) -> None:
    """The control endpoint returns the client's frames verbatim."""
    caller: Caller = await call(await emulate())
    sent = ['{ "type" : "response.cancel" }', '{"type":"no.such.event","event_id":"ü"}']
    for frame in sent:
        caller.send(frame)
    await caller.until("error", 2)

    assert (await caller.look("/received"))["data"] == sent


async def test_frames_can_be_sent_as_they_are(emulate: Emulate, call: Call) -> None:
    """`send` puts any text on the channel, byte for byte."""
    caller: Caller = await call(await emulate())
    frames = ['{"type":"made.up" , "n":1.0}', "not json", "", '{"type":"end"}']
    await caller.tell("send", {"frames": frames})
    await caller.until("end")

    assert caller.frames[1:] == frames


async def test_wildcard_listener_offers_loopback_too(emulate: Emulate, call: Call) -> None:
    """An emulator on every address connects a client on 127.0.0.1."""
    caller: Caller = await call(await emulate(host="0.0.0.0"))

    assert await caller.ask("ping") == "Pong!"


async def test_session_options_of_the_call_reach_the_session(emulate: Emulate, call: Call) -> None:
    """`session.created` has the members of the multipart session."""
    session = TEXT_SESSION | {"instructions": "Answer in one word.", "model": "gpt-realtime-2.1-mini"}
    caller: Caller = await call(await emulate(), session=session)

    told = caller.events[0]["session"]
    assert (told["instructions"], told["model"]) == ("Answer in one word.", "gpt-realtime-2.1-mini")
    assert json.dumps(told["tools"]) == "[]"


async def ended(emulator: Any, caller: Caller) -> str:
    """Wait for the end of a call and return its reason."""
    async with asyncio.timeout(10):
        while emulator.service.calls:
            await asyncio.sleep(0.01)
    return str((await caller.look())["end_reason"])


async def test_certificate_that_was_not_offered_opens_nothing(emulate: Emulate) -> None:
    """If the DTLS certificate does not match the offer's fingerprint, the call ends before it can send anything."""
    emulator = await emulate()
    caller = Caller(emulator.base_url)
    try:
        offer = re.sub(r"(a=fingerprint:sha-\d+ )..", r"\1AA", await caller.offer())
        response = await caller.post(offer)
        caller.location = response.headers["Location"]
        await caller.take(await response.text())

        assert await ended(emulator, caller) == "dtls failed"
        assert caller.frames == []
    finally:
        await caller.close()


async def test_call_nobody_connects_to_is_given_up(
    emulate: Emulate, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call whose client never connects ends by itself."""
    monkeypatch.setattr("gateway.emulator.transport.peer.CONNECT_SECONDS", 0.2)
    emulator = await emulate()
    caller: Caller = await call(emulator, connect=False)
    await caller.peer.close()

    assert await ended(emulator, caller) == "never connected"


async def test_call_of_a_dead_client_is_given_up(
    emulate: Emulate, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that stops answering, including consent checks, is considered gone after a while."""
    monkeypatch.setattr("gateway.emulator.transport.peer.SILENCE_SECONDS", 0.4)
    emulator = await emulate()
    caller: Caller = await call(emulator)

    assert await ended(emulator, caller) == "silent"


async def test_offer_without_a_channel_is_answered(emulate: Emulate) -> None:
    """An offer with only audio is valid for the service; it has no channel for events."""
    emulator = await emulate()
    caller = Caller(emulator.base_url)
    try:
        offer = await caller.offer()
        audio_only = offer[: offer.index("m=application")].replace("BUNDLE 0 1", "BUNDLE 0")
        response = await caller.post(audio_only)

        assert response.status == 201
        assert "m=application" not in await response.text()
    finally:
        await caller.close()


async def test_later_channels_are_heard_too(emulate: Emulate, call: Call) -> None:
    """Client events may arrive on any of the client's channels; server events are sent on the first."""
    caller: Caller = await call(await emulate())
    second = caller.peer.createDataChannel("another")
    second.on("open", lambda: second.send('{"type":"session.update","session":{"type":"realtime"}}'))

    assert await caller.until("session.updated")

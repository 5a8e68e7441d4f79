"""Sidebands of running calls, and sessions with only a WebSocket."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from gateway.emulator.faults import Faults
from tests.emulator.caller import Caller

Emulate = Callable[..., Any]
Call = Callable[..., Any]
UPDATE = {"type": "session.update", "session": {"type": "realtime", "instructions": "Answer in uppercase."}}


def attach(caller: Caller, call_id: str | None = None, **options: Any) -> Any:
    """Open a sideband to a call."""
    return caller.http.ws_connect(
        f"{caller.base_url}/realtime?call_id={call_id or caller.call_id}", **options
    )


async def read(socket: aiohttp.ClientWebSocketResponse, until: str) -> list[str]:
    """Read events until one of these types arrives."""
    types: list[str] = []
    while until not in types:
        types.append(json.loads(await asyncio.wait_for(socket.receive_str(), 10))["type"])
    return types


async def test_both_connections_hear_the_same(emulate: Emulate, call: Call) -> None:
    """Both receive an update from the sideband and a turn on the channel; the sideband gets no `session.created`."""
    caller: Caller = await call(await emulate())
    async with attach(caller) as socket:
        await socket.send_json(UPDATE)
        assert await caller.until("session.updated")
        assert await caller.ask("ping") == "PONG!"
        heard = await read(socket, "rate_limits.updated")

    await caller.until("rate_limits.updated")
    assert heard == caller.types[1:]
    assert len((await caller.look("/received"))["data"]) == 3


async def test_lone_surrogate_ends_no_sideband(emulate: Emulate, call: Call) -> None:
    """JSON can name one, and the event that echoes it arrives as the same JSON."""
    content = [{"type": "input_text", "text": "é \ud83d"}]
    item = {"type": "message", "role": "user", "content": content}
    caller: Caller = await call(await emulate())
    async with attach(caller) as socket:
        await socket.send_json({"type": "conversation.item.create", "item": item})
        event = json.loads(await asyncio.wait_for(socket.receive_str(), 10))

    assert event["type"] == "conversation.item.added"
    assert event["item"]["content"] == content


async def test_sideband_works_before_the_call_is_connected(emulate: Emulate, call: Call) -> None:
    """A call whose ICE never completes still answers on its sideband."""
    caller: Caller = await call(await emulate(), connect=False)
    await caller.peer.close()
    async with attach(caller) as socket:
        await socket.send_json({"type": "response.create"})

        assert (await read(socket, "response.done"))[0] == "response.created"


async def test_sideband_ends_with_its_call(emulate: Emulate, call: Call) -> None:
    """Hanging up closes the WebSocket cleanly."""
    caller: Caller = await call(await emulate())
    async with attach(caller) as socket:
        await caller.hang_up()
        message = await asyncio.wait_for(socket.receive(), 10)

        assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 1000)


async def test_sideband_leaves_its_call_behind(emulate: Emulate, call: Call) -> None:
    """Closing the WebSocket does not affect the call."""
    caller: Caller = await call(await emulate())
    async with attach(caller):
        pass

    assert await caller.ask("ping") == "Pong!"


async def test_emulator_closes_with_sidebands_open(emulate: Emulate, call: Call) -> None:
    """A stopping emulator does not wait for its sidebands."""
    emulator = await emulate()
    caller: Caller = await call(emulator)
    async with attach(caller) as socket:
        await asyncio.wait_for(emulator.close(), 10)

        assert (await asyncio.wait_for(socket.receive(), 10)).type == aiohttp.WSMsgType.CLOSE


async def test_slow_sideband_is_dropped_and_the_call_goes_on(
    emulate: Emulate, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sideband with more unread data than its limit is closed; the call's own channel gets everything."""
    caller: Caller = await call(await emulate())
    monkeypatch.setattr("gateway.emulator.http.websocket._MAX_WAITING_BYTES", 1000)
    async with attach(caller) as socket:
        answer = await caller.ask("Write 100 words about patience")
        while (message := await asyncio.wait_for(socket.receive(), 10)).type == aiohttp.WSMsgType.TEXT:
            pass

    assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 1013)
    assert len(answer.split()) == 100


async def test_several_sidebands_join_one_call(emulate: Emulate, call: Call) -> None:
    """Each sideband receives what the others cause."""
    caller: Caller = await call(await emulate())
    async with attach(caller) as one, attach(caller) as other:
        await one.send_json(UPDATE)
        await other.send_json({"type": "response.create"})
        heard = [await read(socket, "rate_limits.updated") for socket in (one, other)]

        assert heard[0] == heard[1]
        assert heard[0][:2] == ["session.updated", "response.created"]
        assert (await caller.look())["sidebands"] == 2


async def test_sideband_hears_no_sound(emulate: Emulate, call: Call) -> None:
    """A spoken answer arrives as a transcript and `output_audio.done` on the sideband, without audio."""
    caller: Caller = await call(await emulate(), session={"type": "realtime", "output_modalities": ["audio"]})
    async with attach(caller) as socket:
        await socket.send_json({"type": "response.create"})
        heard = await read(socket, "output_audio_buffer.stopped")

    assert {"response.output_audio.done", "response.output_audio_transcript.delta"} <= set(heard)
    assert "response.output_audio.delta" not in heard


async def test_call_that_ends_at_the_hour_closes_with_1001(emulate: Emulate, call: Call) -> None:
    """The last events arrive first, then the close code and the reason of the service."""
    caller: Caller = await call(await emulate())
    async with attach(caller) as socket:
        await caller.tell("fault", {"do": "expire"})
        assert await read(socket, "error") == ["error"]
        message = await asyncio.wait_for(socket.receive(), 10)

        assert (message.data, message.extra) == (1001, "Your session hit the maximum duration of 60 minutes.")


@pytest.mark.parametrize(
    "fault", [{"do": "cut_sockets"}, {"sockets_end": "eof", "do": "hang_up"}], ids=["cut", "ended"]
)
async def test_socket_is_cut_without_a_close_frame(
    fault: dict[str, str], emulate: Emulate, call: Call
) -> None:
    """With this fault a WebSocket ends as if its connection were lost, while its call continues or ends with it."""
    caller: Caller = await call(await emulate())
    async with attach(caller) as socket:
        await caller.tell("fault", fault)
        await asyncio.wait_for(socket.receive(), 10)

        assert socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE
    if "sockets_end" not in fault:
        assert await caller.ask("ping") == "Pong!"


async def test_call_may_end_without_a_word(emulate: Emulate, call: Call) -> None:
    """With this fault the sideband stays open when its call is over."""
    caller: Caller = await call(await emulate())
    async with attach(caller) as socket:
        await caller.tell("fault", {"sockets_end": "never", "do": "hang_up"})

        assert (await caller.look())["end_reason"] == "hung up"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.receive(), 0.3)


@pytest.mark.slow
async def test_new_call_is_found_late_by_a_fault(emulate: Emulate, call: Call) -> None:
    """With this fault a call that was just created is 404 for a sideband until the set time."""
    caller: Caller = await call(await emulate(faults=Faults(sideband_delay_seconds=1.5)), connect=False)
    with pytest.raises(aiohttp.WSServerHandshakeError) as early:
        await attach(caller)
    await asyncio.sleep(1.5)
    async with attach(caller):
        pass

    assert early.value.status == 404


@pytest.mark.parametrize(
    ("query", "key"),
    [("call_id=rtc_u1_nobody", "sk-test"), ("call_id={call}", "sk-other"), ("call_id={session}", "sk-test")],
    ids=["unknown", "another project's", "a WebSocket session"],
)
async def test_call_that_is_not_there_is_404(query: str, key: str, emulate: Emulate, call: Call) -> None:
    """An unknown call, another project's call and a WebSocket session all get 404 before the upgrade."""
    caller: Caller = await call(await emulate())
    other = Caller(caller.base_url, key)
    try:
        async with caller.http.ws_connect(f"{caller.base_url}/realtime?model=m") as socket:
            session = (await socket.receive_json())["session"]["id"]
            url = f"{caller.base_url}/realtime?{query.format(call=caller.call_id, session=session)}"
            async with other.http.get(url) as answer:
                body = await answer.json()
    finally:
        await other.close()

    assert answer.status == 404
    assert body["error"]["code"] == "call_id_not_found"


async def test_plain_get_is_refused_as_the_service_refuses(emulate: Emulate) -> None:
    """A client that does not request the upgrade gets the error envelope."""
    caller = Caller((await emulate()).base_url, "sk-test")
    try:
        async with caller.http.get(f"{caller.base_url}/realtime?model=m") as answer:
            body = await answer.json()
    finally:
        await caller.close()

    assert answer.status == 400
    assert body["error"]["type"] == "invalid_request_error"


async def test_keys_of_one_project_share_their_calls(emulate: Emulate) -> None:
    """`KEY@PROJECT` lets another key, and an ephemeral key made with it, join and end a call."""
    emulator = await emulate(api_keys=("sk-test@p", "sk-other@p", "sk-third"))
    caller, other, third = (Caller(emulator.base_url, key) for key in ("sk-test", "sk-other", "sk-third"))
    try:
        await caller.open()
        async with other.http.post(f"{emulator.base_url}/realtime/client_secrets", json={}) as answer:
            ephemeral = (await answer.json())["value"]
        async with (
            attach(Caller(emulator.base_url, ephemeral), caller.call_id),
            attach(other, caller.call_id),
        ):
            pass
        third.location = other.location = caller.location

        assert [await third.hang_up(), await other.hang_up()] == [404, 200]
    finally:
        for one in (caller, other, third):
            await one.close()


# -- sessions with only a WebSocket ------------------------------------------------------------------------------------


async def hold(socket: aiohttp.ClientWebSocketResponse, text: str) -> list[Any]:
    """Run a turn and return its events."""
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    await socket.send_json({"type": "conversation.item.create", "item": item})
    await socket.send_json({"type": "response.create"})
    events: list[Any] = []
    while not events or events[-1]["type"] != "response.done":
        events.append(json.loads(await asyncio.wait_for(socket.receive_str(), 10)))
    return events


async def test_session_speaks_over_a_websocket(emulate: Emulate) -> None:
    """`?model=` starts a session with the same events as a call's, and the audio in events; closing it ends it."""
    caller = Caller((await emulate()).base_url)
    try:
        async with caller.http.ws_connect(f"{caller.base_url}/realtime?model=gpt-realtime") as socket:
            created = await socket.receive_json()
            events = await hold(socket, "Repeat after me: hello")
            [session] = [c async for c in listed(caller) if c["open"]]
        # The service's side notices the end a little later.
        async with asyncio.timeout(10):
            while (ended := [c async for c in listed(caller)])[0]["end_reason"] is None:
                await asyncio.sleep(0.01)
    finally:
        await caller.close()

    assert created["type"] == "session.created"
    assert created["session"]["model"] == "gpt-realtime"
    assert created["session"]["id"] == session["id"]
    assert events[-1]["response"]["output"][0]["content"][0]["transcript"] == "hello"
    assert [len(e["delta"]) for e in events if e["type"] == "response.output_audio.delta"] == [19_200]
    assert (session["transport"], session["received"]) == ("websocket", 2)
    assert ended[0]["end_reason"] == "peer closed"


async def listed(caller: Caller) -> Any:
    """Yield the control endpoint's description of each session."""
    async with caller.http.get(f"{caller.root}/_emulator/calls") as answer:
        for described in (await answer.json())["data"]:
            yield described


async def test_standard_constructor_opens_a_session(emulate: Emulate) -> None:
    """Without a header, only with sub-protocols, an ephemeral key opens its session."""
    caller = Caller((await emulate()).base_url)
    session = {"type": "realtime", "model": "gpt-realtime", "output_modalities": ["text"]}
    try:
        async with caller.http.post(
            f"{caller.base_url}/realtime/client_secrets", json={"session": session}
        ) as answer:
            key = (await answer.json())["value"]
        protocols = ("realtime", f"openai-insecure-api-key.{key}")
        async with (
            aiohttp.ClientSession() as browser,
            browser.ws_connect(f"{caller.base_url}/realtime", protocols=protocols) as socket,
        ):
            created = await socket.receive_json()
            events = await hold(socket, "ping")
            assert socket.protocol == "realtime"
    finally:
        await caller.close()

    assert created["session"]["output_modalities"] == ["text"]
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Pong!"


async def test_intent_begins_a_transcription(emulate: Emulate) -> None:
    """`?intent=transcription` starts a session that transcribes audio and has no responses."""
    caller = Caller((await emulate(hear=("ahoy",))).base_url)
    update = {
        "type": "transcription",
        "audio": {"input": {"transcription": {"model": "gpt-live-transcribe"}, "turn_detection": None}},
    }
    try:
        async with caller.http.ws_connect(f"{caller.base_url}/realtime?intent=transcription") as socket:
            await socket.send_json({"type": "session.update", "session": update})
            await socket.send_json({"type": "input_audio_buffer.append", "audio": "A" * 64_000})
            await socket.send_json({"type": "input_audio_buffer.commit"})
            types = await read(socket, "conversation.item.input_audio_transcription.completed")
    finally:
        await caller.close()

    assert types[:3] == ["session.created", "session.updated", "input_audio_buffer.committed"]


@pytest.mark.parametrize(
    ("query", "code"),
    [("?intent=small-talk", "invalid_intent"), ("", "missing_model"), ("?x=1", "missing_model")],
)
async def test_address_that_begins_nothing_is_closed_with_4000(
    query: str, code: str, emulate: Emulate
) -> None:
    """With a wrong intent or without a model the handshake is accepted, and then the socket is closed with the error
    code as the reason."""
    caller = Caller((await emulate()).base_url)
    try:
        async with caller.http.ws_connect(f"{caller.base_url}/realtime{query}") as socket:
            message = await asyncio.wait_for(socket.receive(), 10)
    finally:
        await caller.close()

    assert (message.data, message.extra) == (4000, f"invalid_request_error.{code}")


async def test_session_over_a_websocket_ends_at_the_hour(emulate: Emulate) -> None:
    """The session gets `session_expired` and then close code 1001; the message gives whole minutes."""
    caller = Caller((await emulate(max_session_seconds=0.3)).base_url)
    try:
        async with caller.http.ws_connect(f"{caller.base_url}/realtime?model=m") as socket:
            assert await read(socket, "error") == ["session.created", "error"]
            message = await asyncio.wait_for(socket.receive(), 10)
    finally:
        await caller.close()

    assert (message.data, message.extra) == (1001, "Your session hit the maximum duration of 1 minutes.")


@pytest.mark.parametrize("how", ["close_channel", "hang_up", "cut_sockets"])
async def test_session_over_a_websocket_goes_wrong(how: str, emulate: Emulate) -> None:
    """The faults of a call also apply to a WebSocket, if it has the part that they break."""
    caller = Caller((await emulate(faults=Faults(fail=how, fail_after_deltas=1))).base_url)  # type: ignore[arg-type] # one of its words
    try:
        async with caller.http.ws_connect(f"{caller.base_url}/realtime?model=m") as socket:
            await socket.send_json({"type": "response.create"})
            while (message := await asyncio.wait_for(socket.receive(), 10)).type == aiohttp.WSMsgType.TEXT:
                pass
            assert socket.close_code == (1006 if how == "cut_sockets" else 1000), message
    finally:
        await caller.close()


async def test_megabytes_pass_both_ways(emulate: Emulate) -> None:
    """An item of 3 MB is accepted and returned in one frame."""
    caller = Caller((await emulate()).base_url)
    text = "x" * 3_000_000
    item = {"id": "i", "type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    try:
        async with caller.http.ws_connect(
            f"{caller.base_url}/realtime?model=m", max_msg_size=8 * 1024 * 1024
        ) as socket:
            await socket.send_json({"type": "conversation.item.create", "item": item})
            await read(socket, "conversation.item.done")
            await socket.send_json({"type": "conversation.item.retrieve", "item_id": "i"})
            retrieved = json.loads(await asyncio.wait_for(socket.receive_str(), 10))
    finally:
        await caller.close()

    assert retrieved["item"]["content"][0]["text"] == text


async def test_unhurried_client_holds_a_session_back(emulate: Emulate) -> None:
    """If the client reads nothing the session waits: unsent data stays near the high-water mark."""
    caller = Caller((await emulate()).base_url)
    try:
        async with caller.http.ws_connect(f"{caller.base_url}/realtime?model=m") as socket:
            await socket.send_json({"type": "session.update", "session": {"type": "realtime"}})
            await hold_nothing(socket)
            most = 0
            for _ in range(20):
                await asyncio.sleep(0.05)
                most = max(most, *[c["buffered"] async for c in listed(caller)])
    finally:
        await caller.close()

    assert 0 < most < 512 * 1024


async def hold_nothing(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Request very long output and read nothing."""
    transport = socket.get_extra_info("socket")
    assert transport is not None
    text = "Write 2000 words about patience"
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    await socket.send_json({"type": "conversation.item.create", "item": item})
    await socket.send_json({"type": "response.create"})


async def test_key_may_come_as_a_subprotocol(emulate: Emulate, call: Call) -> None:
    """Where no header can be set, the key is a sub-protocol; without any key the handshake is 401."""
    caller: Caller = await call(await emulate(api_keys=("sk-test",)))
    url = f"{caller.base_url}/realtime?call_id={caller.call_id}"
    async with aiohttp.ClientSession() as browser:
        async with browser.ws_connect(
            url, protocols=("realtime", "openai-insecure-api-key.sk-test")
        ) as socket:
            assert socket.protocol == "realtime"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await browser.ws_connect(url, protocols=("realtime", "openai-insecure-api-key.sk-other"))

    assert refused.value.status == 401


@pytest.mark.parametrize(
    "asking",
    [{"protocols": ("realtime", "openai-beta.realtime-v1")}, {"headers": {"OpenAI-Beta": "realtime=v1"}}],
)
async def test_beta_is_closed_with_4000(asking: dict[str, Any], emulate: Emulate, call: Call) -> None:
    """The beta's sub-protocol and header are accepted, then closed with the service's code."""
    caller: Caller = await call(await emulate())
    async with attach(caller, **asking) as socket:
        await asyncio.wait_for(socket.receive(), 10)

        assert socket.close_code == 4000

"""A second connection to a running call."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

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
    """Read types until one of them comes."""
    types: list[str] = []
    while until not in types:
        types.append(json.loads(await asyncio.wait_for(socket.receive_str(), 5))["type"])
    return types


async def test_both_connections_hear_the_same(emulate: Emulate, call: Call) -> None:
    """An update from the sideband is heard by both, and a turn on the channel too; no `session.created` on the sideband."""
    caller: Caller = await call(await emulate())
    async with attach(caller) as socket:
        await socket.send_json(UPDATE)
        assert await caller.until("session.updated")
        assert await caller.ask("ping") == "PONG!"
        heard = await read(socket, "rate_limits.updated")

    await caller.until("rate_limits.updated")
    assert heard == caller.types[1:]
    assert len((await caller.look("/received"))["data"]) == 3


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
        message = await asyncio.wait_for(socket.receive(), 5)

        assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 1000)


async def test_sideband_leaves_its_call_behind(emulate: Emulate, call: Call) -> None:
    """Closing the WebSocket does nothing to the call."""
    caller: Caller = await call(await emulate())
    async with attach(caller):
        pass

    assert await caller.ask("ping") == "Pong!"


async def test_emulator_closes_with_sidebands_open(emulate: Emulate, call: Call) -> None:
    """A stopping emulator does not wait for its sidebands."""
    emulator = await emulate()
    caller: Caller = await call(emulator)
    async with attach(caller) as socket:
        await asyncio.wait_for(emulator.close(), 2.0)

        assert (await asyncio.wait_for(socket.receive(), 5)).type == aiohttp.WSMsgType.CLOSE


async def test_slow_sideband_is_dropped_and_the_call_goes_on(
    emulate: Emulate, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sideband that leaves more unread than its bound is closed; the call's own channel gets everything."""
    caller: Caller = await call(await emulate())
    async with attach(caller) as socket:
        monkeypatch.setattr("gateway.emulator.http.sideband._MAX_WAITING", 0)
        answer = await caller.ask("Write 100 words about patience")
        message = await asyncio.wait_for(socket.receive(), 5)

    assert message.type == aiohttp.WSMsgType.CLOSE
    assert len(answer.split()) == 100


@pytest.mark.parametrize(("query", "status"), [("call_id=rtc_u1_nobody", 404), ("model=gpt-realtime", 400)])
async def test_sideband_to_no_call_is_refused(query: str, status: int, emulate: Emulate) -> None:
    """An unknown call is 404 before the upgrade; a WebSocket without one begins no session here."""
    caller = Caller((await emulate()).base_url)
    try:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await caller.http.ws_connect(f"{caller.base_url}/realtime?{query}")
    finally:
        await caller.close()

    assert refused.value.status == status


async def test_key_may_come_as_a_subprotocol(emulate: Emulate, call: Call) -> None:
    """Where no header can be set the key is a sub-protocol; without any key the handshake is 401."""
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
        await asyncio.wait_for(socket.receive(), 5)

        assert socket.close_code == 4000

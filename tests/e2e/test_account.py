"""Who pays upstream, and for what: the caller's own ephemeral key, and audio tokens in sessions that asked for text
only."""

import json
import re

import aiohttp
import pytest

from gateway.app import Gateway
from tests.e2e.caller import Caller, Emulate, Serve
from tests.farend import FarEnd

pytestmark = pytest.mark.slow

JSON = {"Accept": "application/json"}


async def test_an_ephemeral_key_of_the_callers_own_opens_and_turns(serve: Serve, emulate: Emulate) -> None:
    """A gateway without an OpenAI key serves callers that bring one, and reveals it to no other caller."""
    far_end = emulate("--api-key", "sk-right", "--tokens-per-second", "0")
    async with aiohttp.ClientSession() as http:
        session = {"type": "realtime", "model": "gpt-realtime-2.1"}
        url, key = f"{far_end.base_url}/realtime/client_secrets", {"Authorization": "Bearer sk-right"}
        async with http.post(url, json={"session": session}, headers=key) as answer:
            secret = (await answer.json())["value"]
    gateway = await serve(far_end, upstream={"auth": "client", "api_key": None})
    async with Caller(gateway.url) as caller:
        headers = {"X-Upstream-Authorization": f"Bearer {secret}"}
        opened, session = await caller.ask("POST", "/v1/sessions", headers=headers)
        path = f"/v1/sessions/{session['id']}/turns"
        answered, turn = await caller.ask("POST", path, {"input": "What is 6 times 7?"}, headers=JSON)
        _, seen = await caller.ask("GET", f"/v1/sessions/{session['id']}")

    assert (opened.status, answered.status) == (201, 200)
    assert "42" in turn["output_text"]
    assert secret not in json.dumps([session, seen, turn])


async def test_audio_tokens_in_a_text_session_are_counted_and_told_once(
    gateway: Gateway, caller: Caller, far_end: FarEnd, capsys: pytest.CaptureFixture[str]
) -> None:
    """The metric counts every audio token, and one log line per session, not one per response, reports them."""
    session = await caller.open()
    usage = {
        "total_tokens": 7,
        "input_tokens": 0,
        "output_tokens": 7,
        "output_token_details": {"text_tokens": 2, "audio_tokens": 5},
    }
    done = [
        {"type": "response.done", "response": {"id": f"resp_{n}", "status": "completed", "usage": usage}}
        for n in range(3)
    ]
    before = await audio_tokens(gateway)
    await far_end.send(session["call_id"], *map(json.dumps, done))
    await caller.until(session["id"], "response.done", 3)

    assert await audio_tokens(gateway) - before == 15
    lines = [line for line in capsys.readouterr().out.splitlines() if "audio_tokens_billed" in line]
    assert len(lines) == 1
    assert session["id"] in lines[0]


async def audio_tokens(gateway: Gateway) -> float:
    """Sum the audio tokens of the metric."""
    async with aiohttp.ClientSession() as http, http.get(f"{gateway.admin_url}/metrics") as answer:
        text = await answer.text()
    pattern = r'^realtime_gateway_tokens_total\{[^}]*kind="audio"[^}]*\} (\S+)$'
    return sum(float(value) for value in re.findall(pattern, text, re.M))

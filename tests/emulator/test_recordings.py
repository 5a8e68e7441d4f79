"""The emulator compared with recorded sessions of the service: its events must have the recorded order and shape.

Text, ids and the numbers of tokens and deltas differ by nature; the order of types, keys, nulls and enum values must
not.
"""

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from gateway.emulator.transport.sdp import Endpoint, parse_offer, write_answer
from tests.emulator.caller import Caller
from tests.emulator.talk import Talk

Json = dict[str, Any]
# Values that belong to the protocol, not to the content.
_WORDS = ("type", "status", "role", "object", "truncation", "tool_choice", "max_output_tokens", "name")


def load(path: Path) -> list[tuple[str, Json]]:
    """Read a recording as (direction, event)."""
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return [(line["direction"], line["event"]) for line in lines]


def shape(value: Any, key: str = "") -> Any:
    """Reduce a value to keys in order, nulls, types and protocol values."""
    if isinstance(value, dict):
        return [(k, shape(v, k)) for k, v in value.items()]
    if isinstance(value, list):
        return [shape(v) for v in value]
    if key in _WORDS or value is None or isinstance(value, bool):
        return value
    return "number" if isinstance(value, (int, float)) else "text"


def folded(events: list[Json]) -> list[Json]:
    """Keep one of each run of deltas, because their number depends on the tokenizer."""
    return [next(group) for _, group in groupby(events, key=_delta_or_self)]


def _delta_or_self(event: Json) -> Any:
    return event["type"] if event["type"].endswith(".delta") else id(event)


async def replay(talk: Talk, lines: list[tuple[str, Json]]) -> list[Json]:
    """Send a recording's client events, each after the events that precede it in the recording, and return all
    server events."""
    talk.realtime.opened()
    call_id = ""
    for at, (direction, event) in enumerate(lines):
        if direction == "received":
            continue
        before = [e for d, e in lines[:at] if d == "received"]
        if any(e["type"] == "response.created" for e in before):
            await talk.until(lambda: "response.done" in talk.types)
        output = event.get("item", {}).get("type") == "function_call_output"
        if output:
            call_id = talk.last("response.function_call_arguments.done")["call_id"]
            event = event | {"item": event["item"] | {"call_id": call_id}}
        talk.realtime.receive(json.dumps(event))
    responses = sum(1 for d, e in lines if d == "sent" and e["type"] == "response.create")
    await talk.until(lambda: talk.types.count("response.done") == responses)
    return talk.said


TOOL_ROUND = "tool-call-round.jsonl"
TEXT_TURN = "text-turn-in-webrtc-call.jsonl"
HISTORY = "history-seeding.jsonl"
AUDIO_TURN = "audio-turn-in-webrtc-call.jsonl"


@pytest.mark.parametrize("name", [TEXT_TURN, TOOL_ROUND, HISTORY, AUDIO_TURN])
async def test_recorded_client_events_cause_recorded_server_events(
    name: str, recordings: Path, talk: Callable[..., Talk]
) -> None:
    """The recorded `sent` events cause the recorded order of types, with the recorded keys, nulls and enum values."""
    lines = load(recordings / name)
    expected = folded([event for direction, event in lines if direction == "received"])
    recorded_limits = any(event["type"] == "rate_limits.updated" for event in expected)

    said = await replay(talk(session={"output_modalities": ["audio"]}), lines)
    if not any(event["type"] == "session.created" for event in expected):
        said = said[1:]
    if not recorded_limits:
        said = [event for event in said if event["type"] != "rate_limits.updated"]
    assert [event["type"] for event in folded(said)] == [event["type"] for event in expected]
    assert [shape(event) for event in folded(said)] == [shape(event) for event in expected]


@pytest.mark.parametrize("name", [TEXT_TURN, TOOL_ROUND, HISTORY])
async def test_recorded_words_are_answered_with_recorded_words(
    name: str, recordings: Path, talk: Callable[..., Talk]
) -> None:
    """For the questions of the recording, the offline brain gives the service's answers."""
    lines = load(recordings / name)
    said = await replay(talk(), lines)

    kind = "response.output_text.delta"
    assert "".join(e["delta"] for e in said if e["type"] == kind) == "".join(
        e["delta"] for d, e in lines if d == "received" and e["type"] == kind
    )


async def test_usage_of_the_recorded_text_turn(recordings: Path, talk: Callable[..., Talk]) -> None:
    """The recorded short turn has the recorded token counts in every member of `usage`."""
    lines = load(recordings / TEXT_TURN)
    said = await replay(talk(), lines)

    assert said[-2]["response"]["usage"] == lines[-1][1]["response"]["usage"]


async def test_obfuscation_pads_as_recorded(recordings: Path, talk: Callable[..., Talk]) -> None:
    """Each delta's padding is as long as the recorded padding for the same text."""
    said = await replay(talk(), load(recordings / TEXT_TURN))
    recorded = [e for _, e in load(recordings / TEXT_TURN) if "obfuscation" in e]

    assert [len(e["obfuscation"]) for e in said if "obfuscation" in e] == [
        len(e["obfuscation"]) for e in recorded
    ]


async def test_tool_round_is_partly_cached_the_second_time(
    recordings: Path, talk: Callable[..., Talk]
) -> None:
    """The second response of the tool round has its beginning in the cache, in the recorded unit."""
    said = await replay(talk(), load(recordings / TOOL_ROUND))
    first, second = (e["response"]["usage"] for e in said if e["type"] == "response.done")

    assert first["input_token_details"]["cached_tokens"] == 0
    assert second["input_token_details"]["cached_tokens"] == 64


async def test_answer_has_the_recorded_lines(recordings: Path) -> None:
    """Line by line, the answer to an aiortc offer has the same attributes as the recorded one."""
    caller = Caller("http://127.0.0.1:9/v1")
    try:
        offer = parse_offer(await caller.offer())
    finally:
        await caller.close()
    recorded = (recordings / "answer.sdp").read_bytes().decode()
    addresses = tuple((f"203.0.113.{n}", 3478) for n in (10, 20, 30))
    endpoint = Endpoint("u" * 8, "p" * 32, "AA:BB", "active", addresses, 1, 2)

    written = write_answer(offer, endpoint)

    assert written.endswith("\r\n")
    assert [_named(line) for line in written.split("\r\n")] == [
        _named(line) for line in recorded.split("\r\n")
    ]


def _named(line: str) -> str:
    """Keep the attribute of a line, without random numbers, keys and names."""
    if line.startswith("o="):
        return "o="
    for start in ("a=fingerprint:sha-256", "a=ice-ufrag", "a=ice-pwd"):
        if line.startswith(start):
            return start
    if line.startswith("a=ssrc:"):
        return "a=ssrc " + line.split(" ", 1)[1]
    if line.startswith("a=candidate:"):
        words = line.split()
        return " ".join(["a=candidate", *words[1:-1]])
    return line


async def test_answer_comes_with_the_recorded_headers(
    recordings: Path, emulate: Callable[..., Any], call: Callable[..., Any]
) -> None:
    """Status, content type, CORS headers and the relative address are the recorded ones."""
    recorded = json.loads((recordings / "answer-headers.json").read_text())
    caller = Caller((await emulate()).base_url)
    try:
        response = await caller.post(await caller.offer(), {"type": "realtime"})

        assert response.status == recorded["status"]
        for name, values in recorded["headers"].items():
            got = response.headers.getall(name)
            assert [_path(v) for v in got] == [_path(v) for v in values]
    finally:
        await caller.close()


def _path(value: str) -> str:
    return value.rsplit("/", 1)[0] if value.startswith("/v1/") else value


async def test_client_secret_has_the_recorded_shape(recordings: Path, emulate: Callable[..., Any]) -> None:
    """The recorded request for a client secret gets the recorded answer, except for ids and times."""
    recorded = json.loads((recordings / "client-secret.json").read_text())
    caller = Caller((await emulate()).base_url)
    try:
        url = f"{caller.base_url}/realtime/client_secrets"
        async with caller.http.post(url, json=recorded["request"]) as response:
            answer = await response.json()

            assert response.status == recorded["status"]
            for volatile in ("expires_at", "value"):
                answer[volatile] = recorded["response"][volatile]
            answer["session"]["id"] = recorded["response"]["session"]["id"]
            assert answer == recorded["response"]
    finally:
        await caller.close()

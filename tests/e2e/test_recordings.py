"""Recorded conversations of the live service, replayed by a far end and compared byte for byte at the reader."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.app import Gateway
from tests.e2e.caller import Caller, Emulate, Serve
from tests.farend import FarEnd

pytestmark = pytest.mark.slow

Json = dict[str, Any]
BEFORE, AFTER = '{"direction":"received","event":', "}"
# Files that are not conversations of events have another extension.
NAMES = (
    "text-turn-in-webrtc-call",
    "tool-call-round",
    "history-seeding",
    "audio-turn-in-webrtc-call",
)


def received(recording: Path) -> list[str]:
    """Return the events that the service sent, cut out of their lines unchanged."""
    lines = recording.read_text("utf-8").splitlines()
    return [line.removeprefix(BEFORE).removesuffix(AFTER) for line in lines if line.startswith(BEFORE)]


def sent(recording: Path) -> list[Json]:
    """Return the events the client sent."""
    entries = [json.loads(line) for line in recording.read_text("utf-8").splitlines()]
    return [entry["event"] for entry in entries if entry["direction"] == "sent"]


@pytest.mark.parametrize("name", NAMES)
async def test_a_recording_arrives_byte_for_byte_in_every_rendering(
    recordings: Path, name: str, gateway: Gateway, caller: Caller, far_end: FarEnd
) -> None:
    """Each received event of a recording, sent over a real data channel, is read unchanged and in order in all three
    renderings."""
    texts = received(recordings / f"{name}.jsonl")
    session = await caller.open()
    await far_end.send(session["call_id"], *texts)

    path = f"{session['events_url']}?after={session['head']}"
    by_sse = await caller.take(session["id"], len(texts), after=session["head"])
    _, polled = await caller.ask("GET", f"{path}&format=json&limit=1000")
    lines = await ndjson(caller, path, len(texts))
    ids = [read.id for read in by_sse]

    assert len(texts) >= 10
    assert [read.text for read in by_sse] == texts
    assert [(event["id"], event["event"]) for event in polled["events"]] == [
        (number, json.loads(text)) for number, text in zip(ids, texts, strict=True)
    ]
    assert lines == [f'{{"id":"{number}","event":{text}}}' for number, text in zip(ids, texts, strict=True)]


async def test_long_poll_holds_the_bytes_of_a_recording(
    recordings: Path, gateway: Gateway, caller: Caller, far_end: FarEnd
) -> None:
    """An event in the long-poll answer has the bytes that the service wrote, not those of an encoder."""
    texts = received(recordings / "tool-call-round.jsonl")
    session = await caller.open()
    await far_end.send(session["call_id"], *texts)
    await caller.take(session["id"], len(texts), after=session["head"])

    url = f"{gateway.url}{session['events_url']}?after={session['head']}&format=json&limit=1000"
    async with caller.http.get(url) as answer:
        body = await answer.text()

    at = 0
    for text in texts:
        at = body.index(text, at) + len(text)


async def ndjson(caller: Caller, path: str, count: int) -> list[str]:
    """Read this many events as NDJSON and return their lines, without the stream's own lines."""
    lines: list[str] = []
    async with caller.http.get(f"{caller.url}{path}&format=ndjson") as answer:
        assert answer.content_type == "application/x-ndjson"
        while len(lines) < count:
            line = (await answer.content.readuntil(b"\n")).decode().rstrip("\n")
            if line and not line.startswith('{"id":null,'):
                lines.append(line)
    return lines


async def test_recordings_are_held_as_conversations(recordings: Path, serve: Serve, emulate: Emulate) -> None:
    """A far end that plays recordings answers each client event with the events that were recorded, in order."""
    files = [recordings / f"{name}.jsonl" for name in NAMES]
    flags = [flag for file in files for flag in ("--record", str(file))]
    gateway = await serve(emulate("--tokens-per-second", "0", *flags))
    caller = Caller(gateway.url)
    for file in files:
        texts = received(file)
        session = await caller.open()
        await caller.send(session["id"], *sent(file))
        # The far end sends its own greeting if the recording has none.
        greeting = int(json.loads(texts[0])["type"] != "session.created")
        read = await caller.take(session["id"], len(texts) + greeting)

        assert [block.text for block in read[greeting:]] == texts
    await caller.http.close()

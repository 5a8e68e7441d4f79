"""Sessions over a minute with a strict far end, with very large events, and with any text."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from gateway.app import Gateway
from tests.e2e.caller import Caller, Emulate, Json, Serve, answer_of, say
from tests.e2e.curl import curled
from tests.farend import FarEnd

# A far end that requires USE-CANDIDATE in consent checks would otherwise stop answering, and the session would end after about 33 s.
LIFE_SECONDS = 62.0
STANDSTILL_SECONDS = 0.05
LARGE = 600_000

TEXTS = {
    "accents": "Größe, naïveté, Ångström, žluťoučký kůň",
    "scripts": "Привет мир · 你好，世界 · こんにちは · שלום עולם · مرحبا بالعالم · नमस्ते",
    "emoji": "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇭 👍🏽 \U0001faf6",
    "line ends": "first\nsecond\n\nfourth\r\nfifth\rsixth",
    "line separators": "one\u2028two\u2029three\x85four\x0bfive\x0csix",
    "what SSE could trip over": "data: no\n\nid: 7\nevent: gateway.closed\n: no comment\nretry: 0",
    "escapes": 'a "quoted" \\ back\\nslash \x00 \x07 \t \ufeff \u200b end',
    "combining": "e\u0301 and \u00e9 stay two things",
}


@pytest.mark.slow
async def test_a_session_outlives_strict_consent(serve: Serve, emulate: Emulate) -> None:
    """After a minute a call to a strict ICE-lite far end still works, whichever side starts DTLS."""
    far_ends = [emulate("--consent", "strict", "--setup", setup) for setup in ("active", "passive")]
    callers = [Caller((await serve(far_end)).url) for far_end in far_ends]
    sessions = [await caller.open() for caller in callers]
    await asyncio.sleep(LIFE_SECONDS)  # the duration itself is tested
    for far_end, caller, session in zip(far_ends, callers, sessions, strict=True):
        headers = {"Accept": "application/json"}
        path = f"/v1/sessions/{session['id']}/turns"
        answer, turn = await caller.ask("POST", path, {"input": "What is 6 times 7?"}, headers=headers)
        call = await far_end.call(session["call_id"])
        await caller.http.close()

        assert answer.status == 200, turn
        assert "42" in turn["output_text"]
        assert turn["session_id"] == session["id"]
        assert call["open"]
        assert call["checks_ignored"] == 0


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
async def test_any_text_survives_both_ways(
    gateway: Gateway, caller: Caller, far_end: FarEnd, text: str
) -> None:
    """The far end gets exactly the posted bytes, and the reader the text that the far end repeated."""
    session = await caller.open()
    item, create = (json.dumps(event, ensure_ascii=False) for event in say(f"Repeat after me: {text}"))
    answer, _ = await caller.ask("POST", f"/v1/sessions/{session['id']}/events", f"[{item} , {create}]")
    read = await caller.until(session["id"], "response.done", after=session["head"])
    frames = await far_end.received(session["call_id"])

    assert answer.status == 202
    assert frames[-2:] == [item, create]
    done = read[-1].value["response"]["output"][0]["content"][0]["text"]
    assert answer_of(block.value for block in read) == done == text.strip()


@pytest.mark.slow
@pytest.mark.needs("curl")
async def test_a_very_large_event_passes_both_ways_and_holds_nobody_up(
    gateway: Gateway, caller: Caller, far_end: FarEnd, tmp_path: Path
) -> None:
    """600 KB are sent and returned complete, and never block the loop for more than 50 ms."""
    session = await caller.open()
    # Hard for a parser: every line differs, and a quarter of it is not ASCII.
    text = "\n".join(f"{line:06d} größer als alles, was hier sonst geht 🙂" for line in range(LARGE // 50))
    event = {**say(text)[0], "event_id": "large"}
    (tmp_path / "event.json").write_text(json.dumps(event, ensure_ascii=False), "utf-8")
    path = f"{gateway.url}{session['events_url']}"
    await caller.ask("GET", "/readyz")
    async with Standstill() as standstill:
        # The clients are other processes, so only the gateway's own loop is measured.
        receipt = await curled(path, "--data-binary", f"@{tmp_path / 'event.json'}")
        polled = await large_event(path, session["head"])
    frames = await far_end.received(session["call_id"])

    assert (tmp_path / "event.json").stat().st_size >= LARGE
    assert json.loads(receipt)["accepted"] == 1
    assert frames[-1] == (tmp_path / "event.json").read_text("utf-8")
    assert polled["item"]["content"][0]["text"] == text
    assert standstill.longest < STANDSTILL_SECONDS


async def large_event(path: str, after: str) -> Json:
    """Poll until the far end's echo of the large item arrives."""
    async with asyncio.timeout(20):
        while True:
            page = json.loads(await curled(f"{path}?after={after}&format=json&max_bytes=4194304"))
            for event in page["events"]:
                if event["event"]["type"] == "conversation.item.added":
                    found: Json = event["event"]
                    return found
            after = page["cursor"]


class Standstill:
    """Measures the longest CPU time that the loop's thread used in one turn of the loop.

    CPU time is used so that other load on the machine does not matter.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Standstill":
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _watch(self) -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            self.longest = max(self.longest, time.thread_time() - before)
            await asyncio.sleep(0.001)

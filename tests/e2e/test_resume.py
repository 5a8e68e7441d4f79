"""Readers and senders whose connections are cut at random: each event once and in order, or a told gap; each batch once.

The far end numbers what it says, so that what a reader has is held against what was said, not against ids.
"""

import asyncio
import json
import random
from dataclasses import dataclass, field

import aiohttp
import pytest

from gateway.client import BlockParser
from tests.e2e.farend import FarEnd
from tests.e2e.house import Caller, Json, Serve, eventually

EVENTS = 1500
BURST = 50
READERS = 6
KEPT = 200


@dataclass(slots=True)
class Notes:
    """What one reader was given: numbers, and after which of them how many were told to be missing."""

    numbers: list[int] = field(default_factory=list)
    gaps: dict[int, int] = field(default_factory=dict)
    cursor: str = ""
    renderings: set[str] = field(default_factory=set)

    def take(self, event_id: str, event: Json) -> None:
        self.cursor = event_id
        if event["type"] == "numbered":
            self.numbers.append(event["n"])

    def miss(self, count: int) -> None:
        last = self.numbers[-1] if self.numbers else -1
        self.gaps[last] = self.gaps.get(last, 0) + count

    @property
    def done(self) -> bool:
        return bool(self.numbers) and self.numbers[-1] == EVENTS - 1

    def check(self) -> None:
        """Between any two numbers lie exactly as many as were told to be missing."""
        before = -1
        for now in self.numbers:
            assert now - before - 1 == self.gaps.get(before, 0), (before, now, self.gaps)
            before = now


class Reader:
    """Reads a session in pieces: a rendering by chance, some events, a cut; until the last number is there."""

    def __init__(self, caller: Caller, session: Json, seed: int, pause: float) -> None:
        self.notes = Notes(cursor=session["head"])
        self._caller = caller
        self._url = caller.url + session["events_url"]
        self._random = random.Random(seed)
        self._pause = pause

    async def run(self) -> Notes:
        while not self.notes.done:
            rendering = self._random.choice(["sse", "ndjson", "json"])
            self.notes.renderings.add(rendering)
            few = self._random.choice([1, 3, 20, 200])
            await {"sse": self._sse, "ndjson": self._ndjson, "json": self._json}[rendering](few)
            await asyncio.sleep(self._random.uniform(0, self._pause))
        return self.notes

    async def _sse(self, few: int) -> None:
        parser = BlockParser()
        headers = {"Accept": "text/event-stream", "Last-Event-ID": self.notes.cursor}
        async with self._caller.http.get(self._url, headers=headers) as answer:
            async for chunk in answer.content.iter_chunked(self._random.choice([7, 100, 65536])):
                for block in parser.feed(chunk):
                    if block.data and self._read(block.id, json.loads(block.data)):
                        few -= 1
                if few <= 0 or self.notes.done:
                    return  # with whatever else has come already: it is lost on the way

    async def _ndjson(self, few: int) -> None:
        headers = {"Accept": "application/x-ndjson"}
        async with self._caller.http.get(
            self._url, headers=headers, params={"after": self.notes.cursor}
        ) as answer:
            while few > 0 and not self.notes.done:
                line = await answer.content.readuntil(b"\n")
                if line.strip():
                    entry = json.loads(line)
                    few -= self._read(entry["id"], entry["event"])

    async def _json(self, few: int) -> None:
        params = {"after": self.notes.cursor, "limit": str(few), "wait": "1"}
        headers = {"Accept": "application/json"}
        async with self._caller.http.get(self._url, headers=headers, params=params) as answer:
            page = await answer.json()
        if answer.status == 410:
            # Told, and to be read by another rendering, which tells it where it goes on.
            assert page["missed"] > 0
            return
        for entry in page["events"]:
            self._read(entry["id"], entry["event"])

    def _read(self, event_id: str | None, event: Json) -> bool:
        """Note an event; tells whether it was one of the log."""
        if event["type"] == "gateway.gap":
            self.notes.miss(event["missed"])
        if event_id is None or event["type"] in ("gateway.open", "gateway.gap", "gateway.ping"):
            if event["type"] == "gateway.gap" and event_id is not None:
                self.notes.cursor = event_id
            return False
        self.notes.take(event_id, event)
        return True


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_readers_cut_at_random_miss_nothing_untold(serve: Serve, far_end: FarEnd, seed: int) -> None:
    """In any rendering, cut anywhere, fast or slow: every number once and in order, or exactly as many told missing."""
    gateway = await serve(far_end, relay={"log_max_events": KEPT})
    chance = random.Random(seed)
    async with Caller(gateway.url) as caller:
        session = await caller.open()
        pauses = [0.0, 0.0, 0.01, 0.05, 0.2, 0.5]
        readers = [Reader(caller, session, chance.random(), pauses[n]) for n in range(READERS)]  # type: ignore[arg-type] # any seed will do
        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            reading = [group.create_task(reader.run()) for reader in readers]
            for start in range(0, EVENTS, BURST):
                frames = [json.dumps({"type": "numbered", "n": n}) for n in range(start, start + BURST)]
                await far_end.send(session["call_id"], *frames)
                await asyncio.sleep(chance.choice([0, 0.01, 0.1]))
        notes = [task.result() for task in reading]

    for one in notes:
        one.check()
    # Not by luck: some were slow enough to be told of a gap, and all renderings were used.
    assert any(one.gaps for one in notes)
    assert set.union(*(one.renderings for one in notes)) == {"sse", "ndjson", "json"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_batches_repeated_at_random_arrive_once_and_whole(
    serve: Serve, far_end: FarEnd, seed: int
) -> None:
    """Whatever is repeated, given up in mid-answer or sent at once, the far end has each batch once, its events in order."""
    gateway = await serve(far_end)
    chance = random.Random(seed)
    batches = {f"batch-{number}": chance.randint(1, 8) for number in range(60)}
    async with Caller(gateway.url) as caller:
        session = await caller.open()

        async def send(key: str, count: int) -> None:
            events = [{"type": "input_audio_buffer.clear", "event_id": f"{key}-{n}"} for n in range(count)]
            headers = {"Idempotency-Key": key}
            own = random.Random(f"{seed} {key}")
            while True:
                patience = own.choice([0.0001, 0.001, 0.003, 20])
                timeout = aiohttp.ClientTimeout(total=patience)
                try:
                    answer, said = await caller.ask(
                        "POST", session["events_url"], events, headers=headers, timeout=timeout
                    )
                except (TimeoutError, aiohttp.ClientError):
                    continue
                if answer.status == 409:
                    continue
                assert (answer.status, said["accepted"]) == (202, count)
                return

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for key, count in batches.items():
                for _ in range(chance.choice([1, 1, 2])):
                    group.create_task(send(key, count))
        await caller.send(session["id"], {"type": "input_audio_buffer.clear", "event_id": "last-0"})

        async def arrived_whole() -> bool:
            # The channel is ordered, so that the last event follows all others.
            return any('"last-0"' in frame for frame in await far_end.received(session["call_id"]))

        await eventually(arrived_whole)
        seen = [json.loads(frame)["event_id"] for frame in await far_end.received(session["call_id"])]

    arrived = [event_id.rpartition("-") for event_id in seen if event_id != "last-0"]
    assert sorted(f"{key}-{n}" for key, _, n in arrived) == sorted(
        f"{key}-{n}" for key, count in batches.items() for n in range(count)
    )
    for at, (key, _, n) in enumerate(arrived):
        assert n == "0" or arrived[at - 1] == (key, "-", str(int(n) - 1))

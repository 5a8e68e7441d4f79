"""A model of every kind of reader, against a real gateway over real sockets that are cut in the middle of bytes.

The far end numbers its events. A reader has each number or was told that it is missing: its notes must have every
number once and in order, with gaps exactly as wide as reported. Hypothesis draws the plan: renderings, speeds, where
the network cuts, when the log overruns. The network cuts below HTTP, in the middle of blocks and of chunks.
"""

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import aiohttp
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.app import Gateway
from gateway.client import BlockParser
from tests.e2e.caller import Caller, Json, configured
from tests.e2e.cuts import cutting
from tests.farend import FarEnd

RENDERINGS = ("sse", "post", "ndjson", "json")
KEPT = 60
SECONDS = 120.0
# If every connection is cut after the stream's first block the reader makes no progress; this allows for more than that.
MOST_CUTS = 40


@dataclass(frozen=True, slots=True)
class Habit:
    """How one reader reads: the order of its renderings, its pause between reads, and how its cuts are drawn."""

    renderings: tuple[str, ...]
    pause: float
    chunk: int
    seed: int
    fail_on_gap: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What the far end sends, in bursts, and which readers there are."""

    bursts: tuple[int, ...]
    size: int
    habits: tuple[Habit, ...]

    @property
    def total(self) -> int:
        return sum(self.bursts)


habits = st.builds(
    Habit,
    renderings=st.lists(st.sampled_from(RENDERINGS), min_size=1, max_size=4).map(tuple),
    pause=st.sampled_from([0.0, 0.0, 0.02, 0.15]),
    # tests/client reads single bytes. Here that would take the loop from the gateway for seconds.
    chunk=st.sampled_from([7, 100, 65536]),
    seed=st.integers(0, 2**16),
    fail_on_gap=st.booleans(),
)
plans = st.builds(
    Plan,
    bursts=st.lists(st.integers(1, 2 * KEPT), min_size=1, max_size=5).map(tuple),
    size=st.sampled_from([0, 300]),
    habits=st.lists(habits, min_size=1, max_size=6).map(tuple),
)


@dataclass(slots=True)
class Notes:
    """What one reader received: numbers, and how many it was told are missing before each."""

    cursor: str
    last: int = -1
    missing: int = 0

    def number(self, n: int) -> None:
        assert n == self.last + self.missing + 1, (self.last, self.missing, n)
        self.last, self.missing = n, 0

    def gap(self, missed: int) -> None:
        self.missing += missed


class Reader:
    """Reads until it has the last number, however often the network cuts."""

    def __init__(
        self, http: aiohttp.ClientSession, url: str, session: Json, habit: Habit, total: int
    ) -> None:
        self.notes = Notes(cursor=session["head"])
        self.gaps = 0
        self.reads = 0
        self._http = http
        self._url = url + session["events_url"]
        self._habit = habit
        self._total = total

    @property
    def done(self) -> bool:
        return self.notes.last + self.notes.missing >= self._total - 1

    async def run(self) -> None:
        while not self.done:
            rendering = self._habit.renderings[self.reads % len(self._habit.renderings)]
            self.reads += 1
            try:
                if rendering == "json":
                    await self._poll()
                else:
                    await self._stream(rendering)
            except (aiohttp.ClientError, ConnectionError, json.JSONDecodeError):
                pass  # cut by the network: the cursor has the position
            await asyncio.sleep(self._habit.pause)

    async def _stream(self, rendering: str) -> None:
        query = {"format": "ndjson" if rendering == "ndjson" else "sse"}
        if self._habit.fail_on_gap:
            query["on_gap"] = "fail"
        if rendering == "post":
            body = {**query, "after": self.notes.cursor}
            request = self._http.post(f"{self._url}/stream", json=body)
        else:
            query["after"] = self.notes.cursor
            request = self._http.get(self._url, params=query)
        async with request as answer:
            if answer.status == 410:
                self._told(await answer.json())
                return
            assert answer.status == 200
            entries = self._lines(answer) if rendering == "ndjson" else self._blocks(answer)
            async with aclosing(entries):
                async for event_id, event in entries:
                    self._take(event_id, event)
                    if self.done:
                        return

    async def _poll(self) -> None:
        query = {"format": "json", "after": self.notes.cursor, "wait": "1", "limit": "25"}
        async with self._http.get(self._url, params=query) as answer:
            page = await answer.json()
        if answer.status == 410:
            self._told(page)
            return
        assert answer.status == 200, page
        for entry in page["events"]:
            self._take(entry["id"], entry["event"])
        self.notes.cursor = page["cursor"]

    async def _blocks(self, answer: aiohttp.ClientResponse) -> AsyncGenerator[tuple[str | None, Json], None]:
        parser = BlockParser()
        async for chunk in answer.content.iter_chunked(self._habit.chunk):
            for block in parser.feed(chunk):
                if block.data is not None:
                    yield block.id, json.loads(block.data)
                    await asyncio.sleep(0)  # The gateway runs on the same loop.

    async def _lines(self, answer: aiohttp.ClientResponse) -> AsyncGenerator[tuple[str | None, Json], None]:
        async for line in answer.content:
            if line.endswith(b"\n") and line.strip():
                entry = json.loads(line)
                yield entry["id"], entry["event"]

    def _take(self, event_id: str | None, event: Json) -> None:
        if event["type"] == "numbered":
            self.notes.number(event["n"])
        elif event["type"] == "gateway.gap":
            self._told(event)
        if event_id is not None:
            self.notes.cursor = event_id

    def _told(self, gap: Json) -> None:
        """Note a gap and continue before the oldest event that exists, as a client does."""
        assert gap["missed"] > 0
        self.notes.gap(gap["missed"])
        self.gaps += 1
        epoch, _, number = gap["oldest"].rpartition("-")
        self.notes.cursor = f"{epoch}-{int(number) - 1}"


class Network:
    """Cuts answers after the number of bytes that each draw gives, until it has cut often enough."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.cuts = 0

    def __call__(self, line: str) -> int | None:
        if self.cuts >= MOST_CUTS or self._random.random() < 0.2:
            return None
        self.cuts += 1
        return self._random.choice([0, 50, 700, 1000, 2000, 5000, 20_000]) + self._random.randrange(200)


async def carry_out(plan: Plan, far_end: FarEnd) -> tuple[list[Reader], int]:
    """Execute a plan and return its readers and the number of cuts."""
    gateway = Gateway(configured(far_end.base_url, relay={"log_max_events": KEPT}))
    await gateway.start()
    try:
        network = Network(sum(habit.seed for habit in plan.habits))
        async with (
            Caller(gateway.url) as caller,
            cutting(gateway.url, network) as url,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http,
            asyncio.timeout(SECONDS),
        ):
            session = await caller.open()
            readers = [Reader(http, url, session, habit, plan.total) for habit in plan.habits]
            async with asyncio.TaskGroup() as group:
                for reader in readers:
                    group.create_task(reader.run())
                said = 0
                for burst in plan.bursts:
                    numbers = range(said, said + burst)
                    frames = [
                        json.dumps({"type": "numbered", "n": n, "text": "\r\n\0\ufeff" * plan.size})
                        for n in numbers
                    ]
                    await far_end.send(session["call_id"], *frames)
                    said += burst
            return readers, network.cuts
    finally:
        await gateway.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_any_reader_has_every_event_or_is_told_what_it_missed(shared_far_end: FarEnd) -> None:
    """Cut anywhere, in any rendering, slow or fast, alone or among others, a reader has every event once and in
    order, or the exact number of missing ones."""
    seen: dict[str, int] = {"cuts": 0, "gaps": 0, "reads": 0}

    @settings(
        max_examples=15,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(plans)
    def law(plan: Plan) -> None:
        readers, cuts = asyncio.run(carry_out(plan, shared_far_end))
        for reader in readers:
            assert reader.notes.last + reader.notes.missing == plan.total - 1
        seen["cuts"] += cuts
        seen["gaps"] += sum(reader.gaps for reader in readers)
        seen["reads"] += sum(reader.reads for reader in readers)

    law()

    # Make sure that the test is effective: the network did cut, and some readers were told of gaps.
    assert seen["cuts"] > 50, seen
    assert seen["gaps"] > 10, seen


@pytest.mark.slow
@pytest.mark.parametrize("rendering", RENDERINGS)
async def test_each_rendering_alone_survives_a_cut_at_every_place(far_end: FarEnd, rendering: str) -> None:
    """A reader with only one rendering that is cut repeatedly receives everything from a large enough log, without a
    gap."""
    habit = Habit((rendering,), pause=0.0, chunk=65536, seed=7, fail_on_gap=True)
    plan = Plan(bursts=(KEPT // 2, KEPT // 4), size=0, habits=(habit,) * 3)
    readers, cuts = await carry_out(plan, far_end)

    assert [(reader.gaps, reader.notes.last) for reader in readers] == [(0, plan.total - 1)] * 3
    assert cuts >= 3

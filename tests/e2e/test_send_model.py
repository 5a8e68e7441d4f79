"""A model of every kind of sender: what it repeats reaches the far end once, however its answers are lost.

The result is compared with the emulator's own record of its data channel. The network loses answers below HTTP,
after the gateway has read the request; a sender cannot distinguish that from a request that never arrived.
"""

import asyncio
import json
import random
from dataclasses import dataclass

import aiohttp
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.app import Gateway
from tests.e2e.caller import Caller, Json, configured
from tests.e2e.cuts import cutting
from tests.farend import FarEnd
from tests.waiting import until

SECONDS = 120.0
LAST = "last"


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch: its size, how many senders repeat it at once, and whether it is an array or NDJSON."""

    count: int
    senders: int
    lines: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Which sender sends what, in which order, and how the network loses answers."""

    rows: tuple[tuple[Batch, ...], ...]
    """Rows are sent at the same time, the batches of a row one after the other."""
    seed: int


batches = st.builds(Batch, st.integers(1, 12), st.sampled_from([1, 1, 2, 4]), st.booleans())
plans = st.builds(
    Plan,
    rows=st.lists(st.lists(batches, min_size=1, max_size=5).map(tuple), min_size=1, max_size=6).map(tuple),
    seed=st.integers(0, 2**16),
)


class Network:
    """Loses answers, completely or from some byte on, half of the time."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.lost = 0

    def __call__(self, line: str) -> int | None:
        if self._random.random() < 0.5:
            return None
        self.lost += 1
        return self._random.choice([0, 0, 12, 100, 250])


@dataclass(slots=True)
class Answers:
    """The answers that the senders received for all batches."""

    receipts: list[tuple[str, Json]]
    replayed: int = 0
    in_progress: int = 0


async def send(
    http: aiohttp.ClientSession, url: str, key: str, events: list[Json], batch: Batch, answers: Answers
) -> None:
    """Repeat a batch until its answer arrives."""
    headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
    body = json.dumps(events)
    if batch.lines:
        headers["Content-Type"] = "application/x-ndjson"
        body = "".join(json.dumps(event) + "\n" for event in events)
    while True:
        try:
            async with http.post(url, data=body.encode(), headers=headers) as answer:
                said = await answer.json(content_type=None)
        except (aiohttp.ClientError, ConnectionError):
            continue
        if answer.status == 409:
            assert said["code"] == "idempotency-in-progress"
            answers.in_progress += 1
            await asyncio.sleep(0)
            continue
        assert answer.status == 202, said
        answers.replayed += answer.headers.get("Idempotency-Replayed") == "true"
        answers.receipts.append((key, said))
        return


async def carry_out(plan: Plan, far_end: FarEnd) -> tuple[Network, Answers, list[str]]:
    """Execute a plan and return what the network did, what senders received, and the ids that reached the far end."""
    gateway = Gateway(configured(far_end.base_url))
    await gateway.start()
    network, answers = Network(plan.seed), Answers([])
    try:
        async with (
            Caller(gateway.url) as caller,
            cutting(gateway.url, network) as url,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http,
            asyncio.timeout(SECONDS),
        ):
            session = await caller.open()
            target = url + session["events_url"]

            async def send_row(row: int, of: tuple[Batch, ...]) -> None:
                for number, batch in enumerate(of):
                    key = f"{row}.{number}"
                    events = [
                        {"type": "input_audio_buffer.clear", "event_id": f"{key}.{n}"}
                        for n in range(batch.count)
                    ]
                    await asyncio.gather(
                        *(send(http, target, key, events, batch, answers) for _ in range(batch.senders))
                    )

            async with asyncio.TaskGroup() as group:
                for row, of in enumerate(plan.rows):
                    group.create_task(send_row(row, of))
            # The channel is ordered: when the last event has arrived, all others have arrived or never will.
            await caller.send(session["id"], {"type": "input_audio_buffer.clear", "event_id": LAST})

            async def arrived() -> bool:
                return any(LAST in frame for frame in await far_end.received(session["call_id"]))

            await until(arrived)
            frames = [json.loads(frame) for frame in await far_end.received(session["call_id"])]
            return network, answers, [frame["event_id"] for frame in frames if frame["event_id"] != LAST]
    finally:
        await gateway.close()


def check(plan: Plan, answers: Answers, arrived: list[str]) -> None:
    """Check that each batch arrived once, complete and contiguous, that a sender's batches are in order, and that
    all repeats got the same answer."""
    sizes = {f"{row}.{n}": batch.count for row, of in enumerate(plan.rows) for n, batch in enumerate(of)}
    order = list(dict.fromkeys(event_id.rpartition(".")[0] for event_id in arrived))
    assert sorted(order) == sorted(sizes)
    assert arrived == [f"{key}.{n}" for key in order for n in range(sizes[key])]
    for row, of in enumerate(plan.rows):
        mine = [key for key in order if key.startswith(f"{row}.")]
        assert mine == [f"{row}.{n}" for n in range(len(of))]
    receipts: dict[str, Json] = {}
    for key, receipt in answers.receipts:
        assert receipts.setdefault(key, receipt) == receipt
        assert receipt["accepted"] == receipt["last"] - receipt["first"] + 1 == sizes[key]
    # The far end counts itself: the first of a batch is one more than everything before it.
    before = 0
    for key in order:
        assert receipts[key]["first"] == before + 1
        before = receipts[key]["last"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_any_sender_is_heard_once(shared_far_end: FarEnd) -> None:
    """Repeated, sent simultaneously or with a lost answer, each batch arrives once, complete and in order, and gets
    the same answer."""
    seen = {"lost": 0, "replayed": 0}

    @settings(
        max_examples=25,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(plans)
    def law(plan: Plan) -> None:
        network, answers, arrived = asyncio.run(carry_out(plan, shared_far_end))
        check(plan, answers, arrived)
        seen["lost"] += network.lost
        seen["replayed"] += answers.replayed

    law()

    # Make sure that the test is effective: answers were lost, and stored ones were returned.
    assert seen["lost"] > 50, seen
    assert seen["replayed"] > 50, seen


@pytest.mark.slow
async def test_a_lost_create_and_a_lost_turn_are_done_once(far_end: FarEnd) -> None:
    """The answers to both are lost twice: one call is opened, one response is made, and the third attempt gets the
    answers."""
    gateway = Gateway(configured(far_end.base_url))
    await gateway.start()
    try:
        opened = (await far_end.about())["opened"]
        left = {"/v1/sessions": 2, "/turns": 2}

        def lose(line: str) -> int | None:
            end = next((end for end in left if line.split(" ")[1].endswith(end)), "")
            if not left.get(end):
                return None
            left[end] -= 1
            return 0

        async with (
            cutting(gateway.url, lose) as url,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http,
            asyncio.timeout(SECONDS),
        ):
            session = await insist(http, url + "/v1/sessions", {})
            turn = await insist(
                http, f"{url}/v1/sessions/{session['id']}/turns", {"input": "What is 6 times 7?"}
            )
        received = [json.loads(frame)["type"] for frame in await far_end.received(session["call_id"])]

        assert turn["output_text"] == "That is 42."
        assert received.count("response.create") == 1
        assert (await far_end.about())["opened"] == opened + 1
        assert left == {"/v1/sessions": 0, "/turns": 0}
    finally:
        await gateway.close()


async def insist(http: aiohttp.ClientSession, url: str, body: Json) -> Json:
    """Repeat a POST under one key until it succeeds."""
    headers = {"Idempotency-Key": "the-only", "Accept": "application/json"}
    while True:
        try:
            async with http.post(url, json=body, headers=headers) as answer:
                said: Json = await answer.json(content_type=None)
        except (aiohttp.ClientError, ConnectionError):
            continue
        if answer.status < 300:
            return said
        assert answer.status == 409, said
        await asyncio.sleep(0.05)

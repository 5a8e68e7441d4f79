"""Calls over a path that drops, delays, reorders and pauses: everything arrives once and in order, in both
directions."""

import asyncio
import json
from typing import Any

import pytest

from tests.upstream.badpath import Path, bad_path
from tests.upstream.farend import program
from tests.upstream.kit import REQUEST, Remembering, dialling
from tests.waiting import until


def answered(sink: Remembering) -> list[Any]:
    """Return the ids of the client events that the far end answered, in the order of its answers."""
    events = (json.loads(text) for text in sink.texts)
    return [event["error"]["event_id"] for event in events if event["type"] == "error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("calls", "seconds", "outage"),
    [(2, 3.0, 1.0), (12, 20.0, 6.0)],
)
@pytest.mark.timeout(150)
async def test_events_survive_loss_reordering_and_an_outage(
    calls: int, seconds: float, outage: float
) -> None:
    """With 5 % loss and a pause shorter than consent's 15 s no call ends, and no event is missing in either
    direction."""
    path = Path(delay=0.01, jitter=0.03)

    async def talk(call: Any, sink: Remembering) -> tuple[list[str], Remembering, Any]:
        sent: list[str] = []
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            sent.append(f"e{len(sent)}")
            call.send([json.dumps({"type": "nothing.known", "event_id": sent[-1]})])
            await asyncio.sleep(0.02)
        await until(lambda: len(answered(sink)) == len(sent), seconds=60)
        await until(lambda: call.acknowledged == len(sent), seconds=20)
        return sent, sink, call

    async with (
        program("-m", "gateway", "emulate", "--port", "0") as url,
        bad_path(url, path) as bad,
        dialling(bad) as dialer,
    ):
        sinks = [Remembering() for _ in range(calls)]
        # Each set-up has one deadline, which it may miss on such a path; that is not tested here.
        dialled = [await dialer.dial(REQUEST, sink) for sink in sinks]
        path.loss = 0.05
        talks = [asyncio.create_task(talk(*pair)) for pair in zip(dialled, sinks, strict=True)]
        await asyncio.sleep(seconds / 2)
        path.down = True
        await asyncio.sleep(outage)
        path.down = False
        for sent, sink, call in await asyncio.gather(*talks):
            assert answered(sink) == sent
            assert sink.losses == []
            assert not call.undelivered
    assert path.dropped > 20

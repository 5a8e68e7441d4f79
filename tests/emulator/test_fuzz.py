"""Ten thousand nonsense messages of every kind: nothing crashes or hangs, and the valid ones among them are
answered."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from gateway.emulator.protocol.catalog import EVENTS
from tests.emulator.caller import Caller
from tests.emulator.talk import Talk
from tests.fuzzing import batches

BATCHES, BATCH = 100, 100
PINGS = '{"type":"session.update","event_id":"%d","session":{"type":"realtime"}}'
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
MEMBERS = st.sampled_from(
    "item item_id session response previous_item_id event_id response_id audio content_index audio_end_ms foo".split()
)
ITEM = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "function_call", "function_call_output", "x"])},
    optional={
        "id": st.text(max_size=5),
        "role": st.sampled_from(["user", "assistant", "system", "y"]),
        "content": st.lists(
            st.fixed_dictionaries({"type": st.sampled_from(["input_text", "output_text"]), "text": JSON})
        ),
        "name": JSON,
        "call_id": JSON,
        "arguments": JSON,
        "output": JSON,
    },
)
EVENT = st.builds(
    lambda kind, members, item: json.dumps(
        {"type": kind, **members} | ({"item": item} if "item" in kind else {})
    ),
    st.sampled_from([*EVENTS, "nonsense"]),
    st.dictionaries(MEMBERS, JSON, max_size=3),
    ITEM,
)
FRAME = EVENT | st.text(max_size=40) | st.binary(max_size=40) | JSON.map(json.dumps)


@pytest.mark.slow
async def test_ten_thousand_messages_do_no_harm(talk: Callable[..., Talk]) -> None:
    """A session without a network answers each valid event among them, and every frame it sends is an event."""
    one = talk()
    drawn = batches(FRAME, BATCHES, BATCH)
    for number, frames in enumerate(drawn):
        for frame in frames:
            one.realtime.receive(frame)
        one.realtime.receive(PINGS % number)
        await asyncio.sleep(0)

        assert len(one.said) == len(one.frames)
        assert one.types.count("session.updated") == 1
        one.frames.clear()

    assert sum(len(frames) for frames in drawn) == BATCHES * BATCH


@pytest.mark.slow
async def test_a_thousand_messages_over_a_real_channel(
    emulate: Callable[..., Any], call: Callable[..., Any]
) -> None:
    """Nonsense in text and binary messages over SCTP does not change the call."""
    drawn = batches(FRAME, 10, BATCH)
    caller: Caller = await call(await emulate(), offer_size=16 * 1024 * 1024)
    assert caller.channel is not None
    for number, frames in enumerate(drawn):
        for frame in frames:
            caller.channel.send(frame.encode("utf-8", "replace") if isinstance(frame, str) else frame)
        caller.send(PINGS % number)

    await caller.until("session.updated", 10)
    assert caller.channel.readyState == "open"

"""Ten thousand nonsense messages in each direction: nothing crashes or hangs, and every valid event among them
arrives."""

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.e2e.caller import Caller, Json, Serve, say
from tests.farend import FarEnd
from tests.fuzzing import batches

BATCHES, BATCH = 100, 100
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
# The messages that client and far end really use, with arbitrary members; names that the gateway itself reads are frequent.
TYPES = st.sampled_from(
    "session.update session.created session.updated conversation.item.create conversation.item.added "
    "conversation.item.done conversation.item.deleted conversation.item.delete conversation.item.truncated response.create "
    "response.created response.cancel response.done response.output_text.delta response.output_item.done "
    "rate_limits.updated error gateway.closed gateway.recovered nonsense".split()
)
NAMES = st.sampled_from(
    "item item_id session response previous_item_id event_id response_id delta error usage type".split()
)
INSIDE = st.dictionaries(
    st.sampled_from(
        "id type role content status usage metadata output model expires_at code event_id".split()
    ),
    VALUE,
    max_size=4,
)
EVENT = st.builds(
    lambda kind, members: json.dumps({**members, "type": kind}),
    TYPES,
    st.dictionaries(NAMES, VALUE | INSIDE, max_size=4),
)
FRAME = EVENT | st.text(max_size=40) | st.binary(max_size=40) | VALUE.map(json.dumps)


def bodies(frames: list[str | bytes]) -> list[bytes]:
    """Return each message as the body of a request."""
    return [frame if isinstance(frame, bytes) else frame.encode("utf-8", "replace") for frame in frames]


@pytest.mark.slow
async def test_ten_thousand_messages_up(serve: Serve, far_end: FarEnd) -> None:
    """Each is accepted or refused as the client's mistake; accepted events arrive in order, and valid ones are
    answered."""
    drawn = batches(FRAME, BATCHES, BATCH)
    gateway = await serve(far_end)
    async with Caller(gateway.url) as caller:
        session = await caller.open()
        path = f"/v1/sessions/{session['id']}/events"
        accepted: list[str] = []
        for count, frames in enumerate(drawn):
            for body in bodies(frames):
                answer, said = await caller.ask(
                    "POST", path, body, headers={"Content-Type": "application/json"}
                )
                assert answer.status in (202, 400), (body, said)
                if answer.status == 202 and not body.lstrip().startswith(b"["):
                    accepted.append(body.decode())
            good = json.dumps({"type": "session.update", "event_id": f"good-{count}", "session": None})
            await caller.ask("POST", path, good)
            accepted.append(good)
            head = await answered(caller, session, f"good-{count}")
            assert head
        received = await far_end.received(session["call_id"])

        assert (await alive(caller, session))["state"] == "connected"
    # Every accepted event, unchanged and in order; the far end stores its latest ten thousand frames.
    assert len(received) > BATCHES
    assert received == accepted[-len(received) :]


async def answered(caller: Caller, session: Json, event_id: str) -> bool:
    """Wait for the error that answers a valid event with a wrong member."""

    def ours(event: Json) -> bool:
        error = event.get("error")
        return isinstance(error, dict) and error.get("event_id") == event_id

    return await read_until(caller, session, ours)


async def read_until(caller: Caller, session: Json, wanted: Callable[[Json], bool]) -> bool:
    """Read from where this session was last read until an event arrives."""
    async with asyncio.timeout(20):
        while True:
            after = session.setdefault("read", session["head"])
            url = f"/v1/sessions/{session['id']}/events?format=json&wait=10&limit=1000&after={after}"
            answer, page = await caller.ask("GET", url)
            assert answer.status == 200, page
            session["read"] = page["cursor"]
            if any(wanted(entry["event"]) for entry in page["events"]):
                return True


async def alive(caller: Caller, session: Json) -> Json:
    """Return the session object."""
    answer, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")
    assert answer.status == 200
    found: Json = now
    return found


@pytest.mark.slow
async def test_ten_thousand_messages_down(serve: Serve, far_end: FarEnd) -> None:
    """Every JSON object that the far end sends is in the log, in order and unchanged; everything else is dropped; a
    turn still works."""
    drawn = batches(FRAME, BATCHES, BATCH)
    gateway = await serve(far_end)
    async with Caller(gateway.url) as caller:
        session = await caller.open()
        for count, frames in enumerate(drawn):
            expected = [value for frame in frames if (value := relayed(frame)) is not None]
            mark = {"type": "mark", "number": count}
            coded = [base64_of(body) if isinstance(frame, bytes) else frame for frame, body in pairs(frames)]
            await far_end.send(session["call_id"], *coded, json.dumps(mark))
            assert await read_page(caller, session, mark) == [*expected, mark]
        await caller.ask("DELETE", f"/v1/sessions/{session['id']}")
        fresh = await caller.open()
        await caller.send(fresh["id"], *say("ping"))
        await caller.until(fresh["id"], "response.done")
        assert (await alive(caller, session))["close_reason"] == "client"


def pairs(frames: list[str | bytes]) -> list[tuple[str | bytes, bytes]]:
    """Return each message with its bytes."""
    return list(zip(frames, bodies(frames), strict=True))


def base64_of(body: bytes) -> dict[str, str]:
    """Encode bytes in the form of the control endpoint."""
    return {"base64": base64.b64encode(body).decode()}


def relayed(frame: str | bytes) -> Any:
    """Return the object that a frame contains, or None if it is not strict JSON: Python's `json` accepts more."""
    try:
        text = frame.decode() if isinstance(frame, bytes) else frame
        value = json.loads(text, parse_constant=_refuse)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _refuse(word: str) -> None:
    raise ValueError(word)


async def read_page(caller: Caller, session: Json, last: Json) -> list[Json]:
    """Read until an event and return everything since the last read."""
    found: list[Json] = []

    def collect(event: Json) -> bool:
        found.append(event)
        return event == last

    # `any` would stop at the mark, which is the last event.
    await read_until(caller, session, collect)
    return found

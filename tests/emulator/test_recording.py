"""Playing recordings back."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.emulator.faults import Faults
from gateway.emulator.recording import load
from tests.emulator.caller import Caller


def write(path: Path, *lines: str) -> Path:
    """Write a recording."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def received(event: str) -> str:
    """Return a line about something the client received."""
    return f'{{"direction":"received","event":{event}}}'


def sent(kind: str) -> str:
    """Return a line about something the client sent."""
    return f'{{"direction":"sent","event":{{"type":"{kind}"}}}}'


CREATED = '{"type":"session.created", "event_id":"e1","session":{"n":1.0,"t":"\\u00e4"}}'
FIRST = '{"type":"response.output_text.delta","delta":"a  b"}'
LAST = '{"type" : "response.done"}'


def test_events_are_cut_out_as_they_stand(tmp_path: Path) -> None:
    """Spacing, escapes and number forms of an event are preserved."""
    path = write(tmp_path / "r.jsonl", received(CREATED), "", sent("response.create"), received(LAST))

    assert [(step.sent, step.kind, step.text) for step in load(path)] == [
        (False, "session.created", CREATED),
        (True, "response.create", '{"type":"response.create"}'),
        (False, "response.done", LAST),
    ]


def test_line_separators_in_a_text_end_no_line(tmp_path: Path) -> None:
    """Characters such as U+2028 may occur in a string, so only a line feed ends a line of the file."""
    event = '{"type":"x","text":"a\u2028b\u2029c\u0085d"}'

    assert [step.text for step in load(write(tmp_path / "r.jsonl", received(event), sent("y")))] == [
        event,
        '{"type":"y"}',
    ]


def test_members_in_another_order_are_read_too(tmp_path: Path) -> None:
    """A line with `event` as its first member is parsed, and its event is re-encoded."""
    path = write(tmp_path / "r.jsonl", '{"event":{"type":"x"},"direction":"received"}')

    assert load(path)[0].text == '{"type":"x"}'


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", '{"direction":"received"}', '{"direction":"up","event":{"type":"x"}}']
)
def test_line_that_is_none_is_named(line: str, tmp_path: Path) -> None:
    """An invalid line is refused with file and line number."""
    with pytest.raises(ValueError, match=r"r\.jsonl:2"):
        load(write(tmp_path / "r.jsonl", sent("x"), line))


async def test_recording_answers_in_its_own_bytes(
    tmp_path: Path, emulate: Callable[..., Any], call: Callable[..., Any]
) -> None:
    """Each client event of the recorded type continues the recording; others do not."""
    path = write(
        tmp_path / "r.jsonl", received(CREATED), sent("session.update"), received(FIRST), sent("response.create"),
        received(LAST),
    )  # fmt: skip
    caller: Caller = await call(await emulate(recordings=(path,)))
    caller.send({"type": "conversation.item.create", "item": {}})
    caller.send("nonsense")
    caller.send({"type": "session.update", "session": {}})
    await caller.until("response.output_text.delta")
    assert caller.frames == [CREATED, FIRST]
    caller.send({"type": "response.create"})
    await caller.until("response.done")

    assert caller.frames == [CREATED, FIRST, LAST]


async def test_missing_session_created_is_said_all_the_same(
    tmp_path: Path, emulate: Callable[..., Any], call: Callable[..., Any]
) -> None:
    """A recording of a sideband has no `session.created`, but a data channel always begins with it."""
    path = write(tmp_path / "r.jsonl", sent("response.create"), received(LAST))
    caller: Caller = await call(await emulate(recordings=(path,)))
    caller.send({"type": "response.create"})
    await caller.until("response.done")

    assert caller.types == ["session.created", "response.done"]


async def test_recordings_take_turns(
    tmp_path: Path, emulate: Callable[..., Any], call: Callable[..., Any]
) -> None:
    """Each new call gets the next recording, and after the last one the first again."""
    paths = tuple(
        write(tmp_path / f"{n}.jsonl", received(f'{{"type":"session.created","n":{n}}}')) for n in (1, 2)
    )
    emulator = await emulate(recordings=paths)
    callers = [await call(emulator) for _ in range(3)]

    assert [c.events[0]["n"] for c in callers] == [1, 2, 1]


@pytest.mark.parametrize(("after", "deltas"), [(0, 0), (2, 2)])
async def test_call_goes_wrong_in_the_middle_of_a_recording(
    after: int, deltas: int, tmp_path: Path, emulate: Callable[..., Any], call: Callable[..., Any]
) -> None:
    """`fail` and `fail_after_deltas` also apply to a recorded answer."""
    lines = [received('{"type":"response.created"}'), *[received(FIRST)] * 4, received(LAST)]
    path = write(tmp_path / "r.jsonl", received(CREATED), sent("response.create"), *lines)
    faults = Faults(fail="close_channel", fail_after_deltas=after)
    caller: Caller = await call(await emulate(recordings=(path,), faults=faults))
    caller.send({"type": "response.create"})
    await asyncio.wait_for(caller.ended.wait(), 10)

    assert caller.frames.count(FIRST) == deltas
    assert "response.done" not in caller.types


async def test_expiry_is_told_over_a_recording(
    tmp_path: Path, emulate: Callable[..., Any], call: Callable[..., Any]
) -> None:
    """A call that ends while a recording plays still reports the reason."""
    path = write(tmp_path / "r.jsonl", received(CREATED))
    caller: Caller = await call(await emulate(recordings=(path,)))
    await caller.tell("fault", {"do": "expire"})

    assert (await caller.until("error"))["error"]["code"] == "session_expired"


async def test_wrong_recording_refuses_to_start(tmp_path: Path, emulate: Callable[..., Any]) -> None:
    """An emulator does not start with a file that is not a recording."""
    with pytest.raises(ValueError, match="not a line of a recording"):
        await emulate(recordings=(write(tmp_path / "r.jsonl", "x"),))


@pytest.mark.parametrize(
    "name",
    ["text-turn-in-webrtc-call", "tool-call-round", "history-seeding", "audio-turn-in-webrtc-call"],
)
async def test_recorded_sessions_are_served_byte_for_byte(
    name: str, recordings: Path, emulate: Callable[..., Any], call: Callable[..., Any]
) -> None:
    """Each recorded session of the service, replayed by its own client events, arrives as it was recorded."""
    path = recordings / f"{name}.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    caller: Caller = await call(await emulate(recordings=(path,)))
    for line in lines:
        if line["direction"] == "sent":
            caller.send(line["event"])
    expected = [step.text for step in load(path) if not step.sent]
    # A recording of a sideband begins after the session.created with which every channel begins.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while caller.frames[-len(expected) :] != expected:
                await asyncio.sleep(0.005)

    assert caller.frames[-len(expected) :] == expected

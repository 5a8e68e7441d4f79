"""The rule of the mirror: after any prefix of any session, its seed makes a fresh far end hold the same
conversation.

The emulator's own protocol, which knows nothing of the mirror, is used on both sides: one session is used and
followed, another is seeded. The recorded sessions of the service are checked in the same way.
"""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.relay.calls.seeding import Seeding
from gateway.relay.events.envelope import ClientEvent
from gateway.relay.events.records import Accepted
from gateway.relay.requests import Principal
from gateway.relay.state.facts import Opening
from gateway.relay.state.fold import SessionState
from gateway.relay.state.mirror import Mirror, Seed
from tests.emulator.talk import Talk
from tests.relay.fakes import client_event

Json = dict[str, Any]
RECORDINGS = Path(__file__).parents[4] / "shared" / "recordings"
TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}
OWN = ("id", "object", "expires_at")
SESSION: Json = {"type": "realtime", "model": "gpt-realtime", "output_modalities": ["text"]}


def fresh_state() -> SessionState:
    """Return the state of a new session."""
    return SessionState(Opening("gws_1", Principal("ann"), {}, 600, 0.0), json.dumps(SESSION), "e1")


def sent(state: SessionState, number: int, event: ClientEvent) -> None:
    """Record a client's event."""
    state.accept(Accepted(number, [event.text]), [event], 0.0)


def plain(item: Json) -> Json:
    """Reduce an item to its conversation content: audio becomes its transcript."""
    parts = [str(part.get("text") or part.get("transcript") or "") for part in item.get("content") or ()]
    kept = {
        name: item[name]
        for name in ("id", "type", "role", "call_id", "name", "arguments", "output")
        if name in item
    }
    return kept | ({"texts": [text for text in parts if text]} if item["type"] == "message" else {})


class Followed(Talk):
    """A session that is mirrored event by event, with the conversation at each event."""

    def __init__(self) -> None:
        super().__init__(session={"tools": []})
        self.state = fresh_state()
        self.prefixes: list[tuple[Seed, list[Json], Json]] = []
        self._number = 0
        self._added: set[str] = set()

    def send(self, kind: str, **members: Any) -> None:
        self._number += 1
        sent(self.state, self._number, client_event(kind, **members))
        super().send(kind, **members)

    def _hear(self, text: str) -> None:
        super()._hear(text)
        event = json.loads(text)
        kind = event["type"]
        self.state.arrived(kind, event, self.state.head + 1, 0.0)
        if kind in ("conversation.item.added", "conversation.item.done"):
            (self._added.discard if event["item"].get("status") == "in_progress" else self._added.add)(
                event["item"]["id"]
            )
        whole = [plain(item) for item in self.realtime.conversation if item["id"] in self._added]
        told = [item for item in whole if item.get("texts") != []]
        seed = self.state.mirror.seed()
        if not self.prefixes or self.prefixes[-1][0] != seed:
            session = {name: value for name, value in self.realtime.session.items() if name not in OWN}
            self.prefixes.append((seed, told, json.loads(json.dumps(session))))


def replayed(seed: Seed, refusing: Sequence[str] = ()) -> tuple[Seeding, Talk]:
    """Return a fresh session that was seeded, and that takes items with these ids only under other ids."""
    fresh, seeding = Talk(session=dict(seed.session)), Seeding(seed)
    waiting = list(seeding.opening())
    while waiting:
        event = json.loads(waiting.pop(0))
        if event["item"].get("id") in refusing:
            refusal = {"error": {"event_id": event["event_id"]}}
            waiting += seeding.received("error", refusal)
            continue
        at = len(fresh.said)
        fresh.realtime.receive(json.dumps(event))
        for said in fresh.said[at:]:
            waiting += seeding.received(said["type"], said)
    return seeding, fresh


def conversation(fresh: Talk) -> list[Json]:
    """Return the conversation of a session."""
    return [plain(item) for item in fresh.realtime.conversation]


# --- generated sessions -----------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(
    ["My name is Ada.", "What is 2 plus 3?", "Count to 4.", "é 水 🙂", "What is the weather in Rome?"]
)
PLACE = st.integers(0, 12)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("tell"), TEXTS, PLACE, st.sampled_from(["user", "system", "assistant"])),
        st.tuples(st.just("ask"), st.sampled_from(["text", "audio", "aside"])),
        st.tuples(st.just("cancel"), st.integers(0, 3)),
        st.tuples(st.just("delete"), PLACE),
        st.tuples(st.just("truncate"), PLACE),
        st.tuples(st.just("call"), PLACE),
        st.tuples(st.just("output"), PLACE),
        st.tuples(st.just("update"), st.sampled_from(["Be brief.", "Rhyme.", "refused"])),
        st.tuples(st.just("tools"), st.booleans()),
    ),
    max_size=9,
)  # fmt: skip


async def walk(steps: Sequence[tuple[Any, ...]]) -> Followed:
    """Run a whole session."""
    one = Followed()
    try:
        for number, step in enumerate(steps):
            await take(one, number, step)
    finally:
        await one.realtime.close()
    return one


async def take(one: Followed, number: int, step: tuple[Any, ...]) -> None:
    """Take one step of a session."""
    ids = ["root", *(str(item["id"]) for item in one.realtime.conversation), "item_nobody"]
    match step:
        case ("tell", text, place, role):
            own = {"id": f"item_own{place}"} if place % 2 else {}
            behind = {"previous_item_id": ids[place]} if place < len(ids) else {}
            kind = "output_text" if role == "assistant" else "input_text"
            item = {"type": "message", "role": role, "content": [{"type": kind, "text": text}], **own}
            one.send("conversation.item.create", item=item, **behind)
        case ("ask", "aside"):
            await one.respond(conversation="none")
        case ("ask", modality):
            await one.respond(output_modalities=[modality])
        case ("cancel", spins):
            one.send("response.create")
            for _ in range(spins):
                await asyncio.sleep(0)
            one.send("response.cancel")
        case ("delete", place):
            one.send("conversation.item.delete", item_id=ids[place % len(ids)])
        case ("truncate", place):
            one.send(
                "conversation.item.truncate", item_id=ids[place % len(ids)], content_index=0, audio_end_ms=0
            )
        case ("call", place):
            item = {
                "type": "function_call",
                "call_id": f"call_{place}",
                "name": "get_weather",
                "arguments": '{"a":1}',
            }
            one.send("conversation.item.create", item=item)
        case ("output", place):
            item = {"type": "function_call_output", "call_id": f"call_{place}", "output": f"{number} degrees"}
            one.send("conversation.item.create", item=item)
        case ("update", text):
            wrong = {"voice": "nobody"} if text == "refused" else {"instructions": text}
            one.send("session.update", session={"type": "realtime", **wrong})
        case ("tools", given):
            one.send("session.update", session={"type": "realtime", "tools": [TOOL] if given else []})


def orphans(told: Sequence[Json], refused: Sequence[str]) -> tuple[set[str], set[str]]:
    """Return the items that a far end refuses at first, and those that it always refuses: outputs without a call
    before them."""
    calls: set[str] = set()
    again, lost = set(refused), set()
    for item in told:
        if item["type"] == "function_call_output" and item["call_id"] not in calls:
            again.add(item["id"])
        elif item["type"] == "function_call" and item["id"] not in refused:
            calls.add(item["call_id"])
    for item in (item for item in told if item["id"] in again):
        if item["type"] == "function_call":
            calls.add(item["call_id"])
        elif item["type"] == "function_call_output" and item["call_id"] not in calls:
            lost.add(item["id"])
    return again, lost


def check(one: Followed, refusing: bool) -> None:
    """Compare every prefix with a fresh session made from its seed."""
    for seed, told, session in one.prefixes:
        refused = [item["id"] for item in told[::2]] if refusing else []
        seeding, fresh = replayed(seed, refused)
        again, lost = orphans(told, refused)
        kept = [item for item in told if item["id"] not in lost]
        expected = [item | {"id": seeding.renamed.get(item["id"], item["id"])} for item in kept]

        assert seeding.done
        # An output whose call is gone is not seeded at all, so nothing is refused for good.
        assert seeding.refused == set()
        assert not lost & {item["id"] for item in seed.items}
        assert seeding.renamed.keys() == again - lost
        assert conversation(fresh) == expected
        assert {name: value for name, value in fresh.realtime.session.items() if name not in OWN} == session


@given(STEPS, st.booleans())
@settings(max_examples=20)
def test_any_prefix_of_any_session_is_restored(steps: list[tuple[Any, ...]], refusing: bool) -> None:
    """Items, order, ids, text, calls, outputs and configuration are restored, also if ids must change."""
    check(asyncio.run(walk(steps)), refusing)


@pytest.mark.slow
@given(STEPS, st.booleans())
@settings(max_examples=400)
def test_any_prefix_of_very_many_sessions_is_restored(steps: list[tuple[Any, ...]], refusing: bool) -> None:
    """The same holds for so many sessions that every pair of steps occurs."""
    check(asyncio.run(walk(steps)), refusing)


async def test_the_sessions_hold_what_they_are_to_test() -> None:
    """The steps include truncations, deletions, calls by the model, cancelled responses and actual refusals."""
    one = await walk(
        [
            ("tools", True),
            ("tell", "What is the weather in Rome?", 20, "user"),
            ("ask", "text"),
            ("tell", "Count to 4.", 21, "user"),
            ("ask", "audio"),
            *(("truncate", place) for place in range(7)),
            ("delete", 1),
            ("delete", 99),
            ("cancel", 2),
        ]
    )
    check(one, refusing=True)

    assert {"conversation.item.truncated", "conversation.item.deleted", "error"} <= set(one.types)
    assert "function_call" in [item["type"] for _, told, _ in one.prefixes for item in told]
    assert "cancelled" in [e["response"]["status"] for e in one.said if e["type"] == "response.done"]


def test_an_item_that_utf8_cannot_carry_is_kept() -> None:
    """Half of a surrogate pair, which JSON can contain, is restored, and so is a number of any size."""
    mirror = Mirror("{}")
    content = [{"type": "input_text", "text": "\ud83d"}]
    item = {"id": "a", "type": "message", "role": "user", "content": content, "size": 10**30}
    mirror.received("conversation.item.added", {"item": item})

    assert mirror.seed().items == [{"id": "a", "type": "message", "role": "user", "content": content}]
    assert Mirror.load(mirror.dump()).size == mirror.size


# --- recorded sessions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("text-turn-in-webrtc-call", 1),
        ("audio-turn-in-webrtc-call", 1),
        ("history-seeding", 1),
        ("tool-call-round", 2),
    ],
)
async def test_any_prefix_of_a_recorded_session_is_restored(name: str, turns: int) -> None:
    """A fresh session holds what the service reported as done, in the order in which it was begun."""
    path = RECORDINGS / f"{name}.jsonl"
    if not path.exists():
        pytest.skip("the recorded sessions lie outside the repository, and not here")
    state, begun, finished, responses = fresh_state(), list[str](), dict[str, Json](), 0
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        one = json.loads(line)
        event = one["event"]
        kind = event["type"]
        if one["direction"] == "sent":
            sent(state, number, client_event(**event))
            continue
        state.arrived(kind, event, state.head + 1, 0.0)
        if kind == "conversation.item.added":
            begun.append(event["item"]["id"])
        if (
            kind in ("conversation.item.added", "conversation.item.done")
            and event["item"].get("status") != "in_progress"
        ):
            finished[event["item"]["id"]] = plain(event["item"])
        responses += kind == "response.done"
        _, fresh = replayed(state.mirror.seed())

        assert conversation(fresh) == [finished[item_id] for item_id in begun if item_id in finished]

    assert (responses, state.ledger.in_flight, state.cut) == (turns, [], False)

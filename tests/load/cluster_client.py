"""The model client of the cluster's load programs: `chaos_client.Life` through any node, in any rendering, and text turns.

Each request goes to a node drawn at random, as round robin without stickiness does.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from gateway.client import BlockParser
from tests.e2e.caller import DEADLINE_SECONDS, Caller, Json, Read, number
from tests.load.chaos_client import NETWORK, RETRY_SECONDS, STILL_SECONDS, Life

WAYS: Final = ("sse", "ndjson", "poll", "turns")
ANSWERS: Final = ("text/plain", "text/event-stream", "application/x-ndjson", "application/json")
STREAM_ONLY: Final = frozenset({"gateway.rotating", "gateway.superseded"})
ASIDES: Final = frozenset({"gateway.open", "gateway.ping", "gateway.gap", "gateway.error"})
POLL_SECONDS: Final = 5


class Voices:
    """The text of each ID, as read through any node."""

    def __init__(self) -> None:
        self.said: dict[tuple[str, str], int] = {}
        self.twice: list[str] = []

    def hear(self, session_id: str, block: Read) -> None:
        """Record an event; an ID with two texts is a violation."""
        if block.id is None or block.type in STREAM_ONLY | ASIDES:
            return
        text = hash(block.text)
        if self.said.setdefault((session_id, block.id), text) != text:
            self.twice.append(f"{session_id} {block.id}: {block.text[:200]}")


class AnyNode(Caller):
    """A caller that draws a node for each request. The list may change during a run."""

    def __init__(self, urls: list[str]) -> None:
        super().__init__("")
        self.urls = urls
        self.statuses: Counter[str] = Counter()
        self.connections = 0
        self.cut: list[str] = []
        """Responses that broke off after their head."""

    async def ask(
        self, method: str, path: str, body: Any = None, **options: Any
    ) -> tuple[aiohttp.ClientResponse, Any]:
        """See `Caller.ask`."""
        self.url = random.choice(self.urls)
        try:
            answer, said = await super().ask(method, path, body, **options)
        except aiohttp.ClientPayloadError:
            self.cut.append(f"{method} {path.rsplit('/', 1)[-1]}")
            raise
        code = said.get("code", "") if isinstance(said, dict) and answer.status >= 400 else ""
        self.statuses[f"{answer.status} {code}".strip()] += 1
        return answer, said

    async def blocks(
        self, session_id: str, after: str, way: str, silence: float = 2 * DEADLINE_SECONDS
    ) -> AsyncGenerator[Read, None]:
        """Yield the events of one response in one rendering."""
        forms = {"sse": "text/event-stream", "ndjson": "application/x-ndjson", "poll": "application/json"}
        url = f"{random.choice(self.urls)}/v1/sessions/{session_id}/events"
        query = {"after": after} | ({"wait": str(POLL_SECONDS)} if way == "poll" else {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=2, sock_read=silence)
        headers = {"Accept": forms[way]}
        async with self.http.get(url, headers=headers, params=query, timeout=timeout) as answer:
            if answer.status != 200:
                code = (await answer.json())["code"] if answer.status > 204 else ""
                self.statuses[f"{answer.status} {code} stream"] += 1
                if code == "cursor-expired":
                    yield read_block({"id": None, "event": {**await answer.json(), "type": "gateway.gap"}})
                return
            self.statuses["200 stream"] += 1
            self.connections += 1
            try:
                if way == "poll":
                    for one in (await answer.json())["events"]:
                        yield read_block(one)
                elif way == "ndjson":
                    async for line in answer.content:
                        if line.strip():
                            yield read_block(json.loads(line))
                else:
                    async for block in sse(answer):
                        yield block
            except aiohttp.ClientPayloadError:
                self.cut.append(f"{way} stream")
                raise


async def sse(answer: aiohttp.ClientResponse) -> AsyncGenerator[Read, None]:
    """Yield the events of an event stream."""
    parser = BlockParser()
    async for chunk in answer.content.iter_any():
        for block in parser.feed(chunk):
            if block.data is not None:
                yield read_block({"id": block.id, "event": json.loads(block.data)})


def read_block(one: Json) -> Read:
    """Return an event of the JSON renderings."""
    return Read(one["id"], one["event"]["type"], json.dumps(one["event"], sort_keys=True))


@dataclass(slots=True)
class NodesLife(Life):
    """A session read in one rendering through any node."""

    way: str = "sse"
    told: bool = False
    """Losses are allowed if they are told: `gateway.gap`, and a lower `accepted` in `gateway.recovered`."""
    gaps: int = 0
    undone: int = 0
    """Accepted events which a gateway.recovered said are not among the accepted."""
    ids: set[str] = field(default_factory=set)
    epochs: dict[int, str] = field(default_factory=dict)
    """The epoch in the receipt of each accepted event, by its number."""
    undone_after: set[int] = field(default_factory=set)
    """The numbers in gateway.recovering, and below, those that receipts showed."""
    presumed: set[int] = field(default_factory=set)
    former: set[str] = field(default_factory=set)
    """The epochs of the events read so far."""
    voices: Voices = field(default_factory=Voices)

    async def _read(self) -> None:
        caller = self.caller
        assert isinstance(caller, AnyNode)
        while not self.closed:
            with suppress(*NETWORK, AssertionError, json.JSONDecodeError):
                async with aclosing(caller.blocks(self.session_id, self.last, self.way)) as blocks:
                    async for block in blocks:
                        self._take(block)
            await asyncio.sleep(0.05)

    def _take(self, block: Read) -> None:
        kind = block.type
        if kind in STREAM_ONLY:
            return
        self.voices.hear(self.session_id, block)
        if self.told and block.id is not None and kind not in ASIDES:
            if block.id in self.ids:  # read again after a gap
                self.head, self.last = number(block.id), block.id
                return
            self.ids.add(block.id)
        if self.told and kind == "gateway.gap":
            # On from the oldest event, whether or not this rendering gives the gap an ID.
            self.gaps += 1
            oldest = str(block.value["oldest"])
            self.head, self.last = number(oldest) - 1, "earliest" if block.id is None else block.id
            return
        if (
            self.told and kind == "gateway.recovering" and "accepted" in block.value
        ):  # of a lost node, not of a call
            self.undone_after.add(int(block.value["accepted"]))
            self._forget_after(int(block.value["accepted"]))
        if block.id is not None and kind not in ASIDES:
            self.former.add(block.id.split("-")[0])
        Life._take(self, block)  # super() fails in a dataclass with slots

    def _forget_after(self, accepted: int, *, every: bool = False) -> None:
        """Drop accepted events that the gateway reports as lost: those whose receipts are of earlier epochs than the
        one that reports it, or `every` one. Events that were already reported stay so."""
        for name, place in list(self.accepted.items()):
            if place > accepted and (every or self.epochs.get(place) in self.former):
                del self.accepted[name]
                self.waiting.pop(name, None)
                self.undone += 1

    def _numbered(self, receipt: Json, count: int) -> None:
        if self.told and receipt["first"] <= len(self.accepted):
            # This is reported in gateway.recovering, which may be read after the receipt.
            self.presumed.add(receipt["first"] - 1)
            self._forget_after(receipt["first"] - 1, every=True)
        epoch = str(receipt["head"]).split("-")[0]
        self.epochs |= dict.fromkeys(range(receipt["first"], receipt["last"] + 1), epoch)
        Life._numbered(self, receipt, count)

    def _judge(self) -> None:
        for accepted in self.presumed - self.undone_after:
            self.fault(f"no gateway.recovering said that {accepted} events are accepted, as a receipt did")
        Life._judge(self)


@dataclass(slots=True)
class TurnsLife(NodesLife):
    """A session of text turns, each in a rendering drawn at random, repeated under its key until it is complete."""

    way: str = "sse"
    turns: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Turns that ended in an error that was told."""

    async def _send(self, turn: int) -> None:
        key = {"Idempotency-Key": f"turn-{self.label}-{turn}-{random.getrandbits(64):016x}"}
        body = f"Count to {random.randint(5, 30)}."
        deadline = time.monotonic() + STILL_SECONDS
        accept = random.choice(ANSWERS)
        while time.monotonic() < deadline:
            try:
                text = await self._ask(body, accept, key)
            except NETWORK:
                accept = "application/json"
            else:
                if text is not None:
                    self.turns += 1
                    return
                self.count.retried += 1
            await asyncio.sleep(RETRY_SECONDS)
        self.count.still.append(f"{self.label} {self.session_id}: a turn was never done")

    async def _ask(self, body: str, accept: str, key: Json) -> str | None:
        """Ask once. Return None if it must be repeated."""
        path = f"/v1/sessions/{self.session_id}/turns"
        headers = {"Content-Type": "text/plain", "Accept": accept, **key}
        answer, said = await self.caller.ask("POST", path, body, headers=headers)
        if answer.status in (502, 504):
            self.failed[str(said.get("code"))] += 1
            return ""
        if answer.status in (404, 410):
            self.fault(f"a turn: {answer.status} {said}")
            self.closed = True
            return ""
        if answer.status != 200:
            assert answer.status in (409, 429, 503), f"a turn: {answer.status} {said}"
            return None
        text = _text(said, accept)
        if text is None:
            return None
        if accept != "application/json":
            again, whole = await self.caller.ask(
                "POST", path, body, headers={**headers, "Accept": "application/json"}
            )
            if again.status == 200 and whole["status"] == "completed" and whole["output_text"] != text:
                self.fault(f"a turn said {text!r} as {accept}, and {whole['output_text']!r} as JSON")
        elif said["status"] != "completed":
            self.failed[said["status"]] += 1
        return text


def _text(said: Any, accept: str) -> str | None:
    """Return the text of a complete turn, None if it is not complete."""
    if accept == "application/json":
        return str(said["output_text"])
    text = said.decode() if isinstance(said, bytes) else str(said)
    if accept == "text/plain":
        return text
    if accept == "text/event-stream":
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        events = [json.loads(line) for line in lines]
    else:
        events = [json.loads(line)["event"] for line in text.splitlines() if line.strip()]
    if not any(event["type"] == "response.done" for event in events):
        return None
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def lives(way: str) -> Callable[..., NodesLife]:
    """Return a function that makes the session of one way."""
    return TurnsLife if way == "turns" else NodesLife

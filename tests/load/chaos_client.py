"""The model of a client that chaos compares with: it knows every event ID it saw and every event that was accepted.

It repeats each request under one idempotency key until it is done, and resumes its stream with the last ID it saw.
Each accepted event must be reported exactly once: confirmed by the far end, or named as unknown, refused, unsent or
wrong.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import aiohttp

from tests.e2e.caller import Caller, Json, Read, number

# A session has 60 s to find a new call, which has 60 s to take the conversation. If an accepted event is not reported for
# longer than that, the session stands still.
STILL_SECONDS = 150.0
# Sessions are closed and opened again, so that conversations and their recoveries stay short.
SHORTEST_LIFE_SECONDS, LONGEST_LIFE_SECONDS = 60.0, 180.0
LONGEST_PAUSE_SECONDS = 1.0
RETRY_SECONDS = 0.5
NETWORK = (aiohttp.ClientError, TimeoutError, ConnectionError)


@dataclass(slots=True)
class Count:
    """The sums over all sessions of a run."""

    opened: int = 0
    accepted: int = 0
    delivered: int = 0
    named: int = 0
    read: int = 0
    retried: int = 0
    faults: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    still: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Life:
    """One session from its create to its end, and the model of its client."""

    caller: Caller
    label: str
    count: Count
    pause: float = LONGEST_PAUSE_SECONDS
    until: float = float("inf")
    """When it ends at the latest, whatever `run` was told."""
    session_id: str = ""
    last: str = "earliest"
    head: int = 0
    accepted: dict[str, int] = field(default_factory=dict)
    """Event IDs in order of acceptance, and their numbers."""
    waiting: dict[str, float] = field(default_factory=dict)
    """Accepted events of which nothing was heard yet, and since when."""
    outcomes: Counter[str] = field(default_factory=Counter)
    closed: bool = False
    reading_failed: str = ""

    def fault(self, what: str) -> None:
        """Record a violation."""
        self.count.faults.append(f"{self.label} {self.session_id}: {what}")

    async def run(self, until: float) -> None:
        """Open a session, use it until the given time, wait for a report about everything, and close it."""
        self.session_id = (await self._insist("POST", "/v1/sessions", {}, 201))["id"]
        self.count.opened += 1
        reading = asyncio.create_task(self._read())
        try:
            for turn in itertools.count():
                if (
                    time.monotonic() > min(until, self.until)
                    or self.closed
                    or self._still()
                    or reading.done()
                ):
                    break
                await self._send(turn)
                await asyncio.sleep(random.uniform(0, self.pause))
            while self.waiting and not self.closed and not self._still() and not reading.done():
                await asyncio.sleep(0.2)
        finally:
            if reading.done() and not self.closed:
                self.fault(f"the reader ended: {reading.exception()!r}")
            reading.cancel()
            await asyncio.wait({reading})
        self._judge()
        if not self.closed:
            await self._insist("DELETE", f"/v1/sessions/{self.session_id}", None, 204)

    def _still(self) -> bool:
        return bool(self.waiting) and time.monotonic() - next(iter(self.waiting.values())) > STILL_SECONDS

    async def _send(self, turn: int) -> None:
        """Send a few items; every fourth time, ask for an answer to them."""
        kinds = ["item"] * random.randint(1, 3) + ["ask"] * (turn % 4 == 3)
        events = [made(kind, f"{self.label}_{turn}_{at}") for at, kind in enumerate(kinds)]
        path = f"/v1/sessions/{self.session_id}/events"
        receipt = await self._insist("POST", path, events, 202)
        if not receipt:
            return
        self._numbered(receipt, len(events))
        first = len(self.accepted) + 1
        for at, event in enumerate(events):
            name = str(event["event_id"])
            self.accepted[name] = first + at
            if not self.outcomes[name]:  # the report may come before the receipt
                self.waiting[name] = time.monotonic()

    def _numbered(self, receipt: Json, count: int) -> None:
        """Compare a receipt's numbers with those of the events accepted so far."""
        first = len(self.accepted) + 1
        if (receipt["first"], receipt["last"]) != (first, first + count - 1):
            self.fault(f"accepted {receipt} after {first - 1}")

    async def _insist(self, method: str, path: str, body: object, status: int) -> Json:
        """Repeat a request under one key until it is done; return an empty answer once the session is gone."""
        headers = {"Idempotency-Key": f"chaos-{random.getrandbits(128):032x}"} if method == "POST" else {}
        deadline = time.monotonic() + STILL_SECONDS
        said: object = "nothing"
        while time.monotonic() < deadline:
            try:
                answer, said = await self.caller.ask(method, path, body, headers=headers)
            except NETWORK as error:
                said = repr(error)
            else:
                if answer.status == status:
                    return said if isinstance(said, dict) else {}
                if answer.status in (404, 410):
                    if not self.closed and method == "POST":
                        self.fault(f"{method} {path}: {answer.status} {said}")
                    self.closed = True
                    return {}
                if answer.status not in (409, 429, 502, 503, 504):
                    raise AssertionError(f"{method} {path}: {answer.status} {said!r}")
            self.count.retried += 1
            await asyncio.sleep(RETRY_SECONDS)
        self.count.still.append(f"{self.label} {self.session_id}: {method} {path} was never done: {said!r}")
        raise TimeoutError(f"{method} {path}")

    async def _read(self) -> None:
        while not self.closed:
            with suppress(*NETWORK, AssertionError):
                async with aclosing(self.caller.stream(self.session_id, after=self.last)) as blocks:
                    async for block in blocks:
                        self._take(block)
            await asyncio.sleep(RETRY_SECONDS)

    def _take(self, block: Read) -> None:
        value = block.value
        kind = value["type"]
        if kind == "gateway.gap":
            self.fault(f"a gap: {value}")
        if kind in ("gateway.open", "gateway.ping", "gateway.gap", "gateway.error"):
            return
        self.count.read += 1
        if number(block.id) != self.head + 1:
            self.fault(f"{block.id} ({kind}) was read after {self.head}")
        self.head, self.last = number(block.id), str(block.id)
        match kind:
            case "conversation.item.added":
                self._heard(value["item"]["id"], "delivered")
            case "response.created":
                self._heard((value["response"].get("metadata") or {}).get("ask"), "delivered")
            case "error":
                self._heard(value["error"].get("event_id"), "named")
            case "gateway.recovered" | "gateway.closed":
                for one in (*value["unknown"], *value.get("refused", ()), *value.get("unsent", ())):
                    self._heard(one["event_id"], "named")
        if kind == "gateway.closed":
            self.closed = True
            told = {name: value[name] for name in ("reason", "upstream")}
            self.count.ended.append(f"{self.label} {self.session_id} ended by itself: {told}")

    def _heard(self, name: str | None, outcome: str) -> None:
        if name is None or not name.startswith(self.label):
            return
        self.outcomes[name] += 1
        self.waiting.pop(name, None)
        if outcome == "delivered":
            self.count.delivered += 1
        else:
            self.count.named += 1
        if self.outcomes[name] > 1:
            self.fault(f"{name} was heard of {self.outcomes[name]} times, now as {outcome}")

    def _judge(self) -> None:
        self.count.accepted += len(self.accepted)
        lost = [name for name in self.accepted if not self.outcomes[name]]
        if lost and self._still():
            self.count.still.append(f"{self.label} {self.session_id}: nothing heard of {lost[:5]}")
        if lost:
            self.fault(f"{len(lost)} of {len(self.accepted)} lost without being told: {lost[:5]}")


def made(kind: str, name: str) -> Json:
    """Return an item with an ID, or a request for a response that can be identified."""
    if kind == "ask":
        shape = {"metadata": {"ask": name}}
        return {"type": "response.create", "event_id": name, "response": shape}
    content = [{"type": "input_text", "text": f"Count to {random.randint(5, 30)}."}]
    item = {"id": name, "type": "message", "role": "user", "content": content}
    return {"type": "conversation.item.create", "event_id": name, "item": item}


async def talk(caller: Caller, session: int, count: Count, until: float) -> None:
    """Run one session after another."""
    for life in itertools.count():
        now = time.monotonic()
        if now >= until:
            return
        ends = min(until, now + random.uniform(SHORTEST_LIFE_SECONDS, LONGEST_LIFE_SECONDS))
        one = Life(caller, f"c{session}l{life}", count)
        try:
            await one.run(ends)
        except Exception as error:  # noqa: BLE001  # whatever it is, the others continue and the count says it
            one.fault(f"{type(error).__name__}: {error}")

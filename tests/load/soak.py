"""Holds conversations across many planned hand-overs and counts: `python -m tests.load.soak`.

Not collected by pytest, because it takes ten minutes. Calls end after a minute at the far end, so every session is
handed over about thirteen times while it is used. Each session is read over one SSE connection from beginning to
end, and each of its events has its own IDs, so that a lost or doubled event is found, on the client's side and at
the last call, which is asked for every item. The exit status is 1 if anything was lost, doubled or broken.
"""

# ruff: noqa: T201  # a command prints its result

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.caller import Caller, Json, Read, number
from tests.farend import FarEnd
from tests.programs import Served

NAMES = "Ada Bela Cleo Dora Emil Fritz Greta Hugo Ines Jakob Karla Leon Mira Nils Olga Paul Rosa Sven Tilda Uwe".split()
LONGEST_PAUSE_SECONDS = 2.0
TURN_SECONDS = 30.0


@dataclass(slots=True)
class Talk:
    """One session and its counts."""

    caller: Caller
    number: int
    session_id: str = ""
    reads: list[Read] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    items: list[str] = field(default_factory=list)
    turns: int = 0
    accepted: int = 0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return NAMES[self.number % len(NAMES)]

    def fault(self, what: str) -> None:
        """Record a violation."""
        self.faults.append(f"session {self.number}: {what}")

    async def run(self, until: float) -> None:
        """Use the session until the given time while reading it, and compare the two."""
        self.session_id = (await self.caller.open())["id"]
        reading = asyncio.create_task(self._read())
        try:
            await self._turn(f"My name is {self.name}.", "")
            while time.monotonic() < until and not self.faults:
                await asyncio.sleep(random.uniform(0, LONGEST_PAUSE_SECONDS))
                await self._turn(*self._question())
            await self._look_back()
        except Exception as error:  # noqa: BLE001  # whatever it is, the others continue and the count says it
            self.fault(f"{type(error).__name__}: {error}")
        if reading.done():
            self.fault("the stream broke")
        reading.cancel()
        await asyncio.wait({reading})
        self._judge()

    def _question(self) -> tuple[str, str]:
        match self.turns % 4:
            case 0:
                return "Count to 30.", "30"
            case 1:
                return f"What is {self.turns} plus {self.number}?", str(self.turns + self.number)
            case _:
                return "What is my name?", self.name

    async def _turn(self, text: str, expected: str) -> None:
        self.turns += 1
        item_id, event_id = f"soak_{self.number}_{self.turns}", f"ask_{self.number}_{self.turns}"
        content = [{"type": "input_text", "text": text}]
        item = {"id": item_id, "type": "message", "role": "user", "content": content}
        self.items.append(item_id)
        seen, began = len(self.reads), time.monotonic()
        await self._send(
            {
                "type": "conversation.item.create",
                "event_id": f"tell_{self.number}_{self.turns}",
                "item": item,
            },
            {"type": "response.create", "event_id": event_id},
        )
        done = await self._next("response.done", seen)
        self.slowest = max(self.slowest, time.monotonic() - began)
        response = done["response"]
        answer = json.dumps(response["output"])
        if response["status"] != "completed" or expected not in answer.replace(",", ""):
            self.fault(f"turn {self.turns} ended {response['status']} without {expected!r}: {answer}")

    async def _look_back(self) -> None:
        """Ask the last call for the items of all calls."""
        for item_id in self.items:
            seen = len(self.reads)
            await self._send({"type": "conversation.item.retrieve", "item_id": item_id})
            await self._next("conversation.item.retrieved", seen)

    async def _send(self, *events: Json) -> None:
        receipt = await self.caller.send(self.session_id, *events)
        if (receipt["first"], receipt["last"]) != (self.accepted + 1, self.accepted + len(events)):
            self.fault(f"accepted {receipt} after {self.accepted}")
        self.accepted += len(events)

    async def _next(self, kind: str, seen: int) -> Json:
        async with asyncio.timeout(TURN_SECONDS):
            while True:
                for read in self.reads[seen:]:
                    if read.type == kind:
                        return read.value
                seen = len(self.reads)
                self.news.clear()
                await self.news.wait()

    async def _read(self) -> None:
        blocks = self.caller.stream(self.session_id, after="earliest", max_age="3600")
        async with aclosing(blocks):
            async for block in blocks:
                if block.type not in ("gateway.open", "gateway.ping"):
                    self.reads.append(block)
                    self.news.set()

    def _judge(self) -> None:
        numbers = [number(read.id) for read in self.reads]
        if numbers != list(range(1, len(numbers) + 1)):
            self.fault("the stream's ids are not dense")
        values = [read.value for read in self.reads]
        told = Counter(v["item"]["id"] for v in values if v["type"] == "conversation.item.added")
        wrong = {item_id: told[item_id] for item_id in self.items if told[item_id] != 1}
        if wrong:
            self.fault(f"items told otherwise than once: {wrong}")
        answered = sum(v["type"] == "response.done" for v in values)
        if answered != self.turns:
            self.fault(f"{answered} answers to {self.turns} questions")
        for value in values:
            if value["type"] in ("error", "gateway.recovering", "gateway.expiring", "gateway.closed"):
                self.fault(f"the client saw {value}")
            if value["type"] == "gateway.recovered" and (
                value["cause"] != "rotation" or value["items_lost"] or value["unknown"] or value["response"]
            ):
                self.fault(f"the client saw {value}")

    @property
    def handed_over(self) -> int:
        return sum(read.type == "gateway.recovered" for read in self.reads)


@asynccontextmanager
async def relay(folder: Path, *flags: str) -> AsyncIterator[Caller]:
    """Run a far end whose calls end after a minute, and a gateway, each in its own process."""
    with (
        FarEnd(folder / "far-end", *flags) as far_end,
        Served(folder / "gateway", far_end.base_url, environ={"GATEWAY_LOG__ACCESS": "false"}) as gateway,
    ):
        async with Caller(gateway.url) as caller:
            yield caller


async def soak(minutes: float, sessions: int, call_seconds: int) -> int:
    """Run for this long; print the counts."""
    flags = ("--max-session-seconds", str(call_seconds), "--tokens-per-second", "50")
    with tempfile.TemporaryDirectory() as folder:
        async with relay(Path(folder), *flags) as caller:
            until = time.monotonic() + minutes * 60
            talks = [Talk(caller, at) for at in range(sessions)]
            await asyncio.gather(*(talk.run(until) for talk in talks))
    handed: list[int] = [talk.handed_over for talk in talks]
    faults: list[Any] = [fault for talk in talks for fault in talk.faults]
    print(f"{sessions} sessions talked for {minutes:g} minutes over calls of {call_seconds} s")
    print(f"hand-overs: {sum(handed)}, of one session {min(handed)} to {max(handed)}")
    print(f"turns: {sum(t.turns for t in talks)}, slowest {max(t.slowest for t in talks):.2f} s")
    print(f"events accepted: {sum(t.accepted for t in talks)}, read: {sum(len(t.reads) for t in talks)}")
    print(f"lost, doubled or broken: {len(faults)}")
    for fault in faults:
        print(f"  {fault}")
    return 1 if faults else 0


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--call-seconds", type=int, default=60)
    given = parser.parse_args()
    return asyncio.run(soak(given.minutes, given.sessions, given.call_seconds))


if __name__ == "__main__":
    sys.exit(main())

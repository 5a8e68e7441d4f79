"""Serves a recorded session back instead of answering.

It does not interpret the events. A recording is JSON lines, `{"direction":"sent"|"received","event":{…}}`. The events that the
client received before it sent its first event are sent when the channel opens. Each client event of the type that was recorded
next continues the recording up to its next `sent`. Events are sent byte for byte as in the file, deltas at the set pace. Client
events of another type than the expected one are recorded by the call and otherwise ignored. After the end of the recording
nothing is sent. Faults that change the content of a response (`response_error`, `rate_limits`, `garbage` …) have no effect
here; the others do.
"""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.emulator.faults import Faults
from gateway.emulator.protocol import events
from gateway.emulator.protocol.errors import Refusal
from gateway.emulator.protocol.ids import IdSource
from gateway.emulator.protocol.pacing import Pacer
from gateway.emulator.protocol.writing import Line

_EVENT = '"event":'


@dataclass(frozen=True, slots=True)
class Step:
    """One event of a recording: its type, its bytes, and who sent it."""

    sent: bool
    kind: str
    text: str


def load(path: Path) -> tuple[Step, ...]:
    """Read a recording; raises ValueError naming the malformed line."""
    steps = []
    # Not splitlines: U+2028 and others may occur in a text, and Python would split there, unlike JSON lines.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            direction, event = entry["direction"], entry["event"]
            kind = str(event["type"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}:{number} is not a line of a recording") from None
        if direction not in ("sent", "received"):
            raise ValueError(f"{path}:{number} has direction '{direction}', not 'sent' or 'received'")
        steps.append(Step(direction == "sent", kind, _verbatim(line, event)))
    return tuple(steps)


def _verbatim(line: str, event: Any) -> str:
    """Cut the event out of its line, so that spacing and escapes are unchanged."""
    text = line[line.index(_EVENT) + len(_EVENT) :].strip().removesuffix("}").strip()
    try:
        if json.loads(text) == event:
            return text
    except ValueError:
        pass
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))


class Playback:
    """A recording in place of the protocol of a call."""

    def __init__(
        self,
        steps: tuple[Step, ...],
        *,
        session: dict[str, Any],
        ids: IdSource,
        line: Line,
        tokens_per_second: float,
        faults: Faults,
    ) -> None:
        self.faults = faults
        self._steps = steps
        self._session = session
        self._ids = ids
        self._line = line
        self._rate = tokens_per_second
        self._deltas = 0
        self._waiting: list[str] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def opened(self) -> None:
        """Begin; recordings made through a sideband lack the `session.created` that began the channel."""
        if not any(step.kind == "session.created" for step in self._steps[:1]):
            self._say({"type": "session.created", "session": self._session})
        self._task = asyncio.create_task(self._play())

    def receive(self, frame: str | bytes) -> None:
        """Note the type of a client event."""
        try:
            kind = events.parse(frame).get("type")
        except Refusal:
            return
        # Bounded by the recording: events beyond its steps have no effect.
        if isinstance(kind, str) and len(self._waiting) <= len(self._steps):
            self._waiting.append(kind)
            self._wake.set()

    def refuse(self, refusal: Refusal, client_id: str | None = None) -> None:
        """Send an error that belongs to the call, not to the recording."""
        self._say(refusal.event(client_id))

    async def close(self) -> None:
        """Stop playing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _play(self) -> None:
        pacer = Pacer(self._rate, self.faults)
        for step in self._steps:
            if step.sent:
                await self._expect(step.kind)
                pacer = Pacer(self._rate, self.faults)
                continue
            if step.kind.endswith(".delta"):
                await pacer.next()
            await self._line.writable()
            self._line.send(step.text)
            self._go_wrong(step.kind)

    def _go_wrong(self, kind: str) -> None:
        faults, delta = self.faults, kind.endswith(".delta")
        self._deltas += delta
        begins = kind == "response.created" and faults.fail_after_deltas == 0
        if faults.fail is not None and (begins or (delta and self._deltas == faults.fail_after_deltas)):
            self._line.fail(faults.fail)

    async def _expect(self, kind: str) -> None:
        while True:
            while self._waiting:
                if self._waiting.pop(0) == kind:
                    return
            self._wake.clear()
            await self._wake.wait()

    def _say(self, event: dict[str, Any]) -> None:
        body = {"type": event["type"], "event_id": self._ids.event(), **event}
        self._line.send(json.dumps(body, ensure_ascii=False, separators=(",", ":")))

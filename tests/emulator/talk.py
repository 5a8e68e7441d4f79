"""A session of the emulator without a network: its input and output as lists."""

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

from gateway.emulator.brain.rules import RuleBrain
from gateway.emulator.faults import Faults
from gateway.emulator.protocol.brain import Brain
from gateway.emulator.protocol.ids import IdSource
from gateway.emulator.protocol.mcp import DEMO, McpServers
from gateway.emulator.protocol.realtime import Realtime
from gateway.emulator.protocol.session import new_session
from gateway.emulator.protocol.writing import Line, Manner

Json = dict[str, Any]


def pcm(*parts: tuple[int, int]) -> str:
    """Return base64 PCM16 at 24 kHz of parts (milliseconds, amplitude): a square wave, or silence."""
    wave = b"".join(
        (amplitude.to_bytes(2, "little", signed=True) + (-amplitude).to_bytes(2, "little", signed=True))
        * (12 * ms)
        for ms, amplitude in parts
    )
    return base64.b64encode(wave).decode("ascii")


# Half a second of sound between silence.
SPEECH = pcm((100, 0), (500, 8000), (600, 0))
DEADLINE_SECONDS = 30.0


async def _room() -> None:
    await asyncio.sleep(0)


class Talk:
    """One session; `said` has all events it sent, `failures` the faults that were triggered."""

    def __init__(
        self,
        *,
        brain: Brain | None = None,
        faults: Faults | None = None,
        rate: float = 0,
        session: Json | None = None,
        quirk: bool = True,
        hear: Callable[[float], str] = lambda seconds: f"I spoke for {seconds:.1f} seconds.",
        mcp_servers: McpServers = DEMO,
        carries_audio: bool = False,
    ) -> None:
        self.frames: list[bytes] = []
        self.failures: list[str] = []
        self._news = asyncio.Event()
        given = {"type": "realtime", "model": "gpt-realtime", "output_modalities": ["text"]} | (session or {})
        if given["type"] == "transcription":
            given = session or {}
        self.realtime = Realtime(
            session=new_session("sess_u1_test", 2_000_000_000, given),
            ids=IdSource(),
            line=Line(self._hear, self._hear_frame, _room, self.failures.append),
            brain=brain or RuleBrain(),
            manner=Manner(rate, quirk, hear, mcp_servers, carries_audio),
            faults=faults or Faults(),
        )

    @property
    def said(self) -> list[Json]:
        events = []
        for frame in self.frames:
            try:
                event = json.loads(frame)
            except ValueError:
                continue
            if isinstance(event, dict):
                events.append(event)
        return events

    @property
    def types(self) -> list[str]:
        return [str(event["type"]) for event in self.said]

    def last(self, kind: str) -> Json:
        return next(event for event in reversed(self.said) if event["type"] == kind)

    def send(self, kind: str, **members: Any) -> None:
        self.realtime.receive(json.dumps({"type": kind, **members}))

    def user(self, text: str, **members: Any) -> None:
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "user", "content": content, **members}
        self.send("conversation.item.create", item=item)

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not wanted():
                self._news.clear()
                await self._news.wait()

    async def respond(self, **response: Any) -> Json:
        """Request a response and return it from `response.done`."""
        before = self.types.count("response.done")
        self.send("response.create", **({"response": response} if response else {}))
        await self.until(lambda: self.types.count("response.done") > before)
        done: Json = self.last("response.done")["response"]
        return done

    async def ask(self, text: str, **response: Any) -> str:
        """Run one turn and return the answer's text."""
        self.user(text)
        output = (await self.respond(**response))["output"]
        return str(output[-1]["content"][0]["text"])

    def _hear(self, text: str) -> None:
        self._hear_frame(text.encode("utf-8", "backslashreplace"))

    def _hear_frame(self, frame: bytes) -> None:
        self.frames.append(frame)
        self._news.set()

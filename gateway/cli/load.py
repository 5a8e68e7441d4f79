"""Runs many sessions on a gateway at once, and measures their latency as clients see it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from gateway.cli.question import writing_task
from gateway.client import Client, Session

TURN_SECONDS: Final = 120.0
CLOSE_AT_ONCE: Final = 20
READY_SECONDS: Final = 30.0

SPREAD_SECONDS: Final = 1.0
"""The first turns of the sessions are spread over this time, since real users do not start in the same millisecond."""

Said = Callable[[int], None]
"""Called with the number of newly completed steps."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """The result of several turns: seconds to the first deltas, events received, total seconds."""

    first_deltas: list[float]
    events: int
    seconds: float
    arrivals: list[list[float]]
    """When each delta came, a list for each turn."""


class Talker:
    """One session with its reader."""

    def __init__(self, session: Session) -> None:
        self.first_deltas: list[float] = []
        self.arrivals: list[list[float]] = []
        self.events = 0
        self._session = session
        self._asked_at = 0.0
        self._ready = asyncio.Event()
        self._done = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        """Start reading, and wait for the first event. `session.created` is already in the log."""
        self._reading = asyncio.create_task(self._read())
        async with asyncio.timeout(READY_SECONDS):
            await self._ready.wait()

    async def turn(self, words: int) -> None:
        """Send a question, and wait for the whole answer."""
        assert self._reading is not None, "nobody listens"
        self._done.clear()
        self._asked_at = time.perf_counter()
        sending = asyncio.create_task(self._session.send(*writing_task(words)))
        waiting = asyncio.create_task(self._done.wait())
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await asyncio.wait({waiting, self._reading}, return_when=asyncio.FIRST_COMPLETED)
                if self._reading.done():
                    self._reading.result()
                    raise RuntimeError(f"{self._session.id} ended in the middle of a turn")
                await sending
        finally:
            for task in (sending, waiting):
                task.cancel()
            await asyncio.wait({sending, waiting})

    async def stop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})

    async def _read(self) -> None:
        async with aclosing(self._session.events()) as events:
            async for event in events:
                if not self._ready.is_set():
                    self._ready.set()
                    continue
                self.events += 1
                kind = event.type
                if kind == "response.output_text.delta":
                    now = time.perf_counter()
                    if self._asked_at:
                        self.first_deltas.append(now - self._asked_at)
                        self.arrivals.append([])
                        self._asked_at = 0.0
                    if self.arrivals:
                        self.arrivals[-1].append(now)
                elif kind == "response.done":
                    self._done.set()
                elif kind == "error":
                    raise RuntimeError(str(event.value["error"]))


async def open_one_by_one(client: Client, count: int, said: Said) -> tuple[list[Session], list[float]]:
    """Open sessions one after the other, so that each time covers one set-up. Return the sessions and their seconds."""
    sessions, seconds = [], []
    for _ in range(count):
        began = time.perf_counter()
        sessions.append(await client.open())
        seconds.append(time.perf_counter() - began)
        said(1)
    return sessions, seconds


@asynccontextmanager
async def listening(sessions: Sequence[Session]) -> AsyncIterator[list[Talker]]:
    """Read all sessions during the block."""
    talkers = [Talker(session) for session in sessions]
    try:
        for talker in talkers:
            await talker.listen()
        yield talkers
    finally:
        await asyncio.gather(*(talker.stop() for talker in talkers))


async def talk(talkers: Sequence[Talker], turns: int, words: int, said: Said) -> Rounds:
    """Run all sessions at once. Each runs its turns one after the other."""

    async def one(talker: Talker, delay: float) -> None:
        await asyncio.sleep(delay)
        for _ in range(turns):
            await talker.turn(words)
            said(1)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for index, talker in enumerate(talkers):
            _ = group.create_task(one(talker, index * SPREAD_SECONDS / len(talkers)))
    return Rounds(
        first_deltas=[seconds for talker in talkers for seconds in talker.first_deltas],
        events=sum(talker.events for talker in talkers),
        seconds=time.perf_counter() - began,
        arrivals=[turn for talker in talkers for turn in talker.arrivals],
    )


def delays(arrivals: Sequence[float], rate: float) -> list[float]:
    """Return how late each delta of a turn came, in seconds, against a sender that keeps to `rate` deltas a second.

    The sender's clock is not known, so the delta that came earliest by the schedule counts as in time.
    """
    late = [at - index / rate for index, at in enumerate(arrivals)]
    earliest = min(late, default=0.0)
    return [each - earliest for each in late]


async def close_all(sessions: Sequence[Session]) -> None:
    """Close the sessions, several at a time."""
    for start in range(0, len(sessions), CLOSE_AT_ONCE):
        await asyncio.gather(*(session.close() for session in sessions[start : start + CLOSE_AT_ONCE]))

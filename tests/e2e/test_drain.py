"""The end of a gateway in use: what each of a hundred clients sees after SIGTERM."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.caller import Caller, Emulate, Read, number, say
from tests.farend import FarEnd
from tests.programs import Served
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SESSIONS = 100
# Enough where the number of sessions does not matter.
FEW = 20
AT_ONCE = 10
DRAIN_SECONDS = 10
# What may follow the drain: closing a hundred peer connections, and the exit of Python.
PARTING_SECONDS = 30
# So long that anything which ends earlier did not wait for it.
LONG_DRAIN_SECONDS = 90


@dataclass
class Watched:
    """A session and everything that its reader has received."""

    id: str
    seen: list[Read] = field(default_factory=list)

    def types(self) -> Counter[str]:
        return Counter(read.type for read in self.seen)

    def statuses(self) -> list[str]:
        """Return how its responses ended."""
        return [read.value["response"]["status"] for read in self.seen if read.type == "response.done"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How the gateway ended: its exit status, and the time since the first signal."""

    status: int
    seconds: float


class Harness:
    """A gateway in a separate process, and readers of all of its sessions."""

    def __init__(self, program: Served, caller: Caller, url: str, admin_url: str) -> None:
        self.program = program
        self.caller = caller
        self.url, self.admin_url = url, admin_url
        self.watched: list[Watched] = []
        self._readers: list[asyncio.Task[None]] = []

    async def stream(self, question: str, sessions: int = SESSIONS) -> None:
        """Open sessions, ask in each, and keep reading; return when all of them are in the middle of an answer."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def begin() -> None:
            async with gate:
                session = await self.caller.open()
                watched = Watched(session["id"])
                self.watched.append(watched)
                self._readers.append(asyncio.create_task(self._read(watched)))
                await self.caller.send(session["id"], *say(question))

        await asyncio.gather(*(begin() for _ in range(sessions)))

        async def answering() -> bool:
            return all(one.types()["response.output_text.delta"] for one in self.watched)

        await until(answering)

    async def _read(self, watched: Watched) -> None:
        async for read in self.caller.stream(watched.id, "earliest"):
            watched.seen.append(read)

    async def ended(self, *signals: signal.Signals) -> Ending:
        """Send signals, each after the previous one was handled, and wait for the end of gateway and readers."""
        began = time.monotonic()
        for taken, number_ in enumerate(signals):
            self.program.process.send_signal(number_)
            # The gateway logs each signal. The kernel would merge a second one of the same kind that is sent before that.
            await until(lambda count=taken: self._took(count + 1))  # type: ignore[misc]  # mypy infers no default
        status = await asyncio.to_thread(self.program.process.wait, LONG_DRAIN_SECONDS)
        seconds = time.monotonic() - began
        await asyncio.wait_for(asyncio.gather(*self._readers, return_exceptions=True), 20)
        return Ending(status, seconds)

    async def _took(self, count: int) -> bool:
        return self.program.output.count("signal_received") >= count

    async def close(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await self.caller.http.close()
        self.program.stop()


@pytest.fixture
def slow_far_end(emulate: Emulate) -> FarEnd:
    """Run an emulator that is slow enough to be interrupted."""
    return emulate("--tokens-per-second", "50")


@pytest.fixture
def drain_seconds() -> float:
    """Return the time allowed for the drain; a test overrides it by a parameter."""
    return DRAIN_SECONDS


@pytest_asyncio.fixture
async def harness(slow_far_end: FarEnd, tmp_path: Path, drain_seconds: float) -> AsyncIterator[Harness]:
    """Run `gateway serve` with that time for its drain."""
    environ = {"GATEWAY_DRAIN__TIMEOUT_SECONDS": str(drain_seconds)}
    program = Served(tmp_path / "gateway.log", slow_far_end.base_url, environ=environ)
    harness = Harness(program, Caller(program.url), program.url, program.admin_url)
    try:
        yield harness
    finally:
        await harness.close()


def without_loss(watched: Watched) -> None:
    """Check that a reader received every event of the log once and in order, up to the last one."""
    logged = [
        number(read.id) for read in watched.seen if read.type not in ("gateway.open", "gateway.rotating")
    ]
    assert logged == list(range(1, len(logged) + 1))
    assert watched.types()["gateway.draining"] == 1
    assert watched.seen[-1].type == "gateway.closed"
    assert watched.seen[-1].value["reason"] == "drained"


async def test_a_hundred_answers_are_finished_before_the_end(harness: Harness) -> None:
    """Responses that fit into the drain are completed, no event is lost, and the gateway ends in time with status 0."""
    await harness.stream("Write 150 words about rivers.")
    ending = await harness.ended(signal.SIGTERM)

    assert ending.status == 0
    assert ending.seconds < DRAIN_SECONDS + PARTING_SECONDS
    assert len(harness.watched) == SESSIONS
    for watched in harness.watched:
        without_loss(watched)
        assert watched.statuses() == ["completed"]


async def test_answers_that_take_longer_are_told_of_their_end(harness: Harness) -> None:
    """A response that takes longer is cut at the deadline, its client is notified, and no earlier event is lost."""
    await harness.stream("Write 3000 words about the sea.", FEW)
    ending = await harness.ended(signal.SIGTERM)

    assert ending.status == 0
    assert DRAIN_SECONDS <= ending.seconds < DRAIN_SECONDS + PARTING_SECONDS
    for watched in harness.watched:
        without_loss(watched)
        assert "completed" not in watched.statuses()


async def test_nobody_new_is_let_in_while_it_drains(harness: Harness) -> None:
    """New sessions and `/readyz` get 503, while the admin listener still answers."""
    await harness.stream("Write 3000 words about the sea.", FEW)
    harness.program.process.send_signal(signal.SIGTERM)

    async def unready() -> bool:
        answer, _ = await harness.caller.ask("GET", "/readyz")
        return answer.status == 503

    await until(unready)
    refused, problem = await harness.caller.ask("POST", "/v1/sessions")
    alive, _ = await harness.caller.ask("GET", "/livez")
    async with Caller(harness.admin_url) as operator:
        _, metrics = await operator.ask("GET", "/metrics")

    assert (refused.status, problem["code"]) == (503, "draining")
    assert "Retry-After" in refused.headers
    assert alive.status == 200
    assert b"realtime_gateway_draining 1.0" in metrics


@pytest.mark.parametrize("drain_seconds", [LONG_DRAIN_SECONDS])
async def test_a_second_signal_ends_a_hundred_answers_at_once(harness: Harness) -> None:
    """A second signal ends the drain at once; readers are still notified, and the status is 0."""
    await harness.stream("Write 3000 words about the sea.")
    ending = await harness.ended(signal.SIGTERM, signal.SIGTERM)

    assert ending.status == 0
    assert ending.seconds < LONG_DRAIN_SECONDS / 2
    for watched in harness.watched:
        without_loss(watched)

"""The call that is to replace the present one, and what waits for it.

OpenAI has no resume and aiortc no ICE restart, so a session that outlives its call gets a new one, created with the
session's configuration and seeded with the mirrored conversation (see `conversation` and `seeding`). Events that
clients send meanwhile are accepted, held within bounds, and follow on the new call.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from gateway.errors import GatewayError, OverloadError, UpstreamError
from gateway.relay.conversation import Seed, Sent
from gateway.relay.envelope import peek
from gateway.relay.ports import CallRequest, Dialer, LossCause, Sink, Upstream
from gateway.relay.seeding import Seeding

_FIRST_DELAY_SECONDS: Final = 0.25
_LONGEST_DELAY_SECONDS: Final = 8.0

_MAX_EARLY: Final = 16
"""A call that nobody has asked anything says session.created and little else."""


def delays() -> Iterator[float]:
    """Seconds to wait before each attempt: none, then doubling, each drawn from its upper half so that sessions which
    lost their calls together do not come back together."""
    yield 0.0
    delay = _FIRST_DELAY_SECONDS
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311  # spread, not secrecy
        delay = min(delay * 2, _LONGEST_DELAY_SECONDS)


class Held:
    """Events accepted while there is no call to send them on."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._size = 0
        self.events: list[Sent] = []

    def add(self, batch: Sequence[Sent]) -> None:
        """Hold a batch whole, or raise `recovering`."""
        size = sum(sent.event.size for sent in batch)
        if len(self.events) + len(batch) > self._max_events or self._size + size > self._max_bytes:
            detail = "The session is being recovered and no more events can wait for it."
            raise OverloadError("recovering", detail, retry_after=1)
        self.events += batch
        self._size += size

    def put_back(self, batch: Sequence[Sent]) -> None:
        """Hold again, before all others and whatever the bounds, what was released too early."""
        self.events[:0] = batch
        self._size += sum(sent.event.size for sent in batch)


class Successor:
    """A new call on its way up. The session passes on what the call's generation says."""

    def __init__(self, request: CallRequest, dialer: Dialer) -> None:
        self.generation = request.generation
        self._request = request
        self._dialer = dialer
        self._upstream: Upstream | None = None
        self._seeding: Seeding | None = None
        self._early: list[str] = []
        self._changed = asyncio.Event()
        self._loss: LossCause | None = None

    async def open(self, sink: Sink) -> None:
        """Dial. Raises UpstreamError."""
        self._upstream = await self._dialer.dial(self._request, sink)

    async def seed(self, seed: Seed, greeting_seconds: float) -> Seeding:
        """Bring the open call to where `seed` says; the caller bounds the time. Raises UpstreamError.

        A call that has nothing to take may greet a moment later; that is waited for, since it says when the call ends.
        """
        upstream = self.upstream
        self._seeding = seeding = Seeding(seed)
        early, self._early = self._early, []
        for text in early:
            self._read(text)
        upstream.send(seeding.opening())
        await self._until(lambda: seeding.done)
        with suppress(TimeoutError):
            async with asyncio.timeout(greeting_seconds):
                await self._until(lambda: bool(seeding.session))
        if self._loss is not None:
            raise UpstreamError(
                "upstream-failed", f"The new call was lost while it was seeded: {self._loss}."
            )
        return seeding

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Wait until the new call has come so far, or is lost."""
        while not reached() and self._loss is None:
            self._changed.clear()
            await self._changed.wait()

    @property
    def upstream(self) -> Upstream:
        """The open call."""
        if self._upstream is None:
            raise UpstreamError("upstream-failed", "The new call is not open.")
        return self._upstream

    @property
    def loss(self) -> LossCause | None:
        """Set once the new call is lost itself."""
        return self._loss

    def received(self, text: str) -> None:
        """Read an event of the new call; nothing of it reaches the log."""
        if self._seeding is not None:
            self._read(text)
        elif len(self._early) < _MAX_EARLY:
            self._early.append(text)
        self._changed.set()

    def lost(self, cause: LossCause) -> None:
        """The new call is lost before it was taken into use."""
        self._loss = cause
        self._changed.set()

    async def abandon(self) -> None:
        """Give the call up, whatever it had come to."""
        if self._upstream is not None:
            await self._upstream.close(hang_up=self._loss is None)

    def _read(self, text: str) -> None:
        value = peek(text)
        if value is None or self._seeding is None:
            return
        answer = self._seeding.received(str(value.get("type")), value)
        if answer:
            try:
                self.upstream.send(answer)
            except GatewayError:
                self.lost(LossCause.CONNECTION_FAILED)

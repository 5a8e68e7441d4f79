"""The call that is to replace the present one.

OpenAI has no resume and aiortc no ICE restart, so a session that outlives its call gets a new one, created with the
session's configuration and seeded with the mirrored conversation (see `mirror` and `seeding`). A connection to another
application's call is made again and not seeded: the conversation belongs to the call.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Final

from gateway.errors import GatewayError, UpstreamError
from gateway.relay.calls.seeding import Seeding
from gateway.relay.events.frames import Read, server_event
from gateway.relay.ports import CallRequest, Dialer, LossCause, Sink, Upstream
from gateway.relay.state.mirror import Seed

_FIRST_DELAY_SECONDS: Final = 0.25
_LONGEST_DELAY_SECONDS: Final = 8.0

_SLICE: Final = 16
"""Items of a conversation that are sent before other work has its turn: about 1 ms."""

_MAX_EARLY: Final = 16
"""Bound on buffered events: an idle call sends session.created and little else."""


def delays() -> Iterator[float]:
    """Yield the seconds to wait before each attempt: zero, then doubling, with jitter over the upper half so that sessions
    that lost their calls together do not reconnect together."""
    yield 0.0
    delay = _FIRST_DELAY_SECONDS
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311  # spread, not secrecy
        delay = min(delay * 2, _LONGEST_DELAY_SECONDS)


class Successor:
    """A new call during set-up. The line forwards the events of its generation."""

    def __init__(self, request: CallRequest, dialer: Dialer, upstream: Upstream | None = None) -> None:
        """`upstream`: the call, where it is open already."""
        self.generation = request.generation
        self.messages = 0
        """Messages handed to the call."""
        self._request = request
        self._dialer = dialer
        self._upstream = upstream
        self._seeding: Seeding | None = None
        self._early: list[tuple[str, Read | None]] = []
        self._changed = asyncio.Event()
        self._loss: LossCause | None = None

    async def open(self, sink: Sink) -> None:
        """Dial. Raises UpstreamError."""
        self._upstream = await self._dialer.dial(self._request, sink)

    async def seed(
        self, seed: Seed, turn: asyncio.Lock, patience_seconds: float, greeting_seconds: float
    ) -> Seeding | None:
        """Seed the open call with `seed`; the caller bounds the time. Return None if for `patience_seconds` no item was
        taken: a long conversation takes long on a bad path, and an attempt that makes progress is not given up. Raises
        UpstreamError.

        The process's sessions share `turn`, which is held for each slice. After an outage many sessions are seeded at once.
        A call that has nothing to take may greet a moment later; that is waited for, since it says when the call ends.
        """
        self._seeding = seeding = Seeding(seed, self._request.session)
        early, self._early = self._early, []
        for text, read in early:
            self._read(text, read)
        opening = seeding.opening()
        while self._loss is None and (texts := list(islice(opening, _SLICE))):
            async with turn:
                self._send(texts)
                await asyncio.sleep(0)
        while not seeding.done and self._loss is None:
            left = seeding.left
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_seconds):
                    await self._until(lambda: seeding.done)
            if seeding.left == left:
                return None
        if self._request.attach_to is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(greeting_seconds):
                    await self._until(lambda: bool(seeding.session))
        if self._loss is not None:
            detail = f"The new call was lost while it was seeded: {self._loss}."
            raise UpstreamError("upstream-failed", detail)
        return seeding

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

    def received(self, text: str, read: Read | None = None) -> None:
        """Process an event of the new call; it is not written to the log."""
        if self._seeding is not None:
            self._read(text, read)
        elif len(self._early) < _MAX_EARLY:
            self._early.append((text, read))
        self._changed.set()

    def lost(self, cause: LossCause) -> None:
        """The new call is lost before it was taken into use."""
        self._loss = cause
        self._changed.set()

    async def abandon(self) -> None:
        """Abandon the call in any state."""
        if self._upstream is not None:
            hang_up = self._loss is None and self._request.attach_to is None
            await self._upstream.close(hang_up=hang_up)

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Wait until the condition holds or the new call is lost."""
        while not reached() and self._loss is None:
            self._changed.clear()
            await self._changed.wait()

    def _send(self, texts: list[str]) -> None:
        self.upstream.send(texts)
        self.messages += len(texts)

    def _read(self, text: str, read: Read | None) -> None:
        if read is None:
            read = server_event(text, Seeding.WATCHED)
        if read is None or self._seeding is None:
            return
        answer = self._seeding.received(*read)
        if answer:
            try:
                self._send(answer)
            except GatewayError:
                self.lost(LossCause.CONNECTION_FAILED)


class EarlySink:
    """Receives the events of a prepared call, which has no line yet."""

    def __init__(self) -> None:
        self._sink: Sink | None = None
        self._generation = 0
        self._early: list[str] = []
        self._loss: LossCause | None = None

    def pass_on(self, sink: Sink, generation: int) -> None:
        """Forward everything to this sink from now on, under a generation of its line."""
        self._sink, self._generation = sink, generation
        for text in self._early:
            sink.received(generation, text)
        if self._loss is not None:
            sink.lost(generation, self._loss)

    def received(self, generation: int, text: str) -> None:
        """See ports.Sink."""
        if self._sink is not None:
            self._sink.received(self._generation, text)
        elif len(self._early) < _MAX_EARLY:
            self._early.append(text)

    def received_together(self, generation: int, texts: Sequence[str]) -> None:
        """See ports.Sink."""
        for text in texts:
            self.received(generation, text)

    def received_in_steps(self, generation: int, text: str) -> Iterator[None]:
        """See ports.Sink."""
        if self._sink is None:
            self.received(generation, text)
        else:
            yield from self._sink.received_in_steps(self._generation, text)

    def unreadable(self, generation: int, size: int) -> None:
        """See ports.Sink."""
        if self._sink is not None:
            self._sink.unreadable(self._generation, size)

    def lost(self, generation: int, cause: LossCause) -> None:
        """See ports.Sink."""
        self._loss = cause
        if self._sink is not None:
            self._sink.lost(self._generation, cause)


class Prepared:
    """A call that was dialled for a session which another node is about to hand over."""

    def __init__(self, request: CallRequest, dialer: Dialer) -> None:
        self.request = request
        self._dialer = dialer
        self._sink = EarlySink()
        self._upstream: Upstream | None = None

    async def open(self) -> None:
        """Dial. Raises UpstreamError."""
        self._upstream = await self._dialer.dial(self.request, self._sink)

    def successor(self, request: CallRequest) -> Successor:
        """Return the call in the form that a line uses."""
        return Successor(replace(request, session=self.request.session), self._dialer, self._upstream)

    def pass_on(self, sink: Sink, generation: int) -> None:
        """Forward the call's events to this sink from now on, under a generation of its line."""
        self._sink.pass_on(sink, generation)

    async def abandon(self) -> None:
        """Abandon the call. A call that another application made goes on."""
        if self._upstream is not None:
            await self._upstream.close(hang_up=self.request.attach_to is None)

"""Fakes around the relay: a clock that advances only when the loop is idle, a dialer, calls, and a telemetry that
records.

Each fulfils its port in `gateway.relay.ports`; test_fakes.py checks that.
"""

import asyncio
import itertools
import json
import selectors
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from gateway.errors import CallerError, GatewayError, UpstreamError
from gateway.relay.clock import Clock
from gateway.relay.events import envelope
from gateway.relay.events.envelope import ClientEvent
from gateway.relay.events.eventlog import Entry
from gateway.relay.hub import Hub
from gateway.relay.journal import Directory
from gateway.relay.limits import RelayLimits
from gateway.relay.ports import CallRequest, Handle, Json, LossCause, OpenRequest, Reader, Sink
from gateway.relay.requests import Principal
from gateway.relay.session import Session
from gateway.relay.states import CloseReason
from tests.facts import Facts
from tests.waiting import until

START_UNIX = 1_790_000_000.0
SOMEBODY = Principal("somebody")


# --- time -------------------------------------------------------------------------------------------------------------


class _Skipping(selectors.SelectSelector):
    """Polls sockets, and skips the time that it should have waited."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:  # the loop's own type is private
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("everything waits and nothing is due: some wait has no deadline")
            self.now += max(timeout, 0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on which waiting takes no time: if nothing is ready, its clock jumps to the next timer."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now


def virtual_clock() -> Clock:
    """Return the running loop's time, and a random source that only counts."""
    loop, numbers = asyncio.get_running_loop(), itertools.count(1)

    def token(length: int) -> str:
        return f"t{next(numbers):0{length - 1}d}"

    return Clock(loop.time, lambda: START_UNIX + loop.time(), token, lambda: f"e{next(numbers):03d}")


# --- upstream ---------------------------------------------------------------------------------------------------------


class FakeCall:
    """An open call that sends what a test asks for."""

    def __init__(self, request: CallRequest, sink: Sink, number: int) -> None:
        self.request = request
        self.sent: list[str] = []
        self.buffered = 0
        self.open = True
        self.closings: list[bool] = []
        self.alive = True
        self.acknowledged = 0
        self.undelivered = False
        self.max_message_bytes = 1 << 30
        self.closing: Callable[[], Awaitable[object]] | None = None
        self.on_send: Callable[[Json], None] | None = None
        self._sink = sink
        self._number = number

    @property
    def call_id(self) -> str | None:
        return f"rtc_{self._number}"

    @property
    def diagnostics(self) -> Json:
        return {"phases": {"total": 0.01}}

    def send(self, batch: Sequence[str]) -> None:
        if not self.open:
            raise UpstreamError("upstream-failed", "The channel is not open.")
        for text in batch:
            if len(text.encode()) > self.max_message_bytes:
                raise CallerError("too-large", "The far end takes no event this large.")
        self.sent.extend(batch)
        if self.on_send is not None:
            for text in batch:
                self.on_send(json.loads(text))

    async def probe(self, timeout: float) -> bool:
        if not self.alive:
            await asyncio.sleep(timeout)
        return self.alive

    async def close(self, hang_up: bool) -> None:
        self.closings.append(hang_up)
        self.open = False
        if self.closing is not None:
            await self.closing()

    # --- what a test makes it do ---

    def say(self, type: str, **members: object) -> None:
        """Send a server event."""
        self.say_text(json.dumps({"type": type, **members}))

    def say_text(self, text: str) -> None:
        self._sink.received(self.request.generation, text)

    def say_together(self, texts: Sequence[str]) -> None:
        """Send server events that arrive at once."""
        self._sink.received_together(self.request.generation, texts)

    def say_in_steps(self, text: str) -> Iterator[None]:
        """Return the work of taking a large server event."""
        return self._sink.received_in_steps(self.request.generation, text)

    def say_unreadable(self, size: int) -> None:
        self._sink.unreadable(self.request.generation, size)

    def lose(self, cause: LossCause = LossCause.CONNECTION_FAILED) -> None:
        """Lose the call; do nothing if it was closed."""
        if self.open:
            self.open = False
            self._sink.lost(self.request.generation, cause)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Return the events that were sent, parsed."""
        return [json.loads(text) for text in self.sent]

    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    # --- the service's part of a response ---

    def start(
        self, response_id: str = "resp_1", turn: str | None = None, conversation: str | None = "c"
    ) -> None:
        metadata = {"gateway_turn": turn} if turn else None
        response = {"id": response_id, "conversation_id": conversation, "metadata": metadata}
        self.say("response.created", response=response)

    def finish(self, response_id: str = "resp_1", status: str = "completed", **members: object) -> None:
        response = {"id": response_id, "status": status, "usage": {"total_tokens": 3}, **members}
        self.say("response.done", response=response)

    def greet(self, **session: object) -> None:
        model = self.request.session.get("model", "gpt-realtime-2.1")
        self.say("session.created", session={"type": "realtime", "model": model, **session})


class FakeDialer:
    """Opens calls that send a greeting; it can be set to refuse, to wait or to stay silent."""

    def __init__(self) -> None:
        self.calls: list[FakeCall] = []
        self.requests: list[CallRequest] = []
        self.refusal: GatewayError | None = None
        self.gate: Callable[[], Awaitable[object]] | None = None
        self.greets = True
        self.greeting: Json = {}
        self.prepare: Callable[[FakeCall], None] | None = None
        self.hung_up: list[tuple[str, str | None]] = []

    async def dial(self, request: CallRequest, sink: Sink) -> FakeCall:
        self.requests.append(request)
        if self.gate is not None:
            await self.gate()
        if self.refusal is not None:
            raise self.refusal
        call = FakeCall(request, sink, len(self.calls) + 1)
        self.calls.append(call)
        if self.prepare is not None:
            self.prepare(call)
        if self.greets:
            call.greet(**self.greeting)
        return call

    async def hang_up(self, call_id: str, bearer: str | None) -> None:
        self.hung_up.append((call_id, bearer))

    @property
    def call(self) -> FakeCall:
        return self.calls[-1]


# --- downstream -------------------------------------------------------------------------------------------------------


class FakeReceiver:
    def __init__(self, silent_since: float) -> None:
        self.silent_since = silent_since
        self.superseded = 0
        self.rotated = 0

    def supersede(self) -> None:
        self.superseded += 1

    def rotate(self) -> None:
        self.rotated += 1


def frame(id: str, name: str | None, text: str) -> tuple[bytes, int]:
    """Frame in a readable form, because the relay must not depend on it."""
    head = f"{id} {name or ''}|"
    return f"{head}{text}".encode(), len(head)


def client_event(type: str, **members: Any) -> ClientEvent:
    """Return an event as the envelope parses it."""
    value = {"type": type, **members}
    return envelope.client_event(json.dumps(value), type, members.get("event_id"), value)


def logged(reader: Reader) -> list[dict[str, Any]]:
    """Return every event that a log still keeps, parsed."""
    cursor, entries = reader.oldest.before, list[Entry]()
    while cursor.sequence < reader.head.sequence:  # a page has one epoch
        page = reader.read(cursor, 1_000_000, 1 << 40)
        entries += page.entries
        cursor = page.cursor
    return [json.loads(entry.block[entry.start :]) for entry in entries]


def types_of(handle: Handle) -> list[str]:
    """Return the types of every event in a session's log."""
    return [event["type"] for event in logged(handle.reader)]


@dataclass
class Harness:
    """A hub with fakes around it."""

    limits: RelayLimits
    dialer: FakeDialer = field(default_factory=FakeDialer)
    facts: Facts = field(default_factory=Facts)
    directory: Directory | None = None

    def __post_init__(self) -> None:
        self.clock = virtual_clock()
        self.hub = Hub(self.dialer, frame, self.facts.port, self.limits, self.clock, directory=self.directory)

    async def open(self, **members: Any) -> Session:
        """Open a session and return it as its owner sees it."""
        handle = await self.hub.open(OpenRequest(**{"principal": SOMEBODY, **members}))
        return cast(Session, handle)

    @property
    def call(self) -> FakeCall:
        return self.dialer.call

    async def closed(self, session: Session, seconds: float = 5.0) -> CloseReason | None:
        """Wait for a session's end and return its reason."""
        await until(lambda: session.reader.sealed, seconds)
        return session.view().close_reason

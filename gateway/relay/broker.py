"""The logs of this process: each with one writer, any readers, and a bound on all of them together.

At the total bound the largest log gives up its oldest events, so that a talkative session pays for its own talk, and
`full` tells the hub to open no more sessions. No session is closed for memory.
"""

from collections.abc import Callable
from typing import Final

from gateway.relay.eventlog import EventId, EventLog, Framing, Page
from gateway.relay.ports import Telemetry

_TRIM_BYTES = 64 * 1024
"""Freed at once when the total bound is met: looking for the largest of 2,000 logs costs 100 µs, so not for each event."""

_RELIEF: Final = 0.9
"""Share of the total bound below which a process that met it takes sessions again: trimming keeps it just below the bound,
and what trimming frees is no room for another session."""


class LocalLog:
    """One log in memory: the session appends, whoever subscribed is woken."""

    __slots__ = ("_broker", "_events", "_subscriptions", "_wakes")

    def __init__(self, broker: "Broker", events: EventLog) -> None:
        self._broker = broker
        self._events = events
        self._wakes: dict[int, Callable[[], None]] = {}
        self._subscriptions = 0

    def __len__(self) -> int:
        return len(self._events)

    @property
    def size(self) -> int:
        return self._events.size

    @property
    def spare(self) -> int:
        """Bytes that it could give up."""
        return self._events.spare

    @property
    def head(self) -> EventId:
        return self._events.head

    @property
    def oldest(self) -> EventId:
        return self._events.oldest

    @property
    def sealed(self) -> bool:
        return self._events.sealed

    def append(self, type: str, text: str, at: float, *, turn: int = 0, name: str | None = None) -> None:
        """Add an event and wake the readers. `name` is set for the gateway's own events."""
        events = self._events
        before = events.size
        dropped = events.append(type, text, at, turn=turn, name=name)
        self._broker.account(events.size - before, dropped)
        for wake in self._wakes.values():
            wake()

    def seal(self) -> None:
        """Say that nothing follows, and wake the readers."""
        self._events.seal()
        for wake in self._wakes.values():
            wake()

    def trim(self, size: int) -> int:
        """For the broker, which counts what was freed itself."""
        return self._events.trim(size)

    def read(self, after: EventId, max_events: int, max_bytes: int) -> Page:
        return self._events.read(after, max_events, max_bytes)

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        self._subscriptions += 1
        number = self._subscriptions
        # A new dict, so that a wake that subscribes or cancels does not disturb the round that called it.
        self._wakes = {**self._wakes, number: wake}

        def cancel() -> None:
            self._wakes = {key: value for key, value in self._wakes.items() if key != number}

        return cancel


class Broker:
    """Makes logs and keeps their total within its bound."""

    def __init__(
        self, framing: Framing, max_events: int, max_bytes: int, total_bytes: int, telemetry: Telemetry
    ) -> None:
        self._framing = framing
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._total_bytes = total_bytes
        self._telemetry = telemetry
        self._logs: set[LocalLog] = set()
        self.size = 0
        """Bytes in all logs."""
        self.full = False
        """The total bound was met, and the logs have not become much smaller since."""

    @property
    def events(self) -> int:
        """Events in all logs."""
        return sum(map(len, self._logs))

    def create(self, epoch: str) -> LocalLog:
        """Make an empty log whose ids begin with `epoch`."""
        log = LocalLog(self, EventLog(epoch, self._framing, self._max_events, self._max_bytes))
        self._logs.add(log)
        return log

    def drop(self, log: LocalLog) -> None:
        """Forget a log and what it holds."""
        self._logs.discard(log)
        self.size -= log.size
        self._judge()

    def relieve(self) -> bool:
        """Have the logs of ended sessions give up what they can, until there is room; gives whether there is."""
        for log in [log for log in self._logs if log.sealed]:
            if not self.full:
                break
            self._trim(log, log.spare)
            self._judge()
        return not self.full

    def account(self, size: int, dropped: int) -> None:
        """Note that an append made a log grow by `size` bytes and give up `dropped` events; keep the total bound."""
        self.size += size
        if dropped:
            self._telemetry.log_evicted(dropped)
        self._judge()
        if self.size > self._total_bytes:
            self._shrink()

    def _judge(self) -> None:
        self.full = self.size >= self._total_bytes * (_RELIEF if self.full else 1)

    def _shrink(self) -> None:
        # By what it can give up, not by its size: a log of one huge event would be the largest and free nothing.
        while self.size > self._total_bytes:
            largest = max(self._logs, key=lambda log: log.spare)
            if not largest.spare:
                return  # Only the newest event of each session is left, and those are always kept.
            self._trim(largest, max(_TRIM_BYTES, self.size - self._total_bytes))

    def _trim(self, log: LocalLog, size: int) -> None:
        before = log.size
        dropped = log.trim(size)
        self.size -= before - log.size
        if dropped:
            self._telemetry.log_evicted(dropped)

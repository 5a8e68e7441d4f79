"""The logs of this process: each with one writer, any readers, and a bound on all of them together.

At the total bound the largest log drops its oldest events, so a busy session loses only its own events, and `full` tells the
hub to open no more sessions. No session is closed for memory.

A `LocalLog` shows an event as soon as it is appended. A `JournalledLog` shows it once the journal has it: its owner
appends the event, adds it to the journal, and calls `settle` when the journal confirms.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from gateway.relay.events.eventlog import Epoch, EventId, EventLog, Framing, Logged, Page, Unframing
from gateway.relay.telemetry import RelayTelemetry

_TRIM_BYTES = 64 * 1024
"""Freed at once at the total bound: looking for the largest of 2,000 logs costs 100 µs, too much for each event."""

_RELIEF: Final = 0.9
"""Share of the total bound below which a process that reached it accepts sessions again. Trimming keeps the total just below
the bound, and that is not room for another session."""


class LocalLog:
    """One log in memory: the session appends, and every subscriber is woken."""

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
        """Bytes that trimming could free."""
        return self._events.spare

    @property
    def appended(self) -> EventId:
        """The newest event, whether readers see it yet or not."""
        return self._events.position(self._events.appended)

    # --- for readers (ports.Reader) -----------------------------------------------------------------------------------

    @property
    def head(self) -> EventId:
        return self._events.head

    @property
    def oldest(self) -> EventId:
        return self._events.oldest

    @property
    def sealed(self) -> bool:
        return self._events.sealed

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

    # --- for the owner ------------------------------------------------------------------------------------------------

    def append(self, type: str, text: str, at: float, *, turn: int = 0, name: str | None = None) -> int:
        """Add an event, wake the readers, and return its sequence. `name` is set for the gateway's own events."""
        events = self._events
        before = events.size
        dropped = events.append_all(((type, text, turn),), at, name)
        self._broker.account(events.size - before, dropped)
        self._appended()
        return events.appended

    def append_all(self, events: Sequence[tuple[str, str, int]], at: float) -> int:
        """Add several server events, as type, text and turn; as `append`."""
        log = self._events
        before = log.size
        dropped = log.append_all(events, at)
        self._broker.account(log.size - before, dropped)
        self._appended()
        return log.appended

    def records(self, after: int) -> Iterator[Logged]:
        """Yield the events kept behind a sequence as a journal has them."""
        return self._events.records(after, self._broker.unframing)

    def seal(self) -> None:
        """Mark the log as complete and wake the readers."""
        self._events.seal()
        self._wake()

    def trim(self, size: int) -> int:
        """Trim without reporting to the broker, which counts the freed bytes itself."""
        return self._events.trim(size)

    def _appended(self) -> None:
        """Let the readers know of an event."""
        for wake in self._wakes.values():
            wake()

    def _wake(self) -> None:
        for wake in self._wakes.values():
            wake()


class JournalledLog(LocalLog):
    """One log whose events a journal must have before readers see them."""

    __slots__ = ()

    @property
    def epochs(self) -> Sequence[Epoch]:
        """Return the table of epochs, for a snapshot."""
        return self._events.epochs

    def _appended(self) -> None:
        """Do nothing: readers see an event after `settle`."""

    def settle(self, sequence: int) -> None:
        """Let readers see the events up to `sequence`, and wake them."""
        if self._events.settle(sequence):
            self._wake()

    def seal(self) -> None:
        """Mark the log as complete. Readers see this once the last event is settled."""
        self._events.seal()
        if self._events.sealed:
            self._wake()

    def begin(self, epoch: str) -> None:
        """Start a new epoch, see `EventLog.begin`."""
        before = self._events.size
        dropped = self._events.begin(epoch)
        self._broker.account(self._events.size - before, dropped)

    def load(self, epochs: Sequence[Epoch], first: int, events: Sequence[Logged]) -> None:
        """Fill the new log with what a journal kept, see `EventLog.load`."""
        self._events.load(epochs, first, events)
        # What did not fit was dropped from the journal's copy, not from a log that anybody read here.
        self._broker.account(self._events.size, 0)


def _unframed(block: bytes, start: int) -> str:
    """Read a framing that leaves the JSON as it is."""
    return block[start:].decode()


class Broker:
    """Makes logs and keeps their total within its bound."""

    def __init__(
        self,
        framing: Framing,
        max_events: int,
        max_bytes: int,
        total_bytes: int,
        telemetry: RelayTelemetry,
        unframing: Unframing | None = None,
    ) -> None:
        """`unframing` is needed where a journal may ask for the events again."""
        self.unframing = unframing or _unframed
        self._framing = framing
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._total_bytes = total_bytes
        self._telemetry = telemetry
        self._logs: set[LocalLog] = set()
        self.size = 0
        """Bytes in all logs."""
        self.full = False
        """The total bound was reached, and the logs have not become much smaller since."""

    @property
    def events(self) -> int:
        """Events in all logs."""
        return sum(map(len, self._logs))

    def create(self, epoch: str) -> LocalLog:
        """Make an empty log whose IDs begin with `epoch`."""
        log = LocalLog(self, EventLog(epoch, self._framing, self._max_events, self._max_bytes))
        self._logs.add(log)
        return log

    def create_journalled(self, epoch: str) -> JournalledLog:
        """Make an empty log whose events are seen once they are settled."""
        log = JournalledLog(
            self, EventLog(epoch, self._framing, self._max_events, self._max_bytes, settles=True)
        )
        self._logs.add(log)
        return log

    def drop(self, log: LocalLog) -> None:
        """Remove a log and free its bytes."""
        self._logs.discard(log)
        self.size -= log.size
        self._judge()

    def relieve(self) -> bool:
        """Trim the logs of ended sessions until there is room. Return whether there is."""
        for log in [log for log in self._logs if log.sealed]:
            if not self.full:
                break
            self._trim(log, log.spare)
            self._judge()
        return not self.full

    def account(self, size: int, dropped: int) -> None:
        """Count that a log grew by `size` bytes and dropped `dropped` events; keep the total bound."""
        self.size += size
        if dropped:
            self._telemetry.log_evicted(dropped)
        if self.full or self.size >= self._total_bytes:
            self._judge()
            if self.size > self._total_bytes:
                self._shrink()

    def _judge(self) -> None:
        self.full = self.size >= self._total_bytes * (_RELIEF if self.full else 1)

    def _shrink(self) -> None:
        # Choose by what trimming can free, not by size: a log of one huge event would be the largest and free nothing.
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

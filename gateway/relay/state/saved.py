"""A saved session: what another node needs to continue it. No I/O, no clock.

`fold` makes it of a snapshot and the records after it, as a journal kept them. The log's events before the snapshot are
given as well, because a snapshot does not hold them. An event may have been written twice, where a journal was repaired:
its sequence says so, and it counts once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.relay.events.eventlog import Epoch, Logged
from gateway.relay.events.jsontext import Steps, finish
from gateway.relay.events.records import Border, GatewayEvent, Record, ServerEvent, UnreadableRecord, decode
from gateway.relay.state.fold import SessionState
from gateway.relay.usage import PriceList

STEP_RECORDS: Final = 500
"""Records read between two yields: 1 ms before the snapshot, up to 5 ms after it."""

_LOGGED: Final = (b"e", b"g", b"c")
"""The kinds of records that say what the log contains."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A session's state, and the events of its log that are kept."""

    state: SessionState
    first: int
    """Sequence of the first of the events."""
    events: Sequence[Logged]

    @property
    def epochs(self) -> Sequence[Epoch]:
        """The epochs of the log."""
        return [Epoch(name, first) for name, first in self.state.epochs]


def fold(
    snapshot: bytes, before: Iterable[bytes], after: Iterable[bytes], prices: PriceList | None = None
) -> Saved:
    """Fold a session at once, see `fold_in_steps`."""
    return finish(fold_in_steps(snapshot, before, after, prices))


def fold_in_steps(
    snapshot: bytes, before: Iterable[bytes], after: Iterable[bytes], prices: PriceList | None = None
) -> Steps[Saved]:
    """Return the session of a snapshot, the encoded records before it, of which only events of the log matter, and those
    after it. Raises UnreadableRecord for what this version cannot read: the session must then not be taken over."""
    state = SessionState.load(snapshot, prices)
    events: dict[int, Logged] = {}
    for number, data in enumerate(before, start=1):
        if data[:1] in _LOGGED:  # The snapshot contains all others, whichever version wrote them.
            _keep(events, decode(data))
        if not number % STEP_RECORDS:
            yield
    for number, data in enumerate(after, start=1):
        record = decode(data)
        _keep(events, record)
        state.apply(record)
        if not number % STEP_RECORDS:
            yield
    # What a repair made void left a hole behind it; the events that count are those without one, up to the head.
    # Events of an epoch that left the table have no name any more.
    first, named = state.head + 1, state.epochs[0][1]
    while first - 1 in events and first > named:
        first -= 1
    return Saved(state, first, [events[sequence] for sequence in range(first, state.head + 1)])


def _keep(events: dict[int, Logged], record: Record) -> None:
    if isinstance(record, ServerEvent | GatewayEvent):
        events[record.sequence] = record
    elif isinstance(record, Border) and record.start is not None:
        for sequence in [sequence for sequence in events if sequence > record.start]:
            del events[sequence]


__all__ = ["Saved", "UnreadableRecord", "fold", "fold_in_steps"]

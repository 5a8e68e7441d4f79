"""Measures the time events take from the data channel to their first client, and counts events read again.

An event is timed once, when the first of the session's reads writes it. Events that were in the log before a read began
are a replay: they are counted but not timed.
"""

from collections.abc import Sequence

from gateway.relay.events.eventlog import Entry
from gateway.relay.telemetry import DownstreamTelemetry


class Deliveries:
    """Records what the open reads of each session have written."""

    def __init__(self, telemetry: DownstreamTelemetry) -> None:
        self._telemetry = telemetry
        self._sessions: dict[str, _Session] = {}

    def open(self, session_id: str, head: int) -> "Delivery":
        """Begin to count for one read; `head` is the sequence of the newest event at that time."""
        session = self._sessions.get(session_id)
        if session is None:
            session = self._sessions[session_id] = _Session(head)
        session.reads += 1
        return Delivery(self, session_id, session, head)

    def __len__(self) -> int:
        return len(self._sessions)

    def _closed(self, session_id: str, session: "_Session") -> None:
        session.reads -= 1
        if not session.reads:
            del self._sessions[session_id]


class _Session:
    __slots__ = ("reads", "written")

    def __init__(self, written: int) -> None:
        self.reads = 0
        self.written = written
        """Sequence of the last event that any of its reads wrote or that preceded all of them."""


def _after(sequence: int, entries: Sequence[Entry]) -> Sequence[Entry]:
    return [entry for entry in entries if entry.sequence > sequence]


class Delivery:
    """Counts what one read writes. Close it when the read is over."""

    __slots__ = ("_deliveries", "_head", "_session", "_session_id", "_telemetry")

    def __init__(self, deliveries: Deliveries, session_id: str, session: _Session, head: int) -> None:
        self._deliveries = deliveries
        self._telemetry = deliveries._telemetry  # noqa: SLF001  # both classes belong to this file
        self._session_id = session_id
        self._session = session
        self._head = head

    def wrote(self, entries: Sequence[Entry], now: float) -> None:
        """Count entries written to the socket at `now`, in monotonic seconds. There is at least one."""
        if entries[0].sequence <= self._head:
            self._telemetry.replayed(sum(entry.sequence <= self._head for entry in entries))
        session = self._session
        last = entries[-1].sequence
        written = session.written
        if last <= written:
            return
        session.written = last
        # Events of one packet came at the same time.
        at, count = 0.0, 0
        for entry in entries if entries[0].sequence > written else _after(written, entries):
            if entry.at != at:
                if count:
                    self._telemetry.relayed_down(now - at, count)
                at, count = entry.at, 0
            count += 1
        self._telemetry.relayed_down(now - at, count)

    def close(self) -> None:
        self._deliveries._closed(self._session_id, self._session)  # noqa: SLF001  # as above

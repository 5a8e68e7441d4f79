"""What a journal may still ask of a session that this process has dropped.

A journal that Redis has not confirmed yet may have to be written again. It needs the session's state and log for that, and
not the session: without the reference from the journal, a session is freed as soon as nobody uses it.
"""

from collections.abc import Iterable

from gateway.relay.broker import Broker, LocalLog
from gateway.relay.events.records import Record
from gateway.relay.session import Session
from gateway.relay.state.fold import SessionState


def drop(session: Session, broker: Broker) -> None:
    """Free the log of a session that nobody can find any more, and let its journal keep no more than it may need."""
    broker.drop(session.log)
    session.journal.bind(_Dropped(session.state, session.log))


class _Dropped:
    """A `JournalOwner` that only answers."""

    def __init__(self, state: SessionState, log: LocalLog) -> None:
        self._state = state
        self._log = log

    def settled(self) -> None:
        """Ignore it: nobody reads the log."""

    def fenced(self) -> None:
        """Ignore it: the session has ended here."""

    def dump(self, version: int) -> bytes:
        """Return the state."""
        return self._state.dump(version)

    def kept(self, after: int) -> Iterable[Record]:
        """Return the events of the log behind a sequence, as records."""
        return self._log.records(after)

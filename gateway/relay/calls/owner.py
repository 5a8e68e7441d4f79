"""The interface through which a session's calls report to the session."""

from collections.abc import Sequence
from typing import Protocol

from gateway.relay.events.frames import Read
from gateway.relay.events.jsontext import Steps
from gateway.relay.events.records import Handed, Record
from gateway.relay.ports import Json
from gateway.relay.state.delivery import Delivery
from gateway.relay.states import CloseReason, State


class Owner(Protocol):
    """What the line reports to its session. Synchronous; never raises."""

    @property
    def id(self) -> str: ...

    @property
    def sure(self) -> bool:
        """This node may act for the session."""

    @property
    def urgent(self) -> bool:
        """A client is waiting for the session."""

    def read_in_steps(self, text: str) -> Steps[Read | None]:
        """Read a large frame. Return None if it is no JSON object and must not be relayed."""

    def arrived(self, text: str, read: Read | None = None) -> None:
        """A server event of the present call arrived; `read` if it was read already."""

    def arrived_together(self, texts: Sequence[str], begin: int) -> int:
        """Server events of the present call arrived together. Take those from `begin` on, up to the first that may change
        what happens to the others, and return which one comes next."""

    def note(self, record: Record) -> None:
        """Record an event of the call in the state and the journal."""

    def handed(self, record: Handed, position: int) -> None:
        """Held events were handed over, the first as this message of the call."""

    def sent(self, event: Delivery) -> None:
        """A held event was handed to the channel."""

    def tell(self, name: str, members: Json) -> None:
        """Write one of the gateway's own events into the log."""

    def moved(self, before: State, after: State) -> None:
        """The session's state changed."""

    def replaced(self) -> None:
        """There is a new call, and the held events were handed to it."""

    def end(self, reason: CloseReason, upstream: Json | None = None) -> None:
        """The line cannot go on."""

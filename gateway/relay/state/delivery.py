"""One accepted client event, from its acceptance until it is confirmed or told of. No I/O, no clock.

It keeps the event's text and the few members that it is matched by, not its parsed value, which takes several times the
memory.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.relay.events.envelope import ClientEvent, member, peek

Json = Mapping[str, object]

_OVERHEAD: Final = 300
"""Bytes that a delivery is counted with beside its text."""

_NAMES_ITEM: Final = frozenset(
    {"conversation.item.delete", "conversation.item.truncate", "conversation.item.retrieve"}
)


_SHAPELESS: Final[tuple[object, object]] = (None, None)


@dataclass(slots=True)
class Delivery:
    """One accepted event."""

    id: int
    """Its number among all deliveries of the session."""
    number: int
    """Its number in the client's own count, 0 for an event of the gateway's."""
    turn: int
    """The turn that it belongs to, 0 for none."""
    text: str
    type: str
    event_id: str | None
    size: int
    """Bytes of its text in UTF-8."""
    names: str | None = None
    """The item or response that it names."""
    shape: tuple[object, object] = _SHAPELESS
    """Type and role of the item that it creates."""
    position: int = 0
    """Which message of its call it is, from 1; 0 while it is held or unknown."""

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that it takes."""
        characters = len(self.text)
        return characters * (1 if characters == self.size else 4) + _OVERHEAD

    @property
    def account(self) -> Json:
        """Return how the event is named to the client that sent it; the gateway's own have no number."""
        return {"number": self.number or None, "event_id": self.event_id, "type": self.type}

    @property
    def session(self) -> Json:
        """The `session` of a session.update."""
        found = member(json.loads(self.text), "session")
        return found if isinstance(found, Mapping) else {}


def delivery(id: int, number: int, event: ClientEvent, turn: int = 0) -> Delivery:
    """Create a delivery from an event."""
    type, text = event.type, event.text
    names: str | None = None
    shape = _SHAPELESS
    if type == "conversation.item.create":
        item = event.value.get("item")
        if isinstance(item, dict):
            names = _text(item.get("id"))
            shape = (item.get("type"), item.get("role"))
    elif type in _NAMES_ITEM:
        names = _text(event.value.get("item_id"))
    elif type == "response.cancel":
        names = _text(event.value.get("response_id"))
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return Delivery(id, number, turn, text, type, event.event_id, size, names, shape)


def read_event(text: str) -> ClientEvent:
    """Rebuild a delivery from the text of an accepted event."""
    value = peek(text) or {}
    return ClientEvent(text, _text(value.get("type")) or "", _text(value.get("event_id")), value)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

"""One accepted client event, from its acceptance until it is confirmed or reported. No I/O, no clock.

It keeps the event's text and the few members that it is matched by, not its parsed value, which takes several times the
memory.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from gateway.relay.events.envelope import ClientEvent, client_event, member, read_members, text_of
from gateway.relay.events.frames import peek
from gateway.relay.events.jsontext import plain

Json = Mapping[str, object]

_OVERHEAD: Final = 300
"""Bytes that a delivery is counted with beside its text."""

_NAMES_ITEM: Final = frozenset(
    {"conversation.item.delete", "conversation.item.truncate", "conversation.item.retrieve"}
)


_SHAPELESS: Final[tuple[object, object]] = (None, None)


class Delivery(msgspec.Struct, gc=False):
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
    held_bytes: int
    """Bytes of memory that it takes."""
    names: str | None = None
    """The item or response that it names."""
    shape: tuple[object, object] = _SHAPELESS
    """Type and role of the item that it creates."""
    position: int = 0
    """Which message of its call it is, from 1; 0 while it is held or unknown."""

    @property
    def account(self) -> Json:
        """Return how the event is named to the client that sent it; the gateway's own have no number."""
        return {"number": self.number or None, "event_id": self.event_id, "type": self.type}

    @property
    def session(self) -> Json:
        """The `session` of a session.update."""
        found = member(plain(self.text.encode()), "session")
        return found if isinstance(found, Mapping) else {}


_Scalar = str | int | float | bool | None


class _Item(msgspec.Struct, gc=False):
    id: _Scalar = None
    type: _Scalar = None
    role: _Scalar = None


class _Creates(msgspec.Struct, gc=False):
    item: _Item


class _Names(msgspec.Struct, gc=False):
    item_id: _Scalar = None
    response_id: _Scalar = None


_NAMELESS: Final = _Names()
_creates = msgspec.json.Decoder(_Creates)
_names = msgspec.json.Decoder(_Names)


def delivery(id: int, number: int, event: ClientEvent, turn: int = 0) -> Delivery:
    """Create a delivery from an event."""
    type, text, size = event.type, event.text, event.size
    names: str | None = None
    shape = _SHAPELESS
    if type == "conversation.item.create":
        names, shape = _item_of(event)
    elif type in _NAMES_ITEM:
        names = text_of((read_members(_names, text) or _NAMELESS).item_id)
    elif type == "response.cancel":
        names = text_of((read_members(_names, text) or _NAMELESS).response_id)
    characters = len(text)
    held = characters * (1 if characters == size else 4) + _OVERHEAD
    return Delivery(id, number, turn, text, type, event.event_id, size, held, names, shape)


def _item_of(event: ClientEvent) -> tuple[str | None, tuple[object, object]]:
    """Return the ID of the item that an event creates, and the item's type and role."""
    item = None if event.known is None else event.known.get("item")
    if isinstance(item, dict):
        return text_of(item.get("id")), (item.get("type"), item.get("role"))
    created = read_members(_creates, event.text)
    if created is None:
        return None, _SHAPELESS
    return text_of(created.item.id), (created.item.type, created.item.role)


def read_event(text: str) -> ClientEvent:
    """Rebuild a delivery from the text of an accepted event."""
    value = peek(text) or {}
    return client_event(text, text_of(value.get("type")) or "", text_of(value.get("event_id")), value)

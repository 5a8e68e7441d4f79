"""Seeding a new call with the conversation of the old one. No I/O, no clock.

A new call is created with the session's configuration, so what is left are the items, and what a client has changed in the
configuration since the call was dialled. All items are sent at once, each with the ID it had. An item that the service refuses, perhaps for its ID, is sent again without one: when all others have been
answered, one such item after the other, each after the item it followed before. The id it is given is kept in `renamed`.
The call's events during seeding are read only here, because clients did not cause them.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from gateway.relay.events.envelope import compose, member
from gateway.relay.state.mirror import Json, Seed

_EVENT_ID = "evt_seed_"
_UPDATE_ID = "evt_gateway_update"


class Seeding:
    """One attempt to seed one call."""

    WATCHED: Final = frozenset(
        {"session.created", "session.updated", "conversation.item.added", "conversation.item.done", "error"}
    )
    """Types of server events that `received` looks at."""

    def __init__(self, seed: Seed, dialled: Json | None = None) -> None:
        """`dialled` is the session object that the call was created with; None if it is the seed's."""
        self._seed = seed
        self._dialled = seed.session if dialled is None else dialled
        self._pending: dict[str, Json] = {str(item["id"]): item for item in seed.items}
        self._again: set[str] = set()
        self._nameless: str | None = None
        self._order = list(self._pending)
        self._given: dict[str, str] = {}
        self.renamed: dict[str, str] = {}
        """Old item id to new, where they differ."""
        self.refused: set[str] = set()
        """Items that the new call refuses with and without an ID."""
        self.session: Json = {}
        """The session object as the new call echoes it."""

    @property
    def done(self) -> bool:
        """Every item is in the conversation, or refused for good."""
        return not self._pending

    @property
    def left(self) -> int:
        """Items that are neither in the conversation nor refused for good."""
        return len(self._pending)

    @property
    def restored(self) -> int:
        """Items that the new call has."""
        return len(self._order) - len(self._pending) - len(self.refused)

    @property
    def lost(self) -> int:
        """Items that the new call does not have."""
        return self._seed.lost + len(self.refused)

    def opening(self) -> Iterator[str]:
        """Yield the events to send once the channel is open. Others may be answered meanwhile."""
        if changed := self._changed():
            session = {"type": "realtime", **changed}
            yield compose({"type": "session.update", "event_id": _UPDATE_ID, "session": session})
        for at, item in enumerate(self._seed.items):
            event = {"type": "conversation.item.create", "event_id": f"{_EVENT_ID}{at}", "item": item}
            yield compose(event)

    def received(self, type: str, value: Json) -> list[str]:
        """Process an event of the new call; return the events to send in answer."""
        match type:
            case "session.created" | "session.updated":
                session = value.get("session")
                self.session = session if isinstance(session, Mapping) else {}
            case "conversation.item.added":
                self._added(str(member(value, "item", "id")))
            case "conversation.item.done":
                return self._done(str(member(value, "item", "id")))
            case "error":
                return self._refused(member(value, "error", "event_id"))
        return []

    def _changed(self) -> Json:
        """Return the members of the session object that changed since the call was dialled; its model cannot change."""
        wanted, dialled = self._seed.session, self._dialled
        return {
            name: value
            for name, value in wanted.items()
            if name != "model" and (name not in dialled or dialled[name] != value)
        }

    def _added(self, item_id: str) -> None:
        if item_id not in self._pending and self._nameless is not None and item_id not in self._given:
            self._given[item_id] = self._nameless
            self.renamed[self._nameless] = item_id

    def _done(self, item_id: str) -> list[str]:
        old = self._given.get(item_id, item_id)
        self._pending.pop(old, None)
        if old == self._nameless:
            self._nameless = None
            self._again.discard(old)
        return self._next()

    def _refused(self, event_id: object) -> list[str]:
        if not isinstance(event_id, str) or not event_id.startswith(_EVENT_ID):
            return []
        number, _, again = event_id.removeprefix(_EVENT_ID).partition("_")
        old = self._order[int(number)]
        if again:
            self._again.discard(old)
            self._pending.pop(old, None)
            self.refused.add(old)
            self._nameless = None
        else:
            self._again.add(old)
        return self._next()

    def _next(self) -> list[str]:
        """Send the first of the refused items again, once nothing else is on its way."""
        if self._nameless is not None or not self._again or len(self._pending) > len(self._again):
            return []
        at, old = next((at, old) for at, old in enumerate(self._order) if old in self._again)
        before = next((kept for kept in reversed(self._order[:at]) if kept not in self.refused), None)
        self._nameless = old
        event = {
            "type": "conversation.item.create",
            "event_id": f"{_EVENT_ID}{at}_again",
            "previous_item_id": "root" if before is None else self.renamed.get(before, before),
            "item": {name: part for name, part in self._pending[old].items() if name != "id"},
        }
        return [compose(event)]

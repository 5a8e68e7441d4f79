"""Bringing a new call to where the old one was. No I/O, no clock.

A new call is created with the session's configuration, so what is left are the items. All are sent at once, each with
the id it had; an item whose id the service refuses is sent again without one, and the id it is given is kept in
`renamed`. What the call says meanwhile is read here and nowhere else: its clients did not cause it.
"""

from collections import deque
from collections.abc import Mapping

from gateway.relay.conversation import Json, Seed
from gateway.relay.envelope import compose, member

_EVENT_ID = "evt_seed_"


class Seeding:
    """One attempt to seed one call."""

    def __init__(self, seed: Seed) -> None:
        self._seed = seed
        self._pending: dict[str, Json] = {str(item["id"]): item for item in seed.items}
        self._nameless: deque[str] = deque()
        self._order = list(self._pending)
        self._given: dict[str, str] = {}
        self.renamed: dict[str, str] = {}
        """Old item id to new, where they differ."""
        self.lost = seed.lost
        """Items that the new call does not have."""
        self.session: Json = {}
        """The session object as the new call echoes it."""

    @property
    def done(self) -> bool:
        """Every item is in the conversation, or refused for good."""
        return not self._pending

    @property
    def restored(self) -> int:
        """Items that the new call has."""
        return len(self._order) - len(self._pending) - (self.lost - self._seed.lost)

    def opening(self) -> list[str]:
        """Give the events to send once the channel is open."""
        return [
            compose(
                {
                    "type": "conversation.item.create",
                    "event_id": f"{_EVENT_ID}{at}",
                    "item": self._pending[item_id],
                }
            )
            for at, item_id in enumerate(self._order)
        ]

    def received(self, type: str, value: Json) -> list[str]:
        """Follow the new call; give what is to be sent in answer."""
        match type:
            case "session.created" | "session.updated":
                session = value.get("session")
                self.session = session if isinstance(session, Mapping) else {}
            case "conversation.item.added":
                self._added(str(member(value, "item", "id")))
            case "conversation.item.done":
                self._done(str(member(value, "item", "id")))
            case "error":
                return self._refused(member(value, "error", "event_id"))
        return []

    def _added(self, item_id: str) -> None:
        if item_id not in self._pending and self._nameless:
            old = self._nameless.popleft()
            self._given[item_id] = old
            self.renamed[old] = item_id

    def _done(self, item_id: str) -> None:
        self._pending.pop(self._given.get(item_id, item_id), None)

    def _refused(self, event_id: object) -> list[str]:
        if not isinstance(event_id, str) or not event_id.startswith(_EVENT_ID):
            return []
        number, _, again = event_id.removeprefix(_EVENT_ID).partition("_")
        old = self._order[int(number)]
        if again:
            self._nameless.remove(old)
            self._pending.pop(old, None)
            self.lost += 1
            return []
        self._nameless.append(old)
        item = {name: part for name, part in self._pending[old].items() if name != "id"}
        return [compose({"type": "conversation.item.create", "event_id": f"{event_id}_again", "item": item})]

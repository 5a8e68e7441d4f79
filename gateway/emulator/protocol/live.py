"""What the parts of one running session share: its object, its conversation, its faults, and the sending of events.

It does not know which event is sent when.
"""

import json
from collections.abc import Callable
from typing import Any

from gateway.emulator.faults import Faults
from gateway.emulator.protocol.ids import IdSource
from gateway.emulator.protocol.items import Conversation, Item

Json = dict[str, Any]


class LiveSession:
    """A session while it runs. `send` puts one text on the channel. `faults` may be replaced at any time."""

    def __init__(self, session: Json, ids: IdSource, faults: Faults, send: Callable[[str], None]) -> None:
        self.object = session
        self.conversation = Conversation(ids.conversation())
        self.ids = ids
        self.faults = faults
        self.send = send
        self.closed = False

    def emit(self, event: Json) -> None:
        """Send an event, with an ID, unless the session is closed."""
        if self.closed:
            return
        kind = event["type"]
        heard = kind.startswith("output_audio_buffer.")
        event_id = self.ids.audio_buffer_event() if heard else self.ids.event()
        body = {"type": kind, "event_id": event_id, **event}
        self.send(json.dumps(body, ensure_ascii=False, separators=(",", ":")))

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Insert an item into the conversation and send that. Return the ID before it. Raises Refusal."""
        before = self.conversation.place(item, after)
        self.emit({"type": "conversation.item.added", "previous_item_id": before, "item": dict(item)})
        return before

    def finish(self, item: Item, before: str | None) -> None:
        """Send that an item is complete. `before` is the ID before it."""
        self.emit({"type": "conversation.item.done", "previous_item_id": before, "item": item})

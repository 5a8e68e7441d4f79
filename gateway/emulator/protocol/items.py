"""The conversation: items in order, found by id. No I/O.

It keeps the items and their order. It does not know how items are created.
"""

import json
from collections.abc import Iterator
from typing import Any

from gateway.emulator.protocol.errors import Refusal
from gateway.emulator.protocol.ids import IdSource

Item = dict[str, Any]


class Conversation:
    """An ordered list of items."""

    __slots__ = ("_by_id", "_items", "heard", "id", "sounds")

    def __init__(self, conversation_id: str) -> None:
        self.id = conversation_id
        # The words of audio items, by ID: a model hears them even if no transcript was requested.
        self.heard: dict[str, str] = {}
        # Milliseconds of sound in items that were heard or spoken, by id.
        self.sounds: dict[str, int] = {}
        self._items: list[Item] = []
        self._by_id: dict[str, Item] = {}

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def find(self, item_id: str) -> Item | None:
        return self._by_id.get(item_id)

    def place(self, item: Item, after: str | None) -> str | None:
        """Insert `item` after the item `after` (None appends, `root` puts it first); return the id now before it."""
        if item["id"] in self._by_id:
            raise Refusal(
                "item_create_duplicate_item_id",
                f"Error creating item: an item with id '{item['id']}' already exists.",
                param="item.id",
            )
        if after is None:
            at = len(self._items)
        elif after == "root":
            at = 0
        else:
            at = self._index(after, "previous_item_id") + 1
        self._items.insert(at, item)
        self._by_id[item["id"]] = item
        return self._items[at - 1]["id"] if at else None

    def has_call(self, call_id: str) -> bool:
        """Return whether an item of the conversation is the function call `call_id`."""
        return any(i["type"] == "function_call" and i["call_id"] == call_id for i in reversed(self._items))

    def before(self, item_id: str) -> str | None:
        """Return the ID before an item, or None if the item is the first or was deleted."""
        # Searched from the end: the item is nearly always one of the newest.
        for at in range(len(self._items) - 1, 0, -1):
            if self._items[at]["id"] == item_id:
                return str(self._items[at - 1]["id"])
        return None

    def is_first(self, item_id: str | None) -> bool:
        return bool(self._items) and self._items[0]["id"] == item_id

    def get(self, item_id: str, param: str = "item_id") -> Item:
        return self._items[self._index(item_id, param)]

    def remove(self, item_id: str) -> None:
        del self._items[self._index(item_id, "item_id")]
        del self._by_id[item_id]
        self.heard.pop(item_id, None)
        self.sounds.pop(item_id, None)

    def as_heard(self) -> list[Item]:
        """Return the items as a model reads them: with the words of audio that has no transcript."""
        return [self._as_heard(item) for item in self._items] if self.heard else list(self._items)

    def _as_heard(self, item: Item) -> Item:
        said = self.heard.get(item["id"])
        if said is None:
            return item
        parts = [
            part | {"transcript": said}
            if part["type"] == "input_audio" and not part.get("transcript")
            else part
            for part in item["content"]
        ]
        return item | {"content": parts}

    def _index(self, item_id: str, param: str) -> int:
        for at, item in enumerate(self._items):
            if item["id"] == item_id:
                return at
        raise Refusal(
            "item_not_found",
            f"Item with id '{item_id}' not found in the conversation.",
            param=param,
        )


def text_of(item: Item) -> str:
    """Return all text in an item."""
    kind = item.get("type")
    if kind == "function_call":
        return f"{item.get('name', '')}{item.get('arguments', '')}"
    if kind == "function_call_output":
        return str(item.get("output", ""))
    if kind in ("mcp_call", "mcp_approval_request"):
        return f"{item['name']}{item['arguments']}{item.get('output') or ''}"
    if kind == "mcp_list_tools":
        return json.dumps(item["tools"], ensure_ascii=False)
    parts = item.get("content") or []
    return " ".join(
        str(part.get("text") or part.get("transcript") or "") for part in parts if isinstance(part, dict)
    ).strip()


def new_item(given: Item, ids: IdSource) -> Item:
    """Make a conversation item from a checked one: add an ID, and `status` for the types that have it, as recorded."""
    item: Item = {"id": given.get("id") or ids.item(), "type": given["type"]}
    if given["type"] in ("message", "function_call"):
        item["status"] = "completed"
    kept = {k: v for k, v in given.items() if k not in ("id", "type", "status", "object")}
    if given["type"] == "message":
        # A copy: a later event that changes the item must not change the client's event.
        item |= {"role": kept.pop("role"), **kept, "content": [dict(part) for part in kept["content"]]}
    elif given["type"] == "function_call":
        item |= {"name": kept["name"], "call_id": kept.get("call_id") or ids.function_call()}
        item["arguments"] = kept["arguments"]
    else:
        item |= kept
    return item

"""A mirror of the conversation, enough to seed a new call with it. No I/O, no clock.

OpenAI keeps a conversation only as long as its call, and a call cannot be resumed, so a session that outlives a call
carries its own copy: the session's configuration as last confirmed, and the items in order. It follows the server events
of items; the deltas between are of no interest, since an item is repeated whole when it is done.

Items are kept as their JSON text, not parsed: a parsed item takes several times the memory. Bounded in items and bytes.
At a bound the oldest item is dropped and counted in `lost`, which is reported when the conversation is restored.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.relay.events.envelope import compact, member
from gateway.relay.events.jsontext import plain
from gateway.relay.events.large import written
from gateway.relay.sessionobject import merge

Json = Mapping[str, object]

MAX_ITEMS: Final = 2000
MAX_BYTES: Final = 2 * 1024 * 1024
"""More than 128,000 tokens of text, the longest context of any model in 2026."""


@dataclass(frozen=True, slots=True)
class Seed:
    """What makes a new call continue the conversation."""

    session: Json
    """The OpenAI session object to create the call with."""
    items: Sequence[Json]
    """Items to create, in order, with their IDs."""
    lost: int
    """Items that could not be kept."""


class Mirror:
    """Items and configuration of one conversation."""

    WATCHED: Final = frozenset(
        {
            "conversation.item.added",
            "conversation.item.done",
            "conversation.item.deleted",
            "conversation.item.truncated",
            "conversation.item.input_audio_transcription.completed",
            "response.output_item.done",
        }
    )
    """Types of server events that change the items."""

    def __init__(self, session: str, max_items: int = MAX_ITEMS, max_bytes: int = MAX_BYTES) -> None:
        """`session` is the OpenAI session object as JSON."""
        self._session = session
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: dict[str, bytes] = {}
        self._size = 0
        self._lost = 0
        self.changes = 0
        """Grows whenever an item changes: shows whether a seed still matches the conversation."""

    @property
    def size(self) -> int:
        """Bytes kept."""
        return self._size + len(self._session)

    @property
    def session(self) -> Json:
        """The OpenAI session object to create the next call with."""
        return _parse(self._session)

    def update(self, session: Json) -> None:
        """A session.update was taken."""
        self._session = compact(merge(self.session, session)).decode()

    def received(self, type: str, value: Json) -> None:
        """Follow a server event of a watched type."""
        match type:
            case "conversation.item.added":
                self._added(value)
            case "conversation.item.done" | "response.output_item.done":
                self._done(value)
            case "conversation.item.deleted":
                self._drop(_string(value.get("item_id")))
            case "conversation.item.truncated":
                self._truncated(value)
            case "conversation.item.input_audio_transcription.completed":
                self._transcribed(value)

    def seed(self) -> Seed:
        """Return what a new call needs. Unfinished items, and items without content that can be sent as text, are counted
        as lost."""
        items = [
            restored for item in self._items.values() if (restored := restorable(_parse(item))) is not None
        ]
        kept = _with_calls(items)
        return Seed(self.session, kept, self._lost + len(self._items) - len(kept))

    def restart(self, renamed: Mapping[str, str], refused: Collection[str] = ()) -> None:
        """A new call holds the conversation: items that were unfinished or refused are gone, and IDs that it did not
        accept are replaced. The loss has been reported, and is not counted again."""
        texts = self._items
        self._items, self._size, self._lost = {}, 0, 0
        for item_id, text in texts.items():
            if item_id in refused:
                continue
            item = _parse(text)
            if restorable(item) is not None:
                new = renamed.get(item_id)
                if new is None:
                    self._store(item_id, text)
                else:
                    self._put(new, {**item, "id": new})

    def forget(self) -> None:
        """Drop everything: the session is over and no call will be seeded."""
        self._items, self._size, self._session = {}, 0, "{}"

    def dump(self) -> Json:
        """Return the mirror as JSON."""
        items = [[item_id, text.decode()] for item_id, text in self._items.items()]
        return {"session": self._session, "items": items, "lost": self._lost}

    @classmethod
    def load(cls, dumped: Json) -> "Mirror":
        """Rebuild a mirror from `dump`."""
        mirror = cls(_string(dumped.get("session")))
        items = dumped.get("items")
        for item_id, text in items if isinstance(items, list) else ():
            mirror._store(item_id, text.encode("utf-8", "backslashreplace"))
        mirror._lost = int(str(dumped.get("lost")))
        return mirror

    def _added(self, value: Json) -> None:
        item = value.get("item")
        item_id = member(value, "item", "id")
        if not isinstance(item, dict) or not isinstance(item_id, str):
            return
        last = next(reversed(self._items), None)
        previous = value.get("previous_item_id", last)
        before_others = previous is None or (isinstance(previous, str) and previous in self._items)
        if previous == last or item_id in self._items or not before_others:
            self._store(item_id, written(value, "item"))
        else:
            self._store_after(
                previous if isinstance(previous, str) else None, item_id, written(value, "item")
            )
        self._shrink()

    def _store_after(self, previous: str | None, item_id: str, text: bytes) -> None:
        """Insert in the middle, or at the start for None. A dict keeps its order, so what follows is put in again."""
        later = list(self._items)
        if previous is not None:
            later = later[later.index(previous) + 1 :]
        moved = [(key, self._items.pop(key)) for key in later]
        self._store(item_id, text)
        self._items.update(moved)

    def _done(self, value: Json) -> None:
        item = value.get("item")
        item_id = member(value, "item", "id")
        # Items of an out-of-band response also end with `done`, but were never added to the conversation.
        if isinstance(item, dict) and isinstance(item_id, str) and item_id in self._items:
            self._store(item_id, written(value, "item"))
            self._shrink()

    def _truncated(self, value: Json) -> None:
        # Truncation drops the transcript at the service, too, because the user did not hear it. The part stays in its
        # place, because later events name those behind it by their index.
        self._change_part(value, lambda part: {})

    def _transcribed(self, value: Json) -> None:
        self._change_part(value, lambda part: {**part, "transcript": value.get("transcript")})

    def _change_part(self, value: Json, change: Callable[[Json], Json]) -> None:
        item_id, index = _string(value.get("item_id")), value.get("content_index")
        text = self._items.get(item_id)
        if text is None or not isinstance(index, int):
            return
        item = _parse(text)
        content = item.get("content")
        if not isinstance(content, list) or not 0 <= index < len(content):
            return
        part = content[index]
        if isinstance(part, Mapping):
            self._put(item_id, {**item, "content": [*content[:index], change(part), *content[index + 1 :]]})

    def _put(self, item_id: str, item: Json) -> None:
        # As UTF-8: escaped, Chinese text would count double.
        self._store(item_id, compact(item))

    def _store(self, item_id: str, text: bytes) -> None:
        before = self._items.get(item_id)
        if before != text:
            self._size += len(text) - len(before or b"")
            self._items[item_id] = text
            self.changes += 1

    def _drop(self, item_id: str) -> None:
        text = self._items.pop(item_id, None)
        if text is not None:
            self._size -= len(text)
            self.changes += 1

    def _shrink(self) -> None:
        while len(self._items) > 1 and (len(self._items) > self._max_items or self._size > self._max_bytes):
            self._drop(next(iter(self._items)))
            self._lost += 1


_PARTS: Mapping[tuple[str, str], str] = {
    ("assistant", "output_text"): "text",
    ("assistant", "output_audio"): "transcript",
    ("user", "input_text"): "text",
    ("user", "input_audio"): "transcript",
    ("user", "input_image"): "image_url",
    ("system", "input_text"): "text",
}
"""Content that a new call accepts, by the member that holds it."""


def restorable(item: Json) -> dict[str, object] | None:
    """Return an item as a new call accepts it, audio as its transcript, or None if nothing of it can be sent."""
    if item.get("status") == "in_progress":
        return None
    match item.get("type"):
        case "message":
            return _message(item)
        case "function_call":
            return {
                name: item[name] for name in ("id", "type", "call_id", "name", "arguments") if name in item
            }
        case "function_call_output":
            return {name: item[name] for name in ("id", "type", "call_id", "output") if name in item}
        case _:
            return None


def _with_calls(items: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Leave out function outputs without an earlier function call: the service refuses those."""
    calls: set[object] = set()
    kept: list[dict[str, object]] = []
    for item in items:
        if item.get("type") == "function_call":
            calls.add(item.get("call_id"))
        elif item.get("type") == "function_call_output" and item.get("call_id") not in calls:
            continue
        kept.append(item)
    return kept


def _message(item: Json) -> dict[str, object] | None:
    role, content = _string(item.get("role")), item.get("content")
    parts = [
        restored for part in (content if isinstance(content, list) else ()) if (restored := _part(role, part))
    ]
    return {"id": item.get("id"), "type": "message", "role": role, "content": parts} if parts else None


def _part(role: str, part: object) -> Json | None:
    if not isinstance(part, Mapping):
        return None
    kind = _string(part.get("type"))
    name = _PARTS.get((role, kind))
    value = part.get(name) if name else None
    if not isinstance(value, str):
        return None
    if name == "image_url":
        # The image's detail level affects both the answer and its cost.
        return {name: part[name] for name in ("type", "image_url", "detail") if part.get(name) is not None}
    return {"type": "output_text" if role == "assistant" else "input_text", "text": value}


def _parse(text: str | bytes) -> Json:
    """Parse what was written, whole and exactly."""
    # A lone surrogate is written as its escape. Earlier versions wrote it as it is; its replacement is the same escape.
    value = plain(text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text)
    assert isinstance(value, dict)  # only objects are written
    return value


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""

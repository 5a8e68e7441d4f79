"""A mirror of the conversation, enough to seed a new call with it. No I/O, no clock.

OpenAI keeps a conversation only as long as its call, and nothing upstream can be resumed, so a session that outlives a
call carries its own copy: the session's configuration as last confirmed, the items in order, and what was handed to the
channel without being confirmed yet. It follows client events as they are sent and server events as they arrive; the
deltas between are of no interest, since an item is repeated whole when it is done.

Confirmations are matched per kind and in order: the service handles one connection's events one after the other, and
answers each event of the kinds below with one of its own or with an `error` that names it. An `error`
that names nobody, since its event had no `event_id`, is taken for one about whichever nameless event before it is still
unanswered when a later one is confirmed, or when the call has had time to answer (`settle`).

Bounded in items and bytes. What falls out is the oldest, counted in `lost`, and said when the conversation is restored.
"""

import json
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.relay.envelope import ClientEvent, member
from gateway.relay.sessionobject import merge

Json = Mapping[str, object]

MAX_ITEMS: Final = 2000
MAX_BYTES: Final = 2 * 1024 * 1024
"""More than 128,000 tokens of text, the longest context of any model in 2026."""

MAX_UNCONFIRMED: Final = 1024
"""Events in flight that are remembered; older ones are taken for confirmed."""

MAX_ANSWERING: Final = 256
"""Responses in flight that are remembered; a service that never ends one fills no memory."""

_CONFIRMED_BY: Mapping[str, str] = {
    "session.update": "session.updated",
    "conversation.item.create": "conversation.item.added",
    "conversation.item.delete": "conversation.item.deleted",
    "conversation.item.truncate": "conversation.item.truncated",
    "response.create": "response.created",
    "response.cancel": "response.done",
    "conversation.item.retrieve": "conversation.item.retrieved",
    "input_audio_buffer.commit": "input_audio_buffer.committed",
    "input_audio_buffer.clear": "input_audio_buffer.cleared",
}
"""Client events that are answered, and the server event that does so. Others, such as an append, cannot be confirmed."""

_OF_THE_CALL: Final = frozenset(
    {
        "response.cancel",
        "conversation.item.retrieve",
        "input_audio_buffer.commit",
        "input_audio_buffer.clear",
    }
)
"""Those that mean a response or buffer of their call, or only ask: on a new one they would do harm or nothing."""

_ASKING: Final = "response.create"


@dataclass(frozen=True, slots=True)
class Sent:
    """A client event handed to the channel: its number in the session's count, and itself."""

    number: int
    event: ClientEvent


@dataclass(frozen=True, slots=True)
class Seed:
    """What makes a new call continue the conversation."""

    session: Json
    """The OpenAI session object to create the call with."""
    items: Sequence[Json]
    """Items to create, in order, with their ids."""
    lost: int
    """Items that could not be kept."""


class Conversation:
    """The mirror: `sent` and `received` feed it, `seed` reads it."""

    WATCHED: Final = frozenset(
        {
            *_CONFIRMED_BY.values(),
            "conversation.item.done",
            "conversation.item.input_audio_transcription.completed",
            "response.output_item.done",
            "response.done",
            "error",
        }
    )
    """Types of server events that `received` wants."""

    def __init__(self, session: Json, max_items: int = MAX_ITEMS, max_bytes: int = MAX_BYTES) -> None:
        self._session: dict[str, object] = dict(session)
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: dict[str, Json] = {}
        self._sizes: dict[str, int] = {}
        self._size = 0
        self._lost = 0
        self._handed = 0
        self._unconfirmed: deque[tuple[int, Sent]] = deque()
        self._doubted = 0
        self._answering: dict[str, Sent | None] = {}

    @property
    def session(self) -> Json:
        """The OpenAI session object to create the next call with."""
        return self._session

    @property
    def unconfirmed(self) -> list[Sent]:
        """What was handed over and may or may not have been taken, in order."""
        return [sent for _, sent in self._unconfirmed]

    @property
    def cut(self) -> bool:
        """A response is in flight, or was asked for and may be: the loss of the call cuts it off."""
        return bool(self._answering) or any(sent.event.type == _ASKING for _, sent in self._unconfirmed)

    @property
    def again(self) -> list[Sent]:
        """What to send for the responses that are cut off: the requests of those in flight, and what was not confirmed of
        the conversation, since a question may be among it. A response that the service began by itself has no request."""
        asked = [sent for sent in self._answering.values() if sent is not None]
        return asked + [sent for sent in self.unconfirmed if sent.event.type not in _OF_THE_CALL]

    def sent(self, number: int, event: ClientEvent) -> bool:
        """Note an event handed to the channel, if it is of a kind that is answered; gives whether it is."""
        if event.type not in _CONFIRMED_BY:
            return False
        self._handed += 1
        self._unconfirmed.append((self._handed, Sent(number, event)))
        if len(self._unconfirmed) > MAX_UNCONFIRMED:
            self._unconfirmed.popleft()
        return True

    def settle(self) -> None:
        """The call is alive and has had time to answer all that was sent before its last `error` that named nobody."""
        self._forget_doubted(self._handed)

    def received(self, type: str, value: Json) -> None:
        """Follow a server event of a watched type."""
        match type:
            case "conversation.item.added":
                self._added(value)
            case "conversation.item.done" | "response.output_item.done":
                self._done(value)
            case "conversation.item.deleted":
                self._confirm("conversation.item.delete")
                self._drop(_string(value.get("item_id")))
            case "conversation.item.truncated":
                self._confirm("conversation.item.truncate")
                self._truncated(value)
            case "conversation.item.input_audio_transcription.completed":
                self._transcribed(value)
            case "session.updated":
                self._updated(value.get("session"))
            case "response.created":
                self._begun(value)
            case "conversation.item.retrieved":
                self._confirm("conversation.item.retrieve")
            case "input_audio_buffer.committed":
                self._confirm("input_audio_buffer.commit")
            case "input_audio_buffer.cleared":
                self._confirm("input_audio_buffer.clear")
            case "response.done":
                # Cancelled or done before: either way there is nothing left to cancel.
                self._confirm("response.cancel")
                self._answering.pop(_string(member(value, "response", "id")), None)
            case "error":
                self._refused(value)

    def seed(self) -> Seed:
        """Give what a new call needs. Items that were never finished, or hold nothing that can be said again in text,
        are counted as lost."""
        kept = [restored for item in self._items.values() if (restored := restorable(item)) is not None]
        return Seed(dict(self._session), kept, self._lost + len(self._items) - len(kept))

    def restart(self, renamed: Mapping[str, str], refused: Collection[str] = ()) -> None:
        """A new call holds the conversation: items that were unfinished or refused are gone, ids that it did not accept
        are replaced, and nothing is in flight. What was lost has been told, and is not counted again."""
        items = [
            (item_id, item)
            for item_id, item in self._items.items()
            if item_id not in refused and restorable(item) is not None
        ]
        self._items, self._sizes, self._size, self._lost = {}, {}, 0, 0
        for item_id, item in items:
            new = renamed.get(item_id, item_id)
            self._put(new, {**item, "id": new})
        self._unconfirmed.clear()
        self._answering.clear()
        self._doubted = 0

    def _confirm(self, kind: str, item: Json | None = None) -> Sent | None:
        """Take the oldest in-flight event of a kind; one that names `item` comes before one that names none."""
        found = None
        for entry in self._unconfirmed:
            event = entry[1].event
            if event.type != kind:
                continue
            if item is not None:
                own = event.value.get("item")
                own_id = own.get("id") if isinstance(own, Mapping) else None
                if own_id == item.get("id"):
                    found = entry
                    break
                if own_id is not None or found is not None or not _alike(own, item):
                    continue
            elif found is not None:
                break
            found = entry
        if found is None:
            return None
        self._unconfirmed.remove(found)
        self._forget_doubted(found[0])
        return found[1]

    def _forget_doubted(self, before: int) -> None:
        """Drop nameless events that an error has answered which named nobody."""
        if self._doubted:
            last = min(self._doubted, before)
            kept = (e for e in self._unconfirmed if e[0] > last or e[1].event.event_id is not None)
            self._unconfirmed = deque(kept)

    def _begun(self, value: Json) -> None:
        sent = self._confirm(_ASKING)
        self._answering[_string(member(value, "response", "id"))] = sent
        if len(self._answering) > MAX_ANSWERING:
            del self._answering[next(iter(self._answering))]

    def _added(self, value: Json) -> None:
        item = value.get("item")
        item_id = member(value, "item", "id")
        if not isinstance(item, Mapping) or not isinstance(item_id, str):
            return
        if item.get("status") != "in_progress":
            self._confirm("conversation.item.create", item)
        last = next(reversed(self._items), None)
        previous = value.get("previous_item_id", last)
        self._insert(item_id, item, previous if previous is None or isinstance(previous, str) else last)

    def _insert(self, item_id: str, item: Json, previous: str | None) -> None:
        last = next(reversed(self._items), None)
        if (
            previous == last
            or item_id in self._items
            or (previous is not None and previous not in self._items)
        ):
            self._put(item_id, item)
        else:
            self._put_after(previous, item_id, item)
        self._shrink()

    def _put_after(self, previous: str | None, item_id: str, item: Json) -> None:
        """Insert in the middle, or at the start for None. A dict keeps its order, so what follows is put in again."""
        later = list(self._items)
        if previous is not None:
            later = later[later.index(previous) + 1 :]
        moved = [(key, self._items.pop(key)) for key in later]
        self._put(item_id, item)
        self._items.update(moved)

    def _done(self, value: Json) -> None:
        item = value.get("item")
        item_id = member(value, "item", "id")
        # An out-of-band response's items are done, too, but were never added to the conversation.
        if isinstance(item, Mapping) and isinstance(item_id, str) and item_id in self._items:
            self._put(item_id, item)
            self._shrink()

    def _updated(self, echo: object) -> None:
        # An update that was refused without its event_id still waits here, and would make every call to come be refused
        # as well. The echo shows which one was taken; those before it were not, since each is answered in its turn.
        waiting = [entry for entry in self._unconfirmed if entry[1].event.type == "session.update"]
        taken = next((at for at, e in enumerate(waiting) if _shows(echo, e[1].event.value.get("session"))), 0)
        for entry in waiting[:taken]:
            self._unconfirmed.remove(entry)
        # The echo holds members that a create does not accept, so what was asked for is merged, not what came back.
        sent = self._confirm("session.update")
        if sent is None:
            return
        session = sent.event.value.get("session")
        if isinstance(session, Mapping):
            self._session = merge(self._session, session)

    def _truncated(self, value: Json) -> None:
        # Truncation drops the transcript at the service, too: what was not heard was not said.
        item_id = _string(value.get("item_id"))
        item = self._items.get(item_id)
        index = value.get("content_index")
        content = item.get("content") if item is not None else None
        if item is not None and isinstance(content, Sequence) and isinstance(index, int):
            # The part stays in its place: later events name those behind it by their index.
            self._put(
                item_id, {**item, "content": [{} if at == index else part for at, part in enumerate(content)]}
            )

    def _transcribed(self, value: Json) -> None:
        item_id = _string(value.get("item_id"))
        item = self._items.get(item_id)
        index = value.get("content_index")
        content = item.get("content") if item is not None else None
        if (
            item is not None
            and isinstance(content, Sequence)
            and isinstance(index, int)
            and index < len(content)
        ):
            parts = list(content)
            if isinstance(parts[index], Mapping):
                parts[index] = {**parts[index], "transcript": value.get("transcript")}
                self._put(item_id, {**item, "content": parts})

    def _refused(self, value: Json) -> None:
        event_id = member(value, "error", "event_id")
        if event_id is None:
            self._doubted = self._handed
            return
        for entry in self._unconfirmed:
            if entry[1].event.event_id == event_id:
                self._unconfirmed.remove(entry)
                return

    def _put(self, item_id: str, item: Json) -> None:
        # As UTF-8: escaped, a text in Chinese would count double. A lone surrogate, which JSON can name, still counts.
        size = len(json.dumps(item, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        self._size += size - self._sizes.get(item_id, 0)
        self._sizes[item_id] = size
        self._items[item_id] = item

    def _drop(self, item_id: str) -> None:
        if self._items.pop(item_id, None) is not None:
            self._size -= self._sizes.pop(item_id)

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
"""Content that can be given to a new call, and the member that holds it."""


def restorable(item: Json) -> dict[str, object] | None:
    """Give an item as a new call takes it, audio as its transcript, or None if nothing of it can be given."""
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


def _message(item: Json) -> dict[str, object] | None:
    role, content = _string(item.get("role")), item.get("content")
    parts: list[Json] = []
    for part in content if isinstance(content, Sequence) else ():
        restored = _part(role, part)
        if restored is not None:
            parts.append(restored)
    if not parts:
        return None
    return {"id": item.get("id"), "type": "message", "role": role, "content": parts}


def _part(role: str, part: object) -> Json | None:
    if not isinstance(part, Mapping):
        return None
    kind = _string(part.get("type"))
    member = _PARTS.get((role, kind))
    value = part.get(member) if member else None
    if not isinstance(value, str):
        return None
    if member == "image_url":
        # How closely the model looks is part of what was asked, and of what it costs.
        return {name: part[name] for name in ("type", "image_url", "detail") if part.get(name) is not None}
    return {"type": "output_text" if role == "assistant" else "input_text", "text": value}


def _alike(own: object, item: Json) -> bool:
    """Whether a nameless item may be this one of the service's."""
    return isinstance(own, Mapping) and all(own.get(name) == item.get(name) for name in ("type", "role"))


def _shows(echo: object, wanted: object) -> bool:
    """Whether a session object is as an update wanted it. Lists and null are the service's to complete."""
    if isinstance(wanted, Mapping):
        return isinstance(echo, Mapping) and all(
            _shows(echo.get(name), part) for name, part in wanted.items()
        )
    return wanted is None or isinstance(wanted, list) or echo == wanted


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""

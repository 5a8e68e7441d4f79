"""The wire formats of events: Server-Sent Events, JSON lines, or one JSON page. No I/O.

All are built from the same log entries. The event stream writes the log's buffers unchanged; the other two slice the JSON
out of them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

from gateway.downstream.reading import sse
from gateway.relay.events.eventlog import Entry

_PAGE_BEGIN: Final = b'{"events":['


class Rendering(Protocol):
    """Encodes the data of a stream."""

    media_type: str

    def opening(self, retry_ms: int, cursor: str | None, members: Mapping[str, object], pad: int) -> bytes:
        """Return the first bytes: `gateway.open`."""

    def entries(self, epoch: str, entries: Sequence[Entry]) -> bytes:
        """Return events of the log as bytes; there is at least one."""

    def own(self, name: str, members: Mapping[str, object], cursor: str | None = None) -> bytes:
        """Return one of the gateway's own events that is not in the log; `cursor` sets the client's cursor."""

    def heartbeat(self, pad: int) -> bytes:
        """Return bytes that a client ignores."""

    def ending(self, name: str, members: Mapping[str, object], retry_ms: int) -> bytes:
        """Return the last event, with the delay before a reconnect."""


class EventStream:
    """Renders Server-Sent Events (WHATWG HTML 9.2)."""

    media_type = "text/event-stream; charset=utf-8"

    def opening(self, retry_ms: int, cursor: str | None, members: Mapping[str, object], pad: int) -> bytes:
        text = own_json("gateway.open", members)
        return sse.padding(pad) + sse.notice("gateway.open", text, id=cursor, retry=retry_ms)

    def entries(self, epoch: str, entries: Sequence[Entry]) -> bytes:
        if len(entries) == 1:
            return entries[0].block
        return b"".join([entry.block for entry in entries])

    def own(self, name: str, members: Mapping[str, object], cursor: str | None = None) -> bytes:
        return sse.notice(name, own_json(name, members), id=cursor)

    def heartbeat(self, pad: int) -> bytes:
        return sse.padding(pad) + sse.COMMENT

    def ending(self, name: str, members: Mapping[str, object], retry_ms: int) -> bytes:
        return sse.notice(name, own_json(name, members), retry=retry_ms)


class JsonLines:
    """Renders one `{"id":…,"event":{…}}` per line, with a null `id` outside the log. A heartbeat is an empty line."""

    media_type = "application/x-ndjson"

    def opening(self, retry_ms: int, cursor: str | None, members: Mapping[str, object], pad: int) -> bytes:
        return b" " * pad + self.own("gateway.open", members)

    def entries(self, epoch: str, entries: Sequence[Entry]) -> bytes:
        return b"".join([_entry(epoch, entry, b"\n") for entry in entries])

    def own(self, name: str, members: Mapping[str, object], cursor: str | None = None) -> bytes:
        if cursor is not None:
            members = {**members, "cursor": cursor}
        return b'{"id":null,"event":%s}\n' % own_json(name, members).encode()

    def heartbeat(self, pad: int) -> bytes:
        return b" " * pad + b"\n"

    def ending(self, name: str, members: Mapping[str, object], retry_ms: int) -> bytes:
        return self.own(name, members)


class JsonPage:
    """One object with a list of events and the next cursor. It is encoded in pieces, since a page may have megabytes and
    its reader may be slow."""

    media_type = "application/json"

    def __init__(self, parts: Sequence[tuple[str, Sequence[Entry]]], cursor: str) -> None:
        """`parts`: the entries and their epoch, in order; no part is empty."""
        self._parts = parts
        self._end = b'],"cursor":"%s"}' % cursor.encode()

    @property
    def size(self) -> int:
        """Return the size of all pieces in bytes."""
        size = len(_PAGE_BEGIN) + len(self._end) - bool(self._parts)
        for epoch, entries in self._parts:
            frame = len(_wrapped(epoch, 0, b"{}", b",")) - len("0") - len("{}")
            size += sum(
                frame + len(str(entry.sequence)) + sse.unframed_size(entry.block, entry.start)
                for entry in entries
            )
        return size

    def pieces(self) -> Iterator[bytes]:
        """Yield the page in pieces of one event."""
        yield _PAGE_BEGIN
        last = len(self._parts) - 1
        for index, (epoch, entries) in enumerate(self._parts):
            yield from (_entry(epoch, entry, b",") for entry in entries[:-1])
            yield _entry(epoch, entries[-1], b"," if index < last else b"")
        yield self._end


def own_json(name: str, members: Mapping[str, object]) -> str:
    """Return the JSON of one of the gateway's own events, whose `type` is its name."""
    return json.dumps({"type": name, **members}, separators=(",", ":"))


def _entry(epoch: str, entry: Entry, end: bytes) -> bytes:
    """Return an entry as an object with its ID."""
    return _wrapped(epoch, entry.sequence, sse.unframe(entry.block, entry.start), end)


def _wrapped(epoch: str, sequence: int, event: bytes, end: bytes) -> bytes:
    return b'{"id":"%b-%d","event":%b}%b' % (epoch.encode(), sequence, event, end)

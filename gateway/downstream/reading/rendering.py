"""How a stream's events look on the wire: Server-Sent Events or JSON lines. No I/O.

Both are made from the same log entries. The event stream writes the buffers that the log keeps as they are; JSON lines
cut the JSON out of them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

from gateway.downstream.reading import sse
from gateway.relay.eventlog import Entry


class Rendering(Protocol):
    """Encodes what a stream sends."""

    media_type: str

    def opening(self, retry_ms: int, cursor: str | None, members: Mapping[str, object], pad: int) -> bytes:
        """The first bytes: `gateway.open`."""

    def entries(self, epoch: str, entries: Sequence[Entry]) -> bytes:
        """Events of the log."""

    def own(self, name: str, members: Mapping[str, object], cursor: str | None = None) -> bytes:
        """One of the gateway's own events that stands in no log; `cursor` moves the client's."""

    def heartbeat(self, pad: int) -> bytes:
        """Something that means nothing."""

    def ending(self, name: str, members: Mapping[str, object], retry_ms: int) -> bytes:
        """The last event, and when to come back."""


class EventStream:
    """WHATWG HTML 9.2."""

    media_type = "text/event-stream; charset=utf-8"

    def opening(self, retry_ms: int, cursor: str | None, members: Mapping[str, object], pad: int) -> bytes:
        text = own_json("gateway.open", members)
        return sse.padding(pad) + sse.notice("gateway.open", text, id=cursor, retry=retry_ms)

    def entries(self, epoch: str, entries: Sequence[Entry]) -> bytes:
        return b"".join([entry.block for entry in entries])

    def own(self, name: str, members: Mapping[str, object], cursor: str | None = None) -> bytes:
        return sse.notice(name, own_json(name, members), id=cursor)

    def heartbeat(self, pad: int) -> bytes:
        return sse.padding(pad) + sse.COMMENT

    def ending(self, name: str, members: Mapping[str, object], retry_ms: int) -> bytes:
        return sse.notice(name, own_json(name, members), retry=retry_ms)


class JsonLines:
    """One `{"id":…,"event":{…}}` a line; `"id":null` for what stands in no log. The heartbeat is an empty line."""

    media_type = "application/x-ndjson"

    def opening(self, retry_ms: int, cursor: str | None, members: Mapping[str, object], pad: int) -> bytes:
        return b" " * pad + self.own("gateway.open", members)

    def entries(self, epoch: str, entries: Sequence[Entry]) -> bytes:
        return b"".join([wrapped(epoch, entry) + b"\n" for entry in entries])

    def own(self, name: str, members: Mapping[str, object], cursor: str | None = None) -> bytes:
        if cursor is not None:
            members = {**members, "cursor": cursor}
        return b'{"id":null,"event":%s}\n' % own_json(name, members).encode()

    def heartbeat(self, pad: int) -> bytes:
        return b" " * pad + b"\n"

    def ending(self, name: str, members: Mapping[str, object], retry_ms: int) -> bytes:
        return self.own(name, members)


def own_json(name: str, members: Mapping[str, object]) -> str:
    """Give the JSON of one of the gateway's own events, whose `type` is its name."""
    return json.dumps({"type": name, **members}, separators=(",", ":"))


def wrapped(epoch: str, entry: Entry) -> bytes:
    """Give an entry as an object with its id, as JSON lines and long-polls show it."""
    return b'{"id":"%s-%d","event":%s}' % (
        epoch.encode(),
        entry.sequence,
        sse.unframe(entry.block, entry.start),
    )

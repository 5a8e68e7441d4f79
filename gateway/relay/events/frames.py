"""Frames from upstream: the members that decide an event's way, and as much of its value as somebody looks at. No I/O.

A server event passes as the text that came. Of most events only the type is read; the whole value is built for the few that
change a session's state. Nothing here takes longer than a few milliseconds for a frame of a megabyte: of one with very many
values the lists that hold them are left out.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import islice

import msgspec

from gateway.relay.events.jsontext import DENSE, SEARCHED_BYTES, most_values, odd, plain
from gateway.relay.events.surrogates import mended_at_once

WHOLE = 25_000
"""Values in a frame from upstream that is built whole, in at most 8 ms: more than a client can have echoed to it, unless in an
item. Of a frame with more only a part is built."""

Passing = tuple[str, str, int]
"""Type and text of a server event that only the log needs, and the turn that it belongs to, 0 for none."""


class ServerHead(msgspec.Struct, gc=False):
    """The members of a server event that decide its route. A member that is missing, null or not a string is None."""

    type: str | None = None
    response_id: str | None = None
    item_id: str | None = None


class _Typed(msgspec.Struct, gc=False):
    type: object = None


_server = msgspec.json.Decoder(ServerHead)
_any = msgspec.json.Decoder(float_hook=float)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_typed = msgspec.json.Decoder(_Typed)

# OpenAI writes the type first; a proxy may add white space.
_TYPE_FIRST = re.compile(r'\{\s*"type"\s*:\s*"([a-z_.]*)"')


def head(text: str) -> ServerHead | None:
    """Read the routing members of a frame from upstream. Return None if it is not a JSON object and must not be relayed."""
    try:
        return _server.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        pass
    value = peek(text)
    if value is None:
        return None
    members = (value.get(name) for name in ServerHead.__struct_fields__)
    return ServerHead(*(found if isinstance(found, str) else None for found in members))


def server_event(text: str, whole: frozenset[str]) -> tuple[str, Mapping[str, object]] | None:
    """Read the type of a frame from upstream, and its value: all of it for the types in `whole`, the IDs of `ServerHead`
    alone for others. None if it is no JSON object."""
    # Where the type comes first and is one of these, the event is parsed once; the parser has the last word.
    first = _TYPE_FIRST.match(text)
    if first is not None and first[1] in whole:
        value = peek(text)
        if value is not None:
            told = value.get("type")
            return told if isinstance(told, str) else "", value
    read = head(text)
    if read is None:
        return None
    value = peek(text) if read.type in whole else None
    return read.type or "", value or {"response_id": read.response_id, "item_id": read.item_id}


def passing(texts: Sequence[str], begin: int, watched: frozenset[str]) -> list[Passing]:
    """Return the frames from upstream from `begin` on, up to the first of a watched type. One that is large, or not of the
    usual form, also ends it."""
    events: list[Passing] = []
    decode = _server.decode
    try:
        for text in islice(texts, begin, None):
            type_ = decode(text).type if len(text) <= SEARCHED_BYTES else None
            if type_ is None or type_ in watched:
                break
            events.append((type_, text, 0))
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        pass
    return events


def deltas(texts: Sequence[str], begin: int, response_id: str | None, turn: int) -> list[Passing]:
    """As `passing`, while a turn runs that has this response: the deltas of any response, up to the first other event."""
    events: list[Passing] = []
    decode = _server.decode
    try:
        for text in islice(texts, begin, None):
            read = decode(text) if len(text) <= SEARCHED_BYTES else None
            type_ = None if read is None else read.type
            if (
                read is None
                or type_ is None
                or not (type_.endswith(".delta") and type_.startswith("response."))
            ):
                break
            ours = response_id is not None and read.response_id == response_id
            events.append((type_, text, turn if ours else 0))
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        pass
    return events


def peek(text: str) -> dict[str, object] | None:
    """Read a frame from upstream. Return None if it is not a JSON object and must not be relayed.

    Of a frame with very many values the lists that hold them are left out.
    """
    try:
        value = _thinned(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _thinned(text: str) -> object:
    """Build the value of a text, in at most 10 ms for a megabyte. Of an object with very many values the lists and the large
    objects that hold them are left out. Raises ValueError or RecursionError for what is not JSON, or too large and no
    object."""
    values = most_values(text)
    if values > WHOLE:
        values = most_values(_without_strings(text.encode()))
    if values <= WHOLE:
        try:
            return _any.decode(text)
        except (msgspec.DecodeError, RecursionError):  # a lone surrogate, or a number beyond msgspec's range
            return odd(text)
    data = text.encode()
    try:
        return _of_values(data, values)
    except msgspec.DecodeError:
        if b"\\u" not in data or b"\0" in data:
            raise
    return _of_values(mended_at_once(data), values)


def _of_values(data: bytes, values: int) -> object:
    """Build an object of so many values without the lists and the large objects in it. The text is checked whole."""
    # Each member costs as much as fifty values that are passed over.
    if data.count(b":") > DENSE and _without_strings(data).count(b":") > DENSE:
        return {"type": _typed.decode(data).type}
    # No value is shorter than a character, so the others cannot hold more than so many.
    members = {name: bytes(raw) for name, raw in _members.decode(data).items()}
    return {name: _part(part, values - len(data) + len(part)) for name, part in members.items()}


def _part(data: bytes, least: int) -> object:
    """Build a member's value if it holds few values; None for a list of very many. It holds at least `least`."""
    if len(data) <= WHOLE:
        return plain(data)
    values = least if least > WHOLE else most_values(_without_strings(data))
    if values <= WHOLE:
        return plain(data)
    return _of_values(data, values) if data.startswith(b"{") else None


def _without_strings(data: bytes) -> bytes:
    """Remove the strings, whose commas and colons are no values. A text of very many strings stays as it is."""
    if b"\\" in data:
        # Without escaped backslashes and quotes, every second part between two quotes is a string.
        data = data.replace(rb"\\", b"").replace(rb"\"", b"")
    return data if data.count(b'"') > 2 * DENSE else b"".join(data.split(b'"')[::2])

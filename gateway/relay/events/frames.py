"""Frames from upstream: the members that decide an event's way, and as much of its value as somebody looks at. No I/O.

A server event passes as the text that came. Of most events only the type is read; the whole value is built for the few that
change a session's state. Nothing here takes longer than a few milliseconds for a frame of a megabyte: of one with very many
values the lists that hold them are left out.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import islice

import msgspec

from gateway.relay.events.envelope import text_of
from gateway.relay.events.jsontext import (
    DENSE,
    LARGE_BYTES,
    SEARCHED_BYTES,
    Steps,
    finish,
    most_values,
    odd,
    plain,
)
from gateway.relay.events.longtext import read_long
from gateway.relay.events.surrogates import mended_roughly

WHOLE = 21_000
"""Values in a frame from upstream that is built whole, in at most 7 ms: more than a client can have echoed to it, unless in an
item. Of a frame with more only a part is built."""

_LOOKED_AT = 64 * 1024
"""Bytes in which values are counted before the limit is looked at."""

_VALUES = b",[{"
_MEMBERS_IN_STEP = 2048

Read = tuple[str, Mapping[str, object]]
"""Type and value of a server event."""

Passing = tuple[str, str, int]
"""Type and text of a server event that only the log needs, and the turn that it belongs to, 0 for none."""


class ServerHead(msgspec.Struct, gc=False):
    """The members of a server event that decide its route. A member that is missing, null or not a string is None."""

    type: str | None = None
    response_id: str | None = None
    item_id: str | None = None


class _Typed(msgspec.Struct, gc=False):
    type: object = None


_NOT_READ = (msgspec.DecodeError, RecursionError, UnicodeEncodeError)
_server = msgspec.json.Decoder(ServerHead)
_any = msgspec.json.Decoder(float_hook=float)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_typed = msgspec.json.Decoder(_Typed)

# OpenAI writes the type first; a proxy may add white space.
_TYPE_FIRST = re.compile(r'\{\s*"type"\s*:\s*"([a-z_.]*)"')


def server_event(text: str, whole: frozenset[str]) -> Read | None:
    """Read the type of a frame from upstream, and its value: all of it for the types in `whole`, the IDs of `ServerHead`
    alone for others. None if it is no JSON object and must not be relayed.

    Of a frame with very many values the lists that hold them are left out."""
    first = _TYPE_FIRST.match(text)
    if first is None or first[1] not in whole:
        # Hot: most events, of which no more is read.
        try:
            read = _server.decode(text)
        except _NOT_READ:
            pass
        else:
            if read.type not in whole:
                return read.type or "", {"response_id": read.response_id, "item_id": read.item_id}
    return finish(read_in_steps(text, whole))


def read_in_steps(text: str, whole: frozenset[str]) -> Steps[Read | None]:
    """As `server_event`, in steps."""
    # Where the type comes first and is one of these, the event is parsed once; the parser has the last word.
    first = _TYPE_FIRST.match(text)
    if first is not None and first[1] in whole:
        value = yield from _peek(text)
        if value is not None:
            return text_of(value.get("type")) or "", value
    try:
        read = _server.decode(text)
    except _NOT_READ:
        value = yield from _peek(text)
        if value is None:
            return None
        read = ServerHead(*(text_of(value.get(name)) for name in ServerHead.__struct_fields__))
    else:
        value = (yield from _peek(text)) if read.type in whole else None
    if value is None or read.type not in whole:
        value = {"response_id": read.response_id, "item_id": read.item_id}
    return read.type or "", value


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
    except _NOT_READ:
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
    except _NOT_READ:
        pass
    return events


def peek(text: str) -> dict[str, object] | None:
    """Read a frame from upstream. Return None if it is not a JSON object and must not be relayed.

    Of a frame with very many values the lists that hold them are left out.
    """
    return finish(_peek(text))


def _peek(text: str) -> Steps[dict[str, object] | None]:
    try:
        value = yield from _thinned(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _thinned(text: str) -> Steps[object]:
    """Build the value of a text. Of an object with very many values the lists and the large objects that hold them are left
    out. Raises ValueError or RecursionError for what is not JSON, or too large and no object."""
    # A text has fewer values than characters.
    if len(text) > WHOLE and _may_hold_more(text):
        data = text.encode()
        if len(data) > LARGE_BYTES:
            yield
        if (yield from _holds_more(data, _VALUES, WHOLE)):
            try:
                return (yield from _of_values(data, WHOLE))[0]
            except msgspec.DecodeError:
                if b"\\u" not in data or b"\0" in data:
                    raise
            data = yield from mended_roughly(data)
            return (yield from _of_values(data, WHOLE))[0]
    if len(text) > LARGE_BYTES:
        return (yield from read_long(text))
    try:
        return _any.decode(text)
    except (msgspec.DecodeError, RecursionError):  # a lone surrogate, or a number beyond msgspec's range
        return odd(text)


def _may_hold_more(text: str) -> bool:
    """Return whether a text may have more than `WHOLE` values: a quick test that rules it out for nearly all texts."""
    count = 0
    for begin in range(0, len(text), _LOOKED_AT):
        count += most_values(text[begin : begin + _LOOKED_AT])
        if count > WHOLE:
            return True
    return False


def _of_values(data: bytes, left: int) -> Steps[tuple[dict[str, object], int]]:
    """Build an object of very many values without the lists that hold most of them. The text is checked whole. `left`: how many
    values may be built; return it less those that were."""
    # Each member costs as much as fifty values that are passed over.
    if data.count(b":") > DENSE and (yield from _holds_more(data, b":", DENSE)):
        return {"type": _typed.decode(data).type}, left
    if len(data) > LARGE_BYTES:
        yield
    value: dict[str, object] = {}
    for number, (name, raw) in enumerate(_members.decode(data).items(), start=1):
        if len(raw) > LARGE_BYTES or not number % _MEMBERS_IN_STEP:
            yield
        part = bytes(raw)
        most = 0 if part.startswith(b'"') else most_values(part)
        if most <= left or not (yield from _holds_more(part, _VALUES, left)):
            value[name] = (yield from read_long(part.decode())) if len(part) > LARGE_BYTES else plain(part)
            left -= min(most, left)
        elif part.startswith(b"{"):
            value[name], left = yield from _of_values(part, left)
        else:
            value[name] = None
    return value, left


def _holds_more(data: bytes, characters: bytes, limit: int) -> Steps[bool]:
    """Return whether a text has more than `limit` of these characters outside strings. The count may be too high in a part of
    very many strings. It ends as soon as the limit is exceeded, so it is short where they are many."""
    count, begin, inside = 0, 0, 0
    while begin < len(data):
        end = begin + _LOOKED_AT
        part = data[begin:end]
        if (len(part) - len(part.rstrip(b"\\"))) % 2:
            end += 1  # An escape is not cut, nor backslashes from each other.
            part = data[begin:end]
        if b"\\" in part:
            # Without escaped backslashes and quotes, every second part between two quotes is a string.
            # Replaced by as many characters, which takes half the time of removing them.
            part = part.replace(rb"\\", b"__").replace(rb"\"", b"__")
        quotes = part.count(b'"')
        if quotes and quotes < _LOOKED_AT // 16:
            part = b"".join(part.split(b'"')[inside::2])
        elif inside and not quotes:
            part = b""
        inside = (inside + quotes) % 2
        for character in characters:
            count += part.count(character)
        if count > limit:
            return True
        if end // LARGE_BYTES > begin // LARGE_BYTES:
            yield
        begin = end
    return False

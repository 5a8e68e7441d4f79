"""Client events as the relay handles them: their JSON text, and as little of its meaning as is needed.

A body is checked whole before any of it is sent, and what is sent are slices of the text that came in: nothing is
added, dropped, reordered or re-encoded. What an event means is OpenAI's to judge, so unknown types pass. No I/O.

The JSON is RFC 8259 in strict UTF-8, see `jsontext`. Of an event only the members that decide its way are read by type; its
whole value is built where somebody looks at it. The `read_*` functions work in steps, so that a body of millions of values
does not delay others; `parse_object` does the same at once.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeVar

import msgspec

from gateway.errors import CallerError, Flaw
from gateway.relay.events import jsontext
from gateway.relay.events.jsontext import MAX_DEPTH, NotJsonError, Steps, finish, most_values
from gateway.relay.events.surrogates import mended_roughly

T = TypeVar("T")

_SPACE = b" \t\n\r"
_CONTENT = re.compile(rb"[^ \t\n\r]")


class _Client(msgspec.Struct, gc=False):
    """The members of a client event that are read here."""

    type: str | None = None
    event_id: str | None = None


MAX_VALUES = 20_000
"""JSON values in a body that is parsed whole, and in the events of one batch that are. A session object with hundreds of
tools has a tenth of it; a megabyte of nested lists has 30 times as many, and takes 100 ms each time that it is parsed."""

_PARSED_WHOLE = frozenset({"session.update", "response.create"})

MAX_ELEMENTS = 1000
"""Elements that are kept of a list in the value of an event with very many values. Nothing here looks at as many."""

_client = msgspec.json.Decoder(_Client)
_write = msgspec.json.Encoder().encode


class ClientEvent(msgspec.Struct, frozen=True, gc=False):
    """One event on its way up. `text` is sent as it is."""

    text: str
    type: str
    event_id: str | None
    size: int
    """Bytes of the text in UTF-8."""
    known: Mapping[str, object] | None = None
    """The event's value, if it was built already."""

    @property
    def value(self) -> Mapping[str, object]:
        """The parsed event. It is built for each access, so that no event is held twice."""
        if self.known is not None:
            return self.known
        value = jsontext.plain(self.text.encode())
        assert isinstance(value, dict)  # it was checked
        return value


def client_event(
    text: str, type: str, event_id: str | None, known: Mapping[str, object] | None = None
) -> ClientEvent:
    """Create an event from a text whose size is not known."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return ClientEvent(text, type, event_id, size, known)


def parse_object(body: bytes) -> dict[str, object]:
    """Read an object at once, see `read_object`."""
    return finish(read_object(body))


def read_json(
    body: bytes, *, max_events: int, strict_members: bool = False
) -> Steps[tuple[ClientEvent, ...]]:
    """Read one client event or an array of them.

    `strict_members` refuses objects whose members repeat or differ only in case: two parsers may see two different
    events in them, so no rule about an event's members could be relied on. Raises CallerError `invalid-json`,
    `invalid-event` (both with JSON pointers) or `too-large`.
    """
    _require_utf8(body)
    data = body.strip(_SPACE)
    if not data.startswith(b"["):
        try:
            event = yield from _read_event(data, Flaw("", pointer=""), MAX_DEPTH, strict_members)
        except NotJsonError as error:
            _refuse_json(str(error), body, error.at + len(body) - len(body.lstrip(_SPACE)))
        yield from _counted(0, event.type, data)
        return (event,)
    try:
        yield from jsontext.checked(body)
    except NotJsonError as error:
        number = yield from jsontext.element_at(body, error.at)
        _refuse_json(str(error), body, error.at, pointer=None if number is None else f"/{number}")
    slices = yield from jsontext.elements(data, max_events)
    if not slices:
        raise CallerError("invalid-event", "The batch is empty.")
    if len(slices) > max_events:
        _too_many(max_events)
    events: list[ClientEvent] = []
    read = values = 0
    for index, slice_ in enumerate(slices):
        read += len(slice_)
        if read > jsontext.SEARCHED_BYTES:
            read = 0
            yield
        place = Flaw("", pointer=f"/{index}")
        try:
            events.append((yield from _read_event(slice_, place, MAX_DEPTH - 1, strict_members)))
        except NotJsonError as error:
            _refuse_json(str(error), body, _begin(body, slices[: index + 1]), pointer=place.pointer)
        values = yield from _counted(values, events[-1].type, slice_)
    return tuple(events)


def read_ndjson(
    body: bytes, *, max_events: int, strict_members: bool = False
) -> Steps[tuple[ClientEvent, ...]]:
    """Read client events as lines, ended by LF or CRLF; blank lines are passed over. Errors name the line, from 1."""
    _require_utf8(body)
    events: list[ClientEvent] = []
    values, begin, number = 0, 0, 1
    while content := _line(body, begin):
        start, end = content
        number += body.count(b"\n", begin, start)
        if end // jsontext.SEARCHED_BYTES > begin // jsontext.SEARCHED_BYTES:
            yield
        begin = end
        if len(events) == max_events:
            _too_many(max_events)
        line = body[start:end].strip(_SPACE)
        try:
            events.append((yield from _read_event(line, Flaw("", line=number), MAX_DEPTH, strict_members)))
        except NotJsonError as error:
            what = "more than one value on a line" if str(error).startswith("trailing") else str(error)
            _refuse_json(what, line, error.at, line=number)
        values = yield from _counted(values, events[-1].type, line)
    if not events:
        raise CallerError("invalid-event", "The batch is empty.")
    return tuple(events)


def read_object(body: bytes) -> Steps[dict[str, object]]:
    """Read a body that is one JSON object, such as that of a create. Raises CallerError `invalid-json`.

    Unlike an event, this object is serialised again on its way up. JSON that parsers need not accept (RFC 8259 6 and
    8.2) is therefore refused: numbers out of range and lone surrogates. Raises `too-large` for more than `MAX_VALUES`.
    """
    _require_utf8(body)
    try:
        yield from jsontext.checked(body)
        if (yield from jsontext.count_values(body, MAX_VALUES)) > MAX_VALUES:
            _too_many_values("The body")
        yield from jsontext.scanned(body.decode(), MAX_DEPTH, strict=True)
    except NotJsonError as error:
        _refuse_json(str(error), body, error.at)
    if len(body) > jsontext.LARGE_BYTES:
        yield  # A single token of a megabyte was looked at in 4 ms, and will be again.
    value = yield from jsontext.built(body)
    if not isinstance(value, dict):
        raise CallerError(
            "invalid-json", "The body must be a JSON object.", flaws=(Flaw("not an object", pointer=""),)
        )
    if len(body) > jsontext.LARGE_BYTES:
        yield
    flaw = yield from jsontext.unwritable(body)
    if flaw is not None:
        _refuse_json(str(flaw), body, flaw.at)
    return value


def read_members(decoder: msgspec.json.Decoder[T], text: str) -> T | None:
    """Read members of a checked event by type, without building the others. None if they have other types."""
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, RecursionError):
        if "\\u" not in text:
            return None
    # It may contain a lone surrogate.
    try:
        if most_values(text) <= jsontext.DENSE:
            return msgspec.convert(jsontext.odd(text), decoder.type)
        return decoder.decode(finish(mended_roughly(text.encode())))
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None


def compose(value: object) -> str:
    """Return a value of the gateway's own as JSON that can be encoded as UTF-8."""
    try:
        return _write(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        # A lone surrogate, which JSON can carry only as an escape, or a number beyond msgspec's range.
        return json.dumps(value, separators=(",", ":"), default=_read_again)


def compact(value: object) -> bytes:
    """Write a value that was parsed as JSON as UTF-8, as short as it can be. A lone surrogate is written as its escape."""
    try:
        return _write(value)
    except (
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
    ):  # surrogates, and numbers beyond msgspec's range
        # Python writes the character itself, and replaces what UTF-8 cannot hold by the same escape as JSON.
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_read_again)
        return text.encode("utf-8", "backslashreplace")


def _read_again(raw: object) -> object:
    """Return the value of a part that is JSON text already: Python's writer cannot copy it."""
    if not isinstance(raw, msgspec.Raw):
        raise TypeError(f"no JSON value: {type(raw).__name__}")
    return jsontext.plain(bytes(raw))


def member(value: object, *names: str) -> object:
    """Follow member names into a parsed value; None if a member is missing or a value on the path is not an object."""
    for name in names:
        # Every parser returns JSON objects as dicts, and a check for Mapping takes ten times as long.
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def text_of(value: object) -> str | None:
    """Return a parsed value if it is a string."""
    return value if isinstance(value, str) else None


def _require_utf8(body: bytes) -> None:
    if body.startswith(b"\xef\xbb\xbf"):
        raise CallerError("invalid-json", "The body starts with a byte order mark; JSON is sent without one.")
    if body.isascii():
        return
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"The body is not UTF-8: byte {error.start} is 0x{body[error.start]:02x}."
        raise CallerError("invalid-json", detail) from None


def _begin(body: bytes, slices: Sequence[bytes]) -> int:
    """Return where the last of an array's first elements begins."""
    end = begin = body.index(b"[") + 1
    for slice_ in slices:
        begin = body.index(slice_, end)
        end = begin + len(slice_)
    return begin


def _line(body: bytes, begin: int) -> tuple[int, int] | None:
    """Return where the next line that is not blank begins and ends."""
    found = _CONTENT.search(body, begin)
    if found is None:
        return None
    end = body.find(b"\n", found.start())
    return found.start(), len(body) if end < 0 else end


def _read_event(data: bytes, where: Flaw, levels: int, strict: bool) -> Steps[ClientEvent]:
    """Read an event from its text without white space around it. Raises NotJsonError and CallerError."""
    value: object = None
    read: _Client | None = None
    try:
        read = _client.decode(data)
    except (msgspec.DecodeError, RecursionError):
        # Not JSON, not an event, or a member of the wrong type. Everything except msgspec's own limits is refused here.
        yield from jsontext.checked(data)
    if len(data) > jsontext.LARGE_BYTES:
        yield
    text = data.decode()
    if strict or jsontext.is_deep(data, levels):
        yield from jsontext.scanned(text, levels, strict)
    if read is None or (len(data) > jsontext.DENSE and most_values(data) > jsontext.DENSE):
        value = yield from jsontext.built(data, MAX_ELEMENTS)
    if read is None:
        type_, event_id = _judged(value, where)
    elif read.type is None:
        _refuse_event("'type' is missing", where, "/type")
    else:
        type_, event_id = read.type, read.event_id
    return ClientEvent(text, type_, event_id, len(data), value if isinstance(value, dict) else None)


def _judged(value: object, where: Flaw) -> tuple[str, str | None]:
    """Return the type and the id of an event's value. Raises CallerError `invalid-event`."""
    if not isinstance(value, dict):
        _refuse_event("a client event is a JSON object", where, "")
    type_, event_id = value.get("type"), value.get("event_id")
    if not isinstance(type_, str):
        _refuse_event("'type' is missing" if type_ is None else "'type' is not a string", where, "/type")
    if event_id is not None and not isinstance(event_id, str):
        _refuse_event("'event_id' is neither a string nor null", where, "/event_id")
    return type_, event_id


def _refuse_json(
    what: str, data: bytes, at: int, *, pointer: str | None = None, line: int | None = None
) -> NoReturn:
    row = data.count(b"\n", 0, at) + 1
    column = len(data[data.rfind(b"\n", 0, at) + 1 : at].decode(errors="replace")) + 1
    place = f"line {line}" if line is not None else f"line {row} column {column}"
    flaw = Flaw(what, pointer=pointer, line=line if line is not None else row)
    raise CallerError("invalid-json", f"Not JSON: {what} ({place}).", flaws=(flaw,))


def _refuse_event(what: str, where: Flaw, member: str) -> NoReturn:
    pointer = None if where.pointer is None else where.pointer + member
    flaw = Flaw(what, pointer=pointer if pointer is not None else member or None, line=where.line)
    place = (
        f"line {where.line}"
        if where.line is not None
        else f"at '{flaw.pointer}'"
        if flaw.pointer
        else "the body"
    )
    raise CallerError("invalid-event", f"Not a client event: {what} ({place}).", flaws=(flaw,))


def _counted(before: int, type: str, data: bytes) -> Steps[int]:
    """Return how many values the events of a batch that are parsed whole hold, `data` of this type included."""
    if type not in _PARSED_WHOLE:
        return before
    count = before + (yield from jsontext.count_values(data, MAX_VALUES - before))
    if count > MAX_VALUES:
        _too_many_values(f"The {' and '.join(sorted(_PARSED_WHOLE))} events of a request")
    return count


def _too_many_values(what: str) -> NoReturn:
    detail = f"{what} may hold at most {MAX_VALUES} JSON values, counting commas and opening brackets."
    raise CallerError("too-large", detail, members={"limit": MAX_VALUES})


def _too_many(max_events: int) -> NoReturn:
    detail = f"A batch may have at most {max_events} events."
    raise CallerError("too-large", detail, members={"limit": max_events})


def matches_type(pattern: str, type: str) -> bool:
    """Return whether an event's type is the pattern, or begins with what stands before its final `*`."""
    return type.startswith(pattern[:-1]) if pattern.endswith("*") else type == pattern

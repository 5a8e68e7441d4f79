"""Client and server events as the relay handles them: their JSON text, and as little of its meaning as is needed.

A body is checked whole before any of it is sent, and what is sent are slices of the text that came in: nothing is
added, dropped, reordered or re-encoded. What an event means is OpenAI's to judge, so unknown types pass. No I/O.

The JSON is RFC 8259 in strict UTF-8: no byte order mark, no NaN or Infinity, at most `MAX_DEPTH` deep.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from gateway.errors import CallerError, Flaw

MAX_DEPTH = 64
"""Deeper JSON has no use in this protocol, and parsers of clients and servers break on it at various depths."""

_SPACE = re.compile(r"[ \t\n\r]*")
# Possessive: a string is passed over in one step, without a way back noted for each of its characters.
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_NESTING = re.compile(_STRING + r"|([\[{])|([\]}])", re.DOTALL)
_CONSTANT = re.compile(_STRING + r"|(NaN|-?Infinity)", re.DOTALL)
_NUMBER = re.compile(_STRING + r"|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)", re.DOTALL)
# An escaped backslash, a pair, or one half.
_SURROGATE = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
# int() refuses more than 4300 digits and is quadratic below that; a number that long is kept as a float, since the
# parsed value only serves to look at an event, never to send it.
_LONG_NUMBER = 300


@dataclass(frozen=True, slots=True)
class ClientEvent:
    """One event on its way up. `text` is sent as it is; `value` is for looking at."""

    text: str
    type: str
    event_id: str | None
    value: Mapping[str, object]

    @property
    def size(self) -> int:
        """Bytes in UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())


def parse_json(body: bytes, *, max_events: int, strict_members: bool = False) -> tuple[ClientEvent, ...]:
    """Read one client event or an array of them.

    `strict_members` refuses objects whose members repeat or differ only in case: two parsers may see two different
    events in them, so no rule about an event's members could be relied on. Raises CallerError `invalid-json`,
    `invalid-event` (both with JSON pointers) or `too-large`.
    """
    parser = _Parser(strict_members)
    text = _decode(body)
    begin = _skip(text, 0)
    if text[begin : begin + 1] != "[":
        value, end = parser.value(text, begin)
        if _skip(text, end) != len(text):
            _refuse_json("more than one value; use application/x-ndjson to send several", text, end)
        return (_event(text[begin:end], value, Flaw("", pointer="")),)
    events = tuple(
        _event(slice_, value, Flaw("", pointer=f"/{index}"))
        for index, (slice_, value) in enumerate(_elements(parser, text, begin, max_events))
    )
    if not events:
        raise CallerError("invalid-event", "The batch is empty.")
    return events


def parse_ndjson(body: bytes, *, max_events: int, strict_members: bool = False) -> tuple[ClientEvent, ...]:
    """Read client events as lines, ended by LF or CRLF; blank lines are passed over. Errors name the line, from 1."""
    parser = _Parser(strict_members)
    events: list[ClientEvent] = []
    for number, line in enumerate(_decode(body).split("\n"), start=1):
        content = line.strip(" \t\r")
        if not content:
            continue
        if len(events) == max_events:
            _too_many(max_events)
        value, end = parser.value(content, 0, line=number)
        if end != len(content):
            _refuse_json("more than one value on a line", content, end, line=number)
        events.append(_event(content, value, Flaw("", line=number)))
    if not events:
        raise CallerError("invalid-event", "The batch is empty.")
    return tuple(events)


def parse_object(body: bytes) -> dict[str, object]:
    """Read a body that is one JSON object, such as that of a create. Raises CallerError `invalid-json`.

    Unlike an event, what is read here is written anew on its way up, so that what JSON's grammar allows and no parser
    need take (RFC 8259 6 and 8.2) is refused: numbers beyond all range, halves of surrogate pairs.
    """
    text = _decode(body)
    begin = _skip(text, 0)
    value, end = _Parser(strict_members=True).value(text, begin)
    if _skip(text, end) != len(text):
        _refuse_json("more than one value", text, end)
    if not isinstance(value, dict):
        raise CallerError(
            "invalid-json", "The body must be a JSON object.", flaws=(Flaw("not an object", pointer=""),)
        )
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        _refuse_json("half of a surrogate pair", text, _lone_surrogate_at(text, begin))
    except ValueError:
        _refuse_json("a number beyond all range", text, _endless_number_at(text, begin))
    return value


def compose(value: Mapping[str, object]) -> str:
    """Write an event of the gateway's own as JSON that UTF-8 can carry."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON carries as an escape only
        return json.dumps(value, separators=(",", ":"))
    return text


def peek(text: str) -> dict[str, object] | None:
    """Read a frame from upstream. None if it is no JSON object, and so not to be relayed."""
    value: object = None
    try:
        value, end = _DOWN.raw_decode(text)
    except (ValueError, RecursionError):
        end = -1
    if end != len(text):  # white space around it, a number too long for int(), or no JSON
        try:
            value = _ODD_DOWN.decode(text)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def member(value: object, *names: str) -> object:
    """Follow member names into a parsed value; None where one is missing or something else than an object stands."""
    for name in names:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _decode(body: bytes) -> str:
    if body.startswith(b"\xef\xbb\xbf"):
        raise CallerError("invalid-json", "The body starts with a byte order mark; JSON is sent without one.")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"The body is not UTF-8: byte {error.start} is 0x{body[error.start]:02x}."
        raise CallerError("invalid-json", detail) from None


def _skip(text: str, index: int) -> int:
    found = _SPACE.match(text, index)
    assert found is not None  # the pattern matches nothing, too
    return found.end()


def _elements(parser: "_Parser", text: str, begin: int, max_events: int) -> Iterator[tuple[str, object]]:
    """Walk a top-level array and give each element with the slice of the text that it is."""
    index, count = _skip(text, begin + 1), 0
    closed = text[index : index + 1] == "]"
    while not closed:
        if count == max_events:
            _too_many(max_events)
        value, end = parser.value(text, index, pointer=f"/{count}", level=1)
        yield text[index:end], value
        count += 1
        index = _skip(text, end)
        closed = text[index : index + 1] == "]"
        if not closed:
            if text[index : index + 1] != ",":
                _refuse_json("expected ',' or ']' after an element", text, index)
            index = _skip(text, index + 1)
    if _skip(text, index + 1) != len(text):
        _refuse_json("something follows the array", text, index + 1)


def _event(text: str, value: object, where: Flaw) -> ClientEvent:
    if not isinstance(value, dict):
        _refuse_event("a client event is a JSON object", where, "")
    type_ = value.get("type")
    if not isinstance(type_, str):
        _refuse_event("'type' is missing" if type_ is None else "'type' is not a string", where, "/type")
    event_id = value.get("event_id")
    if event_id is not None and not isinstance(event_id, str):
        _refuse_event("'event_id' is neither a string nor null", where, "/event_id")
    return ClientEvent(text, type_, event_id, value)


class _Parser:
    """The standard library's parser with what it lacks: no constants, a bound on depth, strict members."""

    def __init__(self, strict_members: bool) -> None:
        self._decoder = json.JSONDecoder(
            parse_constant=_refuse_constant,
            parse_int=_integer,
            object_pairs_hook=_unambiguous if strict_members else None,
        )

    def value(
        self, text: str, index: int, *, pointer: str | None = None, line: int | None = None, level: int = 0
    ) -> tuple[object, int]:
        try:
            value, end = self._decoder.raw_decode(text, index)
        except json.JSONDecodeError as error:
            _refuse_json(error.msg[0].lower() + error.msg[1:], text, error.pos, pointer=pointer, line=line)
        except _ConstantError as error:
            _refuse_json(str(error), text, _constant_at(text, index), pointer=pointer, line=line)
        except _Refused as error:
            _refuse_json(str(error), text, index, pointer=pointer, line=line)
        except RecursionError:
            _refuse_json(f"nested deeper than {MAX_DEPTH} levels", text, index, pointer=pointer, line=line)
        if _deeper_than(text[index:end], MAX_DEPTH - level):
            _refuse_json(f"nested deeper than {MAX_DEPTH} levels", text, index, pointer=pointer, line=line)
        return value, end


class _Refused(ValueError):
    """Raised inside the standard parser's hooks."""


class _ConstantError(_Refused):
    pass


def _refuse_constant(word: str) -> NoReturn:
    raise _ConstantError(f"{word} is not JSON")


def _constant_at(text: str, index: int) -> int:
    """Find the first NaN or Infinity that is not inside a string: the parser's hook is not told where it is."""
    return next((found.start() for found in _CONSTANT.finditer(text, index) if found[1]), index)


def _endless_number_at(text: str, index: int) -> int:
    """Find the first number that no float can hold, outside strings."""
    numbers = (found for found in _NUMBER.finditer(text, index) if found[1])
    return next((found.start() for found in numbers if math.isinf(float(found[1]))), index)


def _lone_surrogate_at(text: str, index: int) -> int:
    """Find the first escape that is half of a surrogate pair."""
    return next((found.start() for found in _SURROGATE.finditer(text, index) if found[1]), index)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < _LONG_NUMBER else float(digits)


def _unambiguous(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len({name.casefold() for name in members}) != len(pairs):
        raise _Refused("an object has members that repeat or differ only in case")
    return members


def _deeper_than(text: str, levels: int) -> bool:
    # Counting brackets is a hundred times faster than walking, and settles it for all but odd events.
    if text.count("[") + text.count("{") <= levels:
        return False
    depth = 0
    for found in _NESTING.finditer(text):
        if found[1]:
            depth += 1
            if depth > levels:
                return True
        elif found[2]:
            depth -= 1
    return False


# Numbers through a hook and white space by a pattern cost a third of all, so only odd frames are read that way.
_DOWN = json.JSONDecoder(parse_constant=_refuse_constant)
_ODD_DOWN = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_integer)


def _refuse_json(
    what: str, text: str, index: int, *, pointer: str | None = None, line: int | None = None
) -> NoReturn:
    row, column = text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)
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


def _too_many(max_events: int) -> NoReturn:
    detail = f"A batch may have at most {max_events} events."
    raise CallerError("too-large", detail, members={"limit": max_events})

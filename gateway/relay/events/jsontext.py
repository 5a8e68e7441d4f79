"""JSON text: what it holds, where it is wrong, and values built from it without holding the event loop. No I/O.

The JSON is RFC 8259: no byte order mark, no NaN or Infinity, at most `MAX_DEPTH` levels. msgspec checks the grammar and reads
members by type, which costs a fraction of building the values. It is stricter than RFC 8259 in two points that are
handled here: it refuses the escape of a lone surrogate (8.2), and numbers that no float can hold (6).

Work that may take longer than a few milliseconds is a generator. It yields wherever something else may run, and returns its
result. `finish` runs one to its end at once.
"""

import contextlib
import json
import re
from collections.abc import Generator
from typing import Final, NoReturn, TypeVar

import msgspec

from gateway.relay.events.surrogates import lone, mended, without_backslashes

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Work in steps."""

MAX_DEPTH = 64
"""Deeper JSON has no use in this protocol, and parsers fail on it at various depths."""

STEP_TOKENS = 2048
"""Tokens looked at between two yields: 1 to 3 ms."""

DENSE = 10_000
"""Values in a text that are built in at most 3 ms (floats; others in 0.5 ms). More are built token by token, in steps."""

LARGE_BYTES = 256 * 1024
"""A text that msgspec checks in about 2 ms. After a larger one something else may run."""

MAX_ELEMENTS_KEPT = 2**31
"""More than any text within the limits has."""

SEARCHED_BYTES = 64 * 1024
"""A text that an expression searches in about 2 ms."""

# int() refuses more than 4300 digits and is quadratic below that. A number that long is read as a float.
LONG_NUMBER: Final = 300

# For texts without escaped quotes (see `_without_escapes`): a string is skipped in one step, a megabyte in 0.6 ms. Long runs of
# what is not looked for are matched, too: searching takes ten times as long for each character.
_STRING = r'"([^"]*+)"'
_STRUCTURE = re.compile(_STRING + r'([ \t\n\r]*+:)?|([\[{])|([\]}])|(,)|"|[^"\[{\]},]{16,}+')
_TOKENS = re.compile(_STRING + r"|([\[{])|([\]}])|([-0-9.eE+]++|true|false|null)|[ \t\n\r]{16,}+")

# What may be a number beyond the range of a float: an exponent of several digits, or very many digits.
_LARGE_NUMBER = re.compile(rb"[0-9.][eE]\+?[0-9]{2}|[0-9]{%d}" % LONG_NUMBER)
_INFINITE = (float("inf"), float("-inf"))

_PLACE = re.compile(r"(?:JSON is malformed: )?(.*) \(byte (\d+)\)\Z")


# msgspec takes 8 us for a float with a large exponent, and refuses those beyond the range.
_any = msgspec.json.Decoder(float_hook=float)
_raw = msgspec.json.Decoder(msgspec.Raw)
_elements = msgspec.json.Decoder(list[msgspec.Raw])


class NotJsonError(ValueError):
    """A text is not JSON, nests too deep, or is ambiguous. `at` is the byte offset of the fault."""

    def __init__(self, what: str, at: int = 0) -> None:
        super().__init__(what)
        self.at = at


def finish(steps: Steps[T]) -> T:
    """Run work to its end without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def checked(data: bytes) -> Steps[None]:
    """Check that `data` is one JSON value. Raises NotJsonError."""
    try:
        _raw.decode(data)
    except RecursionError:
        refuse_depth()
    except msgspec.DecodeError as error:
        first = error
    else:
        if len(data) > LARGE_BYTES:
            yield
        return
    if b"\\u" in data and most_values(data) <= DENSE:
        # It may contain a lone surrogate, which Python's parser accepts: a megabyte of them in 2 ms.
        with contextlib.suppress(ValueError, RecursionError):
            odd(data.decode())
            if len(data) > LARGE_BYTES:
                yield
            return
    replaced = yield from mended(data)
    if replaced is not None:
        try:
            _raw.decode(replaced)
        except RecursionError:
            refuse_depth()
        except msgspec.DecodeError as error:
            first = error
        else:
            return
    raise _located(first, data) from None


def most_values(data: bytes | str) -> int:
    """Return how many values a text holds at most, by its commas and opening brackets; those in strings count as well."""
    if isinstance(data, str):
        return data.count(",") + data.count("[") + data.count("{")
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def count_values(data: bytes, limit: int) -> Steps[int]:
    """Count the values of a checked text: its commas and opening brackets outside strings. The count may be too high up to
    `limit`, and ends behind it."""
    most = most_values(data)
    if most <= limit:
        return most
    count = 0
    clear = yield from _without_escapes(data.decode())
    yield
    for tokens, found in enumerate(_STRUCTURE.finditer(clear), start=1):
        count += found[3] is not None or found[5] is not None
        if count > limit:
            break
        if not tokens % STEP_TOKENS:
            yield
    return count


def is_deep(data: bytes, levels: int) -> bool:
    """Return whether `data` may nest deeper than `levels`: a quick test that rules it out for nearly all texts."""
    return data.count(b"[") + data.count(b"{") > levels


def scanned(text: str, levels: int, strict: bool) -> Steps[None]:
    """Check the depth of a checked text and, where `strict`, that no object has members that repeat or differ only in case.

    Raises NotJsonError.
    """
    open_: list[set[str]] = []
    clear = yield from _without_escapes(text)
    if len(text) > LARGE_BYTES:
        yield
    for count, found in enumerate(_STRUCTURE.finditer(clear), start=1):
        _, colon, opening, closing, _ = found.groups()
        if opening:
            open_.append(set())
            if len(open_) > levels:
                refuse_depth()
        elif closing:
            open_.pop()
        elif colon and strict:
            name = _unescaped(text[slice(*found.span(1))]).casefold()
            if name in open_[-1]:
                raise NotJsonError("an object has members that repeat or differ only in case")
            open_[-1].add(name)
        if not count % STEP_TOKENS:
            yield


def built(data: bytes, most: int = MAX_ELEMENTS_KEPT) -> Steps[object]:
    """Build the value of a checked text. Numbers that are too long or too large are floats, infinity included.

    Of a text with very many values, lists are cut after `most` elements: freeing a value of millions takes as long as a
    step may take, and it cannot be done in steps."""
    if most_values(data) <= DENSE:
        return plain(data)
    return (yield from _built_by_token(data.decode(), most))


def plain(data: bytes) -> object:
    """Build the value of a checked text in one step."""
    try:
        return _any.decode(data)
    except (
        msgspec.DecodeError,
        RecursionError,
    ):  # a lone surrogate, or a number beyond msgspec's range
        return odd(data.decode())


def odd(text: str) -> object:
    """Build the value of a text in one step, lone surrogates included. Raises ValueError or RecursionError."""
    return _ODD.decode(text)


def elements(data: bytes, most: int) -> Steps[list[bytes]]:
    """Return the elements of a checked array as slices of its text; at most one more than `most`."""
    if data.count(b",") <= DENSE:
        with contextlib.suppress(msgspec.DecodeError):  # it contains a lone surrogate
            return [bytes(raw) for raw in _elements.decode(data)[: most + 1]]
    text = data.decode()
    begin, depth, slices = text.index("[") + 1, 0, list[bytes]()
    clear = yield from _without_escapes(text)
    structure = enumerate(_STRUCTURE.finditer(clear), start=1)
    if len(text) > LARGE_BYTES:
        yield
    while True:
        count, found = next(structure)  # the closing bracket ends it
        _, _, opening, closing, comma = found.groups()
        depth += (opening is not None) - (closing is not None)
        if (comma and depth == 1) or not depth:
            slices.append(text[begin : found.start()].strip(" \t\n\r").encode())
            begin = found.end()
            if not depth or len(slices) > most:
                return slices
        if not count % STEP_TOKENS:
            yield


def element_at(data: bytes, at: int) -> Steps[int | None]:
    """Return the number of the element that holds byte `at` of an array; None behind the array.

    The text is checked up to `at` only.
    """
    depth = number = 0
    clear = yield from _without_escapes(data[:at].decode(errors="replace"))
    for count, found in enumerate(_STRUCTURE.finditer(clear), start=1):
        _, _, opening, closing, comma = found.groups()
        if found[0] == '"':
            break  # a string that the cut leaves open
        depth += (opening is not None) - (closing is not None)
        if closing and depth < 1:
            return None
        number += comma is not None and depth == 1
        if not count % STEP_TOKENS:
            yield
    return number


def unwritable(data: bytes) -> Steps[NotJsonError | None]:
    """Return what cannot be written as UTF-8 JSON after parsing the checked text; None if everything can.

    That is a lone surrogate, or a number beyond the range of a float.
    """
    if b"\\u" in data:
        half = yield from lone(without_backslashes(data), 0)
        if half >= 0:
            return NotJsonError("half of a surrogate pair", half)
    for begin in range(0, len(data), SEARCHED_BYTES):
        if _LARGE_NUMBER.search(data, begin, begin + SEARCHED_BYTES + LONG_NUMBER):
            break
        yield
    else:
        return None
    text = data.decode()
    clear = yield from _without_escapes(text)
    for count, found in enumerate(_TOKENS.finditer(clear), start=1):
        word = found[4]
        if word and word not in _WORDS and _number(word) in _INFINITE:
            return NotJsonError("a number out of range", len(text[: found.start()].encode()))
        if not count % STEP_TOKENS:
            yield
    return None


def refuse_depth() -> NoReturn:
    """Raise the error for a text that nests too deep."""
    raise NotJsonError(f"nested deeper than {MAX_DEPTH} levels")


def _without_escapes(text: str) -> Steps[str]:
    """Replace escaped backslashes and quotes with NUL characters, so that every quote begins or ends a string. Places stay
    the same."""
    if "\\" not in text:
        return text
    parts: list[str] = []
    begin = 0
    while begin < len(text):
        part = text[begin : begin + LARGE_BYTES]
        if (len(part) - len(part.rstrip("\\"))) % 2:
            part = text[begin : begin + LARGE_BYTES + 1]  # An escape is not cut.
        parts.append(part.replace(r"\\", "\0\0").replace(r"\"", "\0\0"))
        begin += len(part)
        if begin < len(text):
            yield
    return "".join(parts)


def _located(error: Exception, data: bytes) -> NotJsonError:
    found = _PLACE.match(str(error))
    if found is None:
        return NotJsonError("it is incomplete", len(data))
    what, at = found[1], int(found[2])
    for word in (b"NaN", b"Infinity"):
        if data.startswith(word, at):
            sign = "-" if data[at - 1 : at] == b"-" else ""
            return NotJsonError(f"{sign}{word.decode()} is not JSON", at)
    return NotJsonError(what, at)


def _built_by_token(text: str, most: int) -> Steps[object]:
    root: list[object] = []
    open_: list[dict[str, object] | list[object]] = [root]
    name: str | None = None
    clear = yield from _without_escapes(text)
    if len(text) > LARGE_BYTES:
        yield
    for count, found in enumerate(_TOKENS.finditer(clear), start=1):
        if not count % STEP_TOKENS:
            yield
        if found.lastindex is None:
            continue  # white space
        string, opening, closing, word = found.groups()
        inside = open_[-1]
        if closing:
            open_.pop()
        elif string is not None and name is None and isinstance(inside, dict):
            name = _unescaped(text[slice(*found.span(1))])
        else:
            value: object
            if string is not None:
                value = _unescaped(text[slice(*found.span(1))])
            elif opening:
                value = {} if opening == "{" else []
            else:
                value = _WORDS[word] if word in _WORDS else _number(word)
            if isinstance(inside, dict):
                inside[name or ""] = value
                name = None
            elif len(inside) < most:
                inside.append(value)
            if isinstance(value, dict | list) and opening:
                open_.append(value)
    return root[0]


def _unescaped(string: str) -> str:
    return str(json.loads(f'"{string}"')) if "\\" in string else string


def _number(word: str) -> int | float:
    return int(word) if len(word) < LONG_NUMBER and word.lstrip("-").isdecimal() else float(word)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < LONG_NUMBER else float(digits)


def _refuse_constant(word: str) -> NoReturn:
    raise NotJsonError(f"{word} is not JSON")


_WORDS: Final = {"true": True, "false": False, "null": None}
_ODD = json.JSONDecoder(parse_int=_integer, parse_constant=_refuse_constant)

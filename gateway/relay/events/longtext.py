"""Long strings in JSON, read and written in pieces. No I/O.

A parser reads a string of megabytes in one call, and writes it in one, each of which may take longer than the event loop may be
held. Here the middle of each long string is taken out of the text that is read; the rest is short, and the middles are read in
parts. A part never ends within an escape, nor between the escapes of a surrogate pair.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from operator import is_not
from typing import Any, Final, TypeVar, cast

import msgspec

from gateway.relay.events.envelope import compact
from gateway.relay.events.jsontext import LARGE_BYTES, Steps, odd

T = TypeVar("T")

PART: Final = 64 * 1024
"""Characters that are read or written at once, in less than 1 ms."""

_PARTS_IN_STEP: Final = 4
_VALUES_IN_STEP: Final = 8192

_MARK: Final = "\u0378"
"""Stands before and after the number of a middle that was taken out. It is unassigned in Unicode; a text that contains it is
read at once."""
_ESCAPED_MARK: Final = r"\u0378"

_LONGEST_ESCAPES: Final = len(r"\ud83d\ude00")
_HIGH: Final = re.compile(r"\\u[dD][89abAB]")

_any = msgspec.json.Decoder(float_hook=float)


def read_long(text: str) -> Steps[object]:
    """Build the value of a text that holds few values. Raises ValueError or RecursionError for what is not JSON."""
    middles = yield from _middles(text)
    kept: list[str] = []
    strings: list[str] = []
    end = 0
    for begin, sizes in middles:
        kept += (text[end:begin], _MARK, str(len(strings)), _MARK)
        end = begin
        parts: list[str] = []
        for size in sizes:
            parts.append(str(_value(f'"{text[end : end + size]}"')))
            end += size
            if not len(parts) % _PARTS_IN_STEP:
                yield
        strings.append("".join(parts))
    kept.append(text[end:])
    short = "".join(kept)
    yield
    if strings and short.count(_MARK) == 2 * len(strings) and _ESCAPED_MARK not in short:
        value = _value(short)
        yield
        if _restored(value, strings):
            return value
        yield
    return _value(text)


def in_text(value: T) -> Steps[T]:
    """Return a value whose long strings are JSON text already (msgspec.Raw), which is only copied when the value is written.
    `value` itself is returned where it has none."""
    texts: dict[int, msgspec.Raw] = {}
    # What is written is kept meanwhile, so that no other string gets its identity.
    for count, (_, _, string) in enumerate(_parts(value), start=1):
        if not count % _VALUES_IN_STEP:
            yield
        if not isinstance(string, str) or len(string) <= LARGE_BYTES or id(string) in texts:
            continue
        parts: list[bytes] = []
        for begin in range(0, len(string), PART):
            parts.append(compact(string[begin : begin + PART])[1:-1])
            if not len(parts) % _PARTS_IN_STEP:
                yield
        texts[id(string)] = msgspec.Raw(b'"%b"' % b"".join(parts))
    try:
        return _with_texts(value, texts) if texts else value
    except RecursionError:
        return value


def written_in_steps(value: object) -> Steps[bytes]:
    """Write a value as `envelope.compact` does."""
    return compact((yield from in_text(value)))


def _value(text: str) -> object:
    try:
        return _any.decode(text)
    except (msgspec.DecodeError, RecursionError):  # a lone surrogate, or a number beyond msgspec's range
        return odd(text)


def _middles(text: str) -> Steps[list[tuple[int, list[int]]]]:
    """Return where the middles of long strings begin, and the sizes of their parts."""
    found: list[tuple[int, list[int]]] = []
    begin = count = 0
    inside = within = False
    while begin < len(text):
        clear = text[begin : begin + PART]
        if "\\" in clear:
            # Every backslash that is left begins an escape, and every quote begins or ends a string.
            clear = clear.replace(r"\\", "__").replace(r"\"", "__")
        size = len(clear) if begin + PART >= len(text) else _last_border(clear)
        quotes = clear.count('"', 0, size)
        if inside and not quotes:
            if not within:
                found.append((begin, []))
            found[-1][1].append(size)
        within = inside and not quotes
        inside ^= quotes % 2 == 1
        begin += size
        count += 1
        if not count % _PARTS_IN_STEP:
            yield
    return found


def _last_border(clear: str) -> int:
    """Return the last place that is not within an escape or a surrogate pair."""
    found = clear.rfind("\\", len(clear) - _LONGEST_ESCAPES)
    if found < 0:
        return len(clear)
    before = found - _LONGEST_ESCAPES // 2
    return before if _HIGH.match(clear, before) else found


def _restored(value: object, strings: list[str]) -> bool:
    """Put the middles back into the strings of a value. Return whether all of them belong there, and none to a name."""
    count = 0
    for inside, key, part in _parts(value):
        if isinstance(part, str) and _MARK in part:
            begin, number, end = part.split(_MARK)
            inside[key] = begin + strings[int(number)] + end
            count += 1
    return count == len(strings)


def _parts(
    value: object,
) -> Iterator[tuple[Any, Any, object]]:  # Any: a list and an index, or an object and a name
    """Yield every part of a value, and where it is. A string may be replaced meanwhile."""
    open_: list[dict[str, object] | list[object]] = [[value]]
    while open_:
        inside = open_.pop()
        items: Iterable[tuple[object, object]] = (
            inside.items() if isinstance(inside, dict) else enumerate(inside)
        )
        for key, part in items:
            if isinstance(part, dict | list):
                open_.append(part)
            yield inside, key, part


def _with_texts(value: T, texts: Mapping[int, msgspec.Raw]) -> T:
    """Return a copy with these texts for these strings. What holds none of them is not copied."""
    if isinstance(value, str):
        return cast(T, texts.get(id(value), value))
    if isinstance(value, dict):
        changed = {
            name: new
            for name, part in value.items()
            if isinstance(part, _HOLDERS) and (new := _with_texts(part, texts)) is not part
        }
        return cast(T, {**value, **changed}) if changed else value
    assert isinstance(value, list)
    parts = [_with_texts(part, texts) if isinstance(part, _HOLDERS) else part for part in value]
    return cast(T, parts) if any(map(is_not, parts, value)) else value


_HOLDERS: Final = (str, dict, list)

"""Large frames from upstream: read, and written for the session's state, in steps. No I/O.

What is done with an event takes a time in proportion to its size. A small one is read, appended to the log and applied to the
state at once. For one of more than `jsontext.LARGE_BYTES`, everything that does not depend on the session is done here before,
a few milliseconds in each step, so that other work runs in between.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from gateway.relay.events.envelope import compact
from gateway.relay.events.frames import Read, read_in_steps
from gateway.relay.events.jsontext import LARGE_BYTES, Steps


class LargeValue(dict[str, object]):
    """The value of a large event, with the text of one of its members."""

    written: tuple[str, bytes] = ("", b"")


def read_large(text: str, whole: frozenset[str], kept: Mapping[str, str]) -> Steps[Read | None]:
    """Read a frame as `frames.server_event` does. `kept`: which member of an event of a type is kept as text."""
    read = yield from read_in_steps(text, whole)
    if read is None:
        return None
    type_, value = read
    name = kept.get(type_, "")
    part = value.get(name)
    if not isinstance(part, dict):
        return read
    yield
    large = LargeValue(value)
    large.written = name, (yield from written_in_steps(part))
    return type_, large


def written(value: Mapping[str, object], name: str) -> bytes:
    """Return a member of an event as `compact` writes it, without writing it again where that was done in steps."""
    if isinstance(value, LargeValue) and value.written[0] == name:
        return value.written[1]
    return compact(value.get(name))


_Place = tuple[
    Any, Any
]  # Any: an object and a name, or a list and an index; both are assigned to in the same way


def written_in_steps(value: dict[str, object]) -> Steps[bytes]:
    """Write a value of any size as `compact` does. Its long strings, which take most of the time, are written in pieces."""
    places = _long_strings(value)
    texts: list[str] = []
    raws: list[msgspec.Raw] = []
    for holder, key in places:
        text = holder[key]
        pieces: list[bytes] = []
        for begin in range(0, len(text), LARGE_BYTES):
            pieces.append(compact(text[begin : begin + LARGE_BYTES])[1:-1])
            yield
        texts.append(text)
        raws.append(msgspec.Raw(b'"%b"' % b"".join(pieces)))
    for (holder, key), raw in zip(places, raws, strict=True):
        holder[key] = raw
    try:
        return _write(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        pass  # A short string has a lone surrogate, or a number is beyond msgspec's range.
    finally:
        for (holder, key), text in zip(places, texts, strict=True):
            holder[key] = text
    return compact(value)


def _long_strings(value: dict[str, object]) -> list[_Place]:
    """Return where strings are that take long to write, as containers and keys."""
    found: list[_Place] = []
    open_: list[dict[str, object] | list[object]] = [value]
    while open_:
        inside = open_.pop()
        items: Iterable[tuple[object, object]] = (
            inside.items() if isinstance(inside, dict) else enumerate(inside)
        )
        for key, part in items:
            if isinstance(part, str):
                if len(part) > LARGE_BYTES:
                    found.append((inside, key))
            elif isinstance(part, dict | list):
                open_.append(part)
    return found


_write: Final = msgspec.json.Encoder().encode

"""The parameters of a read: format, cursor, filter and timing, from headers, query or a JSON body (api.md, 3 Receiving).

An invalid parameter is refused, and the error names it. An unknown one is ignored in a query, since proxies and libraries
add their own, and refused in a body, since only the caller writes it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from gateway.downstream.http.negotiation import negotiate
from gateway.errors import CallerError, invalid_parameter
from gateway.relay.events.envelope import matches_type
from gateway.relay.events.eventlog import EventId
from gateway.relay.ports import Reader

Format = Literal["sse", "ndjson", "json", "text"]
"""How a read or a turn can be answered; text is for turns only."""

MEDIA_TYPES: Final[Mapping[Format, str]] = {
    "sse": "text/event-stream",
    "ndjson": "application/x-ndjson",
    "json": "application/json",
}
"""The formats of a read, in order of preference."""

CURSOR_PARAMETERS: Final = ("lastEventId", "lastEventID", "last_event_id", "Last-Event-ID", "after")
"""Query parameters that carry a cursor; the first one present is used. The names before `after` are those that polyfills
of `EventSource` add to a URL when they reconnect, so they are newer than an `after` in the original URL."""

MAX_HEARTBEAT_SECONDS: Final = 60
MAX_WAIT_SECONDS: Final = 55
"""Below the 60 s after which most proxies time out."""
DEFAULT_WAIT_SECONDS: Final = 25
MAX_LINGER_MS: Final = 2000
"""The wait and the linger together stay below the time-outs of proxies."""
DEFAULT_LIMIT: Final = 200
MAX_LIMIT: Final = 1000
DEFAULT_PAGE_BYTES: Final = 256 * 1024
MAX_PAGE_BYTES: Final = 4 * 1024 * 1024
MAX_PAD: Final = 4096

_GATEWAY: Final = "gateway."
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?\Z")


class Filter:
    """Selects events: those of `types`, if any are named, except those of `exclude`. The gateway's own always pass."""

    def __init__(self, types: Sequence[str], exclude: Sequence[str]) -> None:
        self._types = tuple(types)
        self._exclude = tuple(exclude)
        # Caches the few dozen known types. Bounded, since upstream may send any number of new ones.
        self._known: dict[str, bool] = {}

    def passes(self, type: str) -> bool:
        known = self._known.get(type)
        if known is None:
            known = self._decide(type)
            if len(self._known) < 256:
                self._known[type] = known
        return known

    def _decide(self, type: str) -> bool:
        if type.startswith(_GATEWAY):
            return True
        wanted = not self._types or any(matches_type(pattern, type) for pattern in self._types)
        return wanted and not any(matches_type(pattern, type) for pattern in self._exclude)


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """One requested read. Times are in seconds, sizes in bytes. None means the server's default."""

    format: Format
    cursor: str
    filter: Filter | None = None
    heartbeat: float | None = None
    heartbeat_as_event: bool = False
    pad: int = 0
    max_age: float | None = None
    fail_on_gap: bool = False
    errors_as_status: bool = False
    wait: float = DEFAULT_WAIT_SECONDS
    linger: float = 0
    limit: int = DEFAULT_LIMIT
    max_bytes: int = DEFAULT_PAGE_BYTES


_NAMES: Final = frozenset(
    {
        *CURSOR_PARAMETERS,
        "format",
        "types",
        "exclude",
        "heartbeat",
        "heartbeat_as",
        "pad",
        "max_age",
        "on_gap",
        "errors",
        "wait",
        "linger",
        "limit",
        "max_bytes",
    }
)


def parse(query: Mapping[str, str], accept: str | None, header: str | None) -> ReadRequest:
    """Parse the parameters; `header` is Last-Event-ID. Raises `invalid-parameter`, `invalid-cursor` or `not-acceptable`."""
    types, exclude = _patterns(query, "types"), _patterns(query, "exclude")
    return ReadRequest(
        format=parse_format(query, accept),
        cursor=last_event_id(header, query) or "earliest",
        filter=Filter(types, exclude) if types or exclude else None,
        heartbeat=_number(query, "heartbeat", 5, MAX_HEARTBEAT_SECONDS),
        heartbeat_as_event=_choice(query, "heartbeat_as", "comment", "event") == "event",
        pad=_whole(query, "pad", 0, MAX_PAD, 0),
        max_age=_number(query, "max_age", 1, 3600),
        fail_on_gap=_choice(query, "on_gap", "continue", "fail") == "fail",
        errors_as_status=_choice(query, "errors", "stream", "status") == "status",
        wait=_or(_number(query, "wait", 0, MAX_WAIT_SECONDS), DEFAULT_WAIT_SECONDS),
        linger=_whole(query, "linger", 0, MAX_LINGER_MS, 0) / 1000,
        limit=_whole(query, "limit", 1, MAX_LIMIT, DEFAULT_LIMIT),
        max_bytes=_whole(query, "max_bytes", 1, MAX_PAGE_BYTES, DEFAULT_PAGE_BYTES),
    )


def from_body(body: Mapping[str, object]) -> dict[str, str]:
    """Return a JSON body's members as query parameters. Raises `invalid-parameter` for unknown names or invalid values."""
    query = {}
    for name, value in body.items():
        if name not in _NAMES:
            raise invalid_parameter(name, f"is unknown; known parameters: {', '.join(sorted(_NAMES))}")
        if name in CURSOR_PARAMETERS and not (value is None or isinstance(value, str)):
            raise invalid_parameter(name, "must be a string")
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            query[name] = ",".join(value)
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            query[name] = str(value)
        elif value is not None:
            raise invalid_parameter(name, "must be a string, a number or a list of strings")
    return query


def parse_format(query: Mapping[str, str], accept: str | None) -> Format:
    """Choose the format: `?format=` first, then Accept, then an event stream."""
    return negotiate(query.get("format"), accept, MEDIA_TYPES)


def last_event_id(header: str | None, query: Mapping[str, str]) -> str | None:
    """Return the cursor a reader sends: the `Last-Event-ID` header, which an `EventSource` sets itself when it reconnects
    and which is therefore newer than anything in the URL, else the first of the `CURSOR_PARAMETERS` that is present.

    An empty value counts as absent: it is the last event ID of a stream without IDs (WHATWG HTML 9.2.2).
    """
    return next((value for value in (header, *map(query.get, CURSOR_PARAMETERS)) if value), None)


def start(cursor: str, reader: Reader) -> EventId:
    """Return the log position that a cursor names. Raises `invalid-cursor`."""
    if cursor == "earliest":
        return reader.oldest.before
    if cursor == "now":
        return reader.head
    try:
        return EventId.parse(cursor)
    except ValueError as error:
        raise CallerError("invalid-cursor", f"The cursor is not an event ID: {error}.") from None


def _patterns(query: Mapping[str, str], name: str) -> list[str]:
    return [pattern for part in query.get(name, "").split(",") if (pattern := part.strip())]


def _number(query: Mapping[str, str], name: str, least: float, most: float) -> float | None:
    text = query.get(name)
    if text is None:
        return None
    number = decimal(text)
    if number is None or not least <= number <= most:
        raise invalid_parameter(name, f"must be a number from {least:.15g} to {most:.15g}")
    return number


def decimal(text: str) -> float | None:
    """Return the number in a parameter's text, None if it is not one. Python's `float` accepts more: `1_0`, `1e1`, `nan`."""
    return float(text) if _NUMBER.match(text) else None


def _whole(query: Mapping[str, str], name: str, least: int, most: int, default: int) -> int:
    number = _number(query, name, least, most)
    if number is None:
        return default
    if not number.is_integer():
        raise invalid_parameter(name, "must be a whole number")
    return int(number)


def _choice(query: Mapping[str, str], name: str, default: str, *others: str) -> str:
    value = query.get(name, default)
    if value != default and value not in others:
        raise invalid_parameter(name, f"must be one of {', '.join((default, *others))}")
    return value


def _or(value: float | None, default: float) -> float:
    return default if value is None else value

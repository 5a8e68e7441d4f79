"""The parameters in the description of the HTTP API, see `openapi`. Their bounds are those that the parsers enforce."""

from collections.abc import Mapping
from typing import Any, Final

from gateway.downstream.peers.listings import DEFAULT_LISTED, MAX_LISTED
from gateway.downstream.reading.parameters import MAX_PAGE_BYTES
from gateway.downstream.turns.body import MAX_WAIT_SECONDS

Schema = dict[str, Any]  # JSON Schema, with values of any type

TEXT: Final[Schema] = {"type": "string"}

READING: Final[Mapping[str, tuple[Schema, str]]] = {
    "after": (TEXT, "Cursor: an event id, `earliest` or `now`. `Last-Event-ID` wins over it."),
    "lastEventId": (
        TEXT,
        "The cursor of a reconnecting polyfill, also as lastEventID, last_event_id and Last-Event-ID. Wins over `after`.",
    ),
    "types": (
        TEXT,
        "Only these types, separated by commas; each may end with `*`. `gateway.*` always passes.",
    ),
    "exclude": (TEXT, "All types except these."),
    "heartbeat": ({"type": "number", "minimum": 5, "maximum": 60}, "Seconds of silence before a heartbeat."),
    "heartbeat_as": ({"enum": ["comment", "event"]}, "The form of heartbeats in SSE."),
    "pad": (
        {"type": "integer", "minimum": 0, "maximum": 4096},
        "Bytes of padding, for proxies that buffer small writes.",
    ),
    "max_age": (
        {"type": "number", "minimum": 1, "maximum": 3600},
        "Seconds until the connection is rotated.",
    ),
    "on_gap": ({"enum": ["continue", "fail"]}, "Whether a gap is reported in the stream, or as 410."),
    "errors": (
        {"enum": ["stream", "status"]},
        "With `status`, a read with a ticket also gets error statuses.",
    ),
    "wait": ({"type": "number", "minimum": 0, "maximum": 55}, "Seconds to wait for a response."),
    "linger": (
        {"type": "integer", "minimum": 0, "maximum": 2000},
        "Milliseconds for which a long-poll collects events after the first one.",
    ),
    "limit": ({"type": "integer", "minimum": 1, "maximum": 1000}, "Maximum number of events in a long-poll."),
    "max_bytes": (
        {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_BYTES},
        "Maximum bytes of a long-poll; at least one event is returned.",
    ),
}


def parameters() -> Schema:
    """Return the parameters of all operations, by name."""
    named: Schema = {
        "SessionId": {"name": "id", "in": "path", "required": True, "schema": TEXT},
        "IdempotencyKey": {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "A repeat returns the stored response.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        },
        "LastEventId": {"name": "Last-Event-ID", "in": "header", "schema": TEXT},
        "Format": {"name": "format", "in": "query", "description": "Overrides Accept.", "schema": TEXT},
        "TurnWait": {
            "name": "wait",
            "in": "query",
            "description": "Seconds to wait for a JSON answer; then 202. Needs an Idempotency-Key.",
            "schema": {"type": "number", "minimum": 1, "maximum": MAX_WAIT_SECONDS},
        },
        "HangUp": {
            "name": "hang_up",
            "in": "query",
            "description": "Also end the call to which the session is attached.",
            "schema": {"type": "boolean", "default": False},
        },
        "ListLimit": {
            "name": "limit",
            "in": "query",
            "description": "Sessions per page.",
            "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": DEFAULT_LISTED},
        },
        "ListAfter": {
            "name": "after",
            "in": "query",
            "description": "ID of the last session of the previous page.",
            "schema": TEXT,
        },
    }
    queries = {
        name: {"name": name, "in": "query", "description": said, "schema": schema}
        for name, (schema, said) in READING.items()
    }
    return named | queries

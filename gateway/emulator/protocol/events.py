"""Reads a frame from a client into an event. No I/O.

It does not act on the event. A frame is the JSON text of an object. Its `type` must be one that the service knows, and its
members must belong to that type.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from gateway.emulator.protocol.catalog import EVENTS
from gateway.emulator.protocol.errors import Refusal

Json = dict[str, Any]


def parse(frame: str | bytes) -> Json:
    """Read JSON; raises Refusal. It is not known how the service treats a frame that is not JSON; this keeps the call."""
    try:
        event = strict_json(frame)
    except (ValueError, RecursionError):
        raise Refusal("invalid_json", "The event could not be parsed: it is not valid JSON.") from None
    if not isinstance(event, dict):
        raise Refusal("invalid_event", "The event must be a JSON object.")
    return event


def strict_json(text: str | bytes) -> Any:
    """Read JSON as RFC 8259 defines it. Python accepts more; if that were echoed, clients could not parse it.

    Raises ValueError or RecursionError.
    """
    return json.loads(text, parse_constant=_number, parse_float=_number)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a JSON number, or is too large")
    return value


def event_id(event: Json) -> str | None:
    """Return the client's event ID, which the service repeats only in an `error` event."""
    given = event.get("event_id")
    return given if isinstance(given, str) else None


def check(event: Json, unknown: Sequence[str] = ()) -> str:
    """Check an event against the catalog, treating the types in `unknown` as unknown, and return its type; raises Refusal."""
    kind = event.get("type")
    if kind is None:
        raise Refusal("missing_required_parameter", "Missing required parameter: 'type'.", param="type")
    if kind == "transcription_session.update":
        raise Refusal(
            None, "Passing a transcription session update event to a realtime session is not allowed."
        )
    if not isinstance(kind, str) or kind not in EVENTS or kind in unknown:
        *first, last = [f"'{name}'" for name in EVENTS if name not in unknown]
        listed = f"{', '.join(first)}, and {last}"
        raise Refusal(
            "invalid_value", f"Invalid value: '{kind}'. Supported values are: {listed}.", param="type"
        )
    EVENTS[kind].check(event, "")
    return kind

"""Parses a turn's request: its body, its items, and how to answer it (api.md, 4 Turns). No I/O."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qsl

from gateway.downstream.reading.parameters import Format, decimal
from gateway.errors import CallerError, invalid_parameter
from gateway.relay.events.envelope import read_object
from gateway.relay.events.jsontext import Steps, finish
from gateway.relay.state.turn import TurnRequest

MEDIA_TYPES_FOR_TEXT: Final[Mapping[Format, str]] = {
    "text": "text/plain",
    "json": "application/json",
    "sse": "text/event-stream",
    "ndjson": "application/x-ndjson",
}
MEDIA_TYPES_FOR_JSON: Final[Mapping[Format, str]] = {"json": "application/json", **MEDIA_TYPES_FOR_TEXT}
"""How a turn can be answered, the default first: text for a question in text, JSON for one in JSON."""

MAX_FORM_FIELDS: Final = 100

MAX_WAIT_SECONDS: Final = 55.0
"""Below the 60 s after which most proxies time out."""

_TEXT_FIELDS: Final = frozenset({"input", "instructions"})
_WHOLE: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,8})\Z")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_INPUT_FIELD: Final = re.compile(rb"(?:^|&)input=")
"""Distinguishes a form from text without parsing megabytes of text as fields."""


@dataclass(frozen=True, slots=True)
class TurnWanted:
    """A requested turn. `session` is the configuration of a session opened for it, None if the body has none."""

    request: TurnRequest
    plain: bool
    """The body was text, so the answer is text by default."""
    session: object = None

    @property
    def formats(self) -> Mapping[Format, str]:
        """The formats of the answer, the default first."""
        return MEDIA_TYPES_FOR_TEXT if self.plain else MEDIA_TYPES_FOR_JSON


def parse(body: bytes, media_type: str | None, *, own_session: bool) -> TurnWanted:
    """Parse a body in one step, see `read`."""
    return finish(read(body, media_type, own_session=own_session))


def read(body: bytes, media_type: str | None, *, own_session: bool) -> Steps[TurnWanted]:
    """Parse a body by its media type, None if the request names none. With curl's default type, which says nothing
    about the body, the content decides: JSON if it begins like JSON, a form if it has a field `input`, else text. Raises
    `invalid-json` or `invalid-parameter`."""
    if media_type == "application/json":
        return _from_object((yield from read_object(body)), own_session=own_session)
    if media_type != "text/plain":
        if body.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] in (b"{", b"["):
            return _from_object((yield from _read_guessed(body)), own_session=own_session)
        if _INPUT_FIELD.search(body):
            return _from_form(body, own_session=own_session)
    return TurnWanted(TurnRequest(_items(_decoded(body.removeprefix(_BYTE_ORDER_MARK)))), plain=True)


def wait(text: str | None, *, format: Format, keyed: bool) -> float | None:
    """Parse the parameter `wait`: the maximum time to hold the request, None for no limit."""
    if text is None:
        return None
    seconds = decimal(text)
    if seconds is None or not 1 <= seconds <= MAX_WAIT_SECONDS:
        raise invalid_parameter("wait", f"must be a number of seconds from 1 to {MAX_WAIT_SECONDS:g}")
    if format != "json":
        raise invalid_parameter("wait", "is only for JSON answers; a stream needs no waiting")
    if not keyed:
        raise invalid_parameter(
            "wait", "needs an Idempotency-Key, with which you can request the answer again"
        )
    return seconds


def _from_object(value: Mapping[str, object], *, own_session: bool) -> TurnWanted:
    if "input" not in value:
        raise invalid_parameter("input", "is missing: a text, or a list of conversation items")
    if "session" in value and not own_session:
        raise invalid_parameter(
            "session", "is only for POST /v1/turns; this session already has a session object"
        )
    response = {name: member for name, member in value.items() if name not in ("input", "session")}
    metadata = response.get("metadata")
    if not (metadata is None or isinstance(metadata, dict)):
        raise invalid_parameter("metadata", "must be an object")
    return TurnWanted(
        TurnRequest(_items(value["input"]), response), plain=False, session=value.get("session")
    )


def _items(given: object) -> list[Mapping[str, object]]:
    if isinstance(given, str):
        if not given:
            raise invalid_parameter("input", "is empty")
        content = [{"type": "input_text", "text": given}]
        return [{"type": "message", "role": "user", "content": content}]
    if not isinstance(given, list):
        raise invalid_parameter("input", "must be a text or a list of conversation items")
    items: list[Mapping[str, object]] = []
    for index, item in enumerate(given):
        if not isinstance(item, dict):
            raise invalid_parameter(f"input/{index}", "must be a conversation item")
        items.append(item)
    return items


def _read_guessed(body: bytes) -> Steps[Mapping[str, object]]:
    """Parse a body without a media type that begins like JSON."""
    try:
        return (yield from read_object(body))
    except CallerError as error:
        detail = f"{error.detail} To send it as text, set Content-Type: text/plain."
        raise CallerError(error.code, detail, flaws=error.flaws) from None


def _from_form(body: bytes, *, own_session: bool) -> TurnWanted:
    """Parse the fields of a form: `input` is the text, the others are members of `response.create`, as in JSON."""
    try:
        fields = parse_qsl(
            body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FORM_FIELDS
        )
    except UnicodeDecodeError:
        raise invalid_parameter("input", "must be UTF-8") from None
    except ValueError:
        raise invalid_parameter("input", f"must be in a form of at most {MAX_FORM_FIELDS} fields") from None
    if len({name for name, _ in fields}) < len(fields):
        raise invalid_parameter("input", "must be in a form that has each field once")
    members = {name: text if name in _TEXT_FIELDS else _number_or_text(text) for name, text in fields}
    return replace(_from_object(members, own_session=own_session), plain=True)


def _number_or_text(text: str) -> int | str:
    """Return a form's field as a whole number if it is one: `max_output_tokens` is not accepted as a string."""
    return int(text) if _WHOLE.match(text) else text


def _decoded(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise invalid_parameter("input", "must be UTF-8") from None

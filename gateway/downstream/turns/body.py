"""What a turn's request says: its body, its items, and how it wants to be answered (api.md, 4 Turns). No I/O."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from gateway.downstream.http.negotiation import negotiate
from gateway.errors import CallerError, Flaw
from gateway.relay.envelope import parse_object
from gateway.relay.turn import TurnRequest

Form = Literal["text", "sse", "json"]

MEDIA_TYPES: Final[Mapping[Form, str]] = {
    "text": "text/plain",
    "sse": "text/event-stream",
    "json": "application/json",
}

MAX_WAIT_SECONDS: Final = 55.0
"""Below the 60 s after which most proxies give an unanswered request up."""


@dataclass(frozen=True, slots=True)
class TurnWanted:
    """A turn as asked for. `session` is what a session made for it is to be, None where the body names none."""

    request: TurnRequest
    plain: bool
    """The body was text, so text is the natural answer."""
    session: object = None


def parse(body: bytes, media_type: str | None, *, own_session: bool) -> TurnWanted:
    """Read a body by its media type: JSON by its own, text by its own; for the rest, which is what curl says when not
    told otherwise, JSON if it is an object, else the text itself. Raises `invalid-json` or `invalid-parameter`."""
    if media_type == "application/json" or (media_type != "text/plain" and _is_object(body)):
        return _from_object(parse_object(body), own_session=own_session)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        _refuse("input", "must be UTF-8")
    return TurnWanted(TurnRequest(_items(text)), plain=True)


def choose(named: str | None, accept: str | None, *, plain: bool) -> Form:
    """Decide the answer's form: the parameter `format`, else Accept, else what the body was."""
    forms: tuple[Form, ...] = ("text", "json", "sse") if plain else ("json", "text", "sse")
    return negotiate(named, accept, {form: MEDIA_TYPES[form] for form in forms})


def wait(text: str | None, *, form: Form, keyed: bool) -> float | None:
    """Read the parameter `wait`: how long to hold the request at most, None for as long as it takes."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= MAX_WAIT_SECONDS:
        _refuse("wait", f"must be a number of seconds from 1 to {MAX_WAIT_SECONDS:g}")
    if form != "json":
        _refuse("wait", "is for JSON answers; a stream shows by itself how far it is")
    if not keyed:
        _refuse("wait", "needs an Idempotency-Key, by which the answer is asked for again")
    return seconds


def _from_object(value: Mapping[str, object], *, own_session: bool) -> TurnWanted:
    if "input" not in value:
        _refuse("input", "is missing: a text, or a list of conversation items")
    if "session" in value and not own_session:
        _refuse("session", "is for POST /v1/turns; this session has its own")
    response = {name: member for name, member in value.items() if name not in ("input", "session")}
    metadata = response.get("metadata")
    if not (metadata is None or isinstance(metadata, dict)):
        _refuse("metadata", "must be an object")
    return TurnWanted(
        TurnRequest(_items(value["input"]), response), plain=False, session=value.get("session")
    )


def _items(given: object) -> list[Mapping[str, object]]:
    if isinstance(given, str):
        if not given:
            _refuse("input", "is empty")
        content = [{"type": "input_text", "text": given}]
        return [{"type": "message", "role": "user", "content": content}]
    if not isinstance(given, list):
        _refuse("input", "must be a text or a list of conversation items")
    items: list[Mapping[str, object]] = []
    for index, item in enumerate(given):
        if not isinstance(item, dict):
            _refuse(f"input/{index}", "must be a conversation item")
        items.append(item)
    return items


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def _refuse(name: str, what: str) -> NoReturn:
    raise CallerError("invalid-parameter", f"'{name}' {what}.", flaws=(Flaw(what, pointer=f"/{name}"),))

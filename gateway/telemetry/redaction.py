"""What never stands in a log line: credentials, by the name of their field and by what they look like. No I/O."""

import re
from collections.abc import MutableMapping
from typing import Any, Final

REDACTED: Final = "[redacted]"

_SECRET_NAMES = frozenset(
    {
        "authorization",
        "x-upstream-authorization",
        "api_key",
        "client_secret",
        "password",
        "token",
        "secret",
        "ticket",
        "bearer",
    }
)

_SECRET = re.compile(
    r"\b(?:sk|ek|rk)[-_][A-Za-z0-9_-]{8,}"  # OpenAI's keys and ephemeral keys
    r"|\bgw[ktp]_[A-Za-z0-9_.\-=]{8,}"  # our client secrets, tickets and keys
    r"|(?<=[Bb]earer )[^\s\"',;]+"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"  # a user and password in a URL
)


def redact(text: str) -> str:
    """Replace whatever looks like a credential."""
    return _SECRET.sub(REDACTED, text)


def _redacted(value: Any, depth: int = 0) -> Any:  # Any: log fields are of any type
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict) and depth < 4:
        return {
            name: REDACTED if str(name).lower() in _SECRET_NAMES else _redacted(member, depth + 1)
            for name, member in value.items()
        }
    if isinstance(value, list | tuple) and depth < 4:
        return [_redacted(member, depth + 1) for member in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))


def redact_event(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Redact a log line's fields; a processor of structlog."""
    for name, value in event.items():
        event[name] = REDACTED if name in _SECRET_NAMES else _redacted(value)
    return event

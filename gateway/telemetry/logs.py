"""How a log line looks, and what never stands in one.

structlog everywhere; the standard library's loggers (aiohttp, aiortc, aioice, asyncio) are routed through the same
processors, from WARNING on. The format is configured, never guessed. Lines go to stderr.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import Processor

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

REDACTED: Final = "[redacted]"

_SECRET_NAMES = frozenset(
    {
        "authorization",
        "x-upstream-authorization",
        "api_key",
        "client_secret",
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
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # a user and password in a URL
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
    """The processor: fields by name, and texts by what they look like."""
    for name, value in event.items():
        event[name] = REDACTED if name in _SECRET_NAMES else _redacted(value)
    return event


def configure_logging(format: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Set up the process's logs. Harmless when repeated; the last call stands."""
    stream = stream or sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        # A traceback is text before it is redacted: an exception's message may quote a header.
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact_event,
    ]
    renderer = _renderer(format, stream)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def _renderer(format: LogFormat, stream: TextIO) -> Processor:
    if format == "json":
        return structlog.processors.JSONRenderer(ensure_ascii=False)
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty(),
        timestamp_key="time",
        exception_formatter=structlog.dev.plain_traceback,
        pad_event_to=24,
    )

"""The set-up of logs, and the form of a log line.

The gateway logs with structlog. The standard library's loggers (aiohttp, aiortc, aioice, asyncio) are routed the same way,
from WARNING on. The format is configured, never guessed. Lines go to stderr. The caller only queues what happened and
when; the sink's thread renders and writes the line, so that neither takes time of the event loop.
"""

import atexit
import json
import logging
import sys
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import Processor

from gateway.telemetry.redaction import redact, redact_event
from gateway.telemetry.sink import Sink

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

FLUSH_SECONDS: Final = 1.0
"""How long the process waits at its end for its last lines to be written."""

_LINE_BYTES: Final = 512
"""The estimated memory of a line without its strings: a dictionary and its short values."""

_ACCESS_BYTES: Final = 2 * _LINE_BYTES

Event = MutableMapping[str, Any]  # Any: log fields are of any type
_Line = tuple[float, Event | logging.LogRecord]


class _Logs:
    """The process's log: one sink at a time."""

    def __init__(self) -> None:
        self.sink: Sink[_Line] | None = None
        self.dropped_before = 0
        self.note: Processor | None = None
        self.processors: list[Processor] = []
        self.notes_info = False


_logs = _Logs()


def configure_logging(format: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Set up the process's logs. May be called more than once; the last call counts."""
    stream = stream or sys.stderr
    if _logs.sink is not None:
        _logs.dropped_before += _logs.sink.dropped
        _logs.sink.close(FLUSH_SECONDS)
    else:
        atexit.register(flush_logs)
    sink = _logs.sink = _sink(_renderer(format, stream), stream)

    def note(_logger: object, _method: str, event: Event) -> Event:
        """Queue the line, and end structlog's own processing."""
        exc_info = event.get("exc_info")
        if exc_info is True:
            event["exc_info"] = sys.exc_info()
        sink.put((time.time(), event), _size(event))
        raise structlog.DropEvent

    _logs.note = note
    _logs.notes_info = level in ("debug", "info")
    _logs.processors = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.StackInfoRenderer(),
        note,
    ]
    structlog.configure(
        processors=_logs.processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forwarding(sink)]
    root.setLevel(logging.WARNING)
    # Python would write both to stderr itself, and block if nobody reads it.
    logging.captureWarnings(True)
    sys.unraisablehook = _log_unraisable


def note_access(event: Event) -> bool:
    """Queue the access line of a request, at a third of the cost of structlog's processors.

    Return whether it was queued. It is not if logs are set up in another way, as tests do.
    """
    sink = _logs.sink
    if sink is None or not _logs.processors or _logs.processors[-1] is not _logs.note:
        return False
    if _logs.notes_info:
        event["level"] = "info"
        sink.put((time.time(), event), _ACCESS_BYTES)
    return True


def flush_logs() -> None:
    """Wait up to FLUSH_SECONDS until all lines logged so far are written."""
    if _logs.sink is not None:
        _logs.sink.flush(FLUSH_SECONDS)


def dropped_lines() -> int:
    """Return how many lines were never written."""
    return _logs.dropped_before + (_logs.sink.dropped if _logs.sink else 0)


class _Forwarding(logging.Handler):
    """Queues the records of the standard library's loggers."""

    def __init__(self, sink: Sink[_Line]) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        self._sink.put((record.created, record), _LINE_BYTES + len(str(record.msg)))


def _sink(renderer: Processor, stream: TextIO) -> Sink[_Line]:
    finishing: list[Processor] = [structlog.processors.format_exc_info, redact_event]
    foreign = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_logger_name,
            structlog.processors.add_log_level,
            _add_record_time,
            *finishing,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )

    def render(line: _Line) -> str:
        at, event = line
        if isinstance(event, logging.LogRecord):
            return redact(foreign.format(event)) + "\n"
        event["time"] = _iso(at)
        for processor in (*finishing, renderer):
            event = processor(None, "", event)  # type: ignore[assignment]  # the last one returns text
        return redact(str(event)) + "\n"

    def line(name: str, **fields: object) -> _Line:
        return time.time(), {"event": name, "level": "warning", **fields}

    def tell_lost(count: int) -> str:
        return render(line("log_lines_dropped", count=count))

    return Sink(stream, render, tell_lost)


def _renderer(format: LogFormat, stream: TextIO) -> Processor:
    if format == "json":
        return _json_line
    if not stream.isatty():
        return _plain_line
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty(),
        timestamp_key="time",
        exception_formatter=structlog.dev.plain_traceback,
        pad_event_to=24,
    )


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, default=str)


def _json_line(_logger: object, _method: str, event: Event) -> str:
    """Render a line as structlog's JSONRenderer does, without a new encoder for each line."""
    return _ENCODER.encode(event)


def _plain_line(_logger: object, _method: str, event: Event) -> str:
    """Render a line as structlog's ConsoleRenderer does without colours, in a third of the time."""
    time_, level, name = event.pop("time"), event.pop("level"), event.pop("event")
    exception, stack = event.pop("exception", None), event.pop("stack", None)
    fields = " ".join(f"{key}={_shown(value)}" for key, value in sorted(event.items()))
    texts = (f"\n{text}" for text in (stack, exception) if text)
    return f"{time_} [{level:<9}] {name:<24} {fields}".rstrip() + "".join(texts)


def _shown(value: object) -> str:
    """Return a string as it is, or quoted where it would be ambiguous."""
    text = value if isinstance(value, str) else repr(value)
    return text if text.isprintable() and text and " " not in text and "=" not in text else repr(value)


def _add_record_time(_logger: object, _method: str, event: Event) -> Event:
    event["time"] = _iso(event["_record"].created)
    return event


def _iso(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat().replace("+00:00", "Z")


def _size(event: Event) -> int:
    return _LINE_BYTES + sum(len(value) for value in event.values() if type(value) is str)


def _log_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    python = logging.getLogger("python")
    told = (type(unraisable.exc_value), unraisable.exc_value, unraisable.exc_traceback)
    python.error("%s %r", unraisable.err_msg or "Exception ignored in", unraisable.object, exc_info=told)  # type: ignore[arg-type]  # value is an exception here

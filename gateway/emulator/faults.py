"""All faults that can be injected, as one value. No I/O.

This file only lists them: signalling, peer and session read their fields and act on them. A run begins with the faults of
its flags (`--fault name=value`, repeatable); `POST /_emulator/faults` sets those of later calls, `POST
/_emulator/calls/{id}/fault` those of one call while it runs (see `control`). A name or value that is not listed here is
refused, never ignored.

| name | value | what happens |
|---|---|---|
| `signal_status` | 400-599 | `POST /calls` is refused with this status and the error body the service sends with it |
| `signal_retry_after` | seconds | the refusal carries `Retry-After` |
| `signal_delay_seconds` | seconds | the answer to `POST /calls` is delayed by this time |
| `signal_times` | count | only this many calls get the three faults above (default: all) |
| `answer` | `broken`, `no_audio`, `empty` | 201 with an answer that is not SDP, lacks the audio section, or is empty |
| `deaf` | true | no ICE check is ever answered |
| `consent` | false | once connected, checks are no longer answered; data continues |
| `fail` | `silence`, `close_channel`, `hang_up`, `vanish`, `cut_sockets` | send nothing more; close the channel; close the connection; drop every datagram; cut the call's WebSockets without a close frame |
| `fail_after_deltas` | count | `fail` happens after this many deltas of the call (default 0: when the first response begins) |
| `sideband_delay_seconds` | seconds | a sideband gets 404 until the call is this old |
| `sockets_end` | `eof`, `never` | when a call ends, its WebSockets end without a close frame, or stay open in silence |
| `oversize` | `drop`, `send` | events above the offer's max-message-size: dropped silently (default, as Pion does) or sent |
| `response_error` | a code | responses end `failed` with this code after `fail_after_deltas` deltas, at once by default |
| `response_incomplete` | `content_filter`, `max_output_tokens` | responses end `incomplete` |
| `transcription_error` | a code | input audio is not transcribed: `…input_audio_transcription.failed` with this code |
| `mcp_error` | `list`, `call` | MCP servers cannot list their tools; every MCP call fails |
| `rate_limits` | `late`, `missing`, `doubled` | `rate_limits.updated` 0.5 s late, not at all, twice |
| `first_delta_seconds` | seconds | time before a response's first delta |
| `tokens_per_second` | number | replaces the emulator's setting; 0 = as fast as the channel accepts them |
| `burst` | count | deltas are sent in groups of this size, at the same mean pace |
| `unknown_event` | true | each response has an event of a type that does not exist |
| `garbage` | `text`, `utf8`, `array`, `huge` | before a response's deltas: a frame that is not JSON, not UTF-8 or not an object, or a valid event of 3 MB |
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Failure = Literal["silence", "close_channel", "hang_up", "vanish", "cut_sockets"]
SocketsEnd = Literal["eof", "never"]
BadAnswer = Literal["broken", "no_audio", "empty"]
Oversize = Literal["drop", "send"]
RateLimits = Literal["late", "missing", "doubled"]
Garbage = Literal["text", "utf8", "array", "huge"]
McpError = Literal["list", "call"]
Incomplete = Literal["content_filter", "max_output_tokens"]


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults of a call; the default has none."""

    signal_status: int | None = None
    signal_retry_after: float | None = None
    signal_delay_seconds: float = 0.0
    signal_times: int | None = None
    answer: BadAnswer | None = None
    deaf: bool = False
    consent: bool = True
    fail: Failure | None = None
    fail_after_deltas: int = 0
    sideband_delay_seconds: float = 0.0
    sockets_end: SocketsEnd | None = None
    oversize: Oversize = "drop"
    response_error: str | None = None
    response_incomplete: Incomplete | None = None
    transcription_error: str | None = None
    mcp_error: McpError | None = None
    rate_limits: RateLimits | None = None
    first_delta_seconds: float = 0.0
    tokens_per_second: float | None = None
    burst: int = 1
    unknown_event: bool = False
    garbage: Garbage | None = None


NONE = Faults()

_WORDS: dict[str, tuple[str, ...]] = {
    "answer": get_args(BadAnswer),
    "fail": get_args(Failure),
    "sockets_end": get_args(SocketsEnd),
    "oversize": get_args(Oversize),
    "rate_limits": get_args(RateLimits),
    "garbage": get_args(Garbage),
    "response_incomplete": get_args(Incomplete),
    "mcp_error": get_args(McpError),
}
_NUMBERS: dict[str, tuple[type[int] | type[float], float, float]] = {
    "signal_status": (int, 400, 599),
    "signal_retry_after": (float, 0, 86_400),
    "signal_delay_seconds": (float, 0, 3600),
    "signal_times": (int, 0, 1_000_000),
    "sideband_delay_seconds": (float, 0, 3600),
    "fail_after_deltas": (int, 0, 1_000_000),
    "first_delta_seconds": (float, 0, 3600),
    "tokens_per_second": (float, 0, 1_000_000),
    "burst": (int, 1, 10_000),
}
_CODES = ("response_error", "transcription_error")
_FLAGS = ("deaf", "consent", "unknown_event")
_OPTIONAL = frozenset(f.name for f in dataclasses.fields(Faults) if f.default is None)


def changed(faults: Faults, given: Mapping[str, Any]) -> Faults:
    """Apply `given` over `faults`; text is read as JSON would be, so flags and bodies share it. Raises ValueError."""
    return dataclasses.replace(faults, **{name: _read(name, value) for name, value in given.items()})


def _read(name: str, value: Any) -> Any:
    if value is None or value == "null":
        if name in _OPTIONAL:
            return None
        raise ValueError(f"fault '{name}' cannot be null")
    if name in _WORDS:
        if value not in _WORDS[name]:
            raise ValueError(f"fault '{name}' is one of {', '.join(_WORDS[name])}, not '{value}'")
        return value
    if name in _FLAGS:
        if value not in (True, False, "true", "false"):
            raise ValueError(f"fault '{name}' is true or false, not '{value}'")
        return value in (True, "true")
    if name in _NUMBERS:
        return _number(name, value)
    if name in _CODES:
        if not isinstance(value, str):
            raise ValueError(f"fault '{name}' is an error's code, not '{value}'")
        return value
    known = ", ".join(f.name for f in dataclasses.fields(Faults))
    raise ValueError(f"no fault is named '{name}'; known are {known}")


def _number(name: str, value: Any) -> int | float:
    kind, low, high = _NUMBERS[name]
    try:
        number = kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"fault '{name}' is a number, not '{value}'") from None
    if not low <= number <= high:
        raise ValueError(f"fault '{name}' lies between {low:g} and {high:g}, not {number}")
    return number

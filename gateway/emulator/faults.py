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
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

Failure = Literal["silence", "close_channel", "hang_up", "vanish", "cut_sockets"]
SocketsEnd = Literal["eof", "never"]
BadAnswer = Literal["broken", "no_audio", "empty"]
Oversize = Literal["drop", "send"]
RateLimits = Literal["late", "missing", "doubled"]
Garbage = Literal["text", "utf8", "array", "huge"]
McpError = Literal["list", "call"]
Incomplete = Literal["content_filter", "max_output_tokens"]
Seconds = Annotated[float, Meta(ge=0, le=3600)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults of a call; the default has none."""

    signal_status: Annotated[int, Meta(ge=400, le=599)] | None = None
    signal_retry_after: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    signal_delay_seconds: Seconds = 0.0
    signal_times: Count | None = None
    answer: BadAnswer | None = None
    deaf: bool = False
    consent: bool = True
    fail: Failure | None = None
    fail_after_deltas: Count = 0
    sideband_delay_seconds: Seconds = 0.0
    sockets_end: SocketsEnd | None = None
    oversize: Oversize = "drop"
    response_error: str | None = None
    response_incomplete: Incomplete | None = None
    transcription_error: str | None = None
    mcp_error: McpError | None = None
    rate_limits: RateLimits | None = None
    first_delta_seconds: Seconds = 0.0
    tokens_per_second: Annotated[float, Meta(ge=0, le=1_000_000)] | None = None
    burst: Annotated[int, Meta(ge=1, le=10_000)] = 1
    unknown_event: bool = False
    garbage: Garbage | None = None


NONE = Faults()


def _words(kind: Any) -> tuple[str, ...]:
    """Return the words of a Literal, also of an optional one; none for other types."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(word for part in get_args(kind) for word in _words(part))


_TYPES = get_type_hints(Faults, include_extras=True)
WORDS = {name: words for name, kind in _TYPES.items() if (words := _words(kind))}
"""The values of each fault that takes one of a few words."""


def changed(faults: Faults, given: Mapping[str, Any]) -> Faults:
    """Return `faults` with the values of `given`, as a flag's text or as JSON. Raises ValueError."""
    return dataclasses.replace(faults, **{name: _read(name, value) for name, value in given.items()})


def _read(name: str, value: Any) -> Any:
    if name not in _TYPES:
        raise ValueError(f"no fault is named '{name}'; known are {', '.join(_TYPES)}")
    try:
        return msgspec.convert(None if value == "null" else value, _TYPES[name], strict=False)
    except msgspec.ValidationError as error:
        hint = f"; expected one of {', '.join(WORDS[name])}" if name in WORDS else ""
        raise ValueError(f"fault '{name}': {error}{hint}") from None

"""The usage of a response, in tokens. No I/O.

It does not know prices. The arithmetic is the service's: totals are sums, cached tokens are a part of the input, every
kind is named even where it is zero. Counts are those of `tokens`, plus what recordings show around them.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gateway.emulator.protocol.items import Item, text_of
from gateway.emulator.protocol.sound import TOKEN_MS
from gateway.emulator.protocol.tokens import count

# Recorded: an item costs its text and four tokens around it; an answer two more than its deltas, a function call about ten.
_AROUND_ITEM = 4
_AROUND_MESSAGE_OUTPUT = 2
_AROUND_CALL_OUTPUT = 8
# Recorded: 64 of 85 tokens seen before came from the cache. The unit matches the service's documented granularity.
_CACHE_UNIT = 64
# Realtime costs: a token of output audio is 50 ms. A recorded "Hello there." cost 61, three seconds with its pauses.
_AUDIO_TOKEN_MS = 50
# Realtime costs: input audio is one token for 100 ms.
_INPUT_AUDIO_TOKEN_MS = 100


class Segment(NamedTuple):
    """A part of the input: equal beginnings of two inputs are what a cache can serve."""

    key: str
    text: int
    audio: int = 0


@dataclass(slots=True)
class Output:
    """What a response has written so far: tokens of its messages and of its calls, and whether the messages are spoken."""

    message_tokens: int = 0
    messages: int = 0
    call_tokens: int = 0
    calls: int = 0
    spoken: bool = False

    @property
    def tokens(self) -> int:
        """The tokens that `max_output_tokens` limits."""
        return self.message_tokens + self.call_tokens

    @property
    def seconds(self) -> float:
        """The duration of the audio."""
        return self.message_tokens * TOKEN_MS / 1000 if self.spoken else 0.0

    @property
    def text_tokens(self) -> int:
        around = self.messages * _AROUND_MESSAGE_OUTPUT + self.calls * _AROUND_CALL_OUTPUT
        return self.tokens + around

    @property
    def audio_tokens(self) -> int:
        return self.message_tokens * TOKEN_MS // _AUDIO_TOKEN_MS if self.spoken else 0


NOTHING = Segment("", 0)


def segments(
    instructions: str, tools: Sequence[Any], items: Iterable[Item], heard_ms: Mapping[str, int]
) -> list[Segment]:
    """Return what a response reads, one segment an item; `heard_ms` is the sound of those that were heard."""
    tool_text = " ".join(str(tool) for tool in tools)
    head = Segment(f"{instructions}\n{tool_text}", count(instructions) + count(tool_text))
    return [head] + [_segment(item, heard_ms.get(str(item["id"]))) for item in items]


def _segment(item: Item, heard_ms: int | None) -> Segment:
    # User speech is billed as audio, not as its transcript; earlier model speech is read as text.
    if heard_ms is None or item.get("role") != "user":
        return Segment(str(item["id"]), count(text_of(item)) + _AROUND_ITEM)
    return Segment(str(item["id"]), _AROUND_ITEM, round(heard_ms / _INPUT_AUDIO_TOKEN_MS))


def total(parts: Iterable[Segment]) -> Segment:
    """Return the sum of the segments' tokens."""
    parts = list(parts)
    return Segment("", sum(part.text for part in parts), sum(part.audio for part in parts))


def cached(previous: Sequence[Segment], now: Sequence[Segment]) -> Segment:
    """Return the tokens of `now` that the cache serves after `previous`."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(previous, now, strict=False))
    shared = total(new for _, new in same)
    return Segment("", shared.text // _CACHE_UNIT * _CACHE_UNIT, shared.audio // _CACHE_UNIT * _CACHE_UNIT)


def account(given: Segment, served: Segment, output: Output) -> dict[str, Any]:
    """Return the `usage` object of a response to the input `given`, of which `served` came from the cache."""
    text, audio = output.text_tokens, output.audio_tokens
    return {
        "total_tokens": given.text + given.audio + text + audio,
        "input_tokens": given.text + given.audio,
        "output_tokens": text + audio,
        "input_token_details": {
            "text_tokens": given.text,
            "audio_tokens": given.audio,
            "image_tokens": 0,
            "cached_tokens": served.text + served.audio,
            "cached_tokens_details": {
                "text_tokens": served.text,
                "audio_tokens": served.audio,
                "image_tokens": 0,
            },
        },
        "output_token_details": {"text_tokens": text, "audio_tokens": audio},
    }

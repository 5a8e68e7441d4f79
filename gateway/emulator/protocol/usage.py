"""What a response costs, in tokens. No I/O.

Refuses to know prices. The arithmetic is the service's: totals are sums, cached tokens are a part of the input, every
kind is named even where it is zero. Counts are those of `tokens`, plus what recordings show around them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

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

Segment = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Output:
    """What a response wrote: tokens of its messages, of its function calls, and whether it spoke."""

    message_tokens: int = 0
    messages: int = 0
    call_tokens: int = 0
    calls: int = 0
    spoken: bool = False

    @property
    def text_tokens(self) -> int:
        around = self.messages * _AROUND_MESSAGE_OUTPUT + self.calls * _AROUND_CALL_OUTPUT
        return self.message_tokens + self.call_tokens + around

    @property
    def audio_tokens(self) -> int:
        return self.message_tokens * TOKEN_MS // _AUDIO_TOKEN_MS if self.spoken else 0


def segments(instructions: str, tools: Sequence[Any], items: Iterable[Item]) -> list[Segment]:
    """Return the input as (key, tokens): equal beginnings of two inputs are what a cache can serve."""
    tool_text = " ".join(str(tool) for tool in tools)
    head = count(instructions) + count(tool_text)
    return [(f"{instructions}\n{tool_text}", head)] + [
        (str(item["id"]), count(text_of(item)) + _AROUND_ITEM) for item in items
    ]


def cached(previous: Sequence[Segment], now: Sequence[Segment]) -> int:
    """Count the tokens of `now` that the cache serves after `previous`."""
    shared = 0
    for old, new in zip(previous, now, strict=False):
        if old != new:
            break
        shared += new[1]
    return shared // _CACHE_UNIT * _CACHE_UNIT


def account(input_tokens: int, cached_tokens: int, output: Output) -> dict[str, Any]:
    """Write the `usage` object of a response."""
    text, audio = output.text_tokens, output.audio_tokens
    return {
        "total_tokens": input_tokens + text + audio,
        "input_tokens": input_tokens,
        "output_tokens": text + audio,
        "input_token_details": {
            "text_tokens": input_tokens,
            "audio_tokens": 0,
            "image_tokens": 0,
            "cached_tokens": cached_tokens,
            "cached_tokens_details": {"text_tokens": cached_tokens, "audio_tokens": 0, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": text, "audio_tokens": audio},
    }

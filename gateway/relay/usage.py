"""What responses cost: tokens by kind, and dollars by a price list. No I/O.

`charge` prices the `usage` object of one `response.done` or of one transcription. `Usage` adds charges up for a
session. Money is counted in whole picodollars (1e-12 US$), because sums of floats drift: prices per million tokens with
up to six decimals are exact this way.

An unknown price never counts as 0. A session's cost is None from its first token without a price on, and such tokens
are counted separately. A budget charges them at the highest price of the list.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

Json = Mapping[str, object]

_NONE: Final[Mapping[str, int]] = {}

PICODOLLARS: Final = 10**12
"""Picodollars in a US dollar."""

KINDS: Final = ("text", "audio", "image")
OTHER: Final = "other"
"""Tokens that a total holds and no kind accounts for. They have no price."""

MAX_COUNT: Final = 10**12
"""Tokens, or seconds, above which a report is ignored: more than any call has, and less than Redis and Prometheus can add up."""

Direction = Literal["input", "cached", "output"]
"""`cached` is the part of the input that OpenAI's prompt cache served."""

_MEMBERS: Final = tuple((kind, f"{kind}_tokens") for kind in KINDS)

_DATED: Final = re.compile(r"-\d{4}-\d{2}-\d{2}\Z")


@dataclass(frozen=True, slots=True)
class ModelPrices:
    """One model's prices: picodollars by direction and kind of token, and for a minute of audio."""

    tokens: Mapping[tuple[Direction, str], int] = field(default_factory=dict)
    minute: int | None = None


@dataclass(frozen=True, slots=True)
class PriceList:
    """Prices by model."""

    date: str = ""
    """The day on which the prices were looked up, as YYYY-MM-DD."""
    models: Mapping[str, ModelPrices] = field(default_factory=dict)
    _highest: dict[Direction, int] = field(init=False, repr=False, compare=False, default_factory=dict)
    """By direction. Worked out once, because every response of a model without a price asks for it."""

    def __post_init__(self) -> None:
        for model in self.models.values():
            for (direction, _), price in model.tokens.items():
                self._highest[direction] = max(price, self._highest.get(direction, 0))

    def of(self, model: str) -> ModelPrices:
        """Return a model's prices. A dated name that is not listed itself has the prices of its undated one."""
        models = self.models
        return models.get(model) or (models and models.get(_DATED.sub("", model))) or _NO_PRICES

    def highest(self, direction: Direction) -> int:
        """Return the highest price of a token of this direction, 0 if the list has none."""
        return self._highest.get(direction, 0)


_NO_PRICES: Final = ModelPrices()


class Charge(msgspec.Struct, frozen=True, gc=False):
    """What one response or one transcription cost. A struct, like `Usage`: both are made for every response."""

    model: str
    input: Mapping[str, int] = {}
    """Tokens by kind, cached ones included. Kinds without tokens are left out."""
    cached: Mapping[str, int] = {}
    """The part of `input` that was cached."""
    output: Mapping[str, int] = {}
    cost: int = 0
    """Picodollars for everything that has a price."""
    unpriced_tokens: int = 0
    complete: bool = True
    """Everything had a price, so `cost` is all of it."""
    assumed_cost: int = 0
    """`cost`, and the tokens without a price at the list's highest: what a budget is charged."""
    tokens: int = 0
    """All tokens, as in `usage.total_tokens`."""


def charge(usage: Json, model: str | None, prices: PriceList) -> Charge:
    """Price a `usage` object of Realtime: response.done, or of …input_audio_transcription.completed, which has tokens or
    `{"type":"duration","seconds":…}`. `model` is the one that did the work; None where it is not known."""
    name = model or "unknown"
    if usage.get("type") == "duration":
        return _by_duration(usage, name, prices)
    details = usage.get("input_token_details")
    input_, read = _by_kind(details, usage.get("input_tokens"))
    output, written = _by_kind(usage.get("output_token_details"), usage.get("output_tokens"))
    tokens, total = read + written, _count(usage.get("total_tokens"))
    if total > tokens:
        output[OTHER] = output.get(OTHER, 0) + total - tokens  # Their direction is not known.
        tokens = total
    cached = _cached(details, input_) if isinstance(details, dict) else _NONE
    price_of = prices.of(name).tokens
    cost = unpriced = assumed = 0
    for direction, counts in (("input", input_), ("cached", cached), ("output", output)):
        if not counts:
            continue
        for kind, count in counts.items():
            if cached and direction == "input":
                count -= cached.get(kind, 0)  # billed as cached
            price = price_of.get((direction, kind))  # type: ignore[arg-type]  # mypy sees str, not the three words
            if price is None:
                unpriced += count
                # A cached token of an unknown price is assumed to cost what a fresh one does.
                assumed += count * prices.highest("output" if direction == "output" else "input")
            else:
                cost += count * price
    return Charge(name, input_, cached, output, cost, unpriced, unpriced == 0, cost + assumed, tokens)


class Usage(msgspec.Struct, frozen=True, gc=False):
    """The charges of one session, added up (docs/api.md, 1 Sessions)."""

    input_text: int = 0
    input_audio: int = 0
    input_image: int = 0
    cached_input: int = 0
    """The part of the three above that was cached, of all kinds."""
    output_text: int = 0
    output_audio: int = 0
    cost: int | None = 0
    """Picodollars; None after the first token without a price."""

    def plus(self, charge: Charge) -> "Usage":
        """Return the sum."""
        input_, cached, output, cost = charge.input, charge.cached, charge.output, self.cost
        return Usage(
            self.input_text + input_.get("text", 0),
            self.input_audio + input_.get("audio", 0),
            self.input_image + input_.get("image", 0),
            self.cached_input + sum(cached.values()) if cached else self.cached_input,
            self.output_text + output.get("text", 0),
            self.output_audio + output.get("audio", 0),
            None if cost is None or not charge.complete else cost + charge.cost,
        )

    def shown(self) -> dict[str, int | float | None]:
        """Return it as the session object shows it, the cost in dollars."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "cost_usd": None if self.cost is None else self.cost / PICODOLLARS,
        }

    def dump(self) -> dict[str, int | None]:
        """Return the value as plain JSON for `load`."""
        return {**{name: getattr(self, name) for name in _COUNTS}, "cost": self.cost}

    @classmethod
    def load(cls, dumped: Json) -> "Usage":
        """Return the value that was dumped. Members that another version added are ignored."""
        counts = {name: _count(dumped.get(name)) for name in _COUNTS}
        cost = dumped.get("cost")
        return cls(**counts, cost=cost if isinstance(cost, int) else None)


_COUNTS: Final = ("input_text", "input_audio", "input_image", "cached_input", "output_text", "output_audio")


def _by_duration(usage: Json, model: str, prices: PriceList) -> Charge:
    seconds, minute = usage.get("seconds"), prices.of(model).minute
    if minute is None or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_COUNT:
        return Charge(model, complete=False)
    cost = round(minute * seconds / 60)
    return Charge(model, cost=cost, assumed_cost=cost)


def _by_kind(details: object, total: object) -> tuple[dict[str, int], int]:
    """Split a token count by kind, and return its sum. What no kind accounts for is `other`, so that nothing billed goes
    uncounted."""
    counts, known, told = dict[str, int](), 0, _count(total)
    if isinstance(details, dict):
        counts = _counts(details)
        known = sum(counts.values())
    if told > known:
        counts[OTHER] = told - known
        return counts, told
    return counts, known


def _cached(details: Json, input_: Mapping[str, int]) -> dict[str, int]:
    """Split the cached tokens by kind, never more of a kind than there are."""
    told = _counts(details.get("cached_tokens_details"))
    counts = {kind: min(count, input_[kind]) for kind, count in told.items() if kind in input_}
    left = _count(details.get("cached_tokens")) - sum(counts.values())
    # Without details the cached kind is known only for an input of a single kind. Otherwise the full price is used.
    if left > 0 and len(input_) == 1:
        (kind,) = input_
        counts[kind] = min(counts.get(kind, 0) + left, input_[kind])
    return counts


def _counts(details: object) -> dict[str, int]:
    """Read the counts by kind, less the kinds without tokens."""
    counts = dict[str, int]()
    if isinstance(details, dict):
        for kind, name in _MEMBERS:
            count = _count(details.get(name))
            if count:
                counts[kind] = count
    return counts


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_COUNT else 0

"""gateway/relay/usage.py: tokens by kind and their cost, compared with the recorded sessions' own figures."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gateway.relay.usage import PICODOLLARS, ModelPrices, PriceList, Usage, charge

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "recordings"


def priced(text: float = 4, audio: float = 32, minute: float | None = None) -> ModelPrices:
    """Return prices in dollars per million tokens, which is microdollars per token."""
    micro = {
        ("input", "text"): text,
        ("cached", "text"): 0.40,
        ("output", "text"): 24,
        ("input", "audio"): audio,
        ("cached", "audio"): 0.40,
        ("output", "audio"): 64,
        ("input", "image"): 5,
        ("cached", "image"): 0.50,
    }
    tokens: Any = {where: round(price * 10**6) for where, price in micro.items()}
    return ModelPrices(tokens, None if minute is None else round(minute * PICODOLLARS))


PRICES = PriceList("2026-11-25", {"gpt-realtime-2.1": priced(), "gpt-realtime": priced(text=3)})


def usage(**members: Any) -> dict[str, Any]:
    """Return a `usage` object from `text_in`, `audio_out`, `cached_image` and so on."""
    kinds = ("text", "audio", "image")
    counts = {kind: members.get(f"{kind}_in", 0) for kind in kinds}
    cached = {kind: members.get(f"cached_{kind}", 0) for kind in kinds}
    output = {kind: members.get(f"{kind}_out", 0) for kind in ("text", "audio")}
    return {
        "total_tokens": sum(counts.values()) + sum(output.values()),
        "input_tokens": sum(counts.values()),
        "output_tokens": sum(output.values()),
        "input_token_details": {
            **{f"{kind}_tokens": count for kind, count in counts.items()},
            "cached_tokens": sum(cached.values()),
            "cached_tokens_details": {f"{kind}_tokens": count for kind, count in cached.items()},
        },
        "output_token_details": {f"{kind}_tokens": count for kind, count in output.items()},
    }


def test_each_kind_has_its_own_price_and_a_cached_token_another() -> None:
    """Checked with 1,000 text of which 400 cached, 200 audio of which 100 cached, 50 images, 30 text and 10 audio
    out."""
    told = usage(
        text_in=1000, cached_text=400, audio_in=200, cached_audio=100, image_in=50, text_out=30, audio_out=10
    )
    cost = charge(told, "gpt-realtime-2.1", PRICES)

    micro = 600 * 4 + 400 * 0.4 + 100 * 32 + 100 * 0.4 + 50 * 5 + 30 * 24 + 10 * 64
    assert cost.cost == round(micro * 10**6)
    assert (cost.tokens, cost.unpriced_tokens, cost.complete) == (1290, 0, True)


def test_a_session_adds_up_its_responses() -> None:
    """The sums have counts by kind, with cached ones as a part of the input, and dollars."""
    total = Usage()
    for _ in range(3):
        told = usage(text_in=100, cached_text=64, audio_in=8, image_in=4, text_out=10, audio_out=2)
        total = total.plus(charge(told, "gpt-realtime-2.1", PRICES))

    micro = 3 * (36 * 4 + 64 * 0.4 + 8 * 32 + 4 * 5 + 10 * 24 + 2 * 64)
    assert total.shown() == {
        "input_text": 300,
        "input_audio": 24,
        "input_image": 12,
        "cached_input": 192,
        "output_text": 30,
        "output_audio": 6,
        "cost_usd": pytest.approx(micro / 10**6, abs=1e-15),
    }


def test_a_million_small_charges_add_up_without_drift() -> None:
    """A cached token at 0.06 dollars per million is 60,000 picodollars, so no float is involved."""
    prices = PriceList(models={"m": ModelPrices({("input", "text"): 60_000})})
    one = charge(usage(text_in=1), "m", prices)

    assert one.cost * 1_000_000 == 6 * PICODOLLARS // 100


@pytest.mark.parametrize(
    ("model", "text_price"),
    [
        ("gpt-realtime-2.1", 4),
        ("gpt-realtime-2.1-2026-10-01", 4),
        ("gpt-realtime-2025-08-28", 3),
        ("gpt-realtime-mini", None),
        ("gpt-realtime-2.1-mini-2026-10-01", None),
        ("gpt-realtime-2025-08-28-preview", None),
        (None, None),
    ],
)
def test_only_a_date_is_cut_off_a_name(model: str | None, text_price: int | None) -> None:
    """Only a date is removed from a model's name, because many names that begin with `gpt-realtime` have other
    prices."""
    cost = charge(usage(text_in=1), model, PRICES)

    assert (cost.cost, cost.unpriced_tokens) == (
        (text_price * 10**6, 0) if text_price is not None else (0, 1)
    )


def test_a_dated_name_that_is_listed_has_its_own_price() -> None:
    """A dated name in the list has its own price, because an operator may know a better one."""
    prices = PriceList(models={"m": priced(text=1), "m-2026-01-01": priced(text=2)})

    assert charge(usage(text_in=1), "m-2026-01-01", prices).cost == 2 * 10**6


def test_the_cost_is_unknown_from_the_first_token_without_a_price_on() -> None:
    """From the first token without a price on, the cost is unknown instead of 0; tokens are still counted."""
    known, unknown = usage(text_in=1), usage(text_in=10, text_out=5)
    total = Usage().plus(charge(known, "gpt-realtime-2.1", PRICES)).plus(charge(unknown, "nobody's", PRICES))
    assert (total.cost, total.shown()["cost_usd"], total.input_text) == (None, None, 11)
    total = total.plus(charge(known, "gpt-realtime-2.1", PRICES))

    assert (total.cost, total.input_text) == (None, 12)


def test_nothing_spent_costs_nothing_whatever_the_model() -> None:
    """A usage of zeros, as in a failed response, costs nothing for any model."""
    assert Usage().plus(charge(usage(), "nobody's", PRICES)).shown()["cost_usd"] == 0.0


def test_a_budget_is_charged_the_highest_price_for_what_has_none() -> None:
    """Input and output without a price are charged the highest price of their kind, and cached tokens like uncached
    ones."""
    told = usage(text_in=10, cached_text=4, text_out=5)
    cost = charge(told, "nobody's", PRICES)

    assert (cost.cost, cost.assumed_cost) == (0, (10 * 32 + 5 * 64) * 10**6)
    assert charge(told, "nobody's", PriceList()).assumed_cost == 0


@pytest.mark.parametrize(
    ("told", "input_", "cached", "output"),
    [
        ({}, {}, {}, {}),
        ({"input_tokens": 5, "output_tokens": 2}, {"other": 5}, {}, {"other": 2}),
        ({"total_tokens": 3}, {}, {}, {"other": 3}),
        ({"total_tokens": 9, "input_tokens": 5, "output_tokens": 2}, {"other": 5}, {}, {"other": 4}),
        (
            {"input_tokens": 9, "input_token_details": {"text_tokens": 5, "cached_tokens": 3}},
            {"text": 5, "other": 4},
            {},
            {},
        ),
        (
            {"input_tokens": 5, "input_token_details": {"text_tokens": 5, "cached_tokens": 3}},
            {"text": 5},
            {"text": 3},
            {},
        ),
        (
            {
                "input_token_details": {
                    "text_tokens": 5,
                    "cached_tokens": 9,
                    "cached_tokens_details": {"text_tokens": 9},
                }
            },
            {"text": 5},
            {"text": 5},
            {},
        ),
        (
            {"input_tokens": True, "input_token_details": {"text_tokens": -1, "audio_tokens": "7"}},
            {},
            {},
            {},
        ),
        ({"input_tokens": "x", "input_token_details": 7, "output_token_details": None}, {}, {}, {}),
    ],
)
def test_a_usage_of_another_shape_is_read_as_far_as_it_goes(
    told: dict[str, Any], input_: object, cached: object, output: object
) -> None:
    """Tokens of no known kind count as `other` without a price; nothing is counted below zero or twice."""
    cost = charge(told, "gpt-realtime-2.1", PRICES)

    assert (cost.input, cost.cached, cost.output) == (input_, cached, output)
    assert cost.unpriced_tokens == sum(one.get("other", 0) for one in (cost.input, cost.output))


@pytest.mark.parametrize(
    ("seconds", "model", "cost", "complete"),
    [
        (90, "whisper", round(0.0255 * PICODOLLARS), True),
        (0.5, "whisper", round(0.017 / 120 * PICODOLLARS), True),
        (90, "gpt-realtime-2.1", 0, False),
        (math.inf, "whisper", 0, False),
        (-1, "whisper", 0, False),
        (None, "whisper", 0, False),
    ],
)
def test_a_transcription_by_the_minute_costs_its_seconds(
    seconds: float | None, model: str, cost: int, complete: bool
) -> None:
    """A transcription priced by the minute has no tokens; without a price its cost is unknown."""
    prices = PriceList(models={"whisper": priced(minute=0.017), "gpt-realtime-2.1": priced()})
    told = charge({"type": "duration", "seconds": seconds}, model, prices)

    assert (told.cost, told.assumed_cost, told.tokens, told.complete) == (cost, cost, 0, complete)
    assert (Usage().plus(told).cost is None) is not complete


@pytest.mark.parametrize("huge", [10**400, 10**13, 1e308, float("inf")])
def test_a_report_that_nobody_can_add_up_is_ignored(huge: float) -> None:
    """A number beyond the range of a float would lose the event, and one beyond that of Redis all callers' budgets."""
    prices = PriceList(models={"whisper": priced(minute=0.017)})
    told = charge({"type": "duration", "seconds": huge}, "whisper", prices)

    assert (told.cost, told.complete) == (0, False)
    assert charge({"total_tokens": huge}, "whisper", prices).tokens == 0


def test_usage_survives_being_written_down() -> None:
    """Usage survives a round trip through JSON, with a known and with an unknown cost; unknown members are left out."""
    known = Usage().plus(charge(usage(text_in=7, audio_out=3), "gpt-realtime-2.1", PRICES))
    for value in (Usage(), known, known.plus(charge(usage(text_in=1), None, PRICES))):
        assert Usage.load(json.loads(json.dumps(value.dump() | {"later": 1}))) == value


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no recorded sessions beside this checkout")
def test_recorded_responses_add_up_to_their_own_totals() -> None:
    """In every recorded `response.done` each token has a kind, the total is the service's, and the cost was
    calculated by hand."""
    responses = []
    for file in sorted(RECORDINGS.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)["event"]
            if event.get("type") == "response.done":
                responses.append(event["response"]["usage"])
    total = Usage()
    for told in responses:
        one = charge(told, "gpt-realtime-2.1", PRICES)
        assert (one.tokens, one.unpriced_tokens) == (told["total_tokens"], 0)
        total = total.plus(one)

    # 12, 149, 12, 63 and 103 tokens in, 64 of them cached; 63 of text and 61 of audio out.
    assert total.shown() == {
        "input_text": 339,
        "input_audio": 0,
        "input_image": 0,
        "cached_input": 64,
        "output_text": 63,
        "output_audio": 61,
        "cost_usd": pytest.approx((275 * 4 + 64 * 0.4 + 63 * 24 + 61 * 64) / 1e6, abs=1e-15),
    }

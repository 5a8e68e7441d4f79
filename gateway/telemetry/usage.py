"""Metrics of tokens and dollars."""

from functools import cache

import structlog

from gateway.relay.usage import PICODOLLARS, Charge
from gateway.telemetry.registry import Registry

log = structlog.stdlib.get_logger()


class UsageMetrics:
    """Implements the part of the relay's `RelayTelemetry` about the cost of responses."""

    def __init__(self, define: Registry) -> None:
        self._key, self._model = define.key, define.model
        tokens = define.counter(
            "tokens",
            "Tokens as billed by OpenAI, cached input included.",
            "model",
            "key",
            "direction",
            "kind",
        )
        cached = define.counter(
            "cached_tokens", "The part of the input tokens that was cached.", "model", "key", "kind"
        )
        cost = define.counter(
            "cost_dollars",
            "US dollars by the price list. Tokens without a price are not included: see unpriced_tokens_total.",
            "model",
            "key",
        )
        # Labels hold known words only, so the series are few. Looking one up in the library takes 3 us.
        self._tokens, self._cached, self._cost = (
            cache(tokens.labels),
            cache(cached.labels),
            cache(cost.labels),
        )
        self._unpriced = define.counter(
            "unpriced_tokens", "Tokens for which the price list has no price.", "model"
        )
        self._unrecorded = define.counter(
            "usage_unrecorded",
            "Responses that ended without reporting their usage, so their tokens are not counted.",
        )

    def charged(self, principal: str, charge: Charge) -> None:
        model, key = self._model(charge.model), self._key(principal)
        for direction, counts in (("input", charge.input), ("output", charge.output)):
            for kind, count in counts.items():
                self._tokens(model, key, direction, kind).inc(count)
        for kind, count in charge.cached.items():
            self._cached(model, key, kind).inc(count)
        if charge.cost:
            self._cost(model, key).inc(charge.cost / PICODOLLARS)
        if charge.unpriced_tokens:
            self._unpriced.labels(model).inc(charge.unpriced_tokens)

    def usage_unrecorded(self) -> None:
        self._unrecorded.inc()

    def audio_tokens_in_text_session(self, session: str, count: int) -> None:
        log.warning("audio_tokens_billed", session=session, count=count)

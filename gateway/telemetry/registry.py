"""Where metrics are defined: one registry, one prefix, and the names that labels may contain."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway.telemetry import words
from gateway.telemetry.words import known

PREFIX = "realtime_gateway_"


class Registry:
    """Defines metrics with the gateway's prefix, and bounds the labels whose values the operator configures."""

    def __init__(self, registry: CollectorRegistry, keys: Iterable[str], models: Iterable[str]) -> None:
        self.registry = registry
        self._keys = frozenset({"anonymous", *keys})
        self._models = words.MODELS | frozenset(models)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(PREFIX + name, text, labels, registry=self.registry, buckets=buckets)

    def learn_keys(self, names: Iterable[str]) -> None:
        """Allow these principals' names in labels as well: the keys file was read again."""
        self._keys |= frozenset(names)

    def key(self, principal: str) -> str:
        """Return the principal's name if it is configured, else `other`."""
        return known(principal, self._keys)

    def model(self, model: str) -> str:
        """Return the model's name if it is known or configured, else `other`."""
        return known(model, self._models)

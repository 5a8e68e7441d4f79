"""Counters for what happens once per event: plain numbers, turned into metric families when somebody scrapes.

prometheus-client's own counters take a lock and look labels up by hashing a tuple, about 1 µs a call; an event passes
three of them. Everything runs on the loop's thread, and the scrape too, so no lock is needed.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from gateway.telemetry.words import CLIENT_EVENTS, OTHER, SERVER_EVENTS

RELAY_BUCKETS = (
    0.00005,
    0.0001,
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.25,
    1.0,
)
"""Seconds. From 50 µs, which an idle gateway needs, to what a person notices."""


class EventCounter:
    """Events of one direction by type, and their bytes."""

    __slots__ = ("bytes", "counts")

    def __init__(self, types: Iterable[str]) -> None:
        self.counts = {**dict.fromkeys(sorted(types), 0), OTHER: 0}
        self.bytes = 0

    def count(self, type: str, size: int) -> None:
        """Hot."""
        self.bytes += size
        try:
            self.counts[type] += 1
        except KeyError:
            self.counts[OTHER] += 1


class Durations:
    """A histogram of seconds."""

    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * (len(RELAY_BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Hot."""
        self._counts[bisect_left(RELAY_BUCKETS, seconds)] += 1
        self._sum += seconds

    def cumulated(self) -> list[tuple[str, float]]:
        """Give the buckets as Prometheus wants them: each holds those before it."""
        total, buckets = 0, []
        for bound, count in zip([*map(str, RELAY_BUCKETS), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets

    @property
    def sum(self) -> float:
        return self._sum


class HotMetrics(Collector):
    """Events and bytes up and down, and how long they took through the gateway."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.up = EventCounter(CLIENT_EVENTS)
        self.down = EventCounter(SERVER_EVENTS)
        self.seconds_up = Durations()
        self.seconds_down = Durations()

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        directions = (("up", self.up), ("down", self.down))
        events = CounterMetricFamily(
            f"{self._prefix}events",
            "Events relayed, by direction (up: client to OpenAI) and type.",
            labels=["direction", "type"],
        )
        sizes = CounterMetricFamily(
            f"{self._prefix}event_bytes", "Bytes of JSON in relayed events.", labels=["direction"]
        )
        for direction, counter in directions:
            for type_, count in counter.counts.items():
                if count:
                    events.add_metric([direction, type_], count)
            sizes.add_metric([direction], counter.bytes)
        seconds = HistogramMetricFamily(
            f"{self._prefix}relay_seconds",
            "Time of an event within the gateway. Up: from its request read to handed to the data channel; "
            "down: from the data channel to the first socket write, live events only.",
            labels=["direction"],
        )
        for direction, durations in (("up", self.seconds_up), ("down", self.seconds_down)):
            seconds.add_metric([direction], durations.cumulated(), durations.sum)
        return iter((events, sizes, seconds))

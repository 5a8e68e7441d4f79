"""Counters for what happens once per event: plain numbers, converted to metric families at each scrape.

prometheus-client's own counters take a lock and look up labels by hashing a tuple, about 1 µs a call, three times per
event. Here events and scrapes run on the event loop's thread, so no lock is needed.
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
"""Seconds: from 50 µs, which an idle gateway takes, to what a person notices."""


class EventCounter:
    """Events of one direction by type, and their bytes."""

    __slots__ = ("bytes", "counts")

    def __init__(self, types: Iterable[str]) -> None:
        self.counts = {**dict.fromkeys(sorted(types), 0), OTHER: 0}
        self.bytes = 0

    def count(self, type: str, size: int) -> None:
        """Runs once per event."""
        self.bytes += size
        try:
            self.counts[type] += 1
        except KeyError:
            self.counts[OTHER] += 1

    def count_all(self, events: Iterable[tuple[str, str, int]]) -> None:
        """Count events given by type, text and turn."""
        size, counts = 0, self.counts
        for type_, text, _ in events:
            # Most events are ASCII, and `isascii` takes constant time.
            size += len(text) if text.isascii() else len(text.encode())
            counts[type_ if type_ in counts else OTHER] += 1
        self.bytes += size


class Durations:
    """A histogram of seconds."""

    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * (len(RELAY_BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float, events: int = 1) -> None:
        """Count events that took this long. Runs once for the events of a packet."""
        self._counts[bisect_left(RELAY_BUCKETS, seconds)] += events
        self._sum += seconds * events

    def cumulated(self) -> list[tuple[str, float]]:
        """Return cumulative buckets, as Prometheus expects them."""
        total, buckets = 0, []
        for bound, count in zip([*map(str, RELAY_BUCKETS), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets

    @property
    def sum(self) -> float:
        return self._sum


class HotMetrics(Collector):
    """Events and bytes in both directions, and the time that events spend in the gateway."""

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
            "Time that an event spends in the gateway. Up: from the request being read to the data channel; "
            "down: from the data channel to the first socket write, live events only.",
            labels=["direction"],
        )
        for direction, durations in (("up", self.seconds_up), ("down", self.seconds_down)):
            seconds.add_metric([direction], durations.cumulated(), durations.sum)
        return iter((events, sizes, seconds))

"""Counters for what happens once per event or request: plain numbers, converted to metric families at each scrape.

prometheus-client's own counters take a lock and look up labels by hashing a tuple, about 1 µs a call, three times per
event. Here events and scrapes run on the event loop's thread, so no lock is needed.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

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

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float] = RELAY_BUCKETS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float, events: int = 1) -> None:
        """Count events that took this long. Runs once for the events of a packet."""
        self._counts[bisect_left(self._bounds, seconds)] += events
        self._sum += seconds * events

    def cumulated(self) -> list[tuple[str, float]]:
        """Return cumulative buckets, as Prometheus expects them."""
        total, buckets = 0, []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
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


class Requests:
    """The requests of one route, method and status code."""

    __slots__ = ("count", "seconds")

    def __init__(self, seconds: Durations) -> None:
        self.count = 0
        self.seconds = seconds
        """The route's, whatever the method and the code."""


class HotRequests(Collector):
    """HTTP requests, and the time to their responses."""

    def __init__(self, prefix: str, bounds: Sequence[float]) -> None:
        self._prefix = prefix
        self._bounds = bounds
        self._requests: dict[tuple[str, str, int], Requests] = {}
        self._seconds: dict[str, Durations] = {}

    def series(self, route: str, method: str, status: int) -> Requests:
        """Return what to count requests with these labels in."""
        found = self._requests.get((route, method, status))
        if found is None:
            seconds = self._seconds.setdefault(route, Durations(self._bounds))
            found = self._requests[route, method, status] = Requests(seconds)
        return found

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        requests = CounterMetricFamily(
            f"{self._prefix}http_requests", "HTTP requests answered.", labels=["route", "method", "code"]
        )
        for (route, method, status), one in self._requests.items():
            requests.add_metric([route, method, str(status)], one.count)
        seconds = HistogramMetricFamily(
            f"{self._prefix}http_request_seconds",
            "Time to the response; for a stream, to its headers.",
            labels=["route"],
        )
        for route, durations in self._seconds.items():
            seconds.add_metric([route], durations.cumulated(), durations.sum)
        return iter((requests, seconds))

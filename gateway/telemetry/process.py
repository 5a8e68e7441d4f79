"""Metrics of the process: its event loop, its garbage, its limits, its log, its version."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from gateway.telemetry.logs import dropped_lines
from gateway.telemetry.registry import PREFIX, Registry

_PAUSES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class _DroppedLines(Collector):
    """Reads the count at each scrape, since another thread drops the lines."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        text = "Log lines dropped because they could not be written in time."
        yield CounterMetricFamily(PREFIX + "log_lines_dropped", text, value=dropped_lines())


class ProcessMetrics:
    """The facts that the composition root reports."""

    def __init__(self, define: Registry, version: str) -> None:
        self._lag = define.histogram(
            "event_loop_lag_seconds", "Delay of the event loop in running a due timer.", _PAUSES
        )
        self._gc = define.histogram("gc_pause_seconds", "Duration of garbage collections.", _PAUSES)
        self._draining = define.gauge("draining", "1 while the gateway is shutting down.")
        self._limit = define.gauge("limit", "Configured limits, for alerts.", "kind")
        define.registry.register(_DroppedLines())
        define.gauge("build_info", "Always 1; the label is the version.", "version").labels(version).set(1)
        ProcessCollector(registry=define.registry)

    def watch(self, draining: Callable[[], bool]) -> None:
        """Call `draining` at each scrape."""
        self._draining.set_function(lambda: float(draining()))

    def limits(self, limits: Mapping[str, float]) -> None:
        """Export the configured limits, by kind."""
        for kind, value in limits.items():
            self._limit.labels(kind).set(value)

    def loop_lagged(self, seconds: float) -> None:
        """Record a delay of the event loop."""
        self._lag.observe(seconds)

    def gc_paused(self, seconds: float) -> None:
        """Record the duration of a garbage collection."""
        self._gc.observe(seconds)

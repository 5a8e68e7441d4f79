"""Metrics of the process: its event loop, its garbage, its limits, its log, its version."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from gateway.telemetry.logs import dropped_lines
from gateway.telemetry.registry import PREFIX, Registry

_PAUSES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class _DroppedLines(Collector):
    """Asks the log at each scrape, since lines are dropped by another thread."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        text = "Log lines that were dropped because they could not be written in time."
        yield CounterMetricFamily(PREFIX + "log_lines_dropped", text, value=dropped_lines())


class ProcessMetrics:
    """What the composition root states."""

    def __init__(self, define: Registry, version: str) -> None:
        self._lag = define.histogram(
            "event_loop_lag_seconds", "How late the event loop runs what is due.", _PAUSES
        )
        self._gc = define.histogram("gc_pause_seconds", "Pauses for garbage collection.", _PAUSES)
        self._draining = define.gauge("draining", "1 while the gateway is shutting down.")
        self._limit = define.gauge("limit", "Configured limits, for alerts that compare with them.", "kind")
        define.registry.register(_DroppedLines())
        define.gauge("build_info", "Always 1; the label tells the version.", "version").labels(version).set(1)
        ProcessCollector(registry=define.registry)

    def watch(self, draining: Callable[[], bool]) -> None:
        """Ask `draining` at each scrape."""
        self._draining.set_function(lambda: float(draining()))

    def limits(self, limits: Mapping[str, float]) -> None:
        """State the limits that are configured, by kind."""
        for kind, value in limits.items():
            self._limit.labels(kind).set(value)

    def loop_lagged(self, seconds: float) -> None:
        """The loop ran something this late."""
        self._lag.observe(seconds)

    def gc_paused(self, seconds: float) -> None:
        """A garbage collection took this long."""
        self._gc.observe(seconds)

"""Metrics and log lines of requests and reads: the facts that downstream/ reports."""

from functools import cache

import structlog

from gateway.relay.ports import Json
from gateway.telemetry import words
from gateway.telemetry.hot import HotRequests, Requests
from gateway.telemetry.logs import note_access
from gateway.telemetry.registry import PREFIX, Registry
from gateway.telemetry.words import OTHER, known

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_MAX_ROUTES = 64
"""Routes are templates, about twenty. The bound protects against a bug that would pass paths instead."""

_PROBES = frozenset({"/livez", "/readyz", "/metrics"})
"""Machines request these every few seconds, so they are logged at debug only."""

log = structlog.stdlib.get_logger()


class RequestMetrics:
    """Implements the relay's `DownstreamTelemetry`, except what happens once per event."""

    def __init__(self, define: Registry, *, access_log: bool) -> None:
        self._access_log = access_log
        self._routes: set[str] = set()
        self._series: dict[tuple[str, str, int], Requests] = {}
        self._requests = HotRequests(PREFIX, _SECONDS)
        define.registry.register(self._requests)
        streams = define.gauge("streams", "Open reads, by format.", "format")
        # Labels hold known words only, so the series are few. Looking one up in the library takes 3 us.
        self._streams = cache(streams.labels)
        for format_ in sorted(words.FORMATS):
            self._streams(format_)
        opened = define.counter(
            "streams_opened",
            "Reads opened; `replay` is true if events before the head were requested.",
            "format",
            "replay",
        )
        closed = define.counter("streams_closed", "Reads ended, by reason.", "format", "reason")
        self._opened, self._closed = cache(opened.labels), cache(closed.labels)
        self._replayed = define.counter(
            "replayed_events", "Events sent from the log that were older than the read."
        )
        self._gaps = define.counter(
            "gaps", "Gaps reported to readers whose requested events are gone.", "reason"
        )
        self._missed = define.counter("missed_events", "Events missed in those gaps, if the number is known.")
        self._idempotent = define.counter(
            "idempotent_replays",
            "Repeated requests answered with the result of the first one with the same Idempotency-Key.",
        )

    def http_request(self, route: str, method: str, status: int, seconds: float) -> None:
        series = self._series.get((route, method, status))
        if series is None:
            series = self._series_of(route, method, status)
        series.count += 1
        series.seconds.observe(seconds)

    def _series_of(self, route: str, method: str, status: int) -> Requests:
        if route not in self._routes:
            if len(self._routes) >= _MAX_ROUTES:
                route = OTHER
            self._routes.add(route)
        series = self._requests.series(route, known(method, words.METHODS), status)
        self._series[route, method, status] = series
        return series

    def http_answered(self, request_id: str, fields: Json) -> None:
        if not self._access_log:
            return
        line = {"event": "http_answered", "request_id": request_id, **fields}
        seconds = line.get("seconds")
        if isinstance(seconds, float):
            line["seconds"] = round(seconds, 6)
        probe = line.get("route") in _PROBES
        if not probe and note_access(line):
            return
        del line["event"]
        if probe:
            log.debug("http_answered", **line)
        else:
            log.info("http_answered", **line)

    def http_failed(self, request_id: str, error: BaseException) -> None:
        log.error("http_failed", request_id=request_id, exc_info=error)

    def idempotent_replay(self) -> None:
        self._idempotent.inc()

    def connections_refused(self, count: int, reason: str) -> None:
        remedy = "raise the limit on open files (ulimit -n)"
        if reason == "connections":
            remedy = "raise server.max_connections, or find the client that opens so many"
        log.warning("connections_refused", count=count, reason=reason, remedy=remedy)

    def stream_opened(self, format: str, replay: bool) -> None:
        format = known(format, words.FORMATS)
        self._streams(format).inc()
        self._opened(format, str(replay).lower()).inc()

    def stream_closed(self, format: str, reason: str) -> None:
        format = known(format, words.FORMATS)
        self._streams(format).dec()
        self._closed(format, known(reason, words.STREAM_ENDS)).inc()

    def replayed(self, events: int) -> None:
        self._replayed.inc(events)

    def gap(self, reason: str, missed: int | None) -> None:
        self._gaps.labels(known(reason, words.GAP_REASONS)).inc()
        if missed:
            self._missed.inc(missed)

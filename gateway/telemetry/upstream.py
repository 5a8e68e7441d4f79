"""Metrics and log lines of calls: the facts that upstream/ reports."""

import structlog

from gateway.telemetry import words
from gateway.telemetry.linelimit import LineLimit
from gateway.telemetry.registry import Registry
from gateway.telemetry.words import known

CONNECT_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15)

log = structlog.stdlib.get_logger()


class CallMetrics:
    """Implements the relay's `UpstreamTelemetry`."""

    def __init__(self, define: Registry) -> None:
        self._failure_lines = LineLimit()
        self._connect = define.histogram(
            "connect_seconds",
            "Time to open a call, by phase; `total` is their sum.",
            CONNECT_BUCKETS,
            "phase",
        )
        self._peers = define.gauge("peer_connections", "WebRTC peer connections that exist.")
        self._consent = define.counter(
            "consent_failures", "Calls lost because the far end stopped answering consent checks (RFC 7675)."
        )
        self._errors = define.counter(
            "upstream_errors", "Error events, failed responses and refused calls, by OpenAI's code.", "code"
        )

    def connect_phase(self, phase: str, seconds: float) -> None:
        self._connect.labels(known(phase, words.PHASES)).observe(seconds)

    def peer_connections(self, delta: int) -> None:
        self._peers.inc(delta)

    def consent_failed(self) -> None:
        self._consent.inc()

    def upstream_error(self, code: str) -> None:
        self._errors.labels(known(code, words.UPSTREAM_CODES)).inc()

    def turn_unavailable(self) -> None:
        log.warning("turn_unavailable", remedy="run `gateway check`, and check upstream.ice_servers")

    def relay_failed(self, session: str, error: BaseException) -> None:
        left_out = self._failure_lines.admit()
        if left_out is not None:
            log.error("relay_failed", session=session, left_out=left_out, exc_info=error)

    def close_failed(self, what: str, error: BaseException) -> None:
        log.warning("close_failed", what=what, error=repr(error))

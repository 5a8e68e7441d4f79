"""Metrics for Prometheus, and one log line per fact. Imports nothing of the gateway but the relay.

`Metrics` implements `gateway.relay.telemetry.Telemetry`: other packages report facts, and only this package decides how a
fact is counted and logged. `configure_logging` sets up the log.
"""

from gateway.telemetry.garbage import Collector
from gateway.telemetry.logs import LogFormat, LogLevel, configure_logging, flush_logs
from gateway.telemetry.looplag import Probes
from gateway.telemetry.metrics import Metrics, exposition

__all__ = [
    "Collector",
    "LogFormat",
    "LogLevel",
    "Metrics",
    "Probes",
    "configure_logging",
    "exposition",
    "flush_logs",
]

"""What the gateway says of itself: metrics for Prometheus and one log line per fact. Knows no room but the relay's port.

`Metrics` implements `gateway.relay.telemetry.Telemetry`: rooms state facts, and only this package knows how a fact is counted
or worded. `configure_logging` sets up the lines.
"""

from gateway.telemetry.garbage import Collector
from gateway.telemetry.logs import LogFormat, LogLevel, configure_logging, flush_logs
from gateway.telemetry.metrics import Metrics, exposition
from gateway.telemetry.probes import Probes

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

"""All facts of the gateway as metrics and log lines (docs/api.md, 7 The operator's listener).

There is one method per fact, as `gateway.relay.telemetry` defines it. Each fact is at most one log line, with a past-tense
name. Labels contain known words only, see `words`. The facts of each package are counted in a separate file, and `Metrics`
combines them. `hot` counts what happens once per event.
"""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from gateway.telemetry.cluster import NodeMetrics
from gateway.telemetry.downstream import RequestMetrics
from gateway.telemetry.hot import HotMetrics
from gateway.telemetry.process import ProcessMetrics
from gateway.telemetry.registry import PREFIX, Registry
from gateway.telemetry.relay import SessionMetrics
from gateway.telemetry.upstream import CallMetrics
from gateway.telemetry.usage import UsageMetrics


def exposition(registry: CollectorRegistry) -> Callable[[str], tuple[bytes, str]]:
    """Return a function from an Accept header to the metrics' text and its media type."""

    def expose(accept: str) -> tuple[bytes, str]:
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    return expose


class Metrics:
    """Implements the relay's `Telemetry` and `ClusterTelemetry` on the given registry.

    Its methods are bound methods of the other classes here, so that a fact costs one call.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        version: str,
        keys: Iterable[str] = (),
        models: Iterable[str] = (),
        access_log: bool = True,
    ) -> None:
        """`keys`: names of configured principals; `models`: configured models. Labels may contain both."""
        # The series `…_created` double the size of a scrape, and Prometheus' rate() does not use them.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped
        define = Registry(registry, keys, models)
        self.learn_keys = define.learn_keys
        hot = HotMetrics(PREFIX)
        registry.register(hot)
        self.event_up, self.event_down = hot.up.count, hot.down.count
        self.events_down = hot.down.count_all
        self.relayed_up, self.relayed_down = hot.seconds_up.observe, hot.seconds_down.observe
        self.sessions = sessions = SessionMetrics(define)
        """Knows how many sessions are live and have ended."""
        self.session_opened = sessions.session_opened
        self.session_refused = sessions.session_refused
        self.session_state = sessions.session_state
        self.session_closed = sessions.session_closed
        self.upstream_lost = sessions.upstream_lost
        self.recovered = sessions.recovered
        self.call_expiry_ignored = sessions.call_expiry_ignored
        self.frame_unrelayed = sessions.frame_unrelayed
        self.first_delta = sessions.first_delta
        self.response_done = sessions.response_done
        self.log_grew = sessions.log_grew
        self.log_evicted = sessions.log_evicted
        calls = CallMetrics(define)
        self.connect_phase = calls.connect_phase
        self.peer_connections = calls.peer_connections
        self.consent_failed = calls.consent_failed
        self.upstream_error = calls.upstream_error
        self.turn_unavailable = calls.turn_unavailable
        self.relay_failed = calls.relay_failed
        self.close_failed = calls.close_failed
        usage = UsageMetrics(define)
        self.charged = usage.charged
        self.usage_unrecorded = usage.usage_unrecorded
        self.audio_tokens_in_text_session = usage.audio_tokens_in_text_session
        requests = RequestMetrics(define, access_log=access_log)
        self.http_request = requests.http_request
        self.http_answered = requests.http_answered
        self.http_failed = requests.http_failed
        self.connections_refused = requests.connections_refused
        self.idempotent_replay = requests.idempotent_replay
        self.stream_opened = requests.stream_opened
        self.stream_closed = requests.stream_closed
        self.replayed = requests.replayed
        self.gap = requests.gap
        nodes = NodeMetrics(define)
        self.cluster_nodes = nodes.cluster_nodes
        self.journal_settled = nodes.journal_settled
        self.journal_unsettled = nodes.journal_unsettled
        self.forwarded = nodes.forwarded
        self.taken_over = nodes.taken_over
        self.handed_over = nodes.handed_over
        self.node_lost = nodes.node_lost
        self.fenced = nodes.fenced
        self.journal_repaired = nodes.journal_repaired
        self.redis_up = nodes.redis_up
        self.sessions_unreadable = nodes.sessions_unreadable
        self.peer_unreachable = nodes.peer_unreachable
        self.peer_reachable = nodes.peer_reachable
        process = ProcessMetrics(define, version)
        self.watch = process.watch
        self.limits = process.limits
        self.loop_lagged = process.loop_lagged
        self.gc_paused = process.gc_paused

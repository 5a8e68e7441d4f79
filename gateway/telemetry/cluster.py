"""Metrics of a cluster: the facts that cluster/ reports. A gateway without a cluster exports them as zero."""

from collections.abc import Mapping

import structlog

from gateway.telemetry import words
from gateway.telemetry.registry import Registry
from gateway.telemetry.words import known

log = structlog.stdlib.get_logger()

_ROUND_TRIPS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 2.5, 10)
_TAKEOVERS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 30, 60)


class NodeMetrics:
    """Implements the relay's `ClusterTelemetry`."""

    def __init__(self, define: Registry) -> None:
        self._nodes = define.gauge(
            "cluster_nodes", "Nodes of the cluster as this node sees them, by state.", "state"
        )
        self._journal = define.histogram(
            "journal_seconds", "Time from writing a record to its acknowledgement by Redis.", _ROUND_TRIPS
        )
        self._unsettled = define.gauge(
            "journal_unsettled_bytes", "Bytes of records that Redis has not acknowledged yet."
        )
        self._forwarded = define.counter(
            "forwarded_requests", "Requests forwarded to the node that owns the session.", "kind", "outcome"
        )
        self._forward = define.histogram(
            "forward_seconds",
            "Time to the other node's response; for a stream, to its headers.",
            _ROUND_TRIPS,
        )
        self._takeovers = define.counter(
            "takeovers", "Sessions of lost nodes that this node claimed, by outcome.", "outcome"
        )
        self._takeover = define.histogram(
            "takeover_seconds",
            "Time from the lost node's last heartbeat until the session can be read again.",
            _TAKEOVERS,
        )
        self._handovers = define.counter(
            "handovers", "Sessions that this node handed over to another, by outcome.", "outcome"
        )
        self._fenced = define.counter(
            "fenced", "Sessions that this node gave up because another node owns them now."
        )
        self._repairs = define.counter(
            "journal_repairs", "Journals rewritten after Redis lost all or part of them.", "kind"
        )
        self._redis = define.gauge("redis_up", "1 while Redis answers; 0 without a cluster.")
        # Present at 0 from the start: Prometheus does not see an increase to the first value of a series, and a node often
        # counts one of these only once.
        for counter, values in (
            (self._takeovers, words.TAKEOVER_OUTCOMES),
            (self._handovers, words.HANDOVER_OUTCOMES),
            (self._repairs, words.REPAIR_KINDS),
        ):
            for value in values:
                counter.labels(value)

    def cluster_nodes(self, counts: Mapping[str, int]) -> None:
        for state in words.NODE_STATES:
            self._nodes.labels(state).set(counts.get(state, 0))

    def journal_settled(self, seconds: float) -> None:
        self._journal.observe(seconds)

    def journal_unsettled(self, size: int) -> None:
        self._unsettled.set(size)

    def forwarded(self, kind: str, outcome: str, seconds: float) -> None:
        self._forwarded.labels(known(kind, words.FORWARD_KINDS), known(outcome, words.FORWARD_OUTCOMES)).inc()
        self._forward.observe(seconds)

    def taken_over(self, session: str, outcome: str, seconds: float) -> None:
        log.info("session_taken_over", session=session, outcome=outcome, seconds=round(seconds, 3))
        self._takeovers.labels(known(outcome, words.TAKEOVER_OUTCOMES)).inc()
        self._takeover.observe(seconds)

    def handed_over(self, session: str, outcome: str) -> None:
        log.info("session_handed_over", session=session, outcome=outcome)
        self._handovers.labels(known(outcome, words.HANDOVER_OUTCOMES)).inc()

    def fenced(self, session: str) -> None:
        log.warning("session_fenced", session=session)
        self._fenced.inc()

    def journal_repaired(self, session: str, kind: str) -> None:
        log.warning("journal_repaired", session=session, kind=kind)
        self._repairs.labels(known(kind, words.REPAIR_KINDS)).inc()

    def node_lost(self, node: str, sessions: int, *, draining: bool) -> None:
        if draining:
            log.info("node_left", node=node, sessions=sessions)
        else:
            log.warning("node_lost", node=node, sessions=sessions)

    def sessions_unreadable(self, node: str, sessions: int) -> None:
        remedy = "start a node of that version again; see docs/cluster.md, Upgrades"
        log.error("sessions_unreadable", node=node, sessions=sessions, remedy=remedy)

    def peer_unreachable(self, node: str, url: str, reason: str, remedy: str) -> None:
        log.error("peer_unreachable", node=node, url=url, reason=reason, remedy=remedy)

    def peer_reachable(self, node: str, url: str) -> None:
        log.info("peer_reachable", node=node, url=url)

    def redis_up(self, up: bool, reason: str) -> None:
        if up:
            log.info("redis_connected")
        else:
            log.error(
                "redis_lost", reason=reason, remedy="sessions wait until it is back; see docs/cluster.md"
            )
        self._redis.set(float(up))

"""Metrics and log lines of sessions, their responses and their logs: the facts that relay/ reports."""

from collections.abc import Mapping
from functools import cache

import structlog

from gateway.errors import KINDS as ERROR_KINDS
from gateway.errors import GatewayError
from gateway.relay.ports import LossCause, View
from gateway.relay.states import CloseReason, State
from gateway.telemetry import words
from gateway.telemetry.linelimit import LineLimit
from gateway.telemetry.registry import Registry
from gateway.telemetry.upstream import CONNECT_BUCKETS
from gateway.telemetry.words import known

_LIFETIMES = (1, 10, 60, 300, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400)
_ANSWERS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60, 120)

_LIVE_STATES = (State.CONNECTING, State.CONNECTED, State.RECOVERING)
_CODES = frozenset(ERROR_KINDS)

log = structlog.stdlib.get_logger()


class SessionMetrics:
    """Implements the relay's `RelayTelemetry` except for calls, events and usage."""

    def __init__(self, define: Registry) -> None:
        self._key = define.key
        self.ended = 0
        """Sessions that have ended or could not be opened: each leaves garbage."""
        self.live = 0
        """Sessions that are not closed."""
        self._sessions = define.gauge("sessions", "Sessions that are not closed, by state.", "state")
        for state in _LIVE_STATES:
            self._sessions.labels(state)
        self._created = define.counter(
            "sessions_created",
            "Requests to open a session. The outcome is `opened` or the error code.",
            "outcome",
            "key",
        )
        self._closed = define.counter("sessions_closed", "Sessions that ended, by close reason.", "reason")
        for reason in CloseReason:
            self._closed.labels(reason)
        self._duration = define.histogram(
            "session_duration_seconds", "Lifetime of a session, from the request to the end.", _LIFETIMES
        )
        self._recoveries = define.counter(
            "recoveries", "Attempts to replace a call, by cause and outcome.", "cause", "outcome"
        )
        self._recovery_seconds = define.histogram(
            "recovery_seconds",
            "Time to replace a call, from detecting the loss to the new call or to giving up.",
            CONNECT_BUCKETS,
            "cause",
        )
        self._unrelayed_lines = LineLimit()
        self._unrelayed = define.counter(
            "unrelayed_frames", "Frames from OpenAI that were not relayed because they were not JSON objects."
        )
        self._first_delta = define.histogram(
            "time_to_first_delta_seconds",
            "Time from response.create to the response's first delta.",
            _ANSWERS,
        )
        response = define.histogram(
            "response_seconds", "Time from response.created to response.done.", _ANSWERS, "status"
        )
        self._response = cache(response.labels)  # Few series, whose look-up in the library takes 3 us.
        self._log_bytes = define.gauge("log_bytes", "Bytes in all event logs.")
        self._log_events = define.gauge("log_events", "Events in all event logs.")
        self._evicted = define.counter("log_evicted", "Events dropped from logs because a limit was reached.")

    def session_opened(self, view: View, seconds: float) -> None:
        self._created.labels("opened", self._key(view.principal)).inc()
        log.info(
            "session_opened",
            session=view.id,
            principal=view.principal,
            call_id=view.call_id,
            model=view.model,
            seconds=round(seconds, 4),
        )

    def session_refused(self, principal: str, error: GatewayError) -> None:
        self.ended += 1
        self._created.labels(known(error.code, _CODES), self._key(principal)).inc()
        fields = {"principal": principal, "code": error.code}
        upstream = error.members.get("upstream")
        if isinstance(upstream, Mapping):
            # OpenAI's status and code. Its message is left out because it may quote what the caller sent.
            fields |= {f"upstream_{name}": upstream[name] for name in ("status", "code") if name in upstream}
        elif error.code == "upstream-failed":
            fields["reason"] = error.detail  # in the gateway's own words: OpenAI has said nothing
        if "phase" in error.members:
            fields["phase"] = str(error.members["phase"])
        log.warning("session_refused", **fields)

    def session_state(self, before: State | None, after: State | None) -> None:
        # Only the log of a closed session remains; log_events and log_bytes count those.
        if before in _LIVE_STATES:
            self.live -= 1
            self._sessions.labels(before).dec()
        if after in _LIVE_STATES:
            self.live += 1
            self._sessions.labels(after).inc()

    def session_closed(self, view: View, seconds: float) -> None:
        reason = view.close_reason or CloseReason.INTERNAL
        self.ended += 1
        self._closed.labels(reason).inc()
        self._duration.observe(seconds)
        log.info(
            "session_closed",
            session=view.id,
            principal=view.principal,
            call_id=view.call_id,
            reason=str(reason),
            seconds=round(seconds, 3),
            events=view.head.sequence,
            cost_usd=view.usage.shown()["cost_usd"],
        )

    def upstream_lost(self, session: str, cause: LossCause) -> None:
        log.warning("upstream_lost", session=session, cause=str(cause))

    def call_expiry_ignored(self, session: str, expires_at: int) -> None:
        log.warning("call_expiry_ignored", session=session, expires_at=expires_at)

    def recovered(self, session: str, cause: str, outcome: str, seconds: float) -> None:
        cause, outcome = known(cause, words.RECOVERY_CAUSES), known(outcome, words.RECOVERY_OUTCOMES)
        self._recoveries.labels(cause, outcome).inc()
        self._recovery_seconds.labels(cause).observe(seconds)
        line = log.info if outcome == "recovered" else log.warning
        line("call_replaced", session=session, cause=cause, outcome=outcome, seconds=round(seconds, 4))

    def frame_unrelayed(self, session: str, size: int) -> None:
        self._unrelayed.inc()
        left_out = self._unrelayed_lines.admit()
        if left_out is not None:
            log.warning("frame_unrelayed", session=session, size=size, left_out=left_out)

    def first_delta(self, seconds: float) -> None:
        self._first_delta.observe(seconds)

    def response_done(self, status: str, seconds: float) -> None:
        self._response(known(status, words.RESPONSE_STATUSES)).observe(seconds)

    def log_grew(self, events: int, size: int) -> None:
        self._log_events.inc(events)
        self._log_bytes.inc(size)

    def log_evicted(self, events: int) -> None:
        self._evicted.inc(events)

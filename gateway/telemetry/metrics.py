"""The gateway's facts as metrics and log lines (docs/api.md, 7 The operator's listener).

One method per fact, as `gateway.relay.telemetry.Telemetry` asks; each fact is one log line at most, under a past-tense
name. Labels hold known words only, see `words`. What happens per event goes to `hot`.
"""

from collections.abc import Callable, Iterable, Mapping

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from gateway.errors import KINDS as ERROR_KINDS
from gateway.relay.ports import Json, LossCause, View
from gateway.relay.state import CloseReason, State
from gateway.telemetry import words
from gateway.telemetry.hot import HotMetrics
from gateway.telemetry.words import OTHER, known

PREFIX = "realtime_gateway_"

_CONNECT = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15)
_LIFETIMES = (1, 10, 60, 300, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400)
_ANSWERS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60, 120)
_REQUESTS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PAUSES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)

_LIVE_STATES = (State.CONNECTING, State.CONNECTED, State.RECOVERING)
_CODES = frozenset(ERROR_KINDS)
_MAX_ROUTES = 64
"""Routes are the gateway's own templates, about twenty; the bound guards against a mistake that puts paths there."""

_PROBES = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked for every few seconds by machines: logged at debug only."""

log = structlog.stdlib.get_logger()


def exposition(registry: CollectorRegistry) -> Callable[[str], tuple[bytes, str]]:
    """Give a function from an Accept header to the metrics' text and its media type."""

    def expose(accept: str) -> tuple[bytes, str]:
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    return expose


class Metrics:
    """Implements the relay's `Telemetry` port on a registry of the caller's."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        version: str,
        keys: Iterable[str] = (),
        models: Iterable[str] = (),
        access_log: bool = True,
    ) -> None:
        """`keys` are the configured principals' names and `models` configured models: both may stand in labels."""
        # The series `…_created` double the size of a scrape and are of no use to Prometheus' rate().
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped
        self._registry = registry
        self._models = words.MODELS | frozenset(models)
        self._keys = frozenset({"anonymous", *keys})
        self._access_log = access_log
        self._routes: set[str] = set()
        self.ended = 0
        """Sessions that ended or never came about so far: each leaves garbage."""
        self.live = 0
        """Sessions that are not closed."""
        self._hot = HotMetrics(PREFIX)
        registry.register(self._hot)
        # The hot verbs are these bound methods themselves: one call less per event.
        self.event_up = self._hot.up.count
        self.event_down = self._hot.down.count
        self.relayed_up = self._hot.seconds_up.observe
        self.relayed_down = self._hot.seconds_down.observe
        self._define_sessions()
        self._define_usage()
        self._define_http()
        self._define_log()
        self._define_process(version)

    def learn_keys(self, names: Iterable[str]) -> None:
        """Let these principals' names stand in labels, too: the keys file was read again."""
        self._keys |= frozenset(names)

    def watch(self, draining: Callable[[], bool]) -> None:
        """Ask `draining` at each scrape."""
        self._draining.set_function(lambda: float(draining()))

    # --- definitions --------------------------------------------------------------------------------------------------

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(PREFIX + name, text, labels, registry=self._registry, buckets=buckets)

    def _define_sessions(self) -> None:
        self._sessions = self._gauge("sessions", "Sessions that are not closed, by state.", "state")
        for state in _LIVE_STATES:
            self._sessions.labels(state)
        self._created = self._counter(
            "sessions_created",
            "Sessions asked for. The outcome is `opened` or the error's code.",
            "outcome",
            "key",
        )
        self._closed = self._counter("sessions_closed", "Sessions that ended, by close reason.", "reason")
        for reason in CloseReason:
            self._closed.labels(reason)
        self._duration = self._histogram(
            "session_duration_seconds", "Life of a session from request to end.", _LIFETIMES
        )
        self._connect = self._histogram(
            "connect_seconds", "Time to open a call, by phase; `total` is all of them.", _CONNECT, "phase"
        )
        self._recoveries = self._counter(
            "recoveries", "Calls replaced, or tried to be, by cause and outcome.", "cause", "outcome"
        )
        self._recovery_seconds = self._histogram(
            "recovery_seconds",
            "Time to replace a call, from noticing to the new one or to giving up.",
            _CONNECT,
            "cause",
        )
        self._peers = self._gauge("peer_connections", "WebRTC peer connections that exist.")
        self._consent = self._counter(
            "consent_failures", "Calls lost because the far end stopped answering consent checks (RFC 7675)."
        )
        self._upstream_errors = self._counter(
            "upstream_errors", "Error events, failed responses and refused calls, by OpenAI's code.", "code"
        )
        self._unrelayed = self._counter(
            "unrelayed_frames", "Frames from OpenAI that were no JSON object and so were not relayed."
        )

    def _define_usage(self) -> None:
        self._first_delta = self._histogram(
            "time_to_first_delta_seconds", "From response.create to the response's first delta.", _ANSWERS
        )
        self._response = self._histogram(
            "response_seconds", "From response.created to response.done.", _ANSWERS, "status"
        )
        self._tokens = self._counter(
            "tokens",
            "Tokens as billed by OpenAI in response.done, cached input included.",
            "model",
            "key",
            "direction",
            "kind",
        )
        self._cached = self._counter(
            "cached_tokens", "The part of the input tokens that was cached.", "model", "key", "kind"
        )
        self._usage_unrecorded = self._counter(
            "usage_unrecorded",
            "Responses that ended without telling their usage: their tokens are not counted.",
        )

    def _define_http(self) -> None:
        self._requests = self._counter("http_requests", "HTTP requests answered.", "route", "method", "code")
        self._request_seconds = self._histogram(
            "http_request_seconds", "Time to an answer; for a stream, to its headers.", _REQUESTS, "route"
        )
        self._streams = self._gauge("streams", "Reads that are open, by format.", "format")
        for format_ in sorted(words.FORMATS):
            self._streams.labels(format_)
        self._streams_opened = self._counter(
            "streams_opened", "Reads opened; `replay` tells whether a cursor was resumed.", "format", "replay"
        )
        self._streams_closed = self._counter("streams_closed", "Reads ended, by reason.", "format", "reason")
        self._replayed = self._counter("replayed_events", "Events read from the log after they had happened.")
        self._gaps = self._counter("gaps", "Readers told that events they asked for are gone.", "reason")
        self._missed = self._counter("missed_events", "Events that those readers missed, where it is known.")
        self._idempotent = self._counter(
            "idempotent_replays", "Requests answered from the first one with the same Idempotency-Key."
        )

    def _define_log(self) -> None:
        self._log_bytes = self._gauge("log_bytes", "Bytes in all event logs.")
        self._log_events = self._gauge("log_events", "Events in all event logs.")
        self._evicted = self._counter("log_evicted", "Events dropped from logs at a bound.")

    def _define_process(self, version: str) -> None:
        self._lag = self._histogram(
            "event_loop_lag_seconds", "How late the event loop runs what is due.", _PAUSES
        )
        self._gc = self._histogram("gc_pause_seconds", "Pauses for garbage collection.", _PAUSES)
        self._draining = self._gauge("draining", "1 while the gateway is shutting down.")
        self._gauge("build_info", "Always 1; the label tells the version.", "version").labels(version).set(1)
        ProcessCollector(registry=self._registry)

    def _key(self, principal: str) -> str:
        return known(principal, self._keys)

    # --- sessions -----------------------------------------------------------------------------------------------------

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

    def session_refused(self, principal: str, code: str) -> None:
        self.ended += 1
        self._created.labels(known(code, _CODES), self._key(principal)).inc()
        log.warning("session_refused", principal=principal, code=code)

    def session_state(self, before: State | None, after: State | None) -> None:
        # A closed session is only its log; log_events and log_bytes tell of those.
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
        )

    # --- calls --------------------------------------------------------------------------------------------------------

    def connect_phase(self, phase: str, seconds: float) -> None:
        self._connect.labels(known(phase, words.PHASES)).observe(seconds)

    def peer_connections(self, delta: int) -> None:
        self._peers.inc(delta)

    def consent_failed(self) -> None:
        self._consent.inc()

    def upstream_error(self, code: str) -> None:
        self._upstream_errors.labels(known(code, words.UPSTREAM_CODES)).inc()

    def turn_unavailable(self) -> None:
        log.warning("turn_unavailable", remedy="run `gateway check`, and look at upstream.ice_servers")

    def upstream_lost(self, session: str, cause: LossCause) -> None:
        log.warning("upstream_lost", session=session, cause=str(cause))

    def relay_failed(self, session: str, error: BaseException) -> None:
        log.error("relay_failed", session=session, exc_info=error)

    def recovered(self, session: str, cause: str, outcome: str, seconds: float) -> None:
        cause, outcome = known(cause, words.RECOVERY_CAUSES), known(outcome, words.RECOVERY_OUTCOMES)
        self._recoveries.labels(cause, outcome).inc()
        self._recovery_seconds.labels(cause).observe(seconds)
        line = log.info if outcome == "recovered" else log.warning
        line("call_replaced", session=session, cause=cause, outcome=outcome, seconds=round(seconds, 4))

    def close_failed(self, what: str, error: BaseException) -> None:
        log.warning("close_failed", what=what, error=repr(error))

    # --- events (the hot verbs are set in __init__) -------------------------------------------------------------------

    def frame_unrelayed(self, session: str, size: int) -> None:
        self._unrelayed.inc()
        log.warning("frame_unrelayed", session=session, size=size)

    # --- responses ----------------------------------------------------------------------------------------------------

    def first_delta(self, seconds: float) -> None:
        self._first_delta.observe(seconds)

    def response_done(self, status: str, seconds: float) -> None:
        self._response.labels(known(status, words.RESPONSE_STATUSES)).observe(seconds)

    def tokens(self, model: str, principal: str, usage: Json) -> None:
        model, key = known(model, self._models), self._key(principal)
        for direction in ("input", "output"):
            details = usage.get(f"{direction}_token_details")
            for kind, count in _by_kind(details, usage.get(f"{direction}_tokens")):
                self._tokens.labels(model, key, direction, kind).inc(count)
            if direction == "input" and isinstance(details, Mapping):
                for kind, count in _by_kind(
                    details.get("cached_tokens_details"), details.get("cached_tokens")
                ):
                    self._cached.labels(model, key, kind).inc(count)

    def audio_tokens_in_text_session(self, session: str, count: int) -> None:
        log.warning("audio_tokens_billed", session=session, count=count)

    def usage_unrecorded(self) -> None:
        self._usage_unrecorded.inc()

    # --- log ----------------------------------------------------------------------------------------------------------

    def log_grew(self, events: int, size: int) -> None:
        self._log_events.inc(events)
        self._log_bytes.inc(size)

    def log_evicted(self, events: int) -> None:
        self._evicted.inc(events)

    def idempotent_replay(self) -> None:
        self._idempotent.inc()

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def http_request(self, route: str, method: str, status: int, seconds: float) -> None:
        if route not in self._routes:
            if len(self._routes) >= _MAX_ROUTES:
                route = OTHER
            self._routes.add(route)
        self._requests.labels(route, known(method, words.METHODS), status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def http_answered(self, request_id: str, fields: Json) -> None:
        if not self._access_log:
            return
        line = log.debug if fields.get("route") in _PROBES else log.info
        seconds = fields.get("seconds")
        if isinstance(seconds, float):
            fields = {**fields, "seconds": round(seconds, 6)}
        line("http_answered", request_id=request_id, **fields)

    def http_failed(self, request_id: str, error: BaseException) -> None:
        log.error("http_failed", request_id=request_id, exc_info=error)

    def stream_opened(self, format: str, replay: bool) -> None:
        format = known(format, words.FORMATS)
        self._streams.labels(format).inc()
        self._streams_opened.labels(format, str(replay).lower()).inc()

    def stream_closed(self, format: str, reason: str) -> None:
        format = known(format, words.FORMATS)
        self._streams.labels(format).dec()
        self._streams_closed.labels(format, known(reason, words.STREAM_ENDS)).inc()

    def replayed(self, events: int) -> None:
        self._replayed.inc(events)

    def gap(self, reason: str, missed: int | None) -> None:
        self._gaps.labels(known(reason, words.GAP_REASONS)).inc()
        if missed:
            self._missed.inc(missed)

    # --- the process --------------------------------------------------------------------------------------------------

    def loop_lagged(self, seconds: float) -> None:
        """The loop ran something this late."""
        self._lag.observe(seconds)

    def gc_paused(self, seconds: float) -> None:
        """A garbage collection took this long."""
        self._gc.observe(seconds)


def _by_kind(details: object, total: object) -> list[tuple[str, int]]:
    """Split a token count by kind; what no kind accounts for is `other`, so that nothing billed goes uncounted."""
    counts = []
    if isinstance(details, Mapping):
        counts = [(kind, _count(details.get(f"{kind}_tokens"))) for kind in words.KINDS]
    rest = _count(total) - sum(count for _, count in counts)
    return [(kind, count) for kind, count in [*counts, (OTHER, rest)] if count > 0]


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

"""The port for metrics and log lines: one method per fact, grouped by the package that reports it.

Methods return at once and never raise; those marked hot are called for every event. `gateway.telemetry.Metrics`
implements all of them, `NO_TELEMETRY` ignores them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, Protocol, cast

from gateway.errors import GatewayError
from gateway.relay.ports import Json, LossCause, View
from gateway.relay.states import State
from gateway.relay.usage import Charge

Direction = Literal["up", "down"]


class FailureTelemetry(Protocol):
    """Bugs, stated by every package that runs background tasks."""

    def relay_failed(self, session: str, error: BaseException) -> None:
        """A bug in the gateway was met where nothing may be raised; logged with its traceback."""


class UpstreamTelemetry(FailureTelemetry, Protocol):
    """Facts about calls, stated by upstream/."""

    def connect_phase(self, phase: str, seconds: float) -> None: ...
    def peer_connections(self, delta: int) -> None: ...
    def consent_failed(self) -> None: ...
    def upstream_error(self, code: str) -> None:
        """An `error` event, a failed response or a refused call. `code` is OpenAI's word."""

    def turn_unavailable(self) -> None:
        """A TURN server is configured and gave a call no address; other addresses may do."""

    def close_failed(self, what: str, error: BaseException) -> None:
        """A clean-up step did not finish in time; the others continued."""


class RelayTelemetry(UpstreamTelemetry, Protocol):
    """Facts about sessions, stated by relay/."""

    # sessions
    def session_opened(self, view: View, seconds: float) -> None: ...
    def session_refused(self, principal: str, error: GatewayError) -> None: ...
    def session_state(self, before: State | None, after: State | None) -> None:
        """A session changed its state; None means that it did not exist, or is gone."""

    def session_closed(self, view: View, seconds: float) -> None: ...

    # calls
    def upstream_lost(self, session: str, cause: LossCause) -> None: ...
    def call_expiry_ignored(self, session: str, expires_at: int) -> None:
        """The service reported an end of a call that is implausible by this machine's clock; called once a session."""

    def recovered(self, session: str, cause: str, outcome: str, seconds: float) -> None:
        """A call was replaced, or an attempt failed. `cause`: a LossCause, `rotation`, `restart`, `node_lost` or `handover`;
        `outcome`: recovered, failed, rejected, or ended when the session ended meanwhile."""

    # events
    def event_up(self, type: str, size: int) -> None:
        """Hot."""

    def event_down(self, type: str, size: int) -> None:
        """Hot."""

    def events_down(self, events: Sequence[tuple[str, str, int]]) -> None:
        """Hot: several events, as type, text and turn."""

    def frame_unrelayed(self, session: str, size: int) -> None: ...

    # responses
    def first_delta(self, seconds: float) -> None: ...
    def response_done(self, status: str, seconds: float) -> None: ...
    def charged(self, principal: str, charge: Charge) -> None:
        """A response or a transcription reported its cost."""

    def audio_tokens_in_text_session(self, session: str, count: int) -> None: ...
    def usage_unrecorded(self) -> None: ...

    # log
    def log_grew(self, events: int, size: int) -> None:
        """The logs' total changed by this much; negative when they shrank."""

    def log_evicted(self, events: int) -> None: ...


class DownstreamTelemetry(Protocol):
    """Facts about requests and reads, stated by downstream/."""

    def http_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """`route` is the path's template, such as `/v1/sessions/{id}`, or `other`. For a stream, `seconds` is the time to
        its headers."""

    def http_answered(self, request_id: str, fields: Json) -> None:
        """The access log's line. `fields` holds method, route, status, seconds, session, principal, code where known."""

    def http_failed(self, request_id: str, error: BaseException) -> None:
        """A handler raised an unexpected exception: logged with the traceback, answered as `internal`."""

    def connections_refused(self, count: int, reason: str) -> None:
        """Connections were refused since the last call, which is made at most once a minute. `reason`: connections or
        descriptors, whichever all are in use."""

    def relayed_up(self, seconds: float) -> None: ...
    def relayed_down(self, seconds: float, events: int = 1) -> None:
        """Hot: from the data channel to the first socket write, for events that came together."""

    def idempotent_replay(self) -> None: ...
    def stream_opened(self, format: str, replay: bool) -> None: ...
    def stream_closed(self, format: str, reason: str) -> None:
        """`reason`: client, rotated, superseded, slow, closed, error, shutdown."""

    def replayed(self, events: int) -> None: ...
    def gap(self, reason: str, missed: int | None) -> None: ...


class ClusterTelemetry(FailureTelemetry, Protocol):
    """Facts about several nodes, stated by cluster/."""

    def cluster_nodes(self, counts: Mapping[str, int]) -> None:
        """The nodes as this one sees them, by state: live, draining, unsure, lost."""

    def journal_settled(self, seconds: float) -> None:
        """Hot: Redis acknowledged a record this long after it was written."""

    def journal_unsettled(self, size: int) -> None:
        """Redis has not acknowledged this many bytes of records."""

    def forwarded(self, kind: str, outcome: str, seconds: float) -> None:
        """A request was passed on to the session's owner. `kind`: request, stream; `outcome`: answered, moved (the other
        node does not own it any more), unreachable, timeout, client_left. `seconds`: until the answer's headers."""

    def taken_over(self, session: str, outcome: str, seconds: float) -> None:
        """A session of a lost node was claimed. `outcome`: taken, closed (it had ended), unreadable (by this version),
        lost_race (another node was first), failed. `seconds`: from the lost node's last beat."""

    def handed_over(self, session: str, outcome: str) -> None:
        """A session was given to another node: taken, refused, failed."""

    def fenced(self, session: str) -> None:
        """A write of this node was refused: another one owns the session."""

    def journal_repaired(self, session: str, kind: str) -> None:
        """Redis had lost the journal's `tail`, or was `emptied`, and the journal was written again."""

    def redis_up(self, up: bool, reason: str) -> None:
        """Redis answers, or does not for this reason. Called on every change."""

    def sessions_unreadable(self, node: str, sessions: int) -> None:
        """Sessions of a lost node were written by a version that this node does not read."""

    def node_lost(self, node: str, sessions: int, *, draining: bool) -> None:
        """Another node is considered dead. `sessions` of it are to be taken over by the remaining nodes. `draining`: it was told
        to stop, so they are closed ones whose logs are kept, and those that it could not hand over in time."""


class Telemetry(RelayTelemetry, DownstreamTelemetry, ClusterTelemetry, Protocol):
    """All facts of the gateway."""


class _Null:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return _ignore


def _ignore(*fact: object) -> None:
    pass


NO_TELEMETRY: Final = cast(Telemetry, _Null())
"""Ignores every fact: for tools and tests that only dial."""

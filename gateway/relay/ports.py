"""What the relay asks of the world, and what the world may see of a session.

Upwards the relay speaks through a `Dialer` (upstream/ implements it with WebRTC), downwards it is read through a
`Reader` and driven through a `Handle` (downstream/ uses them). `Telemetry` takes facts, one method each, and turns
them into metrics and log lines. Nothing here knows HTTP, WebRTC, Redis or Prometheus.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NewType, Protocol

from gateway.relay.envelope import ClientEvent
from gateway.relay.eventlog import EventId, Page
from gateway.relay.idempotency import IdempotencyKeys
from gateway.relay.state import CloseReason, State
from gateway.relay.turn import Turn, TurnRequest

SessionId = NewType("SessionId", str)

Json = Mapping[str, object]
"""A JSON object as the standard library's parser gives it."""


# --- upstream ---------------------------------------------------------------------------------------------------------


class LossCause(StrEnum):
    """How a call ended that nobody here had ended."""

    CHANNEL_CLOSED = "channel_closed"
    """The far end closed the data channel or the DTLS association: a decision, not an accident."""
    CONSENT_EXPIRED = "consent_expired"
    """No answer to consent checks (RFC 7675): the path or the far end is gone."""
    CONNECTION_FAILED = "connection_failed"
    """The peer connection failed in any other way."""


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A call to be created upstream.

    `session` is the whole OpenAI session object, template merged. `bearer` is the caller's own credential, or None for
    the gateway's. `safety_identifier` is sent as OpenAI-Safety-Identifier. `generation` comes back with everything the
    call says, so that events of a replaced call can be told apart.
    """

    session: Json
    generation: int = 0
    bearer: str | None = field(default=None, repr=False)
    safety_identifier: str | None = None


class Sink(Protocol):
    """Where a call's news go. Synchronous; never raises: it runs inside the far end's callbacks."""

    def received(self, generation: int, text: str) -> None:
        """One text frame came, exactly as sent."""

    def unreadable(self, generation: int, size: int) -> None:
        """A frame came that is not text: it is counted, never relayed."""

    def drained(self, generation: int) -> None:
        """What was buffered fell below the low-water mark."""

    def lost(self, generation: int, cause: LossCause) -> None:
        """The call is gone; said once, never after `Upstream.close` was called."""


class Upstream(Protocol):
    """An open call: a data channel on which text can be sent."""

    @property
    def call_id(self) -> str | None: ...

    @property
    def buffered(self) -> int:
        """Bytes handed over and not yet taken by the transport (W3C WebRTC `bufferedAmount`)."""

    @property
    def diagnostics(self) -> Json:
        """Phase timings in seconds, candidate types, counters. No SDP, no address, no key."""

    def send(self, batch: Sequence[str]) -> None:
        """Hand over all of `batch` in order, or nothing. Raises UpstreamError when the channel is not open, and
        CallerError `too-large` when a text exceeds what the far end accepts."""

    async def probe(self, timeout: float) -> bool:
        """Ask the far end for a sign of life and give whether one came within `timeout` seconds. Anything received
        meanwhile counts. Never raises."""

    async def close(self, hang_up: bool) -> None:
        """End the call. Always completes, also when cancelled and repeated; `hang_up` tells OpenAI as well."""


class Dialer(Protocol):
    """Creates calls."""

    async def dial(self, request: CallRequest, sink: Sink) -> Upstream:
        """Create a call and wait until its data channel is open.

        Raises UpstreamError: `upstream-rejected`, `upstream-rate-limited`, `upstream-failed`, or `upstream-timeout` with
        its phase. Whatever happens, also cancellation, nothing is left behind. The sink may already have received events
        when this returns.
        """


# --- downstream -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling. `name` is a configured key's name or `anonymous`; sessions belong to it."""

    name: str
    anonymous: bool = False
    max_sessions: int | None = None
    """Sessions at once; None for no limit of its own."""
    tokens_per_session: int | None = None
    tokens_per_day: int | None = None


class Reader(Protocol):
    """Reads one session's log from any cursor. Reading changes nothing."""

    @property
    def head(self) -> EventId: ...

    @property
    def oldest(self) -> EventId:
        """The first event kept, or the one after head."""

    @property
    def sealed(self) -> bool:
        """Nothing will follow head."""

    def read(self, after: EventId, max_events: int, max_bytes: int) -> Page:
        """Give what follows `after`: at least one event if there is any. A cursor that is not in the log gives a page
        with a gap that goes on from the oldest event."""

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` after every append and on sealing, until the returned function is called. `wake` must be quick,
        must not raise, and may be called many times for one read."""


class Receiver(Protocol):
    """One open read of a session: a stream or a waiting long-poll."""

    @property
    def silent_since(self) -> float:
        """When its client last gave a sign of life: its opening, or bytes taken from a full socket (monotonic seconds)."""

    def supersede(self) -> None:
        """Make room for another one: tell the client and end. Does not raise, does not wait."""


@dataclass(frozen=True, slots=True)
class View:
    """A session as its owner sees it (docs/api.md, 1 Sessions). Times are Unix seconds."""

    id: SessionId
    principal: str
    state: State
    created_at: int
    expires_at: int | None
    call_expires_at: int | None
    model: str | None
    call_id: str | None
    metadata: Json
    head: EventId
    oldest: EventId
    receivers: int
    close_reason: CloseReason | None
    detach_grace_seconds: int
    secret_allows: tuple[str, ...]
    """Patterns of client events the session's client secret may send beyond the usual ones."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a batch: how many events, their numbers in the session's own count of accepted events from 1, and
    the log's head as it was before sending."""

    accepted: int
    first: int
    last: int
    head: EventId


class Handle(Protocol):
    """A session as handlers see it, wherever it lives.

    The coroutines complete without suspending where the session lives in this process.
    """

    @property
    def id(self) -> SessionId: ...

    def view(self) -> View: ...

    @property
    def reader(self) -> Reader: ...

    @property
    def idempotency(self) -> IdempotencyKeys: ...

    def touch(self) -> None:
        """An authenticated call came: the detach deadline starts anew."""

    def renew(self, bearer: str) -> None:
        """Use another credential of the caller's for the session's calls to come."""

    def attach(self, receiver: Receiver) -> None:
        """Count a receiver in. Above the limit the longest silent one is superseded."""

    def detach(self, receiver: Receiver) -> None:
        """Count it out; harmless when repeated."""

    async def submit(self, batch: Sequence[ClientEvent]) -> Receipt:
        """Accept a checked batch whole, or raise: `session-closed`, `recovering`, `upstream-backpressure`, `too-large`,
        `member-locked`."""

    async def turn(self, request: TurnRequest) -> Turn:
        """Queue a turn. Raises `turn-queue-full`, `session-closed`, `member-locked`."""

    async def withdraw(self, turn: Turn) -> None:
        """Nobody waits for this turn any more: cancel its response, or forget it unsent."""

    async def close(self, reason: CloseReason) -> None:
        """End the session and seal its log; returns when `gateway.closed` stands in it. Harmless when repeated."""


# --- telemetry --------------------------------------------------------------------------------------------------------

Direction = Literal["up", "down"]


class Telemetry(Protocol):
    """Takes facts. Methods return at once and never raise; those marked hot are called for every event."""

    # sessions
    def session_opened(self, view: View, seconds: float) -> None: ...
    def session_refused(self, principal: str, code: str) -> None: ...
    def session_state(self, before: State | None, after: State | None) -> None:
        """A session moved between states; None stands for not being there at all."""

    def session_closed(self, view: View, seconds: float) -> None: ...

    # calls
    def connect_phase(self, phase: str, seconds: float) -> None: ...
    def peer_connections(self, delta: int) -> None: ...
    def consent_failed(self) -> None: ...
    def upstream_error(self, code: str) -> None:
        """An `error` event, a failed response or a refused call. `code` is OpenAI's word."""

    def turn_unavailable(self) -> None:
        """A TURN server is configured and gave a call no address; other addresses may do."""

    def upstream_lost(self, session: str, cause: LossCause) -> None: ...
    def relay_failed(self, session: str, error: BaseException) -> None:
        """A mistake of the gateway's own, met where nothing may be raised; logged with its traceback."""

    def recovered(self, session: str, cause: str, outcome: str, seconds: float) -> None:
        """A call was replaced, or was to be. `cause`: a LossCause, `rotation` or `restart`; `outcome`: recovered, failed,
        rejected, or ended when the session ended meanwhile."""

    def close_failed(self, what: str, error: BaseException) -> None:
        """A clean-up step did not finish in its time; the rest went on."""

    # events
    def event_up(self, type: str, size: int) -> None:
        """Hot."""

    def event_down(self, type: str, size: int) -> None:
        """Hot."""

    def frame_unrelayed(self, session: str, size: int) -> None: ...
    def relayed_up(self, seconds: float) -> None: ...
    def relayed_down(self, seconds: float) -> None:
        """Hot: from the data channel to the first socket write."""

    # responses
    def first_delta(self, seconds: float) -> None: ...
    def response_done(self, status: str, seconds: float) -> None: ...
    def tokens(self, model: str, principal: str, usage: Json) -> None:
        """Count `usage` of a `response.done`; logged once a session if audio tokens appear in it."""

    def audio_tokens_in_text_session(self, session: str, count: int) -> None: ...
    def usage_unrecorded(self) -> None: ...

    # log
    def log_grew(self, events: int, size: int) -> None:
        """The logs' total changed by this much; negative when they shrank."""

    def log_evicted(self, events: int) -> None: ...
    def idempotent_replay(self) -> None: ...

    # HTTP
    def http_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """`route` is the path's template, such as `/v1/sessions/{id}`, or `other`. For a stream, `seconds` is the time to
        its headers."""

    def http_answered(self, request_id: str, fields: Json) -> None:
        """The access log's line. `fields` holds method, route, status, seconds, session, principal, code where known."""

    def http_failed(self, request_id: str, error: BaseException) -> None:
        """A handler raised what it should not have: logged with the traceback, answered as `internal`."""

    def stream_opened(self, format: str, replay: bool) -> None: ...
    def stream_closed(self, format: str, reason: str) -> None:
        """`reason`: client, rotated, superseded, slow, closed, error, shutdown."""

    def replayed(self, events: int) -> None: ...
    def gap(self, reason: str, missed: int | None) -> None: ...

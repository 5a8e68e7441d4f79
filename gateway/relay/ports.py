"""The relay's ports to both sides: what it needs upstream, and what handlers see of a session.

`upstream/` implements `Dialer` and `Upstream`; `downstream/` uses `Sessions`, `Handle`, `Reader` and `Receiver`. The port
to the journal of several nodes is in `journal`, the port for metrics and log lines in `telemetry`. Nothing here knows
HTTP, WebRTC, Redis or Prometheus.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NewType, Protocol

from gateway.relay.events.envelope import ClientEvent
from gateway.relay.events.eventlog import EventId, Page
from gateway.relay.requests import NO_PROMISE, Principal, Promise, Receipt
from gateway.relay.state.turn import Turn, TurnRequest
from gateway.relay.states import CloseReason, State
from gateway.relay.usage import Usage

if TYPE_CHECKING:
    from gateway.relay.idempotency import IdempotencyKeys
    from gateway.relay.limits import RelayLimits
    from gateway.relay.memory import Budget

SessionId = NewType("SessionId", str)

Json = Mapping[str, object]
"""A JSON object as the standard library's parser gives it."""


# --- upstream ---------------------------------------------------------------------------------------------------------


class LossCause(StrEnum):
    """How a call ended that the gateway did not end."""

    CHANNEL_CLOSED = "channel_closed"
    """The far end closed the data channel or the DTLS association on purpose."""
    CONSENT_EXPIRED = "consent_expired"
    """No answer to consent checks (RFC 7675): the path or the far end is gone."""
    CONNECTION_FAILED = "connection_failed"
    """The connection failed in any other way."""
    STALLED = "stalled"
    """The far end acknowledged data, or owed an answer, and delivered nothing for too long."""


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A call to create upstream, or one to attach to.

    `session` is the whole OpenAI session object, merged over the template; it is empty for an attached call. `bearer` is
    the caller's own credential, or None for the gateway's. `safety_identifier` is sent as OpenAI-Safety-Identifier.
    Every event of the call is passed on with its `generation`, so that events of a replaced call can be recognised.
    """

    session: Json
    generation: int = 0
    bearer: str | None = field(default=None, repr=False)
    safety_identifier: str | None = None
    attach_to: str | None = None
    """ID of a call that another application made: attach to it instead of creating one."""


class Sink(Protocol):
    """Receives the events of a call. Synchronous; never raises, because it runs inside the transport's callbacks."""

    def received(self, generation: int, text: str) -> None:
        """One text frame came, exactly as sent."""

    def received_together(self, generation: int, texts: Sequence[str]) -> None:
        """Hot: several text frames came at once, in this order."""

    def received_in_steps(self, generation: int, text: str) -> Iterator[None]:
        """A large text frame came (above `jsontext.LARGE_BYTES`): return the work of taking it, to be continued in different
        turns of the event loop. The last step passes it on. The transport holds back what follows it, the loss of the call
        included, until then. The steps do not raise; they need not be taken to the end once the call is closed."""

    def unreadable(self, generation: int, size: int) -> None:
        """A frame came that is not text. It is counted and never relayed."""

    def lost(self, generation: int, cause: LossCause) -> None:
        """The call is gone. Called once, never after `Upstream.close`."""


class Upstream(Protocol):
    """An open call: a data channel on which text can be sent."""

    @property
    def call_id(self) -> str | None: ...

    @property
    def buffered(self) -> int:
        """Bytes handed over and not yet taken by the transport (W3C WebRTC `bufferedAmount`)."""

    @property
    def max_message_bytes(self) -> int | None:
        """The largest text that the far end takes on this call; None if it names no limit."""

    @property
    def acknowledged(self) -> int:
        """How many messages given to `send`, from the first, the far end's transport has acknowledged end to end. Never
        falls; 0 where the transport cannot tell."""

    @property
    def undelivered(self) -> bool:
        """Data of the far end was received and acknowledged, and cannot be delivered yet: part of it is missing."""

    @property
    def diagnostics(self) -> Json:
        """Phase timings in seconds, candidate types, counters. No SDP, no address, no key."""

    def send(self, batch: Sequence[str]) -> None:
        """Hand over all of `batch` in order, or nothing. Raises UpstreamError when the channel is not open, and
        CallerError `too-large` when a text exceeds what the far end accepts."""

    async def probe(self, timeout: float) -> bool:
        """Ask the far end for a sign of life and return whether one came within `timeout` seconds. Anything received
        meanwhile counts. Never raises."""

    async def close(self, hang_up: bool) -> None:
        """Close the connection; with `hang_up`, end the call at OpenAI as well. Always completes, also when cancelled
        or repeated."""


class Dialer(Protocol):
    """Creates calls and attaches to them."""

    async def dial(self, request: CallRequest, sink: Sink) -> Upstream:
        """Create a call, or attach to one, and wait until events can be sent.

        Raises UpstreamError: `upstream-rejected`, `upstream-rate-limited`, `upstream-failed`, or `upstream-timeout` with
        its phase. Leaves nothing behind when it raises or is cancelled. The sink may already have received events when
        this returns.
        """

    async def hang_up(self, call_id: str, bearer: str | None) -> None:
        """End a call that this process holds no connection to, such as that of a lost node. Never raises."""


# --- downstream -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """What a caller wants opened (docs/api.md, 1 Sessions)."""

    principal: Principal
    session: Json = field(default_factory=dict)
    metadata: Json = field(default_factory=dict)
    detach_grace_seconds: int | None = None
    bearer: str | None = field(default=None, repr=False)
    secret_allows: tuple[str, ...] = ()
    retry_interrupted: bool = False
    call_id: str | None = None
    """Attach to this call instead of creating one; `session` is then empty."""
    session_id: str | None = None
    """The ID to use, if it was promised already."""
    single_turn: bool = False
    """The session is for one turn, after which the caller closes it."""


class Reader(Protocol):
    """Reads one session's log from any cursor. Reading changes nothing."""

    @property
    def head(self) -> EventId: ...

    @property
    def oldest(self) -> EventId:
        """The first event kept, or the one after head."""

    @property
    def sealed(self) -> bool:
        """The log is complete: no event will follow `head`."""

    def read(self, after: EventId, max_events: int, max_bytes: int) -> Page:
        """Return what follows `after`: at least one event if there is any. A cursor that is not in the log gives a page
        with a gap that goes on from the oldest event."""

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` after every append and on sealing, until the returned function is called. `wake` must be quick,
        must not raise, and may be called many times for one read."""


class Receiver(Protocol):
    """One open read of a session: a stream or a waiting long-poll."""

    @property
    def silent_since(self) -> float:
        """When its client was last active: at the opening, or when it took bytes from a full socket (monotonic seconds)."""

    def supersede(self) -> None:
        """Make room for another reader: notify the client and end. Does not raise, does not wait."""

    def rotate(self) -> None:
        """End as at a rotation, because the session goes to another node: the client comes back at once. Does not raise,
        does not wait."""


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
    max_event_bytes: int | None = None
    """The largest client event that the present call takes; None if that is no less than the gateway does."""
    attached: bool = False
    """The call was made by another application."""
    usage: Usage = field(default_factory=Usage)
    """What its responses have cost so far, over all its calls."""


class Handle(Protocol):
    """A session as handlers see it. The coroutines wait for the journal at most; without one they do not suspend."""

    @property
    def id(self) -> SessionId: ...

    def view(self) -> View: ...

    @property
    def reader(self) -> Reader: ...

    async def owned(self) -> bool:
        """Return whether no other node has taken the session over; also False while that is not known. Asks the journal's
        store, so it is for what happens seldom. Raises OverloadError `recovering`."""

    @property
    def busy(self) -> bool:
        """A response is in flight."""

    def touch(self) -> None:
        """An authenticated request came: reset the detach deadline."""

    def renew(self, bearer: str) -> None:
        """Use another credential of the caller's for the session's calls to come."""

    def attach(self, receiver: Receiver) -> None:
        """Add a receiver. Above the limit the one that was silent longest is superseded."""

    def detach(self, receiver: Receiver) -> None:
        """Remove a receiver. Safe to call twice."""

    async def submit(self, batch: Sequence[ClientEvent], promise: Promise = NO_PROMISE) -> Receipt:
        """Accept a checked batch whole, or raise: `session-closed`, `recovering`, `upstream-backpressure`, `too-large`,
        `member-locked`, `capacity`. A repeated `promise` returns the first receipt; with another body it raises
        `idempotency-key-reused`."""

    async def turn(self, request: TurnRequest, promise: Promise = NO_PROMISE) -> Turn:
        """Queue a turn, or return the one that a repeated `promise` stands for. Raises `turn-queue-full`,
        `session-closed`, `member-locked`, `idempotency-key-reused`."""

    def promised(self, promise: Promise) -> "Receipt | Turn | None":
        """Return what a repeated request is answered with, None for a first try. Raises `idempotency-key-reused`."""

    async def withdraw(self, turn: Turn) -> None:
        """Withdraw a turn that no client waits for: cancel its response, or drop it unsent."""

    async def close(self, reason: CloseReason, *, hang_up: bool | None = None) -> None:
        """End the session and seal its log; returns when `gateway.closed` is in it. Safe to call twice.
        `hang_up` says whether the call ends, too; by default that is one the session made, not one it is attached to."""


class Sessions(Protocol):
    """The sessions of this process as handlers see them. The hub is one."""

    @property
    def limits(self) -> "RelayLimits": ...

    @property
    def budget(self) -> "Budget": ...

    @property
    def draining(self) -> bool:
        """No session is opened any more."""

    async def open(self, request: "OpenRequest") -> Handle:
        """Open a session: returns when its channel is open. Raises GatewayError, after which nothing of it is left."""

    def has(self, session_id: str) -> bool:
        """Whether the session lives in this process."""

    def find(self, session_id: str, principal: Principal | None) -> Handle:
        """Return a session. Raises `session-unknown`, for other people's, too. With principal None the ID itself, or a
        signed credential that holds it, is the capability."""

    def page(
        self, principal: Principal | None, limit: int, after: str | None = None
    ) -> tuple[list[View], bool]:
        """Return up to `limit` sessions of a principal, or of all where it is None, newest first, from behind `after` on,
        and whether more follow. Raises `session-unknown` if `after` is not among them."""

    def idempotency(self, principal: Principal) -> "IdempotencyKeys":
        """Return the caller's keys of requests that open sessions."""

    def diagnostics(self, session_id: str) -> Json:
        """Return what the operator may see of one session's inside. Raises `session-unknown`."""

    def restart(self, session_id: str) -> None:
        """Replace a session's call and keep its history. Raises `session-unknown` or `session-closed`."""

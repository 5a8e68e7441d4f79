"""A session that no node shows at the moment, as its last snapshot describes it. No I/O.

Its owner does not answer, and no other node has taken it over yet.
"""

from gateway.relay.events.eventlog import EventId
from gateway.relay.limits import RelayLimits
from gateway.relay.ports import SessionId, View
from gateway.relay.state.fold import SessionState
from gateway.relay.states import CloseReason, State


def last_known(snapshot: bytes, limits: RelayLimits) -> View:
    """Return the session as its owner's snapshot describes it: `recovering`, unless it is closed. What happened since the
    snapshot is missing, such as newer events in `head`. Raises UnreadableRecord."""
    state = SessionState.load(snapshot, limits.prices)
    opening, call, limit = state.opening, state.call, limits.max_session_seconds
    epoch, first = state.epochs[0]
    return View(
        id=SessionId(opening.id),
        principal=opening.principal.name,
        state=State.RECOVERING if state.closed is None else State.CLOSED,
        created_at=int(opening.created_at),
        expires_at=int(opening.created_at) + int(limit) if limit else None,
        call_expires_at=None,
        model=call.model,
        call_id=opening.attach_to,
        metadata=opening.metadata,
        head=state.position,
        oldest=EventId(epoch, first),
        receivers=0,
        close_reason=None if state.closed is None else CloseReason(state.closed),
        attached=opening.attach_to is not None,
        usage=state.usage,
        detach_grace_seconds=opening.detach_grace_seconds,
        secret_allows=opening.secret_allows,
    )

"""One text turn: some items, one response, and which of the session's events belong to it. No I/O, no clock.

A turn gives every event it sends an `event_id`, every item an `id`, and its response a `metadata.gateway_turn`, so
that what comes back can be told apart from whatever else goes on in the session: item events by the item's id,
response events by the response's, errors by the `event_id` they name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.errors import CallerError, GatewayError, OverloadError, UpstreamError
from gateway.relay.envelope import ClientEvent, compose, member
from gateway.relay.eventlog import EventId

METADATA_KEY = "gateway_turn"
_BUSY = "conversation_already_has_active_response"


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What to send: conversation items, then a response with these members (Realtime: response.create)."""

    items: Sequence[Mapping[str, object]]
    response: Mapping[str, object] = field(default_factory=dict)


class Progress(StrEnum):
    """What an event means for the turn that looked at it."""

    FOREIGN = "foreign"
    """It belongs to something else."""
    OURS = "ours"
    DONE = "done"
    """Ours, and the last."""
    BUSY = "busy"
    """Ours, and the response must be asked for again when the active one is done."""


class Turn:
    """A turn from queueing to its end. The session feeds it; readers wait on it."""

    def __init__(self, number: int, token: str, request: TurnRequest) -> None:
        """`token` is unique in the session, at most 18 characters of [A-Za-z0-9]."""
        self.number = number
        """Tags the turn's entries in the log, from 1."""
        self.id = f"turn_{token}"
        self.after: EventId | None = None
        """The log's head when the turn was sent; None while it waits."""
        self.last: EventId | None = None
        """Its last event, once it is finished."""
        self.result: Mapping[str, object] | None = None
        """The `response` of its response.done."""
        self.failure: GatewayError | None = None
        self.finished = False
        self.over = False
        """Its response is done, or was refused for good: nothing of it will be said any more. A turn whose item is refused
        is finished before it is over, since its response was asked for with the item and comes all the same."""
        self.response_id: str | None = None
        """Known once the response is created."""
        self._token = token
        self._request = request
        self._event_ids: set[str] = set()
        self._item_ids: set[str] = set()
        self._waiting: dict[int, Callable[[], None]] = {}
        self._waiters = 0

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` when the turn is finished, at once if it is, until the returned function is called."""
        self._waiters += 1
        waiter = self._waiters
        self._waiting[waiter] = wake
        if self.finished:
            wake()
        return lambda: (self._waiting.pop(waiter, None), None)[1]

    def forget_request(self) -> None:
        """Give the request's items back to memory: the turn is finished, and only its result is still asked for."""
        self._request = TurnRequest([])

    def opening(self) -> list[ClientEvent]:
        """Give the events that start the turn: its items, then its response."""
        events = []
        for index, item in enumerate(self._request.items):
            item_id = item.get("id")
            if not isinstance(item_id, str):
                item_id = f"item_{self._token}{index:03d}"
            self._item_ids.add(item_id)
            own = {**item, "id": item_id}
            events.append(self._event(f"i{index}", {"type": "conversation.item.create", "item": own}))
        events.append(self.asking())
        return events

    def asking(self) -> ClientEvent:
        """Give the event that asks for the response."""
        metadata = self._request.response.get("metadata")
        own = dict(metadata) if isinstance(metadata, Mapping) else {}
        response = {**self._request.response, "metadata": {**own, METADATA_KEY: self.id}}
        return self._event("r", {"type": "response.create", "response": response})

    def cancelling(self) -> ClientEvent:
        """Give the event that cancels the response."""
        value: dict[str, object] = {"type": "response.cancel"}
        if self.response_id:
            value["response_id"] = self.response_id
        return self._event("c", value)

    def _event(self, suffix: str, value: dict[str, object]) -> ClientEvent:
        event_id = f"evt_{self._token}_{suffix}"
        self._event_ids.add(event_id)
        value = {**value, "event_id": event_id}
        return ClientEvent(compose(value), str(value["type"]), event_id, value)

    def look(self, type: str, value: Mapping[str, object]) -> Progress:
        """Say what a server event means for this turn, and remember what identifies the events to come."""
        if type == "error":
            return self._look_at_error(value)
        if type in ("response.created", "response.done"):
            return self._look_at_response(type, value)
        if type.startswith("response."):
            ours = self.response_id is not None and value.get("response_id") == self.response_id
            if ours and type == "response.output_item.added":
                self._item_ids.add(str(member(value, "item", "id")))
            return Progress.OURS if ours else Progress.FOREIGN
        if type.startswith("conversation.item."):
            item_id = member(value, "item", "id") or value.get("item_id")
            ours = isinstance(item_id, str) and item_id in self._item_ids
            return Progress.OURS if ours else Progress.FOREIGN
        return Progress.FOREIGN

    def _look_at_error(self, value: Mapping[str, object]) -> Progress:
        event_id = member(value, "error", "event_id")
        if not isinstance(event_id, str) or event_id not in self._event_ids:
            return Progress.FOREIGN
        code = member(value, "error", "code")
        if code == _BUSY:
            return Progress.BUSY
        if event_id == f"evt_{self._token}_c":
            return Progress.OURS  # The response ended before it could be cancelled.
        self.over = event_id == f"evt_{self._token}_r"
        if self.finished:
            return Progress.DONE if self.over else Progress.OURS
        upstream = {name: member(value, "error", name) for name in ("type", "code", "message", "param")}
        detail = f"OpenAI refused the turn: {upstream['message']}"
        self.failure = UpstreamError("upstream-rejected", detail, members={"upstream": upstream})
        return Progress.DONE

    def _look_at_response(self, type: str, value: Mapping[str, object]) -> Progress:
        response_id = member(value, "response", "id")
        if type == "response.created" and member(value, "response", "metadata", METADATA_KEY) == self.id:
            self.response_id = response_id if isinstance(response_id, str) else None
            return Progress.OURS
        if self.response_id is None or response_id != self.response_id:
            return Progress.FOREIGN
        self.over = True
        if self.finished:
            return Progress.DONE
        response = value.get("response")
        self.result = response if isinstance(response, Mapping) else {}
        return Progress.DONE

    def finish(self, last: EventId | None, failure: GatewayError | None = None) -> None:
        """End the turn and wake who waits for it. Harmless when repeated."""
        if self.finished:
            return
        self.finished = True
        self.last = last
        if self.result is None and self.failure is None:
            self.failure = failure
        waiting, self._waiting = list(self._waiting.values()), {}
        for wake in waiting:
            wake()


def check_text(request: TurnRequest) -> None:
    """Raise `no-text-output` for a response that is asked to be anything but text."""
    modalities = request.response.get("output_modalities", ["text"])
    if modalities != ["text"]:
        raise CallerError("no-text-output", "'output_modalities' of this turn is not [\"text\"].")


def queue_full(waiting: int) -> OverloadError:
    """Make the error for one turn too many."""
    return OverloadError(
        "turn-queue-full", f"{waiting} turns are waiting in this session already.", retry_after=2
    )

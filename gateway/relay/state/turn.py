"""One text turn: some items, one response, and which of the session's events belong to it. No I/O, no clock.

A turn gives every event it sends an `event_id`, every item an `id`, and its response a `metadata.gateway_turn`, so that
its events can be told apart from all others of the session: item events by the item's ID, response events
by the response's, errors by the `event_id` they name.

The response is asked for when all items are taken, so that a refused item starts no response. Only one kind of turn is
sent whole at once, which saves a round trip: a single message of the user's that the gateway wrote itself, which is refused
for its size at most.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from gateway.errors import CallerError, GatewayError, OverloadError, UpstreamError
from gateway.relay.events.envelope import ClientEvent, client_event, compose, member
from gateway.relay.events.eventlog import EventId
from gateway.relay.events.jsontext import Steps, plain
from gateway.relay.events.large import written
from gateway.relay.events.longtext import in_text

METADATA_KEY: Final = "gateway_turn"
_BUSY: Final = "conversation_already_has_active_response"
_TAKEN: Final = frozenset({"conversation.item.added", "conversation.item.created", "conversation.item.done"})


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What to send: conversation items, then a response with these members (Realtime: response.create)."""

    items: Sequence[Mapping[str, object]]
    response: Mapping[str, object] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """A single message with a single text, as the gateway writes for a text: it can be refused only for its size."""
        if len(self.items) != 1 or set(self.items[0]) != {"type", "role", "content"}:
            return False
        content = self.items[0]["content"]
        return (
            self.items[0]["role"] == "user"
            and isinstance(content, list)
            and len(content) == 1
            and isinstance(content[0], Mapping)
            and set(content[0]) == {"type", "text"}
        )

    def in_text(self) -> Steps["TurnRequest"]:
        """Return the same request with long strings as JSON text, so that they are written once."""
        items = yield from in_text(list(self.items))
        return TurnRequest(items, (yield from in_text(self.response)))

    def dump(self) -> str:
        """Return it as JSON."""
        return compose({"items": list(self.items), "response": self.response})

    @classmethod
    def load(cls, text: str) -> "TurnRequest":
        """Read what `dump` wrote."""
        value = plain(text.encode())
        assert isinstance(value, dict)  # as it was written
        return cls(value["items"], value["response"])


class Progress(StrEnum):
    """What an event means for a turn."""

    FOREIGN = "foreign"
    """It does not belong to the turn."""
    OURS = "ours"
    DONE = "done"
    """Ours, and the last."""
    BUSY = "busy"
    """Ours, and the response must be asked for again when the active one is done."""


class Turn:
    """A turn from queueing to its end. The session feeds it; readers wait on it."""

    def __init__(self, number: int, token: str, request: TurnRequest, deadline: float = float("inf")) -> None:
        """`token` is unique in the session, at most 18 characters of [A-Za-z0-9]. `deadline` is in Unix seconds."""
        self.number = number
        """Tags the turn's entries in the log, from 1."""
        self.token = token
        self.id = f"turn_{token}"
        self.request = request
        self.deadline = deadline
        self.after: EventId | None = None
        """The log's head when the turn was sent; None while it waits."""
        self.last: EventId | None = None
        """Its last event, once it is finished."""
        self.failure: GatewayError | None = None
        self.finished = False
        self.over = False
        """Its response is done, was refused, or will not be requested: no more of its events will come."""
        self.response_id: str | None = None
        """ID of the response, once it is created."""
        self.asked = False
        """The response was asked for."""
        self.replayed = False
        """A repeated request attached to it."""
        self.size = 0
        """Bytes that it is counted with: those of its request, or of its response once it is finished."""
        self._result = ""
        self._event_ids: set[str] = set()
        self._item_ids: set[str] = set()
        self._untaken: set[str] = set()
        self._waiting: dict[int, Callable[[], None]] = {}
        self._waiters = 0

    @property
    def result(self) -> Mapping[str, object] | None:
        """The `response` of its response.done."""
        value = plain(self._result.encode()) if self._result else None
        return value if isinstance(value, dict) else None

    @property
    def ready(self) -> bool:
        """All its items are taken, so the response can be asked for."""
        return not self._untaken

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` when the turn is finished, at once if it is, until the returned function is called."""
        self._waiters += 1
        waiter = self._waiters
        self._waiting[waiter] = wake
        if self.finished:
            wake()
        return lambda: (self._waiting.pop(waiter, None), None)[1]

    def wake(self) -> None:
        """Wake the waiters. Called by the shell once the record is folded."""
        waiting, self._waiting = list(self._waiting.values()), {}
        for wake in waiting:
            wake()

    def opening(self) -> list[ClientEvent]:
        """Return the events that start the turn: its items, and its response where that need not wait for them."""
        events = []
        for index, item in enumerate(self.request.items):
            item_id = item.get("id")
            if not isinstance(item_id, str):
                item_id = f"item_{self.token}{index:03d}"
            self._item_ids.add(item_id)
            own = {**item, "id": item_id}
            events.append(self._event(f"i{index}", {"type": "conversation.item.create", "item": own}))
            if not self.request.plain:
                self._untaken.add(item_id)
        if self.ready:
            events.append(self.asking())
        return events

    def asking(self) -> ClientEvent:
        """Return the event that asks for the response."""
        metadata = self.request.response.get("metadata")
        own = dict(metadata) if isinstance(metadata, Mapping) else {}
        response = {**self.request.response, "metadata": {**own, METADATA_KEY: self.id}}
        return self._event("r", {"type": "response.create", "response": response})

    def cancelling(self) -> ClientEvent:
        """Return the event that cancels the response."""
        value: dict[str, object] = {"type": "response.cancel"}
        if self.response_id:
            value["response_id"] = self.response_id
        return self._event("c", value)

    def _event(self, suffix: str, value: dict[str, object]) -> ClientEvent:
        event_id = f"evt_{self.token}_{suffix}"
        self._event_ids.add(event_id)
        value = {**value, "event_id": event_id}
        return client_event(compose(value), str(value["type"]), event_id, value)

    def look(self, type: str, value: Mapping[str, object], *, sole: bool = False) -> Progress:
        """Say what a server event means for this turn, and remember what identifies the events to come. `sole`: the
        response that this event begins can only be the one that this turn asked for."""
        if type == "error":
            return self._look_at_error(value)
        if type in ("response.created", "response.done"):
            return self._look_at_response(type, value, sole)
        if type.startswith("response."):
            ours = self.response_id is not None and value.get("response_id") == self.response_id
            if ours and type == "response.output_item.added":
                self._item_ids.add(str(member(value, "item", "id")))
            return Progress.OURS if ours else Progress.FOREIGN
        if type.startswith("conversation.item."):
            item_id = member(value, "item", "id") or value.get("item_id")
            ours = isinstance(item_id, str) and item_id in self._item_ids
            if ours and type in _TAKEN:
                self._untaken.discard(str(item_id))
            return Progress.OURS if ours else Progress.FOREIGN
        return Progress.FOREIGN

    def _look_at_error(self, value: Mapping[str, object]) -> Progress:
        event_id = member(value, "error", "event_id")
        if not isinstance(event_id, str) or event_id not in self._event_ids:
            return Progress.FOREIGN
        code = member(value, "error", "code")
        if code == _BUSY:
            return Progress.BUSY
        if event_id == f"evt_{self.token}_c":
            return Progress.OURS  # The response ended before it could be cancelled.
        self.over = event_id == f"evt_{self.token}_r" or not self.asked
        if self.finished:
            return Progress.DONE if self.over else Progress.OURS
        upstream = {name: member(value, "error", name) for name in ("type", "code", "message", "param")}
        detail = f"OpenAI refused the turn: {upstream['message']}"
        self.failure = UpstreamError("upstream-rejected", detail, members={"upstream": upstream})
        return Progress.DONE

    def _look_at_response(self, type: str, value: Mapping[str, object], sole: bool) -> Progress:
        response_id = member(value, "response", "id")
        if type == "response.created" and (
            member(value, "response", "metadata", METADATA_KEY) == self.id
            # The far end does not echo metadata.
            or (sole and self.response_id is None and not member(value, "response", "metadata"))
        ):
            self.response_id = response_id if isinstance(response_id, str) else None
            return Progress.OURS
        if self.response_id is None or response_id != self.response_id:
            return Progress.FOREIGN
        self.over = True
        if self.finished:
            return Progress.DONE
        self._result = written(value, "response").decode()
        return Progress.DONE

    def finish(self, last: EventId | None, failure: GatewayError | None = None) -> bool:
        """End the turn; return whether it was not ended before."""
        if self.finished:
            return False
        self.finished = True
        self.last = last
        if not self._result and self.failure is None:
            self.failure = failure
        self.request = TurnRequest(())  # May be large and is no longer needed.
        self.size = self._result.__sizeof__()
        return True

    # --- for a snapshot -----------------------------------------------------------------------------------------------

    def dump(self) -> dict[str, object]:
        """Return the turn as JSON."""
        return {
            "number": self.number,
            "token": self.token,
            "request": self.request.dump(),
            "deadline": self.deadline if self.deadline != float("inf") else None,
            "after": self.after,
            "last": self.last,
            "failure": None if self.failure is None else dump_failure(self.failure),
            "finished": self.finished,
            "over": self.over,
            "asked": self.asked,
            "response_id": self.response_id,
            "result": self._result,
        }

    @classmethod
    def load(cls, dumped: Mapping[str, object]) -> "Turn":
        """Make the turn that was dumped. Its items count as accepted: on a new call they are part of the seed."""
        deadline = dumped["deadline"]
        turn = cls(
            int(str(dumped["number"])),
            str(dumped["token"]),
            TurnRequest.load(str(dumped["request"])),
            float("inf") if deadline is None else float(str(deadline)),
        )
        turn.after, turn.last = _event_id(dumped["after"]), _event_id(dumped["last"])
        failure = dumped["failure"]
        turn.failure = load_failure(failure) if isinstance(failure, Mapping) else None
        turn.finished, turn.over = bool(dumped["finished"]), bool(dumped["over"])
        turn.asked = bool(dumped["asked"])
        response_id = dumped["response_id"]
        turn.response_id = response_id if isinstance(response_id, str) else None
        turn._result = str(dumped["result"])
        turn.size = len(turn._result) + len(str(dumped["request"]))
        if turn.after is not None and not turn.finished:
            turn.opening()
            turn.asking()
            turn.cancelling()
            turn._untaken.clear()
        return turn


_FAILURES: Final = {kind.__name__: kind for kind in (CallerError, OverloadError, UpstreamError, GatewayError)}


def dump_failure(failure: GatewayError) -> dict[str, object]:
    """Return what a turn failed with as JSON."""
    name = type(failure).__name__
    return {
        "kind": name if name in _FAILURES else GatewayError.__name__,
        "code": failure.code,
        "detail": failure.detail,
        "retry_after": failure.retry_after,
        "members": dict(failure.members),
    }


def load_failure(dumped: Mapping[str, object]) -> GatewayError:
    """Read what `dump_failure` wrote."""
    retry_after, members = dumped.get("retry_after"), dumped.get("members")
    return _FAILURES[str(dumped["kind"])](
        dumped["code"],  # type: ignore[arg-type]  # written from a code
        str(dumped["detail"]),
        retry_after=retry_after if isinstance(retry_after, int | float) else None,
        members=members if isinstance(members, Mapping) else None,
    )


def _event_id(dumped: object) -> EventId | None:
    return EventId(*dumped) if isinstance(dumped, list | tuple) else None


def check_text(request: TurnRequest) -> None:
    """Raise `no-text-output` for a response whose requested output is not text."""
    modalities = request.response.get("output_modalities", ["text"])
    if modalities != ["text"]:
        raise CallerError("no-text-output", "'output_modalities' of this turn is not [\"text\"].")


def queue_full(waiting: int) -> OverloadError:
    """Return the error for one turn too many."""
    return OverloadError(
        "turn-queue-full", f"{waiting} turns are already waiting in this session.", retry_after=2
    )

"""The ledger of client events: what became of everything that was accepted. No I/O, no clock.

Each accepted event is a *delivery*. It is held while there is no call to hand it to, handed to a channel, and then
confirmed, refused or in doubt. Confirmed and refused ones leave the ledger; what is left when a call is lost is unknown,
and what is held goes to the next call.

The service handles one connection's events in order and answers each event of the kinds in `ANSWERED_BY` with one of its
own, or with an `error` that names it. So confirmations are matched per kind and in order. An `error` without an `event_id`
refuses an earlier event that had none: those that are still unanswered when a later event is confirmed, or refused by its
`event_id`, are dropped, and also when the call has had time to answer (`settle`).

Events of other kinds are never answered. The transport's acknowledgement, which is end to end, confirms them.

Where others use the same call (an attached session), an answer may be for them. There only answers that name one of our
items count, and the acknowledgement confirms everything else.

The ledger keeps an event's text and the few members it is matched by, not its parsed value, which takes several times
the memory. It is bounded by `require_room`, which refuses a batch; nothing that was accepted is ever forgotten.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from gateway.errors import OverloadError
from gateway.relay.events.envelope import ClientEvent
from gateway.relay.state.delivery import Delivery, delivery, read_event

Json = Mapping[str, object]

ANSWERED_BY: Final[Mapping[str, str]] = {
    "session.update": "session.updated",
    "conversation.item.create": "conversation.item.added",
    "conversation.item.delete": "conversation.item.deleted",
    "conversation.item.truncate": "conversation.item.truncated",
    "response.create": "response.created",
    "response.cancel": "response.done",
    "conversation.item.retrieve": "conversation.item.retrieved",
    "input_audio_buffer.commit": "input_audio_buffer.committed",
    "input_audio_buffer.clear": "input_audio_buffer.cleared",
}
"""Client events that are answered, and the server event that does so."""

OF_THE_CALL: Final = frozenset(
    {
        "response.cancel",
        "conversation.item.retrieve",
        "input_audio_buffer.append",
        "input_audio_buffer.commit",
        "input_audio_buffer.clear",
    }
)
"""Kinds that concern a response or buffer of their call, or only ask: repeated on another call they would do harm."""

ASKING: Final = "response.create"

MAX_COMPARED_BYTES: Final = 64 * 1024
"""Of the updates in flight that are compared with an echo. Nearly always the first one is what it shows."""

MAX_IN_FLIGHT: Final = 1024
MAX_IN_FLIGHT_BYTES: Final = 4 * 1024 * 1024
"""Handed over and not confirmed. A batch beyond is refused, unless nothing is in flight."""


class Ledger:
    """All deliveries that are not confirmed."""

    def __init__(self, shared: bool = False) -> None:
        """`shared`: others use the same call."""
        self.count = 0
        """Deliveries so far."""
        self.size = 0
        """Bytes of memory taken."""
        self._shared = shared
        # In order; those held follow those in flight.
        self._in_flight: dict[int, Delivery] = {}
        self._in_flight_bytes = 0
        self._held: dict[int, Delivery] = {}
        self._held_bytes = 0
        self._doubted = 0
        self.requests_refused = 0
        """Requests for a response that were refused so far."""
        self.unknown: list[Delivery] = []
        """In flight when their call was lost; reported as unknown with the next call."""
        self.oversized: list[Delivery] = []
        """Held, but larger than the call accepts; reported as unsent."""

    @property
    def in_flight(self) -> list[Delivery]:
        """Handed over and not confirmed, in order."""
        return list(self._in_flight.values())

    @property
    def held(self) -> list[Delivery]:
        """Accepted and waiting for a call, in order."""
        return list(self._held.values())

    @property
    def owed(self) -> bool:
        """Return whether an answer is due."""
        return any(self._answered(one) for one in self._in_flight.values())

    @property
    def asks(self) -> bool:
        """Whether a request for a response was handed over and is not confirmed."""
        return bool(self._in_flight) and self.asked > 0

    @property
    def asked(self) -> int:
        """How many requests for a response were handed over and are not confirmed."""
        return sum(one.type == ASKING for one in self._in_flight.values())

    def crowded(self, count: int, size: int) -> bool:
        """Return whether a batch of this size would exceed the bound on events in flight."""
        return bool(self._in_flight) and (
            len(self._in_flight) + count > MAX_IN_FLIGHT or self._in_flight_bytes + size > MAX_IN_FLIGHT_BYTES
        )

    def require_room(self, count: int, size: int) -> None:
        """Raise `upstream-backpressure` if a batch exceeds the bound."""
        if self.crowded(count, size):
            detail = (
                f"{len(self._in_flight)} events are not confirmed by OpenAI yet; the batch was not accepted."
            )
            raise OverloadError("upstream-backpressure", detail, retry_after=1)

    def require_room_to_hold(self, count: int, size: int, max_events: int, max_bytes: int) -> None:
        """Raise `recovering` if a batch of this size would exceed the bound on held events."""
        if len(self._held) + count > max_events or self._held_bytes + size > max_bytes:
            detail = "The session is being recovered, and no more events can be held for it."
            raise OverloadError("recovering", detail, retry_after=1)

    def accept(
        self, events: Sequence[ClientEvent], first: int, turn: int, held: bool, position: int = 0
    ) -> bool:
        """Add a batch, and return whether it asks for a response. `first` is the client's number of the first, 0 for the
        gateway's own; `position` is that of the first among the messages of the call, 0 where it is not known."""
        asks = False
        for event in events:
            self.count = id_ = self.count + 1
            one = delivery(id_, first, event, turn)
            self.size += one.held_bytes
            if held:
                self._held[id_] = one
                self._held_bytes += one.size
            else:
                one.position = position
                self._in_flight[id_] = one
                self._in_flight_bytes += one.size
            asks = asks or event.type == ASKING
            first += bool(first)
            position += bool(position)
        return asks

    def handed(self, upto: int, refused: Sequence[int] = (), position: int = 0) -> None:
        """Held deliveries up to this one were handed over, less those refused for their size; the first of them is this
        message of the call, 0 where that is not known."""
        self.oversized += [self._held[id_] for id_ in refused if id_ in self._held]
        self.drop(refused)
        for id_ in [id_ for id_ in self._held if id_ <= upto]:
            one = self._held.pop(id_)
            self._held_bytes -= one.size
            one.position = position
            position += bool(position)
            self._in_flight[id_] = one
            self._in_flight_bytes += one.size

    def drop(self, ids: Iterable[int]) -> None:
        """Remove deliveries that were reported to clients."""
        for id_ in ids:
            self._remove(id_)

    def acknowledged(self, upto: int) -> None:
        """The transport has acknowledged all deliveries up to this one: those that nothing answers are confirmed."""
        for one in self.in_flight:
            if one.id > upto:
                return
            if not self._answered(one) or one.type == "response.cancel":
                self._remove(one.id)

    def delivery_at(self, position: int) -> int:
        """Return the last delivery that an acknowledgement of the call's messages up to this one confirms, 0 for none."""
        confirmed = (
            one.id
            for one in self._in_flight.values()
            if 0 < one.position <= position and (not self._answered(one) or one.type == "response.cancel")
        )
        return max(confirmed, default=0)

    def told(self) -> None:
        """Record that the outcome of the call's deliveries was reported to clients."""
        self.unknown, self.oversized = [], []

    def restart(self, again: Sequence[Delivery] = ()) -> None:
        """The call is replaced, and what was in flight is unknown. Deliveries that are to be repeated on the next call are
        held, before all others."""
        repeated = {one.id for one in again}
        self.unknown += [one for one in self.in_flight if one.id not in repeated]
        self.drop(list(self._in_flight))
        self._doubted = 0
        first = {one.id: one for one in sorted(again, key=lambda one: one.id)}
        for one in first.values():
            one.position = 0
            self._held_bytes += one.size
            self.size += one.held_bytes
        self._held = {**first, **self._held}

    def settle(self) -> None:
        """The call is alive and has had time to answer everything sent before its last `error` without an `event_id`."""
        self._drop_doubted(self.count)

    # --- what confirms and refuses ------------------------------------------------------------------------------------

    def item_added(self, item: Json) -> None:
        """An item of the conversation was created: by us, if one in flight names it or looks like it."""
        found: Delivery | None = None
        for one in self._of("conversation.item.create"):
            if one.names is not None and one.names == item.get("id"):
                found = one
                break
            if one.names is None and found is None and not self._shared and _alike(one.shape, item):
                found = one
        self._confirm(found)

    def item_named(self, kind: str, item_id: str) -> None:
        """An event of a kind that names an item was answered."""
        named = (one for one in self._of(kind) if not self._shared or one.names == item_id)
        self._confirm(next(named, None))

    def response_created(self) -> Delivery | None:
        """A response began. Return its request, None if that is unknown."""
        return None if self._shared else self._confirm(next(self._of(ASKING), None))

    def response_cancelled(self, response_id: str) -> None:
        """A response ended as cancelled: it answers the cancel that names it, or one that names none."""
        named = (one for one in self._of("response.cancel") if one.names in (None, response_id))
        self._confirm(None if self._shared else next(named, None))

    def buffer(self, kind: str) -> None:
        """An input audio buffer was committed or cleared."""
        self._confirm(None if self._shared else next(self._of(kind), None))

    def session_updated(self, echo: object) -> Json | None:
        """A session.update was accepted; return its `session`, None if the gateway did not send it.

        One that was refused without its event_id is still in flight, and would make every call to come be refused as
        well. The echo shows which one was taken; those before it were not, since each is answered in order.
        """
        if self._shared:
            return None
        oldest: tuple[Delivery, Json] | None = None
        passed: list[int] = []
        compared = 0
        for one in self._of("session.update"):
            session = one.session
            oldest = oldest or (one, session)
            if echo == session or _shows(echo, session):
                self.drop(passed)
                self._confirm(one)
                return session
            passed.append(one.id)
            compared += one.size
            if compared > MAX_COMPARED_BYTES:
                break
        if oldest is None:
            return None
        self._confirm(oldest[0])
        return oldest[1]

    def refused(self, event_id: object) -> None:
        """An `error` came: it refuses the event that it names, or else an earlier one without an `event_id`."""
        if event_id is None:
            self._doubted = 0 if self._shared else self.count
            return
        found = next((one for one in self._in_flight.values() if one.event_id == event_id), None)
        if found is not None:
            self.requests_refused += found.type == ASKING
            self._confirm(found)

    # --- for a snapshot -----------------------------------------------------------------------------------------------

    def dump(self) -> Json:
        """Return the ledger as JSON."""
        return {
            "count": self.count,
            "doubted": self._doubted,
            "in_flight": _rows(self.in_flight),
            "held": _rows(self.held),
            "unknown": _rows(self.unknown),
            "oversized": _rows(self.oversized),
        }

    @classmethod
    def load(cls, dumped: Json, shared: bool) -> "Ledger":
        """Rebuild a ledger from `dump`."""
        ledger = cls(shared)
        for name in ("in_flight", "held"):
            for id_, number, turn, text in _list(dumped.get(name)):
                ledger.count = id_ - 1
                ledger.accept([read_event(text)], number, turn, name == "held")
        ledger.unknown = _deliveries(dumped.get("unknown"))
        ledger.oversized = _deliveries(dumped.get("oversized"))
        ledger.count = int(str(dumped.get("count")))
        ledger._doubted = int(str(dumped.get("doubted")))
        return ledger

    # --- inside -------------------------------------------------------------------------------------------------------

    def _answered(self, one: Delivery) -> bool:
        return one.type in ANSWERED_BY and (not self._shared or one.names is not None)

    def _of(self, kind: str) -> Iterator[Delivery]:
        """Yield those of a kind that are in flight. The caller must not remove any during the iteration."""
        for one in self._in_flight.values():
            if one.type == kind:
                yield one

    def _confirm(self, one: Delivery | None) -> Delivery | None:
        if one is not None:
            self._remove(one.id)
            self._drop_doubted(one.id)
        return one

    def _drop_doubted(self, before: int) -> None:
        if self._doubted:
            last = min(self._doubted, before)
            refused = [one for one in self.in_flight if one.id <= last and one.event_id is None]
            self.requests_refused += sum(one.type == ASKING for one in refused)
            self.drop([one.id for one in refused])

    def _remove(self, id_: int) -> None:
        one = self._in_flight.pop(id_, None)
        if one is not None:
            self._in_flight_bytes -= one.size
        else:
            one = self._held.pop(id_, None)
            if one is None:
                return
            self._held_bytes -= one.size
        self.size -= one.held_bytes


def _alike(shape: tuple[object, object], item: Json) -> bool:
    """Return whether an item without an ID of ours may be this item of the service."""
    return shape == (item.get("type"), item.get("role"))


def _shows(echo: object, wanted: Json) -> bool:
    """Return whether a session object matches an update. The service may complete lists and null."""
    if not isinstance(echo, dict):
        return False
    for name, part in wanted.items():
        # Without a call for most members: an update may have thousands.
        if not (part is None or isinstance(part, list)):
            found = echo.get(name)
            if not (_shows(found, part) if isinstance(part, dict) else found == part):
                return False
    return True


def _rows(deliveries: Iterable[Delivery]) -> list[object]:
    return [[one.id, one.number, one.turn, one.text] for one in deliveries]


def _deliveries(rows: object) -> list[Delivery]:
    return [delivery(id_, number, read_event(text), turn) for id_, number, turn, text in _list(rows)]


def _list(value: object) -> list:  # type: ignore[type-arg]  # JSON that this class wrote
    return value if isinstance(value, list) else []

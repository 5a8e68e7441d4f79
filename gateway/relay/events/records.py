"""What happens to a session, as a sequence of records. No I/O, no clock.

The state of a session is a fold over its records (see `fold`), so a node that has them can take the session over. A
record is a value; `encode` makes bytes of it and `decode` reads them back. The first byte is the record's kind, a
letter that never changes its meaning. The body of an event is its JSON text as it came, so that it is copied and not
parsed; all other bodies are JSON arrays of the record's members in order.

Nodes of two versions run side by side during an upgrade. A change may add members at the end of a record, with default
values, and members to the objects of a snapshot: a reader ignores those it does not know. A new kind of record, or a new
meaning, needs a new version: increase `VERSION`, keep the former one in `READS`, and name the kind in `SINCE`. A
session is written in a version that every live node reads, and records of later kinds are then left out, so a new kind
may only hold what an older node can do without.

Numbers: *events of the log* have a sequence, which goes on from epoch to epoch. *Deliveries* are the client events
accepted for the far end, those of clients and the gateway's own together, numbered from 1 in the order of acceptance.
The numbers that a client gets count only its own events.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from gateway.relay.events.envelope import compact

VERSION: Final = 1
"""The newest version of the records and of a dumped state."""

READS: Final = (1,)
"""The versions that this code reads."""


class ServerEvent(NamedTuple):
    """An event of the far end entered the log."""

    sequence: int
    turn: int
    """Number of the turn that it belongs to, 0 for none."""
    type: str
    text: str


class GatewayEvent(NamedTuple):
    """An event of the gateway's own entered the log."""

    sequence: int
    type: str
    text: str


class Accepted(NamedTuple):
    """A batch of client events was accepted, and handed to the channel unless `held`."""

    first: int
    """The client's number of the first, 0 for the gateway's own events."""
    texts: Sequence[str]
    held: bool = False
    turn: int = 0
    """Number of the turn that these events start or ask for again; 0 for none."""
    key: str | None = None
    """The Idempotency-Key in its scope, and what the repeated request must equal."""
    fingerprint: str | None = None
    request_id: str | None = None
    head: int = 0
    """Sequence of the log's last event before the batch was sent."""
    at: float = 0.0
    """When, in Unix seconds."""


class Handed(NamedTuple):
    """Deliveries that were held were handed to the channel, up to this number."""

    upto: int
    refused: Sequence[int] = ()
    """Those among them that are larger than the call takes."""


class Acknowledged(NamedTuple):
    """The far end's transport has acknowledged all deliveries up to this number."""

    upto: int


class TurnQueued(NamedTuple):
    """A turn was accepted."""

    number: int
    token: str
    request: str
    """JSON: {"items": [...], "response": {...}}."""
    deadline: float
    """Its deadline, in Unix seconds."""
    key: str | None = None
    fingerprint: str | None = None
    request_id: str | None = None
    at: float = 0.0
    """When it was accepted, in Unix seconds."""


class TurnFinished(NamedTuple):
    """A turn ended. `failure` is None if it ended with its response."""

    number: int
    last: int
    failure: Mapping[str, object] | None = None


class LineState(NamedTuple):
    """The call changed: `state` is that of the session (see `state.State`)."""

    state: str
    call_id: str | None
    expires_at: int | None
    model: str | None
    cause: str | None = None
    """Why the previous call was left, if there was one."""
    renamed: Mapping[str, str] = {}
    """Item IDs that the new call replaced."""
    refused: Sequence[str] = ()
    """Items that the new call refused."""
    again: Sequence[int] = ()
    """Deliveries that are handed to the new call once more."""


class DoubtSettled(NamedTuple):
    """The call proved alive and had time to answer all that was sent before its last anonymous error."""


class Border(NamedTuple):
    """A node took the session over: an epoch begins."""

    node: str
    epoch: str
    start: int | None = None
    """Set where the owner repairs its journal within an epoch: events of the log beyond this sequence that stand before
    the border are void, those after it are right. None: the epoch begins with the event after the last one."""


class Released(NamedTuple):
    """The owner gave the session up, in favour of a node or of anyone."""

    to: str | None


class Sealed(NamedTuple):
    """The session is closed; nothing follows in its log."""

    reason: str


Record = (
    ServerEvent
    | GatewayEvent
    | Accepted
    | Handed
    | Acknowledged
    | TurnQueued
    | TurnFinished
    | LineState
    | DoubtSettled
    | Border
    | Released
    | Sealed
)

KINDS: Final[Mapping[str, type[Record]]] = {
    "e": ServerEvent,
    "g": GatewayEvent,
    "a": Accepted,
    "h": Handed,
    "k": Acknowledged,
    "t": TurnQueued,
    "f": TurnFinished,
    "l": LineState,
    "d": DoubtSettled,
    "c": Border,
    "r": Released,
    "z": Sealed,
}
_KINDS: Final = {letter.encode(): kind for letter, kind in KINDS.items()}
_LETTERS: Final = {kind: letter for letter, kind in KINDS.items()}
_expand: Final = msgspec.json.Decoder().decode
# A third of the time of calling the class, for the kind that journals are full of.
_tuple: Final = tuple.__new__

SINCE: Final[Mapping[type[Record], int]] = {}
"""The kinds that version 1 does not have, and the version that added each."""


class UnreadableRecord(ValueError):
    """The bytes are not a record of a version that this code reads: the session must not be taken over."""


def sequence_of(record: Record) -> int:
    """Return the sequence of an event of the log, 0 for all other records."""
    return record.sequence if isinstance(record, ServerEvent | GatewayEvent) else 0


def is_part_of(version: int, record: Record) -> bool:
    """Return whether a version has a record's kind."""
    return SINCE.get(type(record), 1) <= version


def encode(record: Record) -> bytes:
    """Return a record as bytes, beginning with its kind."""
    if isinstance(record, ServerEvent):
        # A line end or a lone surrogate, which no known type has, could not be read back.
        type_ = record.type if record.type.isprintable() else ""
        return f"e{record.sequence} {record.turn} {type_}\n{record.text}".encode()
    if isinstance(record, GatewayEvent):
        return f"g{record.sequence} {record.type}\n{record.text}".encode()
    return _LETTERS[type(record)].encode() + compact(record)


def decode(data: bytes) -> Record:
    """Read a record, without the members that a later version added. Raises UnreadableRecord."""
    kind = _KINDS.get(data[:1])
    if kind is None:
        raise UnreadableRecord(f"unknown record kind {data[:1]!r}")
    try:
        if kind is ServerEvent or kind is GatewayEvent:
            return _event(kind, data)
        return kind(*expanded(data[1:])[: len(kind._fields)])
    except (ValueError, TypeError, LookupError) as error:
        raise UnreadableRecord(f"a record of kind {chr(data[0])} is malformed: {error}") from error


def expanded(data: bytes) -> Any:  # Any: JSON of this package's own
    """Read what `compact` wrote."""
    try:
        return _expand(data)
    except (msgspec.DecodeError, UnicodeDecodeError):  # a lone surrogate, or a number beyond msgspec's range
        return json.loads(data.decode("utf-8", "surrogatepass"))


def _event(kind: type[ServerEvent] | type[GatewayEvent], data: bytes) -> ServerEvent | GatewayEvent:
    head, newline, text = data.decode("utf-8", "surrogatepass").partition("\n")
    if not newline:
        raise ValueError("an event without its text")
    if kind is ServerEvent:
        sequence, turn, type_ = head[1:].split(" ", 2)
        return _tuple(ServerEvent, (int(sequence), int(turn), type_, text))
    sequence, type_ = head[1:].split(" ", 1)
    return GatewayEvent(int(sequence), type_, text)

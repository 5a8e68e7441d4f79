"""Unusual contents of a journal: records written twice, repairs, and turns in any state."""

import json

import pytest

from gateway.errors import UpstreamError
from gateway.relay.events.eventlog import EventId
from gateway.relay.events.records import (
    Border,
    GatewayEvent,
    Released,
    ServerEvent,
    TurnFinished,
    TurnQueued,
    UnreadableRecord,
    encode,
)
from gateway.relay.idempotency import IdempotencyKeys
from gateway.relay.requests import Principal, Promise, Receipt
from gateway.relay.state.answers import MAX_KEYS, Answers
from gateway.relay.state.deliveries import Ledger
from gateway.relay.state.delivery import delivery
from gateway.relay.state.effects import TurnOver
from gateway.relay.state.facts import Opening
from gateway.relay.state.fold import SessionState
from gateway.relay.state.mirror import Mirror
from gateway.relay.state.saved import fold
from gateway.relay.state.turn import Turn, TurnRequest, dump_failure
from gateway.relay.state.turns import Turns
from tests.relay.fakes import client_event

REQUEST = TurnRequest([{"type": "message", "role": "user", "content": []}]).dump()


def fresh() -> SessionState:
    """Return the state of a new session."""
    return SessionState(Opening("gws_1", Principal("ann"), {}, 600, 0.0), '{"model":"m"}', "e1")


def test_an_event_written_twice_counts_once() -> None:
    """The second copy of an event has a sequence that the state has already passed."""
    state = fresh()
    state.apply(ServerEvent(1, 0, "x", '{"type":"x"}'))

    assert state.arrived("x", {"type": "x"}, 1, 0.0) == (0, [])
    assert state.head == 1


def test_a_repair_within_an_epoch_begins_none() -> None:
    """A border with the current epoch, and a release, leave the epochs unchanged."""
    state = fresh()
    before = list(state.epochs)
    state.apply(Border("n_1", "e1", 0))
    state.apply(Released("n_2"))

    assert list(state.epochs) == before


def test_events_before_a_repair_are_void_beyond_its_start() -> None:
    """Events between a border's start and the border are replaced by those that follow the border."""
    state = fresh()
    first = encode(GatewayEvent(1, "gateway.recovering", '{"n":1}'))
    void = encode(GatewayEvent(2, "gateway.recovering", '{"n":"void"}'))
    right = encode(GatewayEvent(2, "gateway.recovering", '{"n":2}'))
    saved = fold(state.dump(), [], [first, void, encode(Border("n_1", "e1", 1)), right])

    assert [event.text for event in saved.events] == ['{"n":1}', '{"n":2}']


def test_members_of_a_snapshot_that_a_later_version_added_are_ignored() -> None:
    """A later version adds members to the objects of a snapshot, and an older one reads the rest."""
    state = fresh()
    dumped = json.loads(state.dump())
    later = {"later": 1}
    for name in ("opening", "spent", "settings", "call", "ledger", "mirror", "turns", "answers", "usage"):
        dumped[name] |= later
    dumped["opening"]["principal"] |= later

    assert SessionState.load(json.dumps(dumped | later).encode()).dump() == state.dump()


def test_a_snapshot_of_an_unknown_version_is_refused() -> None:
    """Its members may have another meaning."""
    with pytest.raises(UnreadableRecord, match="a snapshot of version 9"):
        SessionState.load(fresh().dump(9))


def test_unknown_kinds_of_records_before_the_snapshot_are_passed_over() -> None:
    """The snapshot contains what they say, and was written for nodes of an older version."""
    state = fresh()
    first = GatewayEvent(1, "gateway.recovering", "{}")
    state.apply(first)

    saved = fold(state.dump(), [encode(first), b'n["later"]'], [])

    assert [event.text for event in saved.events] == ["{}"]
    with pytest.raises(UnreadableRecord):
        fold(state.dump(), [encode(first)], [b'n["later"]'])


def test_a_turn_is_finished_as_the_record_says() -> None:
    """A waiting turn fails with its error; one that never ran is not done; an unknown one is ignored."""
    state = fresh()
    state.apply(TurnQueued(1, "t1", REQUEST, 300.0))
    turn = state.turns.find(1)
    assert turn is not None

    assert state.apply(TurnFinished(1, 0)) == []
    failed = UpstreamError("upstream-failed", "It is gone.")
    state.apply(TurnFinished(1, 0, dump_failure(failed)))

    assert turn.failure is not None
    assert state.turns.find(1) is None


def test_a_turn_that_runs_is_done_by_its_record() -> None:
    """A running turn with a finishing record is over for its waiters, even if no response of it ended here: its
    owner saw the last event."""
    state = fresh()
    state.apply(TurnQueued(1, "t1", REQUEST, 300.0))
    asking = state.turns.due(False)
    assert asking is not None
    state.turns.sent(1, EventId("e1", 0), asked=True)
    effects = state.apply(TurnFinished(1, 0))

    assert [effect.turn for effect in effects if isinstance(effect, TurnOver)] == [asking.turn]


def test_a_turn_that_neither_waits_nor_runs_can_fail() -> None:
    """A turn that neither waits nor runs can fail: its failure is stored, and the others continue."""
    turns, turn = Turns(), Turn(7, "t7", TurnRequest(()))
    turns.fail(turn, UpstreamError("upstream-failed", "It is gone."), EventId("e1", 3))

    assert turn.failure is not None


def test_running_turns_stay_when_answers_are_too_many() -> None:
    """At the limit only finished answers are dropped."""
    answers, running = Answers(), Turn(1, "t1", TurnRequest(()))
    answers.keep(Promise("running", "f"), running, 0.0)
    for number in range(MAX_KEYS + 1):
        answers.keep(Promise(f"k{number}", "f"), Receipt(1, 1, 1, EventId("e1", 0)), 0.0)

    assert answers.find(Promise("running", "f")) is running
    assert answers.find(Promise("k0", "f")) is None


def test_answers_that_all_run_may_exceed_the_bytes() -> None:
    """A running request is never dropped, and a table without a budget can be closed as well."""
    keys = IdempotencyKeys(max_bytes=1)
    keys.claim("a", b"", 0.0)

    assert keys.claim("b", b"", 0.0)[1]
    keys.close()
    assert keys.size == 0


def test_another_clients_update_is_not_ours() -> None:
    """In a shared call, an echo that differs from this session's update belongs to another client."""
    ledger = Ledger(shared=True)

    assert ledger.session_updated({"instructions": "x"}) is None


def test_a_create_without_an_item_names_none() -> None:
    """A create whose item is missing or not an object is tracked as an event without an ID."""
    made = delivery(1, 1, client_event("conversation.item.create", item=5))

    assert made.account == {"number": 1, "event_id": None, "type": "conversation.item.create"}


def test_what_the_mirror_does_not_know_changes_nothing() -> None:
    """An output whose call is not stored is left out of a seed, because the service would refuse it."""
    mirror = Mirror('{"model":"m"}')
    mirror.received("response.created", {"response": {"id": "r"}})
    item = {
        "id": "i1",
        "type": "function_call_output",
        "call_id": "gone",
        "output": "1",
        "status": "completed",
    }
    mirror.received("conversation.item.added", {"item": item})
    mirror.received("conversation.item.done", {"item": item})

    assert list(mirror.seed().items) == []


def test_dropping_what_is_not_there_changes_nothing() -> None:
    """A delivery that was already confirmed is dropped once."""
    ledger = Ledger()
    ledger.drop([99])

    assert (ledger.size, list(ledger.in_flight)) == (0, [])

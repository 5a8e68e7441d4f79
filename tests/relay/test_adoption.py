"""gateway/relay/state/saved.py and Hub.adopt: another node continues a session from any prefix of its journal."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import GatewayError, OverloadError, UpstreamError
from gateway.relay.events.eventlog import MAX_EPOCHS
from gateway.relay.events.jsontext import LARGE_BYTES
from gateway.relay.events.records import (
    Accepted,
    Acknowledged,
    Border,
    Record,
    ServerEvent,
    TurnFinished,
    TurnQueued,
    UnreadableRecord,
    decode,
    encode,
)
from gateway.relay.requests import NO_PROMISE, Promise
from gateway.relay.session import Session
from gateway.relay.state.fold import SessionState
from gateway.relay.state.saved import Saved, fold
from gateway.relay.state.turn import Turn, TurnRequest
from gateway.relay.states import CloseReason, State
from tests.relay.fakes import FakeReceiver, Harness, VirtualLoop, client_event, logged, types_of
from tests.relay.journals import MemoryDirectory, MemoryJournal, answering, node, taken
from tests.waiting import until

HELLO = TurnRequest(
    [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]
)
KEY = Promise("k", "f")


@asynccontextmanager
async def nodes(**limits: Any) -> AsyncIterator[tuple[Harness, MemoryDirectory, Harness]]:
    """Run two nodes: one opens a session, and the other takes it over."""
    (first, directory), (second, _) = node(**limits), node(**limits)
    try:
        yield first, directory, second
    finally:
        for harness in (first, second):
            harness.dialer.gate = None
            await harness.hub.close()
            assert harness.facts.of("relay_failed") == []


async def attended(harness: Harness, **members: Any) -> tuple[Session, MemoryJournal]:
    """Open a session that has a reader."""
    session = await harness.open(**members)
    session.attach(FakeReceiver(0.0))
    return session, cast(MemoryJournal, session.journal)


def adopt(harness: Harness, saved: Saved) -> tuple[Session, MemoryJournal]:
    """Let a node take a session over."""
    journal = MemoryJournal(saved.state.head)
    session = cast(Session, harness.hub.adopt(saved, journal))
    session.attach(FakeReceiver(0.0))
    return session, journal


def item(item_id: str) -> dict[str, Any]:
    """Return a user's message."""
    content = [{"type": "input_text", "text": "Hello"}]
    return {"id": item_id, "type": "message", "role": "user", "content": content}


def told(session: Session, name: str) -> list[dict[str, Any]]:
    """Return the gateway's own events with this type from a log."""
    return [event for event in logged(session.reader) if event["type"] == name]


# --- single properties ------------------------------------------------------------------------------------------------


async def test_a_session_of_a_lost_node_goes_on() -> None:
    """The session is readable at once with its ID and cursors; a new call is opened, and clients get the events
    about it."""
    async with nodes() as (first, _, second):
        session, journal = await attended(first)
        await session.submit([client_event("conversation.item.create", item=item("a"))])
        await asyncio.sleep(0.1)
        before = logged(session.reader)
        cursor = session.reader.head
        other, _ = adopt(second, taken(journal))
        assert second.hub.find(session.id, None) is other
        assert other.view().state is State.RECOVERING
        assert logged(other.reader)[: len(before)] == before
        await until(lambda: other.view().state is State.CONNECTED)

        page = other.reader.read(cursor, 100, 1 << 20)
        assert page.gap is None
        assert [entry.type for entry in page.entries] == ["gateway.recovering", "gateway.recovered"]
        assert str(other.reader.head).startswith("z001-")
        (recovered,) = told(other, "gateway.recovered")
        assert (recovered["cause"], recovered["accepted"]) == ("node_lost", 1)
        assert (recovered["items_restored"], recovered["unknown"]) == (1, [])
        assert [event["item"]["id"] for event in second.call.events] == ["a"]
        assert [args[1:3] for args in second.facts.of("recovered")] == [("node_lost", "recovered")]


async def test_a_receipt_after_a_takeover_names_the_new_epoch() -> None:
    """The receipt differs from one of the lost node, also while gateway.recovering is not settled yet; a repeat gets
    the same receipt."""
    async with nodes() as (first, _, second):
        _, journal = await attended(first)
        saved, taker = taken(journal), MemoryJournal(taken(journal).state.head)
        taker.holding = True
        other = cast(Session, second.hub.adopt(saved, taker))
        hidden = other.reader.head
        sending = asyncio.create_task(other.submit([client_event("some.future.event")], KEY))
        await asyncio.sleep(0.05)
        taker.holding = False
        taker.settle()
        receipt = await sending

        assert hidden.epoch != "z001"
        assert str(receipt.head) == f"z001-{hidden.sequence + 1}"
        assert (await other.submit([client_event("some.future.event")], KEY)).head == receipt.head
        assert other.reader.read(receipt.head, 100, 1 << 20).gap is None


async def test_a_session_with_more_takeovers_than_its_log_remembers_is_taken_over() -> None:
    """The log begins with the oldest epoch that it still knows."""
    async with nodes() as (first, _, second):
        _, journal = await attended(first)
        for number in range(MAX_EPOCHS):
            journal.records.append(encode(Border("n_2", f"y{number:03}")))
        other, _ = adopt(second, taken(journal))
        await until(lambda: other.view().state is State.CONNECTED)

        assert other.reader.oldest.epoch != "e001"
        assert told(other, "gateway.recovered")


async def test_what_was_held_and_what_was_unknown_are_told_apart() -> None:
    """Held events are sent on the new call; events that the lost call had received and not confirmed are named."""
    async with nodes() as (first, _, second):
        session, journal = await attended(first)
        first.call.on_send = None
        await session.submit([client_event("conversation.item.create", item=item("a"), event_id="mine")])
        first.dialer.gate = lambda: asyncio.sleep(3600)
        first.call.lose()
        await session.submit([client_event("some.future.event", event_id="held")])
        other, _ = adopt(second, taken(journal))
        await until(lambda: other.view().state is State.CONNECTED)

        (recovered,) = told(other, "gateway.recovered")
        assert recovered["unknown"] == [{"number": 1, "event_id": "mine", "type": "conversation.item.create"}]
        assert [event["event_id"] for event in second.call.events] == ["held"]
        assert recovered["accepted"] == 2


@pytest.mark.parametrize("retry", [False, True])
async def test_a_running_turn_fails_or_is_asked_again(retry: bool) -> None:
    """A running turn fails or is asked again, as after a lost call; a repeat of its request attaches or tries again."""
    async with nodes() as (first, _, second):
        session, journal = await attended(first, retry_interrupted=retry)
        turn = await session.turn(HELLO, KEY)
        waiting = await session.turn(HELLO)
        first.call.start("resp_1", turn.id)
        other, _ = adopt(second, taken(journal))
        again = await other.turn(HELLO, KEY)
        await until(lambda: bool(second.dialer.calls) and "response.create" in second.call.types())

        assert second.call.types().count("response.create") == 1
        if retry:
            assert again.number == turn.number
            second.call.start("resp_2", again.id)
            second.call.finish("resp_2")
            assert again.result is not None
        else:
            # The failed turn stored no answer, so the repeat is a turn of its own behind the other.
            assert again.number == 3
            assert other.state.turns.running is not None
            assert other.state.turns.running.number == waiting.number


async def test_a_repeated_batch_is_answered_with_its_receipt() -> None:
    """A repeated batch is recognized by its key or the ID of a forwarded request, and is not sent again."""
    async with nodes() as (first, _, second):
        session, journal = await attended(first)
        promise = Promise("k", "f", "req_1")
        receipt = await session.submit([client_event("x")], promise)
        other, _ = adopt(second, taken(journal))

        repeated = await other.submit([client_event("x")], promise)
        assert (repeated.first, repeated.last, repeated.head) == (1, 1, receipt.head)
        assert repeated.replayed
        by_id = await other.submit([client_event("x")], Promise(None, None, "req_1"))
        assert by_id.first == 1
        assert other.state.accepted == 1


async def test_a_finished_turn_is_answered_from_the_journal() -> None:
    """A turn whose result arrived before the node was lost is answered from the journal."""
    async with nodes() as (first, _, second):
        session, journal = await attended(first)
        turn = await session.turn(HELLO, KEY)
        first.call.start("resp_1", turn.id)
        first.call.finish("resp_1")
        other, _ = adopt(second, taken(journal))
        again = await other.turn(HELLO, KEY)

        assert (again.finished, again.result) == (True, turn.result)
        with pytest.raises(GatewayError, match="another path or body"):
            await other.turn(HELLO, Promise("k", "other"))


@pytest.mark.parametrize("promise", [KEY, NO_PROMISE], ids=["with a key", "without a key"])
async def test_a_session_of_a_single_turn_is_closed_if_nobody_comes_for_it(promise: Promise) -> None:
    """The request that would close it was lost with its node. A client with an Idempotency-Key has a minute to repeat it
    after the turn; one without cannot come back, so the session is closed at once."""
    async with nodes() as (first, _, second):
        session, journal = await attended(first, single_turn=True)
        first.dialer.gate = lambda: asyncio.sleep(3600)
        first.call.lose()
        turn = await session.turn(HELLO, promise)
        assert session.returnable is (promise is KEY)
        other, _ = adopt(second, taken(journal))
        other.detach(other._receivers[0])
        if promise is NO_PROMISE:
            assert await second.closed(other, 10.0) is CloseReason.DETACHED
            return
        await until(lambda: bool(second.dialer.calls) and "response.create" in second.call.types())
        await asyncio.sleep(100)
        assert other.live
        second.call.start("resp_1", turn.id)
        second.call.finish("resp_1")
        await asyncio.sleep(50)
        assert other.live

        assert await second.closed(other, 15.0) is CloseReason.DETACHED


async def test_a_closed_session_is_kept_for_its_retention() -> None:
    """A closed session has no call and can be read to its end."""
    async with nodes() as (first, _, second):
        session, journal = await attended(first)
        await session.close(CloseReason.CLIENT)
        assert journal.sealed
        other, _ = adopt(second, taken(journal))

        assert (other.view().state, other.view().close_reason) == (State.CLOSED, CloseReason.CLIENT)
        assert other.reader.sealed
        assert second.dialer.calls == []
        with pytest.raises(GatewayError) as caught:
            await other.submit([client_event("x")])
        assert caught.value.code == "session-closed"


async def test_what_is_kept_of_a_closed_session_is_removed_after_its_retention() -> None:
    """A node that takes over a closed session restarts its retention and removes it at the end."""
    async with nodes(log_retention_seconds=0.2) as (first, directory, second):
        session, journal = await attended(first)
        await session.close(CloseReason.CLIENT)
        other, taker = adopt(second, taken(journal))
        second_directory = cast(MemoryDirectory, second.directory)
        assert taker.sealed
        await until(lambda: directory.released == [session.id])
        await until(lambda: second_directory.released == [other.id])

        assert not second.hub.has(other.id)


async def test_creates_that_wait_for_the_directory_count_against_the_limit() -> None:
    """Creates that arrive together do not open more sessions than this node may have."""
    async with nodes(max_sessions=2) as (first, directory, _):
        directory.reserving_seconds = 1.0
        opening = [asyncio.create_task(first.open()) for _ in range(4)]
        await asyncio.wait(opening)
        errors = [task.exception() for task in opening]

        assert len(first.hub.all_sessions()) == 2
        assert [error.code for error in errors if isinstance(error, GatewayError)] == ["capacity", "capacity"]


async def test_a_caller_who_leaves_while_a_session_is_registered_leaves_nothing() -> None:
    """Nobody will learn the session's ID, so the directory drops it as well."""
    async with nodes() as (first, directory, _):
        first.dialer.gate = lambda: asyncio.sleep(1)
        opening = asyncio.create_task(first.open())
        await until(lambda: bool(directory.journals))
        (journal,) = directory.journals.values()
        journal.holding = True
        await until(lambda: bool(journal.snapshot))
        opening.cancel()
        await asyncio.wait({opening})
        await until(lambda: directory.released == list(directory.journals))

        assert not first.hub.all_sessions()


async def test_usage_goes_on() -> None:
    """The session's own limits include what was used on the other node."""
    async with nodes() as (first, _, second):
        session, journal = await attended(first)
        first.call.start()
        first.call.finish(usage={"total_tokens": 7, "input_tokens": 4, "output_tokens": 3})
        other, _ = adopt(second, taken(journal))

        assert other.view().usage == session.view().usage
        assert other.state.spent.tokens == 7


async def test_a_caller_with_its_own_credential_must_bring_it_again() -> None:
    """The credential is in no journal, so the session waits for it without a call."""
    async with nodes() as (first, _, second):
        _, journal = await attended(first, bearer="ek_1")
        other, _ = adopt(second, taken(journal))
        await asyncio.sleep(5)
        assert (other.view().state, second.dialer.requests) == (State.RECOVERING, [])
        other.renew("ek_2")
        await until(lambda: other.view().state is State.CONNECTED)

        assert [request.bearer for request in second.dialer.requests] == ["ek_2"]


async def test_calls_of_lost_nodes_pass_the_gate() -> None:
    """The time limit of a call begins when the gate admits it."""
    passed: list[bool] = []

    class Gate:
        @asynccontextmanager
        async def dial(self, urgent: Any) -> AsyncIterator[None]:
            await asyncio.sleep(100)
            passed.append(urgent())
            yield

    async with nodes() as (first, _, second):
        _, journal = await attended(first)
        object.__setattr__(second.hub._services, "gate", Gate())
        other, _ = adopt(second, taken(journal))
        await until(lambda: other.view().state is State.CONNECTED, 120)

        assert passed == [True]


# --- what is acknowledged and shown -----------------------------------------------------------------------------------


async def test_nothing_is_shown_or_acknowledged_before_it_is_kept() -> None:
    """Until the journal has stored them, events stay hidden and a POST waits."""
    async with nodes() as (first, _, _):
        session, journal = await attended(first)
        head = session.reader.head
        journal.holding = True
        first.call.say("rate_limits.updated")
        sending = asyncio.create_task(session.submit([client_event("x")]))
        await asyncio.sleep(1)
        assert (session.reader.head, sending.done()) == (head, False)
        journal.holding = False
        journal.settle()

        assert (await sending).first == 1
        assert session.reader.head.sequence == head.sequence + 1


async def test_an_unsure_node_takes_nothing_but_goes_on_receiving() -> None:
    """A node that is unsure of its sessions still receives, but does not send, dial or acknowledge."""
    async with nodes() as (first, _, _):
        session, journal = await attended(first)
        journal.sure = False
        for asking in (session.submit([client_event("x")]), session.turn(HELLO)):
            with pytest.raises(OverloadError) as caught:
                await asking
            assert caught.value.code == "recovering"
        first.call.lose()
        await asyncio.sleep(10)
        assert len(first.dialer.requests) == 1
        journal.sure = True
        await until(lambda: session.view().state is State.CONNECTED)


async def test_a_fenced_session_ends_without_a_word() -> None:
    """A fenced session sends no last event: its readers reconnect elsewhere, its call is closed but not hung up, and
    nothing more is written."""
    async with nodes() as (first, _, _):
        session, journal = await attended(first)
        receiver = FakeReceiver(0.0)
        session.attach(receiver)
        turn = await session.turn(HELLO)
        count = len(journal.records)
        first.hub.drop(session.id)
        await until(lambda: not first.hub._tasks)

        assert receiver.rotated == 1
        assert first.call.closings == [False]
        assert turn.failure is not None
        assert [type(decode(data)) for data in journal.records[count:]] == [TurnFinished]
        assert not first.hub.has(session.id)
        with pytest.raises(GatewayError):
            await session.submit([client_event("x")])


async def test_a_limit_of_all_nodes_refuses_an_opening() -> None:
    """A limit over all nodes refuses a create before anything is dialled."""
    async with nodes() as (first, directory, _):
        directory.refusal = OverloadError("session-limit", "Enough.", retry_after=1)
        with pytest.raises(OverloadError):
            await first.open()

        assert first.dialer.requests == []


async def test_an_opening_that_fails_is_released() -> None:
    """A create that fails leaves nothing in the directory."""
    async with nodes() as (first, directory, _):
        first.dialer.refusal = UpstreamError("upstream-rejected", "No.")
        with pytest.raises(UpstreamError):
            await first.open()

        assert len(directory.released) == 1


async def test_the_journal_can_ask_for_everything_again() -> None:
    """If the journal asks for everything again, it gets the state and the events of one moment in place of what was
    lost."""
    async with nodes() as (first, _, second):
        session, journal = await attended(first)
        await session.submit([client_event("x")])
        await asyncio.sleep(0.1)
        events = [encode(record) for record in session.kept(0)]
        saved = fold(session.dump(), events, [])
        other, _ = adopt(second, saved)

        assert logged(other.reader)[: len(events)] == logged(session.reader)
        assert [type(record) for record in session.kept(session.reader.head.sequence - 1)] == [ServerEvent]
        assert journal.settled == session.reader.head.sequence


# --- a hand-over ------------------------------------------------------------------------------------------------------


async def test_a_session_is_handed_over_in_a_pause() -> None:
    """The new node dials while the old call runs and takes over between responses: clients see no recovery, and no
    accepted event is lost."""
    async with nodes() as (first, _, second):
        session, journal = await attended(first)
        await session.submit([client_event("conversation.item.create", item=item("a"))])
        first.call.start()
        state = session.state
        prepared = await second.hub.prepare(state.opening, state.mirror.session, None)
        releasing = asyncio.create_task(session.prepare_release())
        await asyncio.sleep(5)
        assert not releasing.done()
        first.call.finish()
        assert await releasing
        held = asyncio.create_task(session.submit([client_event("x", event_id="held")]))
        await held
        other = cast(Session, second.hub.adopt(taken(journal), MemoryJournal(state.head), prepared))
        assert other.view().state is State.CONNECTED
        session.released()
        await until(lambda: bool(told(other, "gateway.recovered")))
        await until(lambda: first.call.closings == [True])

        (recovered,) = told(other, "gateway.recovered")
        assert (recovered["cause"], recovered["accepted"], recovered["unknown"]) == ("handover", 2, [])
        assert told(other, "gateway.recovering") == []
        assert [event.get("event_id") for event in second.call.events][-1] == "held"
        assert len(second.dialer.calls) == 1


async def test_a_hand_over_that_nobody_takes_is_undone() -> None:
    """If no node takes the session, the held events are sent and the call continues."""
    async with nodes() as (first, _, _):
        session, _ = await attended(first)
        assert await session.prepare_release()
        assert not await session.prepare_release()
        await session.submit([client_event("x")])
        assert first.call.types() == []
        session.resume()

        assert first.call.types() == ["x"]
        assert session.view().state is State.CONNECTED


async def test_a_hand_over_waits_for_a_frame_that_is_being_taken() -> None:
    """What the old node's transport has acknowledged is delivered before the session is released."""
    async with nodes() as (first, _, _):
        session, _ = await attended(first)
        first.call.undelivered = True
        steps = first.call.say_in_steps(json.dumps({"type": "x", "x": "y" * LARGE_BYTES}))
        releasing = asyncio.create_task(session.prepare_release())
        await asyncio.sleep(1)
        assert not releasing.done()
        for _ in steps:
            pass
        first.call.undelivered = False

        assert await releasing
        await session.journal.flushed()
        assert types_of(session)[-1] == "x"


async def test_a_call_lost_while_it_is_handed_over_is_recovered_by_whoever_has_it() -> None:
    """The call may be lost at the old node before the pause, or the new node may lose the prepared call; then its
    owner recovers the session."""
    async with nodes() as (first, _, second):
        session, journal = await attended(first)
        first.call.start()
        releasing = asyncio.create_task(session.prepare_release())
        await asyncio.sleep(1)
        first.call.lose()
        assert not await releasing
        await until(lambda: session.view().state is State.CONNECTED)
        assert await session.prepare_release()
        prepared = await second.hub.prepare(session.state.opening, session.state.mirror.session, None)
        second.call.lose()
        other = cast(Session, second.hub.adopt(taken(journal), MemoryJournal(session.state.head), prepared))
        session.released()
        await until(lambda: other.view().call_id == "rtc_2")

        assert [event["cause"] for event in told(other, "gateway.recovering")][-1] == "handover"
        assert other.view().state is State.CONNECTED


async def test_a_prepared_call_gets_the_session_object_of_the_hand_over() -> None:
    """The peer dials with the session object of the last snapshot; what changed since then is sent to the call."""
    async with nodes() as (first, _, second):
        session, journal = await attended(first)
        prepared = await second.hub.prepare(session.state.opening, session.state.mirror.session, None)
        await session.submit([client_event("session.update", session={"instructions": "Be brief."})])
        first.call.say("session.updated", session={"instructions": "Be brief."})
        assert await session.prepare_release()
        other = cast(Session, second.hub.adopt(taken(journal), MemoryJournal(session.state.head), prepared))
        session.released()
        await until(lambda: bool(told(other, "gateway.recovered")))

        (update,) = [event for event in second.call.events if event["type"] == "session.update"]
        assert update["session"] == {"type": "realtime", "instructions": "Be brief."}


async def test_a_prepared_call_can_be_abandoned() -> None:
    """An abandoned call is hung up, unless another application made it; a draining node prepares none."""
    async with nodes() as (first, _, second):
        session, _ = await attended(first)
        prepared = await second.hub.prepare(session.state.opening, {}, None)
        await prepared.abandon()
        assert second.call.closings == [True]
        attached = await second.hub.prepare(replace(session.state.opening, attach_to="rtc_9"), {}, None)
        await attached.abandon()
        assert second.call.closings == [False]
        second.hub.draining = True
        with pytest.raises(GatewayError):
            await second.hub.prepare(session.state.opening, {}, None)


# --- every prefix -----------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.sampled_from(["say", "append", "ask", "turn", "answer", "mute", "hear", "lose", "hold", "wait"]),
    max_size=14,
)


class Life:
    """A session that runs through a list of steps, and its service."""

    def __init__(self, harness: Harness, session: Session) -> None:
        self.harness = harness
        self.session = session
        self.count = 0
        self.responses = 0
        self.keys: list[Promise] = []

    async def step(self, name: str) -> None:
        call = self.harness.call
        match name:
            case "say":
                self.count += 1
                await self._submit(client_event("conversation.item.create", item=item(f"i{self.count}")))
            case "append":
                await self._submit(client_event("input_audio_buffer.append", audio="AAAA"))
            case "ask":
                self.count += 1
                await self._submit(client_event("response.create", event_id=f"ask{self.count}"))
            case "turn":
                promise = Promise(f"key{len(self.keys)}", "f")
                try:
                    await self.session.turn(HELLO, promise)
                except OverloadError:
                    return
                self.keys.append(promise)
            case "answer":
                self._answer(call)
            case "mute":
                call.on_send = None
            case "hear":
                answering(call)
            case "lose":
                call.lose()
            case "hold":
                self.harness.dialer.gate = lambda: asyncio.sleep(30)
                call.lose()
                self.harness.dialer.gate = None
            case "wait":
                await asyncio.sleep(2)
        await asyncio.sleep(0.01)

    async def _submit(self, event: Any) -> None:
        with suppress(OverloadError):
            await self.session.submit([event])

    def _answer(self, call: Any) -> None:
        """Begin the first requested response, or end the running one."""
        active = self.session.state.responses.active
        if active:
            call.finish(active[0])
            return
        asked = [one for one in self.session.state.ledger.in_flight if one.type == "response.create"]
        if asked and call.open:
            self.responses += 1
            metadata = json.loads(asked[0].text).get("response", {}).get("metadata") or {}
            call.start(f"r{self.responses}", metadata.get("gateway_turn"))


async def lived(steps: Sequence[str], retry: bool) -> tuple[MemoryJournal, list[Promise], str]:
    """Run a session and return its journal, the keys of its turns, and its ID."""
    harness, _ = node()
    session = await harness.open(retry_interrupted=retry)
    session.attach(FakeReceiver(0.0))
    life = Life(harness, session)
    for step in steps:
        await life.step(step)
    journal = cast(MemoryJournal, session.journal)
    records = list(journal.records)
    await harness.hub.close()
    assert harness.facts.of("relay_failed") == []
    journal.records = records
    return journal, life.keys, session.id


def expected(records: Sequence[Record]) -> dict[str, Any]:
    """Compute the expected result of a prefix in the simplest way."""
    given_ = [r for r in records if isinstance(r, Accepted)]
    numbered = {r.first + at: json.loads(text) for r in given_ if r.first for at, text in enumerate(r.texts)}
    heard = [json.loads(r.text) for r in records if isinstance(r, ServerEvent)]
    added = [e["item"]["id"] for e in heard if e["type"] == "conversation.item.added"]
    return {
        "accepted": max(numbered, default=0),
        "numbered": numbered,
        "items": list(dict.fromkeys(added)),
        "acknowledged": any(isinstance(r, Acknowledged) for r in records),
        "queued": [r for r in records if isinstance(r, TurnQueued)],
    }


async def hold_prefix(journal: MemoryJournal, count: int, keys: Sequence[Promise], retry: bool) -> None:
    """Take a session over after this many records, and check every promise."""
    records = [decode(data) for data in journal.records[:count]]
    want = expected(records)
    saved = taken(journal, count)
    state = SessionState.load(saved.state.dump())
    assert state.dump() == saved.state.dump()
    saved = Saved(state, saved.first, saved.events)
    in_flight = {one.number for one in [*state.ledger.in_flight, *state.ledger.unknown] if one.number}
    held = {one.number for one in state.ledger.held if one.number}
    interrupted = state.turns.running
    waiting = [turn.number for turn in state.turns.waiting]

    harness, _ = node()
    session, _ = adopt(harness, saved)
    await until(lambda: session.view().state is State.CONNECTED, 60)
    recovered = told(session, "gateway.recovered")[-1]
    sent = harness.call.events
    unknown = {account["number"] for account in recovered["unknown"] if account["number"]}
    seeded = [e["item"]["id"] for e in sent if str(e.get("event_id", "")).startswith("evt_seed_")]
    rest = [e for e in sent if not str(e.get("event_id", "")).startswith("evt_seed_")]

    assert recovered["accepted"] == want["accepted"]
    assert seeded == want["items"]
    for number, event in want["numbered"].items():
        again = any(e == event for e in rest)
        confirmed = event.get("item", {}).get("id") in want["items"]
        if number in held:
            assert again, (number, event)
        elif number in in_flight and not again:
            assert number in unknown, (number, event)
        elif event["type"] == "conversation.item.create" and not again:
            told_before = any(
                number in [account["number"] for account in one["unknown"]]
                for one in told(session, "gateway.recovered")[:-1]
            )
            assert confirmed or told_before, (number, event)
        assert not (again and number in unknown)
    if interrupted is not None and not retry:
        assert interrupted.failure is not None
        assert interrupted.failure.code == "upstream-failed"
    if waiting and not (retry and interrupted is not None):
        assert session.state.turns.running is not None
        assert session.state.turns.running.number == waiting[0]
    for promise, record in zip(keys, want["queued"], strict=False):
        found = session.promised(promise)
        assert found is None or cast(Turn, found).number == record.number
        if record.number in waiting:
            assert found is not None
    await harness.hub.close()
    assert harness.facts.of("relay_failed") == []


def hold_every_prefix(steps: Sequence[str], retry: bool) -> None:
    """Run a session and take it over after each of its records."""

    async def run() -> None:
        journal, keys, _ = await lived(steps, retry)
        for count in range(len(journal.records) + 1):
            await hold_prefix(journal, count, keys, retry)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


JOURNALS = int(os.environ.get("JOURNALS", "60"))
"""How many journals are generated: every prefix of each is taken over. A thousand take two to three minutes."""


@pytest.mark.timeout(120 + JOURNALS)
@given(STEPS, st.booleans())
@settings(max_examples=JOURNALS, suppress_health_check=[HealthCheck.too_slow])
def test_any_prefix_of_any_journal_is_taken_over(steps: list[str], retry: bool) -> None:
    """Nothing accepted is missing, `unknown` is exact, items are as of that point, and turns continue, fail, or are
    asked again."""
    hold_every_prefix(steps, retry)


# --- every prefix of a recorded session -------------------------------------------------------------------------------

RECORDED = ("text-turn-in-webrtc-call", "audio-turn-in-webrtc-call", "history-seeding", "tool-call-round")


def restored(item: dict[str, Any]) -> dict[str, Any]:
    """Reduce an item to what a new call gets of it: audio as text."""
    parts = [part.get("text") or part.get("transcript") for part in item.get("content") or ()]
    texts = {"texts": [text for text in parts if text]} if item["type"] == "message" else {}
    return texts | {
        name: item[name]
        for name in ("id", "type", "role", "call_id", "name", "arguments", "output")
        if name in item
    }


async def hold_recorded_prefix(lines: Sequence[dict[str, Any]]) -> None:
    """Run a part of a recorded session on one node, and take it over on another."""
    async with nodes() as (first, _, second):
        first.dialer.prepare = None
        session, journal = await attended(first)
        begun, finished, accepted = list[str](), dict[str, Any](), 0
        for line in lines:
            event = line["event"]
            if line["direction"] == "sent":
                await session.submit([client_event(**event)])
                accepted += 1
                continue
            first.call.say_text(json.dumps(event))
            item_ = event.get("item") or {}
            if event["type"] == "conversation.item.added":
                begun.append(item_["id"])
            told_of = event["type"] in ("conversation.item.added", "conversation.item.done")
            if told_of and item_.get("status") != "in_progress":
                finished[item_["id"]] = restored(item_)
        usage, active = session.view().usage, bool(session.state.responses.active)
        in_flight = [one.number for one in session.state.ledger.in_flight]
        other, _ = adopt(second, taken(journal))
        await until(lambda: other.view().state is State.CONNECTED, 60)

        seeded = [event["item"] for event in second.call.events if "seed" in str(event.get("event_id"))]
        assert [restored(one) for one in seeded] == [
            finished[item_id]
            for item_id in begun
            if finished.get(item_id, {}).get("texts") != [] and item_id in finished
        ]
        (recovered,) = told(other, "gateway.recovered")
        assert (recovered["accepted"], other.view().usage) == (accepted, usage)
        assert [account["number"] for account in recovered["unknown"]] == in_flight
        assert (recovered["response"] is not None) == (active or session.state.ledger.asks)
        assert logged(other.reader)[: session.reader.head.sequence] == logged(session.reader)


@pytest.mark.parametrize("name", RECORDED)
async def test_any_prefix_of_a_recorded_session_is_taken_over(name: str, recordings: Path) -> None:
    """The new call gets finished items in order, usage and numbers continue, and unknown events are listed."""
    lines = [json.loads(line) for line in (recordings / f"{name}.jsonl").read_text("utf-8").splitlines()]
    for count in range(len(lines) + 1):
        await hold_recorded_prefix(lines[:count])


# --- what cannot be read ----------------------------------------------------------------------------------------------


async def test_a_snapshot_of_another_version_is_not_taken_over() -> None:
    """A snapshot of another version, or a broken one, is not taken over; the session stays with a node that can read
    it."""
    async with nodes() as (first, _, _):
        _, journal = await attended(first)
        found = json.loads(journal.snapshot)
        for data in (json.dumps({**found, "v": 99}).encode(), b"{}", b"x", b'{"v":1}'):
            with pytest.raises(UnreadableRecord):
                fold(data, [], [])
        with pytest.raises(UnreadableRecord):
            fold(journal.snapshot, [], [b"?"])
        with pytest.raises(UnreadableRecord):
            fold(journal.snapshot, [], [encode(ServerEvent(99, 0, "response.done", "no json"))])

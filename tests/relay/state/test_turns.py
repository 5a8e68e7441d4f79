"""gateway/relay/state/turns.py: one turn at a time, and which response a cancel ends."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError, OverloadError, UpstreamError
from gateway.relay.events.envelope import ClientEvent
from gateway.relay.events.eventlog import EventId
from gateway.relay.state.effects import Effect, Send, TurnOver
from gateway.relay.state.turn import Progress, Turn, TurnRequest
from gateway.relay.state.turns import Turns

HEAD = EventId("e", 5)
LATER = EventId("e", 6)
BUSY = "conversation_already_has_active_response"
PLAIN = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
ODD = {"type": "message"}


class Desk:
    """The turns of a session with this object as its shell: what it sent, and the service's side."""

    def __init__(self, max_waiting: int = 8) -> None:
        self.sent: list[dict[str, Any]] = []
        self.refusal: GatewayError | None = None
        self.queue = Turns()
        self.over: list[Turn] = []
        self._max_waiting = max_waiting

    def _send(self, events: Sequence[ClientEvent]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.sent += [dict(event.value) for event in events]

    def carry(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send() if self.refusal is None:
                    self._send(effect.events)
                case TurnOver():
                    self.over.append(effect.turn)

    def add(self, item: dict[str, Any] = PLAIN, now: float = 0.0) -> Turn:
        self.queue.require_room(self._max_waiting)
        number = self.queue.count + 1
        request = TurnRequest([item])
        turn = Turn(number, f"{number:018d}", request, now + 300)
        return self.queue.add(turn, len(request.dump()))

    def advance(self, busy: bool = False) -> None:
        while (asking := self.queue.due(busy)) is not None:
            try:
                self._send(asking.events)
            except OverloadError:
                return
            except GatewayError as error:
                self.carry(self.queue.fail(asking.turn, error, HEAD))
            else:
                asked = any(event.type == "response.create" for event in asking.events)
                self.queue.sent(asking.turn.number, HEAD, asked=asked)
                return

    def expire(self, now: float) -> None:
        for turn in self.queue.expired(now):
            self.carry(self.queue.expire(turn, HEAD, 300))

    def withdraw(self, turn: Turn) -> None:
        self.carry(self.queue.withdraw(turn, HEAD))

    def run(self, item: dict[str, Any] = PLAIN) -> Turn:
        """Add a turn and send it."""
        turn = self.add(item)
        self.advance()
        assert self.queue.running is turn
        return turn

    def say(self, type: str, *, sole: bool = False, **value: object) -> Progress:
        progress, effects = self.queue.look(type, value, sole=sole)
        self.carry(effects)
        if progress is Progress.DONE:
            self.carry(self.queue.done(LATER))
        return progress

    def create(self, turn: Turn) -> Progress:
        return self.say(
            "response.created", response={"id": f"r_{turn.number}", "metadata": {"gateway_turn": turn.id}}
        )

    def take(self, turn: Turn) -> Progress:
        """Confirm the turn's first item."""
        return self.say("conversation.item.added", item={"id": f"item_{turn.token}000"})

    def finish(self, turn: Turn) -> Progress:
        return self.say("response.done", response={"id": f"r_{turn.number}", "status": "completed"})

    def refuse(self, turn: Turn, suffix: str, code: str = "invalid_value") -> Progress:
        event_id = f"evt_{turn.token}_{suffix}"
        return self.say("error", error={"event_id": event_id, "code": code, "message": "No."})

    @property
    def types(self) -> list[str]:
        return [str(event["type"]) for event in self.sent]

    @property
    def cancels(self) -> list[str | None]:
        return [event.get("response_id") for event in self.sent if event["type"] == "response.cancel"]


def test_a_turn_waits_behind_an_active_response() -> None:
    """Nothing is sent while the conversation is being answered."""
    desk = Desk()
    turn = desk.add()
    desk.advance(busy=True)
    assert (desk.sent, turn.after) == ([], None)
    desk.advance()

    assert desk.types == ["conversation.item.create", "response.create"]
    assert turn.after == HEAD


def test_turns_run_one_after_the_other() -> None:
    """Turns run in the order in which they came, each when the previous one is done."""
    desk = Desk()
    first, second = desk.run(), desk.add()
    desk.advance()
    assert desk.queue.running is first
    desk.create(first)
    desk.finish(first)
    desk.advance()

    assert desk.queue.running is second
    assert first.finished
    assert (first.number, second.number) == (1, 2)


def test_turns_have_a_size_until_they_are_finished() -> None:
    """Waiting and running turns count with the bytes that they hold; without turns the size is 0."""
    desk = Desk()
    empty = desk.queue.size
    one = desk.add().size
    desk.add()

    assert (empty, desk.queue.size) == (0, 2 * one)


def test_one_turn_too_many_is_refused() -> None:
    """The limit counts waiting turns, without the running one."""
    desk = Desk(max_waiting=2)
    desk.run()
    desk.add()
    desk.add()

    with pytest.raises(GatewayError) as caught:
        desk.add()
    assert caught.value.code == "turn-queue-full"


def test_nobody_runs_where_nobody_waits() -> None:
    """Without a running turn an event belongs to no turn."""
    desk = Desk()
    desk.advance()

    assert desk.say("response.done", response={"id": "r"}) is Progress.FOREIGN


def test_a_turn_that_was_second_asks_again() -> None:
    """Its items were already added, so only the response is requested, once the other one is done."""
    desk = Desk()
    turn = desk.run()
    assert desk.refuse(turn, "r", BUSY) is Progress.BUSY
    desk.advance(busy=True)
    assert len(desk.sent) == 2
    desk.advance()
    desk.advance()

    assert desk.types[2:] == ["response.create"]
    assert not turn.finished


def test_a_turn_that_cannot_be_sent_fails_alone() -> None:
    """If the channel refuses a turn only that turn fails; the queue continues."""
    desk = Desk()
    desk.refusal = UpstreamError("upstream-failed", "Gone.")
    turn = desk.add()
    desk.advance()
    desk.refusal = None

    assert turn.failure is not None
    assert (turn.failure.code, turn.last) == ("upstream-failed", HEAD)
    assert desk.run() is not turn


def test_a_turn_for_which_there_is_no_room_waits_its_turn() -> None:
    """A turn without room in the channel was accepted, so no later turn overtakes it."""
    desk = Desk()
    desk.refusal = OverloadError("upstream-backpressure", "Full.", retry_after=1)
    first, second = desk.add(), desk.add()
    desk.advance()
    assert (first.finished, first.after, desk.queue.running) == (False, None, None)
    desk.refusal = None
    desk.advance()

    assert desk.queue.running is first
    assert not second.finished


def test_a_turn_for_which_there_is_never_room_fails() -> None:
    """A turn that never finds room fails at its deadline, which counts from its request; the next one has its own
    deadline."""
    desk = Desk()
    desk.refusal = OverloadError("upstream-backpressure", "Full.", retry_after=1)
    first, second = desk.add(), desk.add(now=10)
    desk.advance()
    desk.expire(299.9)
    assert not first.finished
    desk.expire(300)

    assert first.failure is not None
    assert first.failure.code == "upstream-timeout"
    assert (desk.over, second.finished) == ([first], False)


def test_a_question_for_which_there_is_no_room_is_asked_later() -> None:
    """If the response cannot be requested again for lack of room, the turn waits."""
    desk = Desk()
    turn = desk.run()
    desk.refuse(turn, "r", BUSY)
    desk.refusal = OverloadError("upstream-backpressure", "Full.", retry_after=1)
    desk.advance()
    desk.refusal = None
    sent = len(desk.sent)
    desk.advance()

    assert desk.queue.running is turn
    assert [event["type"] for event in desk.sent[sent:]] == ["response.create"]


def test_a_question_that_cannot_be_asked_again_fails_the_turn() -> None:
    """If the response cannot be requested again for another reason, the turn fails."""
    desk = Desk()
    turn = desk.run()
    desk.refuse(turn, "r", BUSY)
    desk.refusal = UpstreamError("upstream-failed", "Gone.")
    desk.advance()

    assert (turn.failure, desk.queue.running) == (desk.refusal, None)


# --- an item that was refused ------------------------------------------------------------------------------------------


def test_a_refused_item_ends_the_turn_at_once() -> None:
    """The waiting caller gets the error; the requested response is cancelled by its ID as soon as it has one."""
    desk = Desk()
    turn = desk.run()
    desk.refuse(turn, "i0")
    assert turn.finished
    assert (turn.last, desk.cancels) == (LATER, [])
    assert desk.create(turn) is Progress.OURS

    assert desk.cancels == ["r_1"]


def test_a_refused_item_is_followed_by_the_next_turn_when_its_response_is_over() -> None:
    """The next turn starts when the cancelled response is over: it no longer belongs to a turn, but to the
    conversation."""
    desk = Desk()
    turn, waiting = desk.run(), desk.add()
    desk.refuse(turn, "i0")
    desk.advance()
    assert desk.queue.running is turn
    desk.create(turn)
    desk.finish(turn)
    desk.advance()

    assert desk.queue.running is waiting


def test_an_item_refused_in_the_middle_of_the_response_cancels_it() -> None:
    """If an item is refused in the middle of the response, the response is cancelled by its ID, which is known by
    then."""
    desk = Desk()
    turn = desk.run()
    desk.create(turn)
    desk.refuse(turn, "i0")

    assert desk.cancels == ["r_1"]


@pytest.mark.parametrize("order", [("i0", "r"), ("r", "i0")])
def test_a_refused_item_of_a_turn_that_was_second_cancels_nobody(order: tuple[str, str]) -> None:
    """The active response is another client's, so it is not cancelled, and the turn does not ask again."""
    desk = Desk()
    turn, waiting = desk.run(), desk.add()
    for suffix in order:
        desk.refuse(turn, suffix, BUSY if suffix == "r" else "invalid_value")
    desk.advance(busy=True)
    desk.advance()

    assert desk.cancels == []
    assert turn.finished
    assert desk.queue.running is waiting


def test_a_refused_item_and_a_refused_response_leave_nothing_running() -> None:
    """After both refusals no response will come, so nothing is running."""
    desk = Desk()
    turn = desk.run()
    desk.refuse(turn, "i0")
    desk.refuse(turn, "r")

    assert (desk.queue.running, desk.cancels) == (None, [])


# --- without a waiting caller ---------------------------------------------------------------------------------------------


def test_a_waiting_turn_that_is_withdrawn_is_never_sent() -> None:
    """A withdrawn turn that waited is never sent, so it costs nothing."""
    desk = Desk()
    desk.run()
    turn = desk.add()
    desk.withdraw(turn)

    assert turn.finished
    assert len(desk.sent) == 2


def test_a_running_turn_that_is_withdrawn_is_cancelled() -> None:
    """A withdrawn turn that runs is cancelled once; its response.done still ends it and has its cost."""
    desk = Desk()
    turn = desk.run()
    desk.create(turn)
    desk.withdraw(turn)
    desk.withdraw(turn)
    assert (desk.cancels, turn.finished) == (["r_1"], False)
    desk.finish(turn)

    assert turn.finished


def test_a_turn_withdrawn_before_its_response_is_created_is_cancelled_by_name() -> None:
    """A cancel without an ID could hit a response that a client requested a moment before."""
    desk = Desk()
    turn = desk.run()
    desk.withdraw(turn)
    assert desk.cancels == []
    desk.create(turn)

    assert desk.cancels == ["r_1"]


def test_a_turn_withdrawn_while_another_response_is_active_leaves_that_alone() -> None:
    """A withdrawn turn without a response does not ask for one, and the other client's response is not cancelled."""
    desk = Desk()
    turn = desk.run()
    desk.refuse(turn, "r", BUSY)
    desk.withdraw(turn)
    desk.advance()

    assert turn.finished
    assert (desk.queue.running, len(desk.sent)) == (None, 2)


def test_a_withdrawn_turn_that_turns_out_second_ends() -> None:
    """If the refusal arrives after the caller has left, the turn ends."""
    desk = Desk()
    turn = desk.run()
    desk.withdraw(turn)
    desk.refuse(turn, "r", BUSY)
    desk.advance(busy=True)

    assert turn.finished
    assert (desk.queue.running, desk.cancels) == (None, [])


def test_withdrawing_a_finished_turn_changes_nothing() -> None:
    """Withdrawing a finished turn changes nothing: its caller left with the answer."""
    desk = Desk()
    turn = desk.run()
    desk.create(turn)
    desk.finish(turn)
    desk.withdraw(turn)

    assert (desk.cancels, turn.failure) == ([], None)


def test_a_cancel_that_cannot_be_sent_is_let_go() -> None:
    """If the cancel cannot be sent the channel is gone, and the response with it."""
    desk = Desk()
    turn = desk.run()
    desk.create(turn)
    desk.refusal = UpstreamError("upstream-failed", "Gone.")
    desk.withdraw(turn)

    assert not turn.finished


# --- time and loss -----------------------------------------------------------------------------------------------------


def test_a_turn_has_its_time_from_when_it_is_asked_for() -> None:
    """At the deadline, which counts from the start of the turn, its response is cancelled, and it fails with the
    phase."""
    desk = Desk()
    turn = desk.add(now=1000)
    desk.advance()
    desk.create(turn)
    desk.expire(1299.9)
    assert not turn.finished
    desk.expire(1300)

    assert turn.failure is not None
    assert (turn.failure.code, turn.failure.members) == ("upstream-timeout", {"phase": "response"})
    assert (desk.cancels, desk.queue.running) == (["r_1"], None)


def test_a_turn_that_waited_in_vain_for_another_response_cancels_nobody() -> None:
    """If a turn's deadline passes while it waits for another response, that response is not cancelled."""
    desk = Desk()
    turn = desk.run()
    desk.refuse(turn, "r", BUSY)
    desk.expire(300)

    assert turn.finished
    assert desk.cancels == []


def test_time_passes_for_those_who_wait_as_well() -> None:
    """The deadline of a waiting turn also holds behind a response that never ends, or while there is no call."""
    desk = Desk()
    running, waiting = desk.run(), desk.add(now=5)
    desk.expire(300)
    assert (running.finished, waiting.finished) == (True, False)
    desk.expire(305)

    assert waiting.failure is not None
    assert waiting.failure.code == "upstream-timeout"


def test_a_lost_call_interrupts_the_running_turn_alone() -> None:
    """When a call is lost only the running turn fails; waiting turns have cost nothing yet."""
    desk = Desk()
    running, waiting = desk.run(), desk.add()
    failure = UpstreamError("upstream-failed", "Lost.")
    desk.carry(desk.queue.interrupt(failure, HEAD))
    desk.carry(desk.queue.interrupt(failure, HEAD))

    assert (running.failure, waiting.finished) == (failure, False)


def test_the_sessions_end_fails_every_turn() -> None:
    """When the session ends every turn fails, because nothing more will be sent."""
    desk = Desk()
    turns = [desk.run(), desk.add(), desk.add()]
    failure = UpstreamError("upstream-failed", "Over.")
    desk.carry(desk.queue.fail_all(failure, HEAD))

    assert [turn.failure for turn in turns] == [failure] * 3
    assert desk.queue.running is None


STEPS = [
    "add",
    "advance",
    "advance busy",
    "create",
    "finish",
    "busy",
    "refuse item",
    "refuse",
    "withdraw",
    "expire",
]


@given(st.lists(st.sampled_from(STEPS), max_size=40))
def test_any_order_of_events_keeps_the_order_and_cancels_only_by_name(steps: list[str]) -> None:
    """One turn runs at a time, in order. A cancel names a response of ours, except after minutes of silence."""
    desk, turns, now = Desk(max_waiting=3), list[Turn](), 0.0
    for step in steps:
        running = desk.queue.running
        match step:
            case "add":
                try:
                    turns.append(desk.add(now=now))
                except GatewayError:
                    assert sum(turn.after is None and not turn.finished for turn in turns) == 3
            case "advance" | "advance busy":
                desk.advance(step == "advance busy")
            case "expire":
                now += 300
                desk.expire(now)
            case "withdraw" if running is not None:
                desk.withdraw(running)
            case "create" if running is not None:
                desk.create(running)
            case "finish" if running is not None:
                desk.finish(running)
            case "busy" if running is not None:
                desk.refuse(running, "r", BUSY)
            case "refuse item" if running is not None:
                desk.refuse(running, "i0")
            case "refuse" if running is not None:
                desk.refuse(running, "r")
        if step != "expire":
            assert None not in desk.cancels
        desk.sent = [event for event in desk.sent if event["type"] != "response.cancel"]
        begun = [turn.after is not None for turn in turns if turn.after is not None or not turn.finished]
        assert begun == sorted(begun, reverse=True)
        assert all(t.finished or t is desk.queue.running or t.after is None for t in turns)


# --- items before the response -----------------------------------------------------------------------------------------


def test_the_response_is_asked_for_when_all_items_are_taken() -> None:
    """Items that a client wrote may be refused; a single text that the gateway wrote is sent with its response."""
    desk = Desk()
    turn = desk.run(ODD)
    assert desk.types == ["conversation.item.create"]
    desk.advance()
    assert len(desk.sent) == 1
    desk.take(turn)
    desk.advance(busy=True)
    assert len(desk.sent) == 1
    desk.advance()

    assert desk.types == ["conversation.item.create", "response.create"]


def test_a_refused_item_starts_no_response() -> None:
    """A refused item means that nothing is billed or cancelled, and the next turn runs at once."""
    desk = Desk()
    turn, waiting = desk.run(ODD), desk.add()
    desk.refuse(turn, "i0")
    desk.advance()

    assert turn.finished
    assert desk.queue.running is waiting
    assert desk.types == ["conversation.item.create", "conversation.item.create", "response.create"]


# --- a far end that echoes no metadata ---------------------------------------------------------------------------------


def test_a_response_without_metadata_is_the_turns_where_it_can_be_no_other() -> None:
    """A response without metadata belongs to the turn if no other response is possible; one with other metadata does
    not."""
    desk = Desk()
    turn = desk.run()
    assert desk.say("response.created", sole=True, response={"id": "x", "metadata": {"a": "b"}}) == "foreign"
    assert desk.say("response.created", response={"id": "y", "metadata": None}) == "foreign"
    assert desk.say("response.created", sole=True, response={"id": "r_1", "metadata": None}) == "ours"
    desk.finish(turn)

    assert turn.result == {"id": "r_1", "status": "completed"}


# --- a snapshot --------------------------------------------------------------------------------------------------------


def test_turns_are_read_back_as_they_were() -> None:
    """After a snapshot is loaded, the running turn recognizes its events, and waiting turns keep waiting."""
    desk = Desk()
    turn, waiting = desk.run(), desk.add()
    desk.create(turn)
    loaded = Turns.load(desk.queue.dump())
    assert loaded.running is not None
    assert (loaded.count, loaded.running.response_id, loaded.running.after) == (2, "r_1", HEAD)
    assert [one.number for one in loaded.waiting] == [waiting.number]
    assert loaded.find(2) is loaded.waiting[0]
    assert loaded.find(3) is None
    progress, _ = loaded.look("response.done", {"response": {"id": "r_1", "status": "completed"}})

    assert progress is Progress.DONE
    assert loaded.running.over
    assert Turns.load(Turns().dump()).running is None

"""The far end fails at every moment and in every way: the conversation continues, and every accepted event is
accounted for.

A killed far end is followed by another process at its address, which knows nothing. Only the fault `silence` is not
a loss: such a far end still answers consent checks, so the turn times out and the call is not replaced.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.app import Gateway
from tests.e2e.caller import Caller, Emulate, Json, Read, Serve, answer_of, number, say
from tests.e2e.holdings import back_to, settled
from tests.farend import FarEnd

TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Give the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
QUIET = ("--tokens-per-second", "0")


@dataclass(slots=True)
class Trial:
    """A session whose events all have IDs, and the outcome of each event."""

    emulate: Emulate
    far_end: FarEnd
    gateway: Gateway
    caller: Caller
    session_id: str = ""
    sent: dict[str, int] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)

    async def send(self, *events: Json) -> Json:
        """Send events with distinct IDs and return the receipt."""
        named = []
        for at, event in enumerate(events):
            name = f"own_{len(self.sent) + at}"
            item = {"item": {"id": name, **event["item"]}} if "item" in event else {}
            named.append({**event, "event_id": name, **item})
        receipt = await self.caller.send(self.session_id, *named)
        self.sent |= {str(event["event_id"]): receipt["first"] + at for at, event in enumerate(named)}
        return receipt

    async def ask(self, text: str) -> str:
        """Run a turn and return the answer's text."""
        receipt = await self.send(*say(text))
        reads = await self.caller.until(self.session_id, "response.done", after=receipt["head"])
        return answer_of(read.value for read in reads)

    async def call(self) -> str:
        _, said = await self.caller.ask("GET", f"/v1/sessions/{self.session_id}")
        return str(said["call_id"])

    async def head(self) -> str:
        _, said = await self.caller.ask("GET", f"/v1/sessions/{self.session_id}")
        return str(said["head"])

    async def fail(self, failure: str) -> None:
        """Make the current call fail, after recording what it had received."""
        call = await self.call()
        self.received += await self._names(call)
        if failure == "kill":
            self.kill()
        else:
            await self.far_end.fault(call, do=failure)

    def kill(self) -> None:
        """Kill the far end as a crash would; another one follows."""
        port = self.far_end.base_url.rsplit(":", 1)[1].split("/")[0]
        self.far_end.program.kill()
        self.far_end = self.emulate("--port", port, *QUIET)

    async def recovered(self, after: str, count: int = 1) -> Json:
        """Wait for the new call and return the event that reports it."""
        reads = await self.caller.until(self.session_id, "gateway.recovered", count=count, after=after)
        return reads[-1].value

    async def log(self) -> list[Read]:
        """Return everything that was logged."""
        head = number(await self.head())
        return await self.caller.take(self.session_id, head)

    async def _names(self, call: str) -> list[str]:
        frames = [json.loads(frame) for frame in await self.far_end.received(call)]
        return [str(frame.get("event_id")) for frame in frames]

    async def account(self) -> None:
        """Check that every event was confirmed in the log, seen by a call, or reported as unknown by its number, and
        that none was sent twice."""
        log = await self.log()
        assert [number(read.id) for read in log] == list(range(1, len(log) + 1))
        self.received += await self._names(await self.call())
        times = Counter(name for name in self.received if name.startswith("own_"))
        told = [read.value for read in log if read.type == "gateway.recovered"]
        unknown = {one["event_id"]: one["number"] for value in told for one in value["unknown"]}
        added = [read.value["item"]["id"] for read in log if read.type == "conversation.item.added"]
        confirmed = Counter(name for name in added if name.startswith("own_"))

        assert set(times) | set(confirmed) | set(unknown) == set(self.sent)
        assert unknown.items() <= self.sent.items()
        assert not set(unknown) & set(confirmed)
        assert set(confirmed.values()) <= {1}
        assert set(times.values()) <= {1}
        await self._count(told)

    async def _count(self, told: list[Json]) -> None:
        """Fail unless the metrics agree with the log."""
        operator = Caller(self.gateway.admin_url)
        try:
            _, text = await operator.ask("GET", "/metrics")
        finally:
            await operator.http.close()
        said = text.decode() if isinstance(text, bytes) else text
        name = r'realtime_gateway_recoveries_total\{cause="(\w+)",outcome="(\w+)"\} (\d+)'
        counted = {(cause, outcome): int(count) for cause, outcome, count in re.findall(name, said)}
        expected = Counter((str(value["cause"]), "recovered") for value in told)

        assert {key: count for key, count in counted.items() if count} == expected


Begin = Callable[..., Any]


@pytest.fixture
def trial(serve: Serve, emulate: Emulate) -> Begin:
    """Return a function that opens a session in which a name was mentioned; afterwards check for leaks."""

    @asynccontextmanager
    async def begin(**body: Any) -> AsyncIterator[Trial]:
        far_end = emulate(*QUIET)
        gateway = await serve(far_end)
        async with Caller(gateway.url) as caller:
            warm = await caller.open()
            await caller.ask("DELETE", f"/v1/sessions/{warm['id']}")
            before = await settled()
            one = Trial(emulate, far_end, gateway, caller)
            one.session_id = (await caller.open(**body))["id"]
            assert "Ada" in await one.ask("My name is Ada.")
            yield one
            assert "Ada" in await one.ask("What is my name?")
            await one.account()
            await caller.ask("DELETE", f"/v1/sessions/{one.session_id}")
            # Hanging up while dialling takes a second connection, which is kept for the next call for up to 30 s.
            await back_to(before, seconds=45)

    return begin


# --- the moments ------------------------------------------------------------------------------------------------------


async def idle(one: Trial, failure: str) -> None:
    """Nothing is going on; a loss without a sign is found when the next event is sent."""
    head = await one.head()
    await one.fail(failure)
    if failure in ("kill", "vanish"):
        await one.send(*say("Hello?"))
    recovered = await one.recovered(head)

    assert recovered["items_lost"] == 0


async def sending(one: Trial, failure: str) -> None:
    """A burst of items is being sent when the fault happens."""
    head = await one.head()
    items = [say(f"Note {at}.")[0] for at in range(20)]
    await one.send(*items[:10])
    failing = asyncio.create_task(one.fail(failure))
    for item in items[10:]:
        await one.send(item)
    await failing
    await one.send(say("One more.")[0])
    await one.recovered(head)


async def response(one: Trial, failure: str) -> None:
    """An answer is being generated."""
    head = await one.head()
    await one.far_end.fault(await one.call(), tokens_per_second=20)
    await one.send(*say("Count to 50."))
    await one.caller.until(one.session_id, "response.output_text.delta", count=3, after=head)
    await one.fail(failure)
    recovered = await one.recovered(head)

    assert recovered["response"] == "interrupted"


async def function_call(one: Trial, failure: str) -> None:
    """The model has called a function, and the output is sent on the next call."""
    update = {"type": "session.update", "session": {"type": "realtime", "tools": [TOOL]}}
    head = (await one.send(update, *say("What is the weather in Rome?")))["head"]
    reads = await one.caller.until(one.session_id, "response.done", after=head)
    output = reads[-1].value["response"]["output"]
    (called,) = [item["call_id"] for item in output if item["type"] == "function_call"]
    await one.fail(failure)
    if failure in ("kill", "vanish"):
        await one.send({"type": "conversation.item.create", "item": say("Well?")[0]["item"]})
    await one.recovered(head)
    item = {"type": "function_call_output", "call_id": called, "output": '{"weather":"foggy"}'}
    receipt = await one.send({"type": "conversation.item.create", "item": item}, {"type": "response.create"})
    answer = await one.caller.until(one.session_id, "response.done", after=receipt["head"])

    assert "foggy" in answer_of(read.value for read in answer)


async def recovery(one: Trial, failure: str) -> None:
    """The next calls fail as well, each in a different way, while events wait."""
    head = await one.head()
    await one.fail(failure)
    await one.far_end.faults(signal_status=503, signal_times=2)
    if failure in ("kill", "vanish"):
        await one.send(say("Still there?")[0])
    await one.caller.until(one.session_id, "gateway.recovering", after=head)
    if failure == "kill":
        one.kill()
    await one.send(say("I wait.")[0])
    recovered = await one.recovered(head)

    assert len(recovered["unknown"]) == (failure in ("kill", "vanish"))


async def twice(one: Trial, failure: str) -> None:
    """The new call fails as soon as it is open."""
    head = await one.head()
    for count in (1, 2):
        await one.fail(failure)
        if failure in ("kill", "vanish"):
            await one.send(say(f"Note {count}.")[0])
        await one.recovered(head, count)


Moment = Callable[[Trial, str], Awaitable[None]]

TRIALS: list[tuple[str, Moment]] = [
    *(("kill", moment) for moment in (idle, sending, response, function_call, recovery, twice)),
    *(("vanish", moment) for moment in (sending, response)),
    *(("close_channel", moment) for moment in (idle, sending, response, function_call, recovery, twice)),
    *(("hang_up", moment) for moment in (idle, sending, response, function_call, recovery, twice)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("failure", "moment"), TRIALS, ids=lambda one: getattr(one, "__name__", one))
async def test_the_conversation_goes_on(trial: Begin, moment: Moment, failure: str) -> None:
    """The next answer uses earlier facts, IDs are contiguous, every event is accounted for, and nothing is leaked."""
    async with trial() as one:
        await moment(one, failure)


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["expire", "stop_consent"])
async def test_a_call_that_ends_by_itself_is_replaced(trial: Begin, failure: str) -> None:
    """The call reached its end by the service's clock, or consent checks are no longer answered (noticed within half
    a minute)."""
    async with trial() as one:
        head = await one.head()
        await one.fail(failure)
        reads = await one.caller.until(one.session_id, "gateway.recovered", after=head, seconds=60)

        assert reads[-1].value["items_lost"] == 0


@pytest.mark.slow
async def test_a_far_end_killed_during_set_up_is_the_creates_answer(serve: Serve, emulate: Emulate) -> None:
    """There is no conversation yet to continue: the create is answered with 502 or 504, nothing is left, and the
    next create works."""
    far_end = emulate(*QUIET)
    port = far_end.base_url.rsplit(":", 1)[1].split("/")[0]
    gateway = await serve(far_end)
    async with Caller(gateway.url) as caller:
        warm = await caller.open()
        await caller.ask("DELETE", f"/v1/sessions/{warm['id']}")
        before = await settled()
        await far_end.faults(signal_delay_seconds=5)
        creating = asyncio.create_task(caller.ask("POST", "/v1/sessions", {}))
        await asyncio.sleep(0.3)
        far_end.program.kill()
        answer, said = await creating
        emulate("--port", port, *QUIET)
        session = await caller.open()
        await caller.ask("DELETE", f"/v1/sessions/{session['id']}")

        assert (answer.status, said["code"]) in ((502, "upstream-failed"), (504, "upstream-timeout"))
        await back_to(before, seconds=45)


@pytest.mark.slow
@pytest.mark.parametrize("continuity", [False, True])
async def test_only_a_session_without_continuity_is_told_that_its_call_expires(
    serve: Serve, emulate: Emulate, continuity: bool
) -> None:
    """With continuity the call is replaced instead."""
    # Short, but several ticks of the gateway: rounding to whole Unix seconds and one tick could use up a call of 3 s.
    far_end = emulate(*QUIET, "--max-session-seconds", "6")
    gateway = await serve(far_end, relay={"continuity": continuity})
    async with Caller(gateway.url) as caller:
        session = await caller.open()
        last = "gateway.recovered" if continuity else "gateway.expiring"
        reads = await caller.until(session["id"], last)

        assert [read.type for read in reads if read.type.startswith("gateway.")] == [last]

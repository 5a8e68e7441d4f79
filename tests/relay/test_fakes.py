"""The fakes fulfil the ports that they replace."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

from gateway.errors import GatewayError
from gateway.relay.ports import CallRequest, LossCause
from tests.facts import Facts
from tests.relay.fakes import FakeDialer, FakeReceiver

if TYPE_CHECKING:
    from gateway.relay.ports import Dialer, Receiver, Upstream
    from tests.relay.fakes import FakeCall

    def as_ports(dialer: FakeDialer, call: FakeCall, receiver: FakeReceiver) -> None:
        """Checked by the type checker: the fakes have the types of the ports."""
        _: tuple[Dialer, Upstream, Receiver] = (dialer, call, receiver)


class Ear:
    """A sink that records its calls."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def received(self, generation: int, text: str) -> None:
        self.heard.append(("received", generation))

    def received_together(self, generation: int, texts: Sequence[str]) -> None:
        for text in texts:
            self.received(generation, text)

    def received_in_steps(self, generation: int, text: str) -> Iterator[None]:
        self.received(generation, text)
        return iter(())

    def unreadable(self, generation: int, size: int) -> None:
        self.heard.append(("unreadable", generation, size))

    def lost(self, generation: int, cause: LossCause) -> None:
        self.heard.append(("lost", generation, cause))


async def test_a_call_speaks_under_its_generation() -> None:
    """A fake call sends its greeting, with its generation, as soon as it is dialled."""
    ear, dialer = Ear(), FakeDialer()
    call = await dialer.dial(CallRequest({}, generation=3), ear)
    call.say_unreadable(7)

    assert ear.heard == [("received", 3), ("unreadable", 3, 7)]


async def test_a_batch_is_sent_whole_or_not() -> None:
    """If the far end refuses one text of a batch, none of it is sent."""
    call = await FakeDialer().dial(CallRequest({}), Ear())
    call.max_message_bytes = 5
    with pytest.raises(GatewayError) as caught:
        call.send(["{}", '{"long":1}'])

    assert (caught.value.code, call.sent) == ("too-large", [])


async def test_a_loss_is_said_once_and_never_after_closing() -> None:
    """A loss is reported once and never after closing; afterwards nothing can be sent, and closing may be repeated."""
    ears = [Ear(), Ear()]
    lost, closed = [await FakeDialer().dial(CallRequest({}), ear) for ear in ears]
    lost.lose()
    lost.lose()
    await closed.close(hang_up=True)
    await closed.close(hang_up=True)
    closed.lose()

    assert [len(ear.heard) for ear in ears] == [2, 1]
    for call in (lost, closed):
        with pytest.raises(GatewayError):
            call.send(["{}"])


def test_facts_are_told_as_the_port_says() -> None:
    """A method name or an argument that telemetry does not have fails the test."""
    facts = Facts()
    with pytest.raises(AttributeError):
        facts.port.no_such_fact()  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        facts.port.response_done("completed")  # type: ignore[call-arg]


async def test_waiting_takes_no_time() -> None:
    """The loop's clock jumps to the next timer, in order."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    order: list[int] = []

    async def wait(seconds: int) -> None:
        await asyncio.sleep(seconds)
        order.append(seconds)

    await asyncio.gather(*map(wait, [3000, 10, 200]))

    assert order == [10, 200, 3000]
    assert loop.time() - begun == pytest.approx(3000, abs=1)

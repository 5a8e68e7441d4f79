"""The client against a real gateway and the emulator."""

import asyncio
import subprocess
import sys
import threading

import pytest

from gateway.client import Client, InvalidRequestError, ProblemError, sync

pytestmark = pytest.mark.slow


async def test_turn_gives_the_whole_answer(gateway: str) -> None:
    """Text, status and usage, and the session remembers."""
    async with Client(gateway) as client, await client.open() as session:
        first = await session.turn("My name is Ada.")
        second = await session.turn("What is my name?")
        usage = await session.usage()

    assert (first.status, second.status) == ("completed", "completed")
    assert "Ada" in second.text
    assert second.usage.input > first.usage.input
    assert usage == {} or usage["input_text"] == first.usage.input + second.usage.input


async def test_streamed_turn_gives_pieces_and_the_answer(gateway: str) -> None:
    """The pieces add up to the text, in a session and without one."""
    async with Client(gateway) as client, await client.open() as session:
        streams = [
            session.stream("Count to 5."),
            client.stream("Count to 5.", session={"instructions": "Be brief."}),
        ]
        for turn in streams:
            pieces = [piece async for piece in turn]

            assert len(pieces) > 3
            assert "".join(pieces) == turn.answer.text == "1, 2, 3, 4, 5."
            assert turn.answer.usage.output > 0


async def test_function_call_is_answered(gateway: str) -> None:
    """A call has its arguments, and its output is the next turn's input."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "name": "get_weather", "description": "The weather.", "parameters": schema}
    async with Client(gateway) as client, await client.open(session={"tools": [tool]}) as session:
        answer = await session.turn("What is the weather in Paris?")
        [call] = answer.calls
        last = await session.turn([call.output('{"celsius": 21}')])

    assert (call.name, call.values()) == ("get_weather", {"city": "Paris"})
    assert "21" in last.text


def test_synchronous_form_does_the_same(gateway: str) -> None:
    """Turns, pieces, events and errors, without `async`."""
    with sync.Client(gateway) as client:
        asked = client.ask("What is 6 times 7?")
        with client.open() as session:
            turn = session.stream("Count to 5.")
            pieces = list(turn)
            types = []
            for event in client.attach(session.id).events(types=["response.done"]):
                types.append(event.type)
                break
            with pytest.raises(InvalidRequestError):
                session.send({"no": "type"})
        closed = list(session.events())

    assert asked.text == "That is 42."
    assert "".join(pieces) == turn.answer.text == "1, 2, 3, 4, 5."
    assert types == ["response.done"]
    assert closed[-1].type == "gateway.closed"
    assert [thread.name for thread in threading.enumerate() if thread.name == "gateway-client"] == []


def test_importing_the_client_loads_nothing_of_the_gateway() -> None:
    """No WebRTC, no configuration, no metrics: a script that imports it starts at once, and needs only aiohttp."""
    code = "import sys, gateway.client.sync; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    others = [name for name in ("gateway.app", "gateway.relay", "gateway.config") if name in loaded]

    heavy = {
        "av",
        "aiortc",
        "aioice",
        "pydantic",
        "prometheus_client",
        "structlog",
        "typer",
        "rich",
        "itsdangerous",
    }
    assert set(loaded) & heavy == set()
    assert others == []


async def test_events_of_a_session_come_in_order_to_their_end(gateway: str) -> None:
    """From `session.created` to `gateway.closed`, each event arrives once, with ascending ids."""
    async with Client(gateway) as client:
        session = await client.open()
        await session.turn("Count to 5.")
        await session.close()
        async with asyncio.timeout(10):
            events = [event async for event in session.events()]

    numbers = [int((event.id or "").rpartition("-")[2]) for event in events]
    assert numbers == list(range(1, len(events) + 1))
    assert (events[0].type, events[-1].type) == ("session.created", "gateway.closed")


async def test_session_that_never_was_is_told(gateway: str) -> None:
    """The error for an unknown session keeps the problem's code."""
    async with Client(gateway) as client:
        session = await client.open()
        session.id = "gws_none"
        session._path = "/v1/sessions/gws_none"
        with pytest.raises(ProblemError) as refused:
            await session.look()

    assert (refused.value.status, refused.value.code) == (404, "session-unknown")

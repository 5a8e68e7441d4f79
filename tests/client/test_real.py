"""The client against a real gateway and a real far end."""

import asyncio

import pytest

from gateway.client import Client, ProblemError


async def test_turn_gives_the_whole_answer(gateway: str) -> None:
    """Text, status and usage, and the session remembers."""
    async with Client(gateway) as client:
        session = await client.open()
        first = await session.turn("My name is Ada.")
        second = await session.turn("What is my name?")
        await session.close()

    assert (first["status"], second["status"]) == ("completed", "completed")
    assert "Ada" in second["output_text"]
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]


async def test_events_of_a_session_come_in_order_to_their_end(gateway: str) -> None:
    """From `session.created` to `gateway.closed`, each once, with ids that grow."""
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
    """A problem keeps its code."""
    async with Client(gateway) as client:
        session = await client.open()
        session.id = "gws_none"
        session._path = "/v1/sessions/gws_none"
        with pytest.raises(ProblemError) as refused:
            await session.look()

    assert (refused.value.status, refused.value.code) == (404, "session-unknown")

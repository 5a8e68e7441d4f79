"""`gateway chat` with a real gateway, reading its input from a pipe."""

import asyncio
import signal
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from io import StringIO
from unittest.mock import AsyncMock, Mock

import pytest
from rich.console import Console

from gateway.cli.chat import _answer, _talk
from gateway.client import Event
from tests.cli.conftest import Running, Start
from tests.cli.test_serve import SERVE, addresses

pytestmark = pytest.mark.slow


async def say(chat: Running, line: str) -> None:
    """Type a line."""
    assert chat.process.stdin is not None
    chat.process.stdin.write(line.encode() + b"\n")
    await chat.process.stdin.drain()


async def test_conversation_remembers_and_ends(start: Start, gateway: str) -> None:
    """Answers arrive, the session remembers earlier turns, and an empty line ends it."""
    chat = await start("chat", "--url", gateway, stdin=PIPE)
    await say(chat, "What is 6 times 7?")
    await chat.says("42")
    await say(chat, "My name is Ada.")
    await say(chat, "What is my name?")
    await chat.says(r"name\?*[^?]*Ada")
    await say(chat, "")

    assert await chat.ended() == 0
    assert "gws_" in chat.output
    assert "Traceback" not in chat.output


async def test_end_of_input_ends_the_chat(start: Start, gateway: str) -> None:
    """Ctrl-D, or a pipe that is read to its end."""
    chat = await start("chat", "--url", gateway)

    assert await chat.ended() == 0


async def test_interrupt_stops_the_answer_only(start: Start, gateway: str) -> None:
    """Ctrl-C during an answer cancels it, and the conversation continues."""
    chat = await start("chat", "--url", gateway, stdin=PIPE)
    await say(chat, "Write 3000 words about the sea.")
    await chat.says(r"(?s)you> .{80}")
    await chat.tell(signal.SIGINT)
    await chat.says("stopped")
    await say(chat, "What is 6 times 7?")
    await chat.says(r"stopped\)(?s:.*)42")
    await say(chat, "")

    assert await chat.ended() == 0


async def test_end_of_a_stopped_answer_is_not_that_of_the_next() -> None:
    """The stopped response may end, and the request to stop it may be refused, after the next line was sent."""

    async def events(after: str) -> AsyncIterator[Event]:
        for value in (
            {"type": "response.output_text.delta", "response_id": "resp_1", "delta": "sea"},
            {"type": "response.done", "response": {"id": "resp_1", "status": "cancelled"}},
            {"type": "error", "error": {"event_id": "chat_stop", "message": "no active response"}},
            {"type": "response.created", "response": {"id": "resp_2"}},
            {"type": "response.output_text.delta", "response_id": "resp_2", "delta": "42"},
            {"type": "response.done", "response": {"id": "resp_2", "status": "completed"}},
        ):
            yield Event(None, "", value)

    session = Mock(send=AsyncMock(return_value={"head": "k-1"}), events=events)
    console = Console(file=StringIO())
    over = await _answer(console, session, "What is 6 times 7?")

    assert not over
    assert console.file.getvalue() == "42\n"  # type: ignore[attr-defined]  # the StringIO above


def test_answer_that_does_not_come_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """After ANSWER_SECONDS the response is cancelled, and the next line can be typed."""
    monkeypatch.setattr("gateway.cli.chat.ANSWER_SECONDS", 0.01)

    async def events(after: str) -> AsyncIterator[Event]:
        await asyncio.Event().wait()
        yield Event(None, after, {})

    session = Mock(send=AsyncMock(return_value={"head": "k-1"}), events=events)
    console = Console(file=StringIO())
    monkeypatch.setattr(console, "input", Mock(side_effect=["What is 6 times 7?", ""]))
    with asyncio.Runner() as runner:
        _talk(runner, console, session)

    assert session.send.await_args.args == ({"type": "response.cancel", "event_id": "chat_stop"},)
    assert console.file.getvalue() == " (stopped)\n"  # type: ignore[attr-defined]  # the StringIO above


async def test_gateway_that_is_not_there_is_told(start: Start) -> None:
    """The failure is reported in one line."""
    chat = await start("chat", "--url", "http://127.0.0.1:1")

    assert await chat.ended() == 1
    assert "http://127.0.0.1:1 cannot be reached: Connection refused. `gateway serve`" in chat.output
    assert "Traceback" not in chat.output


async def test_server_that_is_no_gateway_is_told(start: Start, emulator: str) -> None:
    """A server that is not a gateway is reported."""
    chat = await start("chat", "--url", emulator)

    assert await chat.ended() == 1
    assert "answered 404, not as a gateway does" in chat.output


async def test_wrong_key_is_told(start: Start, emulator: str) -> None:
    """The message names the flag and the variable for the key."""
    keys = '[{"name": "ada", "sha256": "' + "0" * 64 + '"}]'
    running = await start(*SERVE, emulator, OPENAI_API_KEY="sk-test", GATEWAY_ACCESS__KEYS=keys)
    url = (await addresses(running))[0]
    chat = await start("chat", "--url", url, "--key", "wrong")

    assert await chat.ended() == 1
    assert "set --key or GATEWAY_KEY" in chat.output

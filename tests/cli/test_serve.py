"""`gateway serve` as its operator uses it: log lines, signals, exit status."""

import asyncio
import hashlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.cli.serving import started_before
from gateway.client import Client, Event
from tests.cli.conftest import Running, Start

pytestmark = pytest.mark.slow

SERVE = ("serve", "--port", "0", "--admin-port", "0", "--upstream-url")


async def addresses(running: Running) -> tuple[str, str]:
    """Wait until the gateway listens and return both addresses."""
    client = await running.says(r"(?<!admin )listening on (http://127\.0\.0\.1:\d+)")
    admin = await running.says(r"admin listening on (http://127\.0\.0\.1:\d+)")
    return client[1], admin[1]


async def fetch(url: str, method: str = "GET") -> tuple[int, str]:
    """Return an answer's status and text."""
    async with aiohttp.ClientSession() as http, http.request(method, url) as answer:
        return answer.status, await answer.text()


async def test_serves_until_sigterm_and_exits_with_zero(start: Start, emulator: str) -> None:
    """It logs its addresses, serves, drains on SIGTERM and exits."""
    running = await start(*SERVE, emulator, OPENAI_API_KEY="sk-test", GATEWAY_DRAIN__TIMEOUT_SECONDS="2")
    url, admin = await addresses(running)
    async with Client(url) as client:
        session = await client.open()
        seen: list[Event] = []

        async def read() -> None:
            seen.extend([event async for event in session.events()])

        reading = asyncio.create_task(read())
        ready = await fetch(f"{admin}/readyz")
        await running.tell(signal.SIGTERM)
        status = await running.ended()
        await asyncio.wait_for(reading, 10)

    assert ready[0] == 200
    assert status == 0
    assert [event.type for event in seen][-2:] == ["gateway.draining", "gateway.closed"]
    assert seen[-1].value["reason"] == "drained"


async def test_second_signal_ends_at_once(start: Start, emulator: str) -> None:
    """A second signal ends the drain."""
    environ = {"OPENAI_API_KEY": "sk-test", "GATEWAY_DRAIN__TIMEOUT_SECONDS": "60"}
    running = await start(*SERVE, emulator, **environ)
    url, _ = await addresses(running)
    async with Client(url) as client:
        session = await client.open()
        events = session.events()
        await anext(events)
        # A response in flight holds the drain up.
        item = {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Write 5000 words about the sea."}],
        }
        await session.send({"type": "conversation.item.create", "item": item}, {"type": "response.create"})
        async for event in events:
            if event.type == "response.output_text.delta":
                break
        await running.tell(signal.SIGINT)
        await running.says("drain_started")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(running.process.wait(), 0.5)
        await running.tell(signal.SIGINT)
        status = await running.ended()
        await events.aclose()

    assert status == 0


async def test_post_drain_ends_as_sigterm_does(start: Start) -> None:
    """The operator can start a drain over HTTP."""
    running = await start(*SERVE, "http://127.0.0.1:1/v1")
    _, admin = await addresses(running)
    answer = await fetch(f"{admin}/drain", "POST")

    assert answer[0] == 202
    assert await running.ended() == 0


async def test_port_in_use_exits_with_one(start: Start) -> None:
    """A port in use is a failure, not a configuration error, and is reported in one line. A variable with one underscore
    too few is reported as well."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        taken_port = taken.getsockname()[1]
        running = await start(
            "serve", "--port", str(taken_port), "--admin-port", "0", GATEWAY_LOG_ACCESS="false"
        )
        status = await running.ended()
        await running.says("not_listening")

    assert status == 1
    assert "rename it to GATEWAY_LOG__ACCESS" in running.output
    assert "--admin-port" in running.output
    assert f"127.0.0.1:{taken_port}: " in running.output
    assert "Traceback" not in running.output


async def test_missing_key_is_told_at_start(start: Start) -> None:
    """Without OpenAI's key every session would be refused, so the log says so at start."""
    running = await start(*SERVE, "http://127.0.0.1:1/v1")
    await addresses(running)

    assert "openai_key_missing" in running.output


async def test_json_lines_are_json(start: Start) -> None:
    """With `log.format = "json"` each line is an object, the contract's two lines in `event`."""
    running = await start(*SERVE, "http://127.0.0.1:1/v1", GATEWAY_LOG__FORMAT="json")
    url, _ = await addresses(running)
    await fetch(f"{url}/v1/nothing")
    await running.tell(signal.SIGTERM)
    await running.ended()
    await running.says("gateway_closed")

    lines: list[dict[str, Any]] = [json.loads(line) for line in running.output.splitlines()]
    assert f"listening on {url}" in {line["event"] for line in lines}
    (access,) = [line for line in lines if line["event"] == "http_answered"]
    assert (access["status"], access["code"], access["route"]) == (404, "not-found", "other")
    assert all({"event", "level", "time"} <= line.keys() for line in lines)


async def test_flags_go_before_the_environment(start: Start, tmp_path: Path) -> None:
    """A flag overrides the environment, which overrides the file."""
    file = tmp_path / "gateway.toml"
    file.write_text("[server]\nport = 1\n[admin]\nport = 0\n[log]\nformat = 'json'\n")
    running = await start(
        "serve",
        "--port",
        "0",
        GATEWAY_CONFIG=str(file),
        GATEWAY_SERVER__PORT="2",
        GATEWAY_LOG__FORMAT="console",
    )
    url, _ = await addresses(running)
    await running.tell(signal.SIGTERM)

    assert await running.ended() == 0
    assert int(url.rpartition(":")[2]) > 2
    assert not running.output.startswith("{")


async def test_keys_file_is_read_again_on_sighup(start: Start, tmp_path: Path) -> None:
    """A new key is accepted without a restart; emptying the file removes no key and logs an error."""
    file = tmp_path / "keys.toml"
    file.write_text(f'[[keys]]\nname = "bob"\nsha256 = "{"1" * 64}"\n')
    running = await start(*SERVE, "http://127.0.0.1:1/v1", GATEWAY_ACCESS__KEYS_FILE=str(file))
    url, _ = await addresses(running)
    file.write_text(f'[[keys]]\nname = "ada"\nsha256 = "{hashlib.sha256(b"key").hexdigest()}"\n')
    await running.tell(signal.SIGHUP)
    await running.says("keys_reloaded +count=1")
    file.write_text("")
    await running.tell(signal.SIGHUP)
    await running.says(r"\[error +\] keys_not_reloaded")
    async with Client(url, key="key") as client, client.http.get(f"{url}/v1/sessions") as known:
        stranger = await fetch(f"{url}/v1/sessions")

    assert (known.status, stranger[0]) == (200, 401)


async def test_keys_file_without_keys_is_exit_status_2(start: Start, tmp_path: Path) -> None:
    """Without keys no caller would be accepted, unless the operator sets `access.anonymous`."""
    file = tmp_path / "keys.toml"
    file.write_text("")
    running = await start(*SERVE, "http://127.0.0.1:1/v1", GATEWAY_ACCESS__KEYS_FILE=str(file))

    assert await running.ended() == 2
    assert "access.keys_file" in running.output


async def test_supervisor_is_told(start: Start, tmp_path: Path) -> None:
    """Under systemd's Type=notify it says when it is ready and when it stops."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(os.fspath(tmp_path / "notify"))
        supervisor.settimeout(10)
        running = await start(*SERVE, "http://127.0.0.1:1/v1", NOTIFY_SOCKET=os.fspath(tmp_path / "notify"))
        await addresses(running)
        ready = await asyncio.to_thread(supervisor.recv, 100)
        await running.tell(signal.SIGTERM)
        stopping = await asyncio.to_thread(supervisor.recv, 100)
        await running.ended()

    assert (ready, stopping) == (b"READY=1", b"STOPPING=1")


async def test_interrupt_while_starting_leaves_no_traceback(start: Start) -> None:
    """Ctrl-C before the gateway listens ends it without a traceback."""
    running = await start(*SERVE, "http://127.0.0.1:1/v1")
    await asyncio.wait_for(_send_until_dead(running), 20)

    assert "Traceback" not in running.output


@pytest.mark.parametrize("ends", ["at the signal", "before it", "with an error"])
async def test_signal_ends_a_start_that_waits(ends: str) -> None:
    """A start may wait a minute for Redis, and is cancelled by the first signal."""
    told, waiting = asyncio.Event(), asyncio.Event()

    async def start() -> None:
        if ends == "with an error":
            raise OSError("the port is in use")
        if ends == "at the signal":
            waiting.set()
            await asyncio.Event().wait()

    starting = asyncio.create_task(started_before(told, start()))
    if ends == "with an error":
        with pytest.raises(OSError, match="in use"):
            await starting
        return
    if ends == "at the signal":
        await waiting.wait()
        told.set()

    assert await asyncio.wait_for(starting, 5) is (ends == "before it")


async def _send_until_dead(running: Running) -> None:
    while running.process.returncode is None:
        running.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.05)

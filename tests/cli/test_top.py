"""`gateway top` as its operator uses it: with a real gateway, and without one."""

import os
import re
import signal

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.client import Client
from tests.cli.conftest import Start

pytestmark = pytest.mark.slow

SERVE = ("serve", "--port", "0", "--admin-port", "0", "--upstream-url")


async def test_top_shows_sessions_and_what_they_cost(start: Start, emulator: str) -> None:
    """A single sample, as a script takes it, shows the session with its tokens and its cost."""
    running = await start(*SERVE, emulator, OPENAI_API_KEY="sk-test")
    url = (await running.says(r"(?<!admin )listening on (http://\S+)"))[1]
    admin = (await running.says(r"admin listening on (http://\S+)"))[1]
    async with Client(url) as client:
        session = await client.open()
        async with client.http.post(
            f"{url}/v1/sessions/{session.id}/turns?format=json", json={"input": "Hi"}
        ):
            pass
        top = await start("top", "--url", admin, "--once", "--interval", "0.5")
        status = await top.ended()
        await top.says(session.id)

    assert status == 0
    assert re.search(r"1 connected · 0 recovering", top.output)
    assert re.search(rf"{session.id} +anonymous +connected +gpt-realtime\S* .* \$0\.\d{{4}}", top.output)


async def test_top_is_live_until_it_is_ended(start: Start, emulator: str) -> None:
    """In a terminal it redraws until Ctrl-C."""
    running = await start(*SERVE, emulator, OPENAI_API_KEY="sk-test")
    admin = (await running.says(r"admin listening on (http://\S+)"))[1]
    # rich treats the output as a terminal, as it does under `script` or a multiplexer.
    top = await start("top", "--url", admin, "--interval", "0.5", FORCE_COLOR="1", TERM="xterm")
    await top.says(r"(?s)sessions.*sessions.*sessions")
    await top.tell(signal.SIGINT)

    assert await top.ended() in (0, 130)
    assert "Traceback" not in top.output


async def test_top_asks_for_the_token(start: Start, emulator: str) -> None:
    """If a token is configured, nothing is shown without it, and the message says how to pass it."""
    token = "t" * 32
    running = await start(*SERVE, emulator, OPENAI_API_KEY="sk-test", GATEWAY_ADMIN__TOKEN=token)
    admin = (await running.says(r"admin listening on (http://\S+)"))[1]
    without = await start("top", "--url", admin, "--once", "--interval", "0.5")
    status = await without.ended()
    await without.says("admin token")
    with_it = await start("top", "--url", admin, "--once", "--interval", "0.5", GATEWAY_ADMIN__TOKEN=token)

    assert status == 1
    assert "GATEWAY_ADMIN__TOKEN" in without.output
    assert await with_it.ended() == 0


async def test_top_at_the_listener_for_clients_says_so(start: Start, emulator: str) -> None:
    """The message names the other listener, and no token, which would not help."""
    running = await start(*SERVE, emulator, OPENAI_API_KEY="sk-test")
    url = (await running.says(r"(?<!admin )listening on (http://\S+)"))[1]
    top = await start("top", "--url", url, "--once", "--interval", "0.5")

    assert await top.ended() == 1
    assert "is a listener for clients: set --url to the operator's listener" in top.output


async def test_top_at_another_server_says_so(start: Start) -> None:
    """A page is no metrics: one line says so, without a traceback."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>\n<p>no metrics", content_type="text/html")

    app = web.Application()
    app.router.add_get("/{path:.*}", page)
    async with TestServer(app) as server:
        top = await start("top", "--url", str(server.make_url("")), "--once")

        assert await top.ended() == 1
    assert "answered 200, not as an operator's listener does" in top.output
    assert "Traceback" not in top.output


async def test_top_without_a_gateway_says_so(start: Start) -> None:
    """The message names the URL that was requested and the setting that holds the address."""
    top = await start("top", "--url", "127.0.0.1:1", "--once")

    assert await top.ended() == 1
    await top.says("admin listening on")
    assert "http://127.0.0.1:1 cannot be reached" in top.output
    assert os.linesep + "Traceback" not in top.output

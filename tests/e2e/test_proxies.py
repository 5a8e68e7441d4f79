"""Real proxies between clients and the gateway: events arrive promptly with the way of reading that suits each
proxy.

tests/load/proxies.py measures the delays of all ways through all proxies; the tests here check the promises of
deploy/proxies.
"""

import asyncio
import json
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp
import pytest

from gateway.app import Gateway
from tests.e2e import proxies
from tests.e2e.caller import Caller, Json, say
from tests.farend import FarEnd

Part = Callable[[str], str]
Standing = Callable[[Part, str, Path, str], AbstractAsyncContextManager[str]]

# The delay of a single event with no later data behind it. Idle proxies take 15 ms; a busy machine may take longer.
SOON_SECONDS = 10.0
# An idle time-out that is longer than a heartbeat and shorter than this test waits.
IDLE_SECONDS = 33.0


def shown(file: str) -> str:
    """Return a configuration from the documentation."""
    return (proxies.PROXIES / file).read_text()


SERVERS = [
    pytest.param(start, text, marks=pytest.mark.needs(start.__name__), id=name)
    for name, start, text in (
        ("nginx-default", proxies.nginx, proxies.NGINX_DEFAULT),
        ("nginx-http-1.0", proxies.nginx, proxies.NGINX_HTTP_1_0),
        ("nginx-buffering", proxies.nginx, proxies.NGINX_BUFFERING),
        ("nginx-gzip", proxies.nginx, proxies.NGINX_GZIP),
        ("nginx.conf", proxies.nginx, shown("nginx.conf")),
        ("haproxy-30-s", proxies.haproxy, proxies.HAPROXY_30_SECONDS),
        ("haproxy.cfg", proxies.haproxy, shown("haproxy.cfg")),
        ("Caddyfile", proxies.caddy, shown("Caddyfile")),
    )
]


DOCUMENTED = SERVERS[4:5] + SERVERS[6:]


async def send_mark(far_end: FarEnd, session: Json, mark: str) -> None:
    """Make the far end send one event that can be recognised."""
    await far_end.send(session["call_id"], json.dumps({"type": "mark", "mark": mark}))


class Piece:
    """The part of an answer that has arrived so far."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self.text = ""

    async def until(self, what: str, seconds: float = SOON_SECONDS) -> float:
        """Wait until it contains something and return how long that took."""
        began = time.monotonic()
        async with asyncio.timeout(seconds):
            while what not in self.text:
                chunk = await self._answer.content.readany()
                assert chunk, f"it ended with {self.text[-200:]!r}"
                self.text += chunk.decode("utf-8", "replace")
        return time.monotonic() - began

    async def closed(self, seconds: float) -> None:
        """Wait until the connection ends in any way."""
        try:
            async with asyncio.timeout(seconds):
                while await self._answer.content.readany():
                    pass
        except aiohttp.ClientError:
            pass


def timeless() -> aiohttp.ClientTimeout:
    """Return a time-out for a stream: none, because each wait has its own."""
    return aiohttp.ClientTimeout(total=None)


@pytest.mark.slow
@pytest.mark.parametrize(("start", "text"), SERVERS)
async def test_a_lone_event_arrives_soon(
    start: Standing,
    text: str,
    gateway: Gateway,
    far_end: FarEnd,
    caller: Caller,
    part_path: Part,
    tmp_path: Path,
) -> None:
    """An event that is followed by silence arrives by event stream, POSTed stream, NDJSON and long-poll."""
    session = await caller.open()
    path = f"{session['events_url']}?after={session['head']}&format="
    async with start(part_path, text, tmp_path / "proxy", gateway.url) as url, Caller(url) as through:
        get, post = through.http.get, through.http.post
        async with (
            get(f"{url}{path}sse", timeout=timeless()) as stream,
            post(f"{url}{path.replace('?', '/stream?')}sse", timeout=timeless()) as posted,
            get(f"{url}{path}ndjson", timeout=timeless()) as lines,
        ):
            pieces = [Piece(stream), Piece(posted), Piece(lines)]
            for piece in pieces:
                await piece.until("gateway.open")
            poll = asyncio.create_task(through.ask("GET", f"{path}json"))
            await send_mark(far_end, session, "alone")
            for piece in pieces:
                await piece.until('"alone"')
            _, page = await poll

        assert [event["event"]["mark"] for event in page["events"]] == ["alone"]


@pytest.mark.slow
@pytest.mark.parametrize(("start", "text"), DOCUMENTED)
async def test_the_console_may_call_through_it(
    start: Standing, text: str, gateway: Gateway, part_path: Part, tmp_path: Path
) -> None:
    """A page that was loaded through the proxy, at its own port, may open a session: its Origin is its Host."""
    async with start(part_path, text, tmp_path / "proxy", gateway.url) as url, Caller(url) as through:
        page, _ = await through.ask("GET", "/")
        opened, said = await through.ask("POST", "/v1/sessions", headers={"Origin": url})

    assert (page.status, opened.status) == (200, 201), said


@pytest.mark.slow
@pytest.mark.needs("nginx")
async def test_half_an_answer_is_not_whole_behind_http_1_0(
    gateway: Gateway, part_path: Part, tmp_path: Path
) -> None:
    """Only a reset shows that an answer in text is cut short, because nginx speaks HTTP/1.0 to the gateway by default."""
    asked = {"input": "Count to 500", "max_output_tokens": 30}
    async with (
        proxies.nginx(part_path, proxies.NGINX_DEFAULT, tmp_path / "proxy", gateway.url) as url,
        Caller(url) as through,
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            await through.ask("POST", "/v1/turns", asked, headers={"Accept": "text/plain"})


@pytest.mark.slow
@pytest.mark.parametrize(("start", "text"), SERVERS)
async def test_a_conversation_is_held_through_it(
    start: Standing, text: str, gateway: Gateway, part_path: Part, tmp_path: Path
) -> None:
    """Create, send, stream, turn and delete work through the proxy, statuses and resumption included."""
    # A server that buffers holds the end of a replay until the next heartbeat.
    patience = 20.0 if text == proxies.NGINX_BUFFERING else 2 * SOON_SECONDS
    async with start(part_path, text, tmp_path / "proxy", gateway.url) as url, Caller(url) as through:
        session = await through.open()
        await through.send(session["id"], *say("What is 6 times 7?"))
        read = await through.until(session["id"], "response.done", after=session["head"], seconds=patience)
        again = await through.until(session["id"], "response.done", after=read[2].id, seconds=patience)
        answer, turn = await through.ask("POST", "/v1/turns", "What is 6 times 7?")
        closed, _ = await through.ask("DELETE", f"/v1/sessions/{session['id']}")
        _, problem = await through.ask("GET", "/v1/sessions/gws_unknown/events")

    assert [block.id for block in again] == [block.id for block in read[3:]]
    assert (answer.status, turn.decode().strip()) == (200, "That is 42.")
    assert closed.status == 204
    assert problem["code"] == "session-unknown"


@pytest.mark.slow
async def test_padding_and_long_polls_pass_a_proxy_that_holds_4_kib(
    gateway: Gateway, far_end: FarEnd, caller: Caller
) -> None:
    """A plain stream is held back; a padded one arrives at the next heartbeat, and a long-poll at once."""
    session = await caller.open()
    path = f"{session['events_url']}?after={session['head']}&format="
    async with proxies.holding(gateway.url) as url, Caller(url) as through:
        get = through.http.get
        poll = asyncio.create_task(through.ask("GET", f"{path}json"))
        plain = asyncio.create_task(get(f"{url}{path}sse", timeout=timeless()).__aenter__())
        async with get(f"{url}{path}sse&pad=4096&heartbeat=5", timeout=timeless()) as answer:
            padded = Piece(answer)
            await padded.until("gateway.open", seconds=30)
            await send_mark(far_end, session, "alone")
            async with asyncio.timeout(SOON_SECONDS):
                _, page = await poll
            took = await padded.until('"alone"', seconds=30)
        held = not plain.done()
        plain.cancel()
        await asyncio.wait({plain})

    assert page["events"][0]["event"]["mark"] == "alone"
    assert held
    assert took <= 9  # at the first heartbeat after it, not at the second


@pytest.mark.slow
async def test_long_polls_pass_a_proxy_that_holds_whole_answers(
    gateway: Gateway, far_end: FarEnd, caller: Caller
) -> None:
    """If a proxy forwards an answer only when it is complete, a long-poll delivers the event and a turn the text."""
    session = await caller.open()
    async with proxies.holding(gateway.url, None) as url, Caller(url) as through:
        path = f"{session['events_url']}?after={session['head']}&format=json"
        poll = asyncio.create_task(through.ask("GET", path))
        await send_mark(far_end, session, "alone")
        async with asyncio.timeout(SOON_SECONDS):
            _, page = await poll
        _, turn = await through.ask("POST", "/v1/turns", "What is 6 times 7?")

    assert page["events"][0]["event"]["mark"] == "alone"
    assert turn.decode().strip() == "That is 42."


@pytest.mark.slow
@pytest.mark.needs("haproxy")
async def test_heartbeats_outlive_a_time_out_of_30_seconds(
    gateway: Gateway, far_end: FarEnd, caller: Caller, part_path: Part, tmp_path: Path
) -> None:
    """A silent stream stays open with the default heartbeat, and is cut with one that is too slow."""
    session = await caller.open()
    path = f"{session['events_url']}?after={session['head']}"
    async with (
        proxies.haproxy(part_path, proxies.HAPROXY_30_SECONDS, tmp_path / "proxy", gateway.url) as url,
        Caller(url) as through,
        through.http.get(f"{url}{path}", timeout=timeless()) as kept,
        through.http.get(f"{url}{path}&heartbeat=60", timeout=timeless()) as cut,
    ):
        await Piece(cut).closed(IDLE_SECONDS)
        staying = Piece(kept)
        await send_mark(far_end, session, "late")
        await staying.until('"late"')

        assert staying.text.count("\n:\n") >= 1


@pytest.mark.needs("nginx")
def test_nginx_takes_its_configuration(part_path: Part, tmp_path: Path) -> None:
    """`nginx -t` reports nothing about nginx.conf."""
    command = proxies.nginx_command(part_path("nginx"), shown("nginx.conf"), tmp_path)
    told = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=30, check=False)

    assert (told.returncode, "warn" in told.stderr) == (0, False), told.stderr


@pytest.mark.needs("haproxy")
def test_haproxy_takes_its_configuration(part_path: Part) -> None:
    """`haproxy -c` reports nothing about haproxy.cfg, not even a warning."""
    command = [part_path("haproxy"), "-c", "-dW", "-f", str(proxies.PROXIES / "haproxy.cfg")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.needs("caddy")
def test_caddy_takes_its_configuration(part_path: Part, tmp_path: Path) -> None:
    """`caddy validate` reports nothing about Caddyfile."""
    file = str(proxies.PROXIES / "Caddyfile")
    command = [part_path("caddy"), "validate", "--adapter", "caddyfile", "--config", file]
    told = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, env={"HOME": str(tmp_path)}
    )

    assert told.returncode == 0, told.stderr
    assert '"warn"' not in told.stderr


@pytest.mark.slow
@pytest.mark.needs("nginx")
async def test_tickets_stay_out_of_the_proxys_log(
    gateway: Gateway, caller: Caller, part_path: Part, tmp_path: Path
) -> None:
    """nginx.conf logs paths without queries, because a stream's credential is in the query."""
    session = await caller.open()
    home = tmp_path / "proxy"
    async with (
        proxies.nginx(part_path, shown("nginx.conf"), home, gateway.url) as url,
        Caller(url) as through,
    ):
        async with through.http.get(url + session["stream_url"], timeout=timeless()) as answer:
            await Piece(answer).until("gateway.open")
        await through.ask("GET", f"/v1/sessions/{session['id']}")

    logged = (home / "access.log").read_text()
    assert session["events_url"] in logged
    assert "gwt_" not in logged

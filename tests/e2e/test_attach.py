"""Attaching to a call, where a black box is not enough: a path that swallows data, large events, and the example."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.conftest import ROOT
from tests.e2e.caller import KEY, Caller, Serve, say
from tests.emulator.caller import TEXT_SESSION
from tests.emulator.caller import Caller as Peer
from tests.emulator.test_browser import Browser
from tests.farend import FarEnd

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "deploy" / "examples"


@asynccontextmanager
async def peer(far_end: FarEnd) -> AsyncIterator[Peer]:
    """Open a call as another application, with the gateway's key."""
    one = Peer(far_end.base_url, KEY)
    try:
        await one.open()
        yield one
    finally:
        await one.close()


class Swallowing:
    """A TCP path that can swallow what is sent up, and be cut."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.target = (str(parts.hostname), int(parts.port or 80))
        self.swallows = False
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above_reader, above_writer = await asyncio.open_connection(*self.target)
        self._writers |= {writer, above_writer}
        up = asyncio.create_task(self._pipe(reader, above_writer, up=True))
        down = asyncio.create_task(self._pipe(above_reader, writer, up=False))
        self._pipes |= {up, down}

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
        try:
            while data := await source.read(65536):
                if not (up and self.swallows):
                    sink.write(data)
                    await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def close(self) -> None:
        self.cut()
        for pipe in self._pipes:
            pipe.cancel()
        if self._pipes:
            await asyncio.wait(self._pipes)


@asynccontextmanager
async def swallowing(url: str) -> AsyncIterator[tuple[Swallowing, str]]:
    """Yield a path to a service and its base URL."""
    path = Swallowing(url)
    server = await asyncio.start_server(path.handle, "127.0.0.1", 0)
    try:
        yield path, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        await path.close()


async def test_exactly_what_never_arrived_is_unknown(serve: Serve, far_end: FarEnd) -> None:
    """When a path swallows data and then breaks in the middle of a response, exactly the swallowed events are
    `unknown`, in order, events answered before are not, and nothing is sent twice."""
    async with swallowing(far_end.base_url) as (path, url), peer(far_end) as other:
        gateway = await serve(url)
        async with Caller(gateway.url) as caller:
            session = await caller.open(call_id=other.call_id)
            await far_end.fault(other.call_id, first_delta_seconds=30)
            await caller.send(session["id"], *say("Hello"))
            await caller.until(session["id"], "response.created")
            path.swallows = True
            lost = [{"type": "input_audio_buffer.clear", "event_id": f"lost-{n}"} for n in range(3)]
            receipt = await caller.send(session["id"], *lost)
            await asyncio.sleep(0.2)
            path.swallows = False
            path.cut()
            reads = await caller.until(session["id"], "gateway.recovered", after=receipt["head"])
            await caller.send(session["id"], {"type": "response.cancel"})
            await caller.until(session["id"], "response.done", after=reads[-1].id)
            received = await far_end.received(other.call_id)

    recovered = reads[-1].value
    assert [(u["number"], u["event_id"]) for u in recovered["unknown"]] == [
        (3, "lost-0"),
        (4, "lost-1"),
        (5, "lost-2"),
    ]
    assert (recovered["cause"], recovered["response"], recovered["items_restored"]) == (
        "connection_failed",
        None,
        0,
    )
    assert [json.loads(frame)["type"] for frame in received] == [
        "conversation.item.create",
        "response.create",
        "response.cancel",
    ]


async def test_megabytes_pass_both_ways(serve: Serve, far_end: FarEnd) -> None:
    """Where the operator allows it, an event of 3 MB goes up and comes down."""
    size = 4 * 1024 * 1024
    gateway = await serve(far_end, server={"max_event_bytes": size, "max_body_bytes": size})
    text = "x" * 3_000_000
    content = [{"type": "input_text", "text": text}]
    item = {"id": "large", "type": "message", "role": "user", "content": content}
    async with peer(far_end) as other, Caller(gateway.url) as caller:
        session = await caller.open(call_id=other.call_id)
        receipt = await caller.send(session["id"], {"type": "conversation.item.create", "item": item})
        await caller.until(session["id"], "conversation.item.done", after=receipt["head"])
        receipt = await caller.send(session["id"], {"type": "conversation.item.retrieve", "item_id": "large"})
        reads = await caller.until(session["id"], "conversation.item.retrieved", after=receipt["head"])

    assert reads[-1].value["item"]["content"][0]["text"] == text


async def test_sessions_that_end_by_themselves_leave_the_call_alone(serve: Serve, far_end: FarEnd) -> None:
    """Neither a drain nor a limit of the session ends a call that another application made."""
    gateway = await serve(far_end, relay={"max_session_seconds": 1})
    async with peer(far_end) as other, Caller(gateway.url) as caller:
        session = await caller.open(call_id=other.call_id)
        reads = await caller.until(session["id"], "gateway.closed")
        drained = await caller.open(call_id=other.call_id)
        await gateway.close()

        assert reads[-1].value["reason"] == "expired"
        assert drained["attached"] is True
        assert await other.ask("ping") == "Pong!"


async def test_caller_attaches_with_its_own_key(serve: Serve, far_end: FarEnd) -> None:
    """With `upstream.auth = "client"` the caller's `ek_…` is the credential."""
    gateway = await serve(far_end, upstream={"auth": "client", "api_key": None})
    async with peer(far_end) as other, Caller(gateway.url) as caller:
        async with other.http.post(f"{far_end.base_url}/realtime/client_secrets", json={}) as answer:
            key = (await answer.json())["value"]
        headers = {"X-Upstream-Authorization": f"Bearer {key}"}
        opened, session = await caller.ask(
            "POST", "/v1/sessions", {"call_id": other.call_id}, headers=headers
        )
        assert opened.status == 201, session
        closed, _ = await caller.ask("DELETE", f"/v1/sessions/{session['id']}?hang_up=true")

        assert closed.status == 204
        await asyncio.wait_for(other.ended.wait(), 20)
        assert await other.hang_up() == 404


# --- the example: a browser holds the call, a shell runs its tools

# In addition to the example's own code: the page reports what it shows, and types what the test says.
WATCH = """<script>
const report = (what) => fetch('/report', {method: 'POST', body: JSON.stringify(what)});
new MutationObserver((changes) => changes.forEach((change) =>
  change.addedNodes.forEach((node) => report(node.textContent)))).observe(document.querySelector('main'), {childList: true});
(async () => { for (;;) {
  const text = await (await fetch('/next')).text();
  document.querySelector('input').value = text;
  document.querySelector('form').requestSubmit();
} })();
</script>"""


@pytest.mark.needs("chromium", "curl")
async def test_shell_runs_the_tools_of_a_browsers_call(
    serve: Serve, far_end: FarEnd, part_path: Callable[[str], str]
) -> None:
    """A page holds the call over WebRTC; `attach.sh` attaches by its ID, runs the function and returns its output;
    the page shows the answer. When the page hangs up, the shell ends."""
    gateway = await serve(far_end)
    typed: asyncio.Queue[str] = asyncio.Queue(maxsize=1)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
        body = {"session": TEXT_SESSION}
        async with http.post(f"{far_end.base_url}/realtime/client_secrets", json=body) as answer:
            key = (await answer.json())["value"]
        page = (EXAMPLES / "attach.html").read_text(encoding="utf-8") + WATCH
        browser = Browser(part_path("chromium"), typed=typed)
        shown = browser.reported
        async with browser.visiting(page, f"#key={key}&base={far_end.base_url}"):
            call_id = await asyncio.wait_for(shown.get(), 90)
            shell = await asyncio.create_subprocess_exec(
                "./attach.sh",
                call_id,
                cwd=EXAMPLES,
                env={"PATH": "/usr/bin:/bin", "GATEWAY": gateway.url},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            assert shell.stderr is not None
            try:
                assert (
                    await asyncio.wait_for(shell.stderr.readline(), 60) == f"attached to {call_id}\n".encode()
                )
                await typed.put("What is the weather in Paris?")
                said = [await asyncio.wait_for(shown.get(), 60) for _ in range(2)]
                async with http.post(f"{far_end.base_url}/realtime/calls/{call_id}/hangup") as answer:
                    assert answer.status == 200
                complaints = await asyncio.wait_for(shell.stderr.read(), 90)
                status = await shell.wait()
            finally:
                if shell.returncode is None:
                    shell.kill()
                    await shell.wait()

    assert said == ["> What is the weather in Paris?", "Here is what I found: city is Paris; celsius is 21."]
    assert complaints.decode() == 'calling get_weather({"city": "Paris"})\n'
    assert status == 0

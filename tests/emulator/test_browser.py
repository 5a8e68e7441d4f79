"""The forum's own browser code, unchanged except for addresses, in a real Chromium against the emulator.

A page posts its results back to the test. Chromium hides its addresses behind mDNS names; a lite agent needs none,
because the browser's checks show where it is. `--allow-loopback-in-peer-connection` allows `lo`, the only interface
without a network.
"""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from tests.conftest import require_packages
from tests.emulator.caller import TEXT_SESSION, Caller
from tests.emulator.conftest import INTEROP
from tests.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium")]
DEADLINE_SECONDS = 45.0
# As people write it: offer, post, answer, send, read. Only addresses, the key and the place to log are filled in.
PAGE = """<!doctype html><title>thread</title><script>
const OPENAI_BASE_URL = %(url)s, OPEN_AI_REALTIME_MODEL = 'gpt-realtime', EPHEMERAL_KEY = %(key)s;
const report = (what) => fetch('/report', {method: 'POST', body: JSON.stringify(what)});
const logger = (text) => report({text});
const testCounter = {current: %(text)s};
(async () => {
  const peerConnection = new RTCPeerConnection({});
  %(transceiver)s
  const dataChannel = peerConnection.createDataChannel('oai-events', { ordered: true });
  const offer = await peerConnection.createOffer({});
  await peerConnection.setLocalDescription(offer);
  const sdpResponse = await fetch(`${OPENAI_BASE_URL}?model=${OPEN_AI_REALTIME_MODEL}`, {
    method: 'POST', body: offer.sdp,
    headers: { Authorization: `Bearer ${EPHEMERAL_KEY}`, 'Content-Type': 'application/sdp' } });
  if (!sdpResponse.ok) return report({status: sdpResponse.status, body: await sdpResponse.json()});
  const answer = { type: 'answer', sdp: await sdpResponse.text() };
  dataChannel.addEventListener('message', (event) => {
    try {
      const message = JSON.parse(event.data);
      if (message.type === 'response.done' && message?.response?.output[0]?.content[0]?.text) {
        logger(message?.response?.output[0]?.content[0]?.text);
      }
    } catch (error) { logger(error, 'Error in data channel message'); }
  });
  dataChannel.addEventListener('open', () => {
    dataChannel?.send(JSON.stringify({ type: 'conversation.item.create',
      item: { type: 'message', role: 'user', content: [{ type: 'input_text', text: testCounter.current.toString() }] } }));
    dataChannel?.send(JSON.stringify({ type: 'response.create' }));
  });
  await peerConnection.setRemoteDescription(answer);
})().catch((error) => report({error: String(error)}));
</script>"""

# The official agents client as in its guide, with a stream without a microphone, so that no permission is needed.
AGENTS = """<!doctype html><title>agents</title><script type="module">
import { OpenAIRealtimeWebRTC, RealtimeAgent, RealtimeSession, tool } from '/modules/openai-realtime-agents.mjs';
const report = (what) => fetch('/report', {method: 'POST', body: JSON.stringify(what)});
try {
  const called = [], said = [];
  const parameters = {type: 'object', properties: {city: {type: 'string'}}, required: ['city'], additionalProperties: false};
  const weather = tool({
    name: 'get_weather', description: 'Look up the weather for a city.', parameters, strict: false,
    execute: async (given) => { called.push(given); return '{"sky":"clear"}'; } });
  const agent = new RealtimeAgent({ name: 'Clerk', instructions: 'Be brief.', tools: [weather] });
  const transport = new OpenAIRealtimeWebRTC({
    baseUrl: %(url)s, audioElement: document.createElement('audio'),
    mediaStream: new AudioContext().createMediaStreamDestination().stream });
  const session = new RealtimeSession(agent, {
    transport, model: 'gpt-realtime', config: { outputModalities: ['text'] } });
  session.on('error', (error) => report({error: JSON.stringify(error)}));
  transport.on('*', (event) => {
    const message = event.type === 'response.done' && event.response.output.find((item) => item.type === 'message');
    if (!message) return;
    said.push(message.content[0].text);
    if (said.length === 1) session.sendMessage('What is the weather in Oslo?');
    else report({said, called});
  });
  await session.connect({ apiKey: %(key)s });
  session.sendMessage('Repeat after me: hello');
} catch (error) { report({error: String(error)}); }
</script>"""

# The standard constructor cannot set headers, so the key is a sub-protocol.
SOCKET = """<!doctype html><title>socket</title><script>
const report = (what) => fetch('/report', {method: 'POST', body: JSON.stringify(what)});
const socket = new WebSocket(%(url)s, ['realtime', 'openai-insecure-api-key.' + %(key)s]);
const types = [];
socket.onopen = () => {
  const content = [{ type: 'input_text', text: 'Repeat after me: hello' }];
  socket.send(JSON.stringify({ type: 'conversation.item.create', item: { type: 'message', role: 'user', content } }));
  socket.send(JSON.stringify({ type: 'response.create' }));
};
socket.onmessage = ({ data }) => {
  const message = JSON.parse(data);
  types.push(message.type);
  if (message.type === 'response.done')
    report({ protocol: socket.protocol, first: types[0], text: message.response.output[0].content[0].text });
};
socket.onclose = ({ code, reason }) => report({ code, reason });
</script>"""


class Browser:
    """Serves one page to its own Chromium and waits for what the page reports."""

    def __init__(
        self, program: str, modules: Path | None = None, typed: "asyncio.Queue[str] | None" = None
    ) -> None:
        """`modules` is a folder to serve; the page gets the entries of `typed` from `/next`."""
        self.program = program
        self.modules = modules
        self.typed = typed
        self.reported: asyncio.Queue[Any] = asyncio.Queue(maxsize=100)

    async def run(self, page: str) -> Any:
        """Return the first thing that a page reports."""
        async with self.visiting(page):
            return await asyncio.wait_for(self.reported.get(), DEADLINE_SECONDS)

    @asynccontextmanager
    async def visiting(self, page: str, fragment: str = "") -> AsyncIterator[None]:
        """Show a page as long as this is open."""
        app = web.Application()

        async def show(_: web.Request) -> web.Response:
            return web.Response(text=page, content_type="text/html")

        async def report(request: web.Request) -> web.Response:
            self.reported.put_nowait(await request.json())
            return web.Response()

        async def following(_: web.Request) -> web.Response:
            assert self.typed is not None
            return web.Response(text=await self.typed.get())

        app.router.add_get("/", show)
        app.router.add_get("/next", following)
        app.router.add_post("/report", report)
        if self.modules is not None:
            app.router.add_static("/modules", self.modules)
        # A page that waits for /next ends with its browser.
        async with serving(app, shutdown_timeout=1.0, handler_cancellation=True) as url:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
                async with self._running(f"{url}/{fragment}", Path(home)):
                    yield

    @asynccontextmanager
    async def _running(self, url: str, home: Path) -> AsyncIterator[None]:
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --disable-dev-shm-usage --allow-loopback-in-peer-connection"
        )
        process = await asyncio.create_subprocess_exec(
            self.program,
            *flags.split(),
            f"--user-data-dir={home}",
            url,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            process.terminate()
            await process.wait()


@pytest_asyncio.fixture
async def browser(part_path: Callable[[str], str]) -> Browser:
    """Return a browser that is not started yet."""
    return Browser(part_path("chromium"))


@pytest_asyncio.fixture
async def caller(emulate: Callable[..., Any]) -> AsyncIterator[Caller]:
    """Return the HTTP side of a client, to create a key with."""
    one = Caller((await emulate()).base_url)
    yield one
    await one.close()


async def key_for(caller: Caller) -> str:
    """Create an ephemeral key for a text session."""
    async with caller.http.post(
        f"{caller.base_url}/realtime/client_secrets", json={"session": TEXT_SESSION}
    ) as response:
        return str((await response.json())["value"])


async def page_for(caller: Caller, text: str, transceiver: str) -> str:
    """Fill in the thread's code: an ephemeral key for a text session, and the text to send."""
    key = await key_for(caller)
    url = f"{caller.base_url}/realtime/calls"
    return PAGE % {
        "url": json.dumps(url),
        "key": json.dumps(key),
        "text": json.dumps(text),
        "transceiver": transceiver,
    }


async def test_thread_code_with_an_audio_transceiver_gets_its_text(browser: Browser, caller: Caller) -> None:
    """With `addTransceiver('audio')` the code of the thread gets the emulator's answer and logs it."""
    page = await page_for(caller, "Repeat after me: it wörks 🚀", "peerConnection.addTransceiver('audio');")

    assert await browser.run(page) == {"text": "it wörks 🚀"}


async def test_thread_code_as_posted_gets_the_threads_error(browser: Browser, caller: Caller) -> None:
    """Without the transceiver the code gets exactly the error reported in the thread."""
    assert await browser.run(await page_for(caller, "1", "")) == {
        "status": 400,
        "body": {
            "error": {
                "message": "Invalid SDP offer. Offer did not have an audio media section.",
                "type": "invalid_request_error",
                "param": None,
                "code": "invalid_offer",
            }
        },
    }


async def test_official_agent_speaks_and_runs_its_tool_over_webrtc(
    part_path: Callable[[str], str], caller: Caller
) -> None:
    """`@openai/agents-realtime` in a page runs a text turn, and its own tool when the service calls it."""
    require_packages(INTEROP)
    browser = Browser(part_path("chromium"), INTEROP / "node_modules/@openai/agents-realtime/dist/bundle")
    page = AGENTS % {
        "url": json.dumps(f"{caller.base_url}/realtime/calls"),
        "key": json.dumps(await key_for(caller)),
    }

    assert await browser.run(page) == {
        "said": ["hello", "Here is what I found: sky is clear."],
        "called": [{"city": "Oslo"}],
    }


@pytest.mark.parametrize("attached", [False, True])
async def test_standard_websocket_constructor_works(attached: bool, browser: Browser, caller: Caller) -> None:
    """With only `new WebSocket` and an ephemeral key a page runs turns in its own session and on a call."""
    query = ""
    if attached:
        await caller.open()
        query = f"?call_id={caller.call_id}"
    url = caller.base_url.replace("http", "ws", 1) + "/realtime" + query
    page = SOCKET % {"url": json.dumps(url), "key": json.dumps(await key_for(caller))}

    assert await browser.run(page) == {
        "protocol": "realtime",
        "first": "conversation.item.added" if attached else "session.created",
        "text": "hello",
    }

"""The browser client `relay.js` in a real Chromium over good and bad paths to the gateway, and in Node."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.e2e.browser import Chromium, Page
from tests.e2e.caller import Caller, Serve, number, say
from tests.e2e.meddling import PASS, Hold, Lose, Pass, meddling
from tests.farend import FarEnd
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium")]
RELAY = Path(__file__).parents[2] / "gateway" / "downstream" / "console" / "relay.js"

# As people write them for a data channel: the handler, and the line that sends.
HANDLER = """(event) => {
  try {
    const message = JSON.parse(event.data);
    if (message.type === 'response.done' && message?.response?.output[0]?.content[0]?.text) {
      logger(message?.response?.output[0]?.content[0]?.text);
    }
  } catch (error) { logger(error, 'Error in data channel message'); }
}"""
SEND = """dataChannel?.send(JSON.stringify({ type: 'conversation.item.create',
  item: { type: 'message', role: 'user', content: [{ type: 'input_text', text: testCounter.current.toString() }] } }));"""
ASK = "dataChannel.send(JSON.stringify({type: 'response.create'}));"


async def channel(page: Page, options: str = "{}") -> str:
    """Open a channel in the page that records everything it receives, and return its session's id."""
    await page.evaluate(
        "import('/relay.js').then(({RelayChannel}) => {"
        "  globalThis.seen = []; globalThis.own = []; globalThis.errors = []; globalThis.closes = 0;"
        f" globalThis.dataChannel = new RelayChannel({options});"
        "  dataChannel.addEventListener('message', (event) => seen.push([event.lastEventId, event.data]));"
        "  for (const name of ['gap', 'open', 'closed', 'superseded']) dataChannel.addEventListener("
        "    `gateway.${name}`, (event) => own.push([event.type, JSON.parse(event.data)]));"
        "  dataChannel.onerror = ({error}) => errors.push({...error});"
        "  dataChannel.onclose = () => { closes += 1; };"
        "})"
    )
    await page.until("dataChannel.readyState !== 'connecting'")
    session_id: str = await page.evaluate("dataChannel.sessionId")
    return session_id


async def seen(page: Page, count: int = 1) -> list[tuple[int, str]]:
    """Wait for the end of `count` responses and return the numbers and types seen so far."""
    await page.until(
        f"seen.filter(([, data]) => JSON.parse(data).type === 'response.done').length >= {count}"
    )
    told = await page.evaluate("seen")
    return [(number(id), json.loads(data)["type"]) for id, data in told]


async def log_of(caller: Caller, session_id: str, count: int = 1) -> list[tuple[int, str]]:
    """Read the log up to the end of `count` responses, over a good path."""
    read = await caller.until(session_id, "response.done", count)
    return [(number(block.id), block.type) for block in read if not block.type.startswith("gateway.")]


async def in_node(node: str, script: Path) -> tuple[str, int | None]:
    """Run a script in Node.js, and return its output and exit status."""
    # Node treats a `.js` file as a module only if a package.json says so or by inspecting its syntax.
    process = await asyncio.create_subprocess_exec(
        node,
        "--experimental-detect-module",
        "--no-warnings",
        str(script),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    return output.decode(), process.returncode


def up_to(read: list[tuple[int, str]], log: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return the read events up to the log's length: more may have arrived since."""
    return [one for one in read if one[0] <= log[-1][0]]


async def test_thread_code_runs_on_the_channel(served: str, chromium: Chromium) -> None:
    """The handler and the `send` line posted in the forum thread work on the channel unchanged."""
    async with chromium.page(f"{served}/") as page:
        await channel(page)
        await page.evaluate(
            "globalThis.logged = []; globalThis.logger = (...what) => logged.push(what.join(' '));"
            "globalThis.testCounter = {current: 'What is 6 times 7?'};"
            f"dataChannel.addEventListener('message', {HANDLER}); {SEND} {ASK}"
        )
        logged = await page.until("logged.length && logged")
        complaints = list(page.complaints)

    assert logged == ["That is 42."]
    assert complaints == []


async def test_thread_handler_runs_on_an_event_source(served: str, chromium: Chromium) -> None:
    """The handler from the documentation works with a plain `EventSource` of the stream's URL."""
    async with Caller(served) as caller, chromium.page(f"{served}/") as page:
        session = await caller.open()
        await page.evaluate(
            "globalThis.logged = []; globalThis.logger = (...what) => logged.push(what.join(' '));"
            f"globalThis.dataChannel = new EventSource({json.dumps(session['stream_url'])});"
            f"dataChannel.addEventListener('message', {HANDLER});"
        )
        await caller.send(session["id"], *say("What is 6 times 7?"))
        logged = await page.until("logged.length && logged")
        complaints = list(page.complaints)

    assert logged == ["That is 42."]
    assert complaints == []


@pytest.mark.parametrize("transport", ["eventsource", "stream", "poll"])
async def test_every_transport_gives_the_log(served: str, chromium: Chromium, transport: str) -> None:
    """Each transport alone delivers every event of the log once, in order, and reports its name."""
    async with Caller(served) as caller, chromium.page(f"{served}/") as page:
        session_id = await channel(page, f"{{transports: ['{transport}']}}")
        await caller.send(session_id, *say("Count to 20"))
        read = await seen(page)
        log = await log_of(caller, session_id)
        used = await page.evaluate("dataChannel.transport")

    assert up_to(read, log) == log
    assert used == transport


@pytest.mark.parametrize(("held", "used"), [(("GET",), "stream"), (("GET", "POST"), "poll")])
async def test_held_streams_are_stepped_down(
    served: str, chromium: Chromium, held: tuple[str, ...], used: str
) -> None:
    """If streams stay silent the next transport is used, long-polls in the end, and nothing is lost."""

    def rule(request: web.BaseRequest) -> Pass | Hold:
        stream = request.path.endswith("/events/stream") or "heartbeat_as" in request.query_string
        return Hold() if stream and request.method in held else PASS

    async with meddling(served, rule) as url, Caller(served) as caller, chromium.page(f"{url}/") as page:
        session_id = await channel(page, "{muteSeconds: 0.5}")
        await caller.send(session_id, *say("Count to 20"))
        read = await seen(page)
        log = await log_of(caller, session_id)
        await page.until(f"dataChannel.transport === '{used}' && dataChannel.connected")

    assert up_to(read, log) == log


async def test_cut_streams_lose_nothing_and_are_stepped_down(
    served: str, far_end: FarEnd, chromium: Chromium
) -> None:
    """Streams that are cut repeatedly in the middle of events deliver every event once, and then another transport
    is used."""
    cuts = 0

    def rule(request: web.BaseRequest) -> Pass:
        nonlocal cuts
        if request.path.endswith("/events/stream") or "heartbeat_as" in request.query_string:
            cuts += 1
            return Pass(bytes=900 + 37 * cuts)
        return PASS

    await far_end.faults(tokens_per_second=60)
    async with meddling(served, rule) as url, Caller(served) as caller, chromium.page(f"{url}/") as page:
        session_id = await channel(page)
        for count in range(1, 4):
            await caller.send(session_id, *say("Count to 60"))
            await seen(page, count)
        read = await seen(page, 3)
        log = await log_of(caller, session_id, 3)
        await page.until("dataChannel.transport === 'poll'")

    assert up_to(read, log) == log
    assert cuts == 6


async def test_stream_that_falls_silent_is_noticed(serve: Serve, far_end: FarEnd, chromium: Chromium) -> None:
    """A stream that is silent for two and a half heartbeats is closed by the client, which reconnects and continues."""
    streams = 0

    def rule(request: web.BaseRequest) -> Pass:
        nonlocal streams
        if "heartbeat_as" in request.query_string:
            streams += 1
            return Pass(bytes=300, silent=True) if streams == 1 else PASS
        return PASS

    gateway = await serve(far_end, stream={"heartbeat_seconds": 5})
    async with (
        meddling(gateway.url, rule) as url,
        Caller(gateway.url) as caller,
        chromium.page(f"{url}/") as page,
    ):
        session_id = await channel(page)
        await caller.send(session_id, *say("Count to 20"))
        read = await seen(page)
        log = await log_of(caller, session_id)

        async def is_back() -> bool:
            return streams == 2

        await until(is_back)
        used = await page.evaluate("dataChannel.transport")

    assert up_to(read, log) == log
    assert (streams, used) == (2, "eventsource")


async def test_lost_answers_double_nothing(served: str, far_end: FarEnd, chromium: Chromium) -> None:
    """Events whose POSTs got no answer reach the upstream once, each in its place."""
    lost = 0

    def rule(request: web.BaseRequest) -> Pass | Lose:
        nonlocal lost
        if request.method == "POST" and request.path.endswith("/events"):
            lost += 1
            return Lose() if lost % 3 else PASS
        return PASS

    async with meddling(served, rule) as url, Caller(served) as caller, chromium.page(f"{url}/") as page:
        session_id = await channel(page)
        sent = [
            {"type": "conversation.item.create", "event_id": f"e{n}", "item": _item(n)} for n in range(40)
        ]
        for start in range(0, 40, 10):
            batch = json.dumps(sent[start : start + 10])
            await page.evaluate(f"for (const event of {batch}) dataChannel.send(JSON.stringify(event))")
            if start == 0:
                assert await page.evaluate("dataChannel.bufferedAmount") > 0
            await page.until("dataChannel.bufferedAmount === 0", seconds=60)
        _, session = await caller.ask("GET", f"/v1/sessions/{session_id}")
        received = [json.loads(frame) for frame in await far_end.received(session["call_id"])]
        errors = await page.evaluate("errors")

    assert [event for event in received if event["type"] == "conversation.item.create"] == sent
    assert errors == []
    assert lost > 4


def _item(number: int) -> dict[str, Any]:
    content = [{"type": "input_text", "text": f"{number}: ü"}]
    return {"type": "message", "role": "user", "content": content}


async def test_one_refused_event_takes_no_other_along(
    served: str, far_end: FarEnd, chromium: Chromium
) -> None:
    """Of a batch with one invalid event only that one is dropped, and an `error` says which one and why."""
    async with Caller(served) as caller, chromium.page(f"{served}/") as page:
        session_id = await channel(page)
        await page.evaluate(
            """for (const text of ['{"type":"input_audio_buffer.clear","event_id":"a"}', '{"no":"type"}',"""
            """ '{"type":"input_audio_buffer.clear","event_id":"b"}']) dataChannel.send(text)"""
        )
        await page.until("dataChannel.bufferedAmount === 0")
        _, session = await caller.ask("GET", f"/v1/sessions/{session_id}")
        received = [json.loads(frame) for frame in await far_end.received(session["call_id"])]
        errors = await page.evaluate("errors")

    assert [event["event_id"] for event in received if event["type"] == "input_audio_buffer.clear"] == [
        "a",
        "b",
    ]
    assert [(one["code"], one["dropped"], one["fatal"]) for one in errors] == [
        ("invalid-event", ['{"no":"type"}'], False)
    ]


@pytest.mark.parametrize("transport", ["eventsource", "stream", "poll"])
async def test_gap_is_told_with_its_number(
    serve: Serve, far_end: FarEnd, chromium: Chromium, transport: str
) -> None:
    """A client that reconnects after a log overrun is told how many events are missing and gets the rest."""
    gateway = await serve(far_end, relay={"log_max_events": 32})
    async with Caller(gateway.url) as caller, chromium.page(f"{gateway.url}/") as page:
        session = await caller.open()
        first = (await caller.take(session["id"], 1))[0].id
        await caller.send(session["id"], *say("Count to 40"))
        log = await log_of(caller, session["id"])
        position = json.dumps({"id": session["id"], "after": first})
        await channel(page, f"{{position: {position}, transports: ['{transport}']}}")
        read = await seen(page)
        gaps = [told for name, told in await page.evaluate("own") if name == "gateway.gap"]

    assert number(first) + gaps[0]["missed"] + 1 == read[0][0]
    assert len(gaps) == 1
    assert [one[0] for one in read] == list(range(read[0][0], read[0][0] + len(read)))
    assert read[-1][0] >= log[-1][0]


async def test_session_closed_elsewhere_ends_the_channel(served: str, chromium: Chromium) -> None:
    """When the session ends the channel reports the reason and then closes, once and without an error."""
    async with Caller(served) as caller, chromium.page(f"{served}/") as page:
        session_id = await channel(page)
        await caller.ask("DELETE", f"/v1/sessions/{session_id}")
        await page.until("closes")
        own, errors = await page.evaluate("own"), await page.evaluate("errors")
        refused = await page.evaluate(
            "(() => { try { dataChannel.send('{}') } catch (e) { return e.name } })()"
        )

    assert own[-1][0] == "gateway.closed"
    assert own[-1][1]["reason"] == "client"
    assert errors == []
    assert refused == "InvalidStateError"


async def test_unknown_session_is_a_fatal_error(served: str, chromium: Chromium) -> None:
    """An unknown session ends the channel with the gateway's own error code."""
    async with chromium.page(f"{served}/") as page:
        await channel(page, "{position: {id: 'gws_nobody'}}")
        await page.until("closes")
        errors = await page.evaluate("errors")

    assert [(one["code"], one["status"], one["fatal"]) for one in errors] == [("session-unknown", 404, True)]


async def test_closing_delivers_what_was_sent(served: str, far_end: FarEnd, chromium: Chromium) -> None:
    """`close` right after `send` still delivers, then ends the session, as a data channel does."""
    async with Caller(served) as caller, chromium.page(f"{served}/") as page:
        session_id = await channel(page)
        _, session = await caller.ask("GET", f"/v1/sessions/{session_id}")
        await page.evaluate(
            """dataChannel.send('{"type":"input_audio_buffer.clear"}'); dataChannel.close()"""
        )
        await page.until("closes")
        received = [json.loads(frame)["type"] for frame in await far_end.received(session["call_id"])]
        _, session = await caller.ask("GET", f"/v1/sessions/{session_id}")

    assert received[-1] == "input_audio_buffer.clear"
    assert (session["state"], session["close_reason"]) == ("closed", "client")


async def test_closing_while_opening_leaves_no_session(
    serve: Serve, far_end: FarEnd, chromium: Chromium
) -> None:
    """`close` before the channel is open still ends the session that is being opened."""
    gateway = await serve(far_end)
    await far_end.faults(signal_delay_seconds=0.5)
    async with chromium.page(f"{gateway.url}/") as page:
        await page.evaluate(
            "import('/relay.js').then(({RelayChannel}) => {"
            "  globalThis.dataChannel = new RelayChannel(); dataChannel.close(); })"
        )
        await page.until("dataChannel.readyState === 'closed'")
        session_id = await page.evaluate("dataChannel.sessionId")
    async with Caller(gateway.url) as caller:
        _, session = await caller.ask("GET", f"/v1/sessions/{session_id}")

    assert session["state"] == "closed"


async def test_another_channel_goes_on_from_a_position(served: str, chromium: Chromium) -> None:
    """A channel that starts at another's position, for example after a reload, gets only what follows."""
    async with Caller(served) as caller, chromium.page(f"{served}/") as page:
        session_id = await channel(page)
        await caller.send(session_id, *say("Count to 5"))
        before = await seen(page)
        await page.until("JSON.parse(seen.at(-1)[1]).type === 'rate_limits.updated'")
        before = await seen(page)
        position = json.dumps(await page.evaluate("dataChannel.detach(), dataChannel.position"))
        await page.go(f"{served}/")
        await channel(page, f"{{position: {position}}}")
        await caller.send(session_id, *say("Count to 6"))
        after = await seen(page)
        log = await log_of(caller, session_id, 2)

    assert up_to(before + after, log) == log


async def test_ticket_reads_and_does_not_send(served: str, chromium: Chromium) -> None:
    """A ticket's URL opens a channel that reads and whose `send` throws."""
    async with Caller(served) as caller, chromium.page(f"{served}/") as page:
        session = await caller.open()
        await channel(page, f"{{streamUrl: {json.dumps(session['stream_url'])}}}")
        await caller.send(session["id"], *say("Count to 5"))
        read = await seen(page)
        refused = await page.evaluate(
            "(() => { try { dataChannel.send('{}') } catch (e) { return e.name } })()"
        )

    assert read[-1][0] > 0
    assert refused == "NotAllowedError"


async def test_node_runs_the_thread_code(
    served: str, part_path: Callable[[str], str], tmp_path: Path
) -> None:
    """The module runs in Node, without a page or an `EventSource`."""
    script = tmp_path / "thread.mjs"
    script.write_text(
        f"import {{ RelayChannel }} from {json.dumps(RELAY.as_uri())};"
        f"const dataChannel = new RelayChannel({{gateway: {json.dumps(served)}}});"
        "const testCounter = {current: 'What is 6 times 7?'};"
        "const logger = (text) => { console.log(dataChannel.transport, text); dataChannel.close(); };"
        f"dataChannel.addEventListener('message', {HANDLER});"
        f"dataChannel.onopen = () => {{ {SEND} {ASK} }};"
    )
    output, status = await in_node(part_path("node"), script)

    assert output == "stream That is 42.\n"
    assert status == 0


async def test_budget_of_a_day_is_reported_at_once(part_path: Callable[[str], str], tmp_path: Path) -> None:
    """A refusal that asks to wait for hours, at the opening or for an event, is an error of the channel and no wait."""
    script = tmp_path / "budget.mjs"
    script.write_text(
        f"import {{ RelayChannel }} from {json.dumps(RELAY.as_uri())};"
        """
        const json = (value, status = 200) => new Response(JSON.stringify(value), { status });
        const refusal = { code: "rate-limited", detail: "used up", retryable: true, retry_after: 40000 };
        const told = [];
        async function run(sessions) {
          async function fetch(url, { method, signal }) {
            const path = new URL(url).pathname;
            if (path.endsWith("/sessions")) return json(...sessions);
            if (method === "POST") return json(refusal, 429);
            if (method === "DELETE") return new Response(null, { status: 204 });
            await new Promise((done, fail) => signal.addEventListener("abort", () => fail(signal.reason)));
          }
          const channel = new RelayChannel({ gateway: "http://gateway", fetch, transports: ["poll"] });
          const closed = new Promise((done) => { channel.onclose = done; });
          channel.onopen = () => channel.send('{"type":"response.create"}');
          channel.onerror = ({ error }) => {
            told.push([error.code, error.fatal, error.dropped.length]);
            channel.close();
          };
          await Promise.race([closed, new Promise((done) => setTimeout(done, 2000))]);
        }
        await run([refusal, 429]);
        await run([{ id: "gws_1", stream_url: "/v1/sessions/gws_1/events?ticket=gwt_1" }, 201]);
        console.log(JSON.stringify(told));
        process.exit();
        """
    )
    output, _ = await in_node(part_path("node"), script)

    assert json.loads(output) == [["rate-limited", True, 0], ["rate-limited", False, 1]]

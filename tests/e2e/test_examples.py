"""The examples in deploy/examples, run unchanged by the programs that they are written for.

Each is also run over a network that loses the answers to its first create and its first send, and cuts its reads: it
must print every word once, and the far end must have been asked once.
"""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.app import Gateway
from tests.conftest import require_packages
from tests.e2e.browser import Chromium
from tests.e2e.caller import Caller, Serve
from tests.e2e.cuts import cutting
from tests.e2e.meddling import PASS, Pass, meddling
from tests.e2e.npm import NPM
from tests.e2e.site import site
from tests.farend import FarEnd
from tests.ports import free_port
from tests.waiting import until

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"
SECONDS = 90.0
WORDS = " ".join(f"word{number}" for number in range(60))
QUESTION = f"Please repeat after me: {WORDS}"

APPS_SCRIPT = ("node", str(Path(__file__).with_name("apps_script.mjs")), "apps-script.gs")

STREAMS = {
    "curl": ["./curl.sh"],
    "stdlib": [sys.executable, "stdlib.py"],
    "httpx-sse": [sys.executable, "httpx_sse_example.py"],
    "eventsource": ["node", "node-eventsource.mjs"],
    "php-curl": ["php", "php-curl.php"],
    "php-streams": ["php", "php-streams.php"],
}
NEEDS = {"curl": "curl", "eventsource": "node", "php-curl": "php", "php-streams": "php"}


def examples() -> list[object]:
    """Return the examples that ask one question, each with the programs it needs."""
    return [
        pytest.param(command, id=name, marks=[pytest.mark.needs(NEEDS[name])] if name in NEEDS else [])
        for name, command in STREAMS.items()
    ]


def require_packages_of(command: list[str]) -> None:
    """Require the npm packages of the examples if the command is one of Node.js."""
    if command[0] == "node":
        require_packages(EXAMPLES)


async def run(*command: str, gateway: str, said: str = "") -> str:
    """Run an example to its end and return what it printed; fail if it fails."""
    status, output, complaints = await ended(*command, gateway=gateway, said=said)
    assert status == 0, (output, complaints)
    return output


async def ended(*command: str, gateway: str, said: str = "") -> tuple[int | None, str, str]:
    """Run an example to its end and return its status, its output and its errors."""
    environ = {"PATH": os.environ["PATH"], "GATEWAY": gateway, "NO_PROXY": "*"}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environ, cwd=EXAMPLES
    )
    try:
        async with asyncio.timeout(SECONDS):
            output, complaints = await process.communicate(said.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, output.decode(), complaints.decode()


@asynccontextmanager
async def serving(*command: str, folder: Path, **environ: str) -> AsyncIterator[None]:
    """Run an example that is a server, and stop it afterwards."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, stderr=PIPE, cwd=folder, env={"PATH": os.environ["PATH"], **environ}
    )
    reading = asyncio.create_task(process.communicate())
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await reading


async def first_answer(http: aiohttp.ClientSession, url: str) -> None:
    """Wait until a server answers."""

    async def answers() -> bool:
        try:
            async with http.get(url) as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    await until(answers)


class Breaking:
    """Loses the answer to the first create and to the first send, and cuts the first reads."""

    def __init__(self, *reads: int) -> None:
        self._left = {"/v1/sessions": [0], "/events": [0], "read": list(reads)}
        self.cuts: list[str] = []

    def __call__(self, line: str) -> int | None:
        method, target, _ = line.split(" ")
        path = target.partition("?")[0]
        kind = "read" if method == "GET" else next((end for end in self._left if path.endswith(end)), "")
        if method == "DELETE" or not self._left.get(kind):
            return None
        self.cuts.append(kind)
        return self._left[kind].pop(0)


async def asked(far_end: FarEnd, gateway: Gateway) -> list[int]:
    """Return for each of the gateway's calls how many responses it was asked for, as counted by the far end."""
    known = [call["id"] for call in (await far_end._ask("GET", "/calls"))["data"]]
    counts = []
    for call_id in known:
        frames = [json.loads(frame) for frame in await far_end.received(call_id)]
        if any(WORDS in json.dumps(frame) for frame in frames):
            counts.append(sum(frame["type"] == "response.create" for frame in frames))
    return counts


@pytest.mark.parametrize("command", examples())
@pytest.mark.slow
async def test_an_example_prints_the_answer(gateway: Gateway, command: list[str]) -> None:
    """The example asks, prints the answer as it arrives, succeeds, and leaves no session."""
    require_packages_of(command)
    output = await run(*command, "What is 6 times 7?", gateway=gateway.url)

    assert output.strip() == "That is 42."


@pytest.mark.parametrize("command", examples())
@pytest.mark.slow
async def test_an_example_loses_and_doubles_nothing(
    serve: Serve, emulate: Callable[..., FarEnd], command: list[str]
) -> None:
    """Although answers are lost and reads are cut, every word is printed once and the service is asked once, in one
    session."""
    require_packages_of(command)
    far_end = emulate("--tokens-per-second", "200")
    gateway = await serve(far_end)
    network = Breaking(1800, 3000)
    async with cutting(gateway.url, network) as url:
        output = await run(*command, QUESTION, gateway=url)

    assert output.split() == WORDS.split()
    assert sorted(network.cuts) == ["/events", "/v1/sessions", "read", "read"]
    assert await asked(far_end, gateway) == [1]
    assert (await far_end.about())["opened"] == 1


@pytest.mark.slow
@pytest.mark.needs("curl")
async def test_the_loop_answers_each_line_once(serve: Serve, emulate: Callable[..., FarEnd]) -> None:
    """Its turns share a history, quotation marks survive, and a turn lost by the network is repeated and answered
    once."""
    far_end = emulate("--tokens-per-second", "0")
    gateway = await serve(far_end)
    lines = ["What is 6 times 7?", 'Please repeat after me: a "quoted" \\ word', "What is 1 plus 1?"]
    network = Breaking(0, 40)
    async with cutting(gateway.url, network) as url:
        output = await run("./loop.sh", gateway=url, said="".join(f"{line}\n" for line in lines))

    assert output.splitlines() == ["That is 42.", 'a "quoted" \\ word', "That is 2."]
    assert sorted(network.cuts) == ["/events", "/v1/sessions", "read", "read"]
    assert (await far_end.about())["opened"] == 1


@pytest.mark.slow
@pytest.mark.needs("curl")
async def test_curl_holds_a_whole_function_call(gateway: Gateway) -> None:
    """The model's call is executed, its result is sent back, and the answer that follows is printed."""
    _, output, complaints = await ended("./tools.sh", gateway=gateway.url)

    assert output == "Here is what I found: city is Paris; celsius is 21.\n"
    assert complaints == 'calling get_weather({"city": "Paris"})\n'


@pytest.mark.slow
@pytest.mark.needs("curl")
async def test_the_shell_examples_need_no_gnu_sed(
    serve: Serve, emulate: Callable[..., FarEnd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a `sed` without GNU's extensions, as on macOS, they print the same, and the escapes of JSON are resolved."""
    sed = tmp_path / "sed"
    sed.write_text(f'#!/bin/sh\nexec {shutil.which("sed")} --posix "$@"\n')
    sed.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    gateway = await serve(emulate("--tokens-per-second", "0"))
    question = 'Please repeat after me: a "quoted" \\ word'

    streamed, polled, (_, called, _) = await asyncio.gather(
        run("./curl.sh", question, gateway=gateway.url),
        run("./loop.sh", gateway=gateway.url, said=f"{question}\n"),
        ended("./tools.sh", gateway=gateway.url),
    )

    assert streamed == polled == 'a "quoted" \\ word\n'
    assert called == "Here is what I found: city is Paris; celsius is 21.\n"


@pytest.mark.slow
@pytest.mark.needs("curl")
async def test_the_shell_examples_serve_callers_without_a_key(serve: Serve, far_end: FarEnd) -> None:
    """Their Idempotency-Keys are as random as a gateway requires that other machines reach without an API key."""
    gateway = await serve(far_end, access={"anonymous": True})
    commands = (["./curl.sh"], ["./tools.sh"], ["./loop.sh"])
    outcomes = await asyncio.gather(*(ended(*command, gateway=gateway.url) for command in commands))

    assert [status for status, _, _ in outcomes] == [0, 0, 0], outcomes


@pytest.mark.slow
@pytest.mark.needs("curl", "node", "php")
async def test_no_example_waits_for_the_next_day() -> None:
    """A refusal that asks to wait for hours ends each example with status 1, since someone waits for it."""

    async def refuse(request: web.Request) -> web.Response:
        problem = {"code": "rate-limited", "detail": "used up", "retryable": True, "retry_after": 40000}
        return web.json_response(problem, status=429, headers={"Retry-After": "40000"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    commands = [*STREAMS.values(), ["./loop.sh"], ["./tools.sh"]]
    for command in commands:
        require_packages_of(command)
    async with TestServer(app) as server:
        gateway = str(server.make_url("")).rstrip("/")
        outcomes = await asyncio.gather(*(ended(*command, gateway=gateway) for command in commands))

    assert [status for status, _, _ in outcomes] == [1] * len(commands), outcomes


@pytest.mark.slow
@pytest.mark.needs("curl", "node", "php")
async def test_each_example_says_that_the_response_failed(
    serve: Serve, emulate: Callable[..., FarEnd]
) -> None:
    """A response that fails, as without a quota, ends each example with status 1 and OpenAI's code. The loop continues."""
    commands = [*STREAMS.values(), ["./tools.sh"], ["./loop.sh"]]
    for command in commands:
        require_packages_of(command)
    gateway = await serve(emulate("--fault", "response_error=insufficient_quota"))
    outcomes = await asyncio.gather(
        *(ended(*command, gateway=gateway.url, said="Hello\n") for command in commands)
    )

    assert [status for status, _, _ in outcomes] == [*[1] * len(STREAMS), 1, 0], outcomes
    assert all("insufficient_quota" in complaints for _, _, complaints in outcomes), outcomes


@pytest.mark.parametrize(
    "name", ["stdlib", "httpx-sse", pytest.param("php-curl", marks=pytest.mark.needs("php"))]
)
@pytest.mark.slow
async def test_a_character_that_two_deltas_share_is_printed(name: str) -> None:
    """OpenAI counts in UTF-16: a delta may end with half of a surrogate pair, which Python cannot print and PHP does not
    decode."""
    deltas = ["a\ud83d", "\ude00b"]
    events = [{"type": "response.output_text.delta", "delta": delta} for delta in deltas]
    blocks = [
        f"id: k-{n}\ndata: {json.dumps(event)}\n\n"
        for n, event in enumerate([*events, {"type": "response.done"}])
    ]

    async def answer(request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.Response(text="".join(blocks), content_type="text/event-stream")
        if request.method == "DELETE":
            return web.Response(status=204)
        return web.json_response({"id": "gws_1", "head": "k-0", "events_url": "/v1/sessions/gws_1/events"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        output = await run(*STREAMS[name], gateway=str(server.make_url("")).rstrip("/"))

    assert output.strip() == ("a\ufffd\ufffdb" if name == "php-curl" else "a\U0001f600b")


@pytest.mark.slow
@pytest.mark.needs("php")
async def test_the_php_chat_page_keeps_a_conversation(gateway: Gateway) -> None:
    """Its page is served, its answers remember what was said, and an ended session is replaced by a new one."""
    url = f"http://127.0.0.1:{free_port()}/"
    command = ("php", "-S", url.removeprefix("http://").rstrip("/"), "chat.php")
    async with (
        serving(*command, folder=EXAMPLES, GATEWAY=gateway.url),
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http,
        Caller(gateway.url) as caller,
    ):
        await first_answer(http, url)
        answers = []
        for text in ("My name is Ada.", "What is my name?"):
            async with http.post(url, data={"text": text}) as answer:
                answers.append(await answer.text())
        async with http.get(f"{gateway.admin_url}/sessions") as listed:
            opened = [one["id"] for one in (await listed.json())["data"]]
        await caller.ask("DELETE", f"/v1/sessions/{opened[0]}")
        async with http.post(url, data={"text": "What is 6 times 7?"}) as answer:
            answers.append(await answer.text())

    assert len(opened) == 1
    assert answers == ["Nice to meet you, Ada!", "Your name is Ada.", "That is 42."]


@pytest.mark.slow
@pytest.mark.needs("node", "curl")
async def test_the_apps_script_keeps_a_conversation(serve: Serve, emulate: Callable[..., FarEnd]) -> None:
    """With stand-ins for Google's services it runs single questions, a conversation, and its events; a lost answer
    is fetched again instead of asked again."""
    far_end = emulate("--tokens-per-second", "0")
    gateway = await serve(far_end)
    script = """[ASK("What is 6 times 7?"), chat("My name is Ada."), chat("What is my name?"),
        eventsAfter(userId(), "").events.filter(({event}) => event.type === "response.done").length]"""
    script = script.replace("userId()", 'PropertiesService.getUserProperties().getProperty("SESSION")')
    losses = {"/v1/turns": [0], "/v1/sessions": [0], "/turns": [0]}

    def network(line: str) -> int | None:
        path = line.split(" ")[1].partition("?")[0]
        kind = next((end for end in losses if path.endswith(end)), "")
        return losses[kind].pop() if losses.get(kind) else None

    async with cutting(gateway.url, network) as url:
        output = await run(*APPS_SCRIPT, script, gateway=url)
    created = (await far_end.about())["opened"]

    assert json.loads(output) == ["That is 42.", "Nice to meet you, Ada!", "Your name is Ada.", 2]
    assert not any(losses.values())
    assert created == 2


@pytest.mark.slow
@pytest.mark.needs("node")
async def test_the_apex_class_is_apex() -> None:
    """No Salesforce runs here: an Apex parser checks the class against the language's grammar."""
    require_packages(NPM)

    assert await run("node", str(NPM / "apex.mjs"), "RealtimeGateway.cls", gateway="") == "parsed\n"


class Compile(Protocol):
    """Compiles the sketch for a gateway; its time passes `pace` times as fast."""

    def __call__(self, host: str, port: int, pace: int = 1) -> str: ...


@pytest.fixture(scope="module")
def sketch(part_path: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Return a function that compiles the ESP32 sketch for this machine, with stand-ins for Arduino's classes."""
    folder = tmp_path_factory.mktemp("sketch")

    def compiled(host: str, port: int, pace: int = 1) -> str:
        values = {"GATEWAY_HOST": f'"{host}"', "GATEWAY_PORT": str(port)}
        values |= dict.fromkeys(("WIFI_NAME", "WIFI_PASSWORD", "KEY"), '""') | {"MILLIS_PACE": str(pace)}
        program = folder / f"esp32-{port}"
        # The language standard and warnings of the ESP32 build, with the sanitizers that only a PC has.
        flags = "-std=gnu++17 -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover -x c++".split()
        defined = [f"-D{name}={value}" for name, value in values.items()]
        folders = ["-I", str(Path(__file__).with_name("arduino")), "-I", str(EXAMPLES / "esp32")]
        source = str(EXAMPLES / "esp32/esp32.ino")
        subprocess.run([part_path("g++"), *flags, *defined, *folders, source, "-o", str(program)], check=True)
        return str(program)

    return compiled


@pytest.mark.slow
@pytest.mark.needs("g++")
async def test_the_sketch_reads_over_cuts(
    serve: Serve, emulate: Callable[..., FarEnd], sketch: Compile
) -> None:
    """Compiled for this machine, it prints the answer once, although its reads are cut in the middle of events."""
    far_end = emulate("--tokens-per-second", "200")
    gateway = await serve(far_end)
    network = Breaking(700, 900)
    network._left = {"read": network._left["read"]}
    async with cutting(gateway.url, network) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        output = await run(sketch(host, int(port)), gateway="")

    assert output == "That is 42.\n"
    assert network.cuts == ["read", "read"]


@pytest.mark.slow
@pytest.mark.needs("g++")
async def test_the_sketch_notices_a_silent_connection(gateway: Gateway, sketch: Compile) -> None:
    """A read that falls silent without an end, as when an access point goes, is given up and continued."""
    silent = [True]

    def network(request: web.BaseRequest) -> Pass:
        return Pass(bytes=400, silent=True) if request.method == "GET" and silent and silent.pop() else PASS

    async with meddling(gateway.url, network) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        output = await asyncio.wait_for(run(sketch(host, int(port), pace=80), gateway=""), 20)

    assert output == "That is 42.\n"
    assert silent == []


@pytest.mark.slow
@pytest.mark.needs("g++")
async def test_the_sketch_says_that_no_gateway_answers(sketch: Compile) -> None:
    """The sketch reports this on its serial line, because it has no exit status."""
    assert await run(sketch("127.0.0.1", free_port()), gateway="") == "No session from 127.0.0.1\n"


@pytest.mark.needs("g++")
def test_the_reader_of_lines_resolves_escapes(part_path: Callable[[str], str], tmp_path: Path) -> None:
    """The reader returns ID, type and text of each event with text in any language, lines that are too long, and
    heartbeats."""
    texts = ["plain", 'a "quoted" \\ word\n', "ünïcode 語 😀"]
    lines = [
        json.dumps(
            {"id": f"k3f9-{n}", "event": {"type": "response.output_text.delta", "delta": text}},
            ensure_ascii=n % 2 == 0,
        )
        for n, text in enumerate(texts + texts)
    ]
    lines[1:1] = ["", json.dumps({"id": None, "event": {"type": "gateway.ping"}})]
    lines.append(json.dumps({"id": "k3f9-99", "event": {"type": "response.done", "x": "y" * 9000}}))
    program = tmp_path / "reader.cpp"
    program.write_text(
        '#include <cstdio>\n#include "events.h"\nint main() { EventReader reader; Event event; for (int c; (c = getchar()) >= 0;)'
        ' if (reader.take(c, event)) printf("%s|%s|%s|%d%c", event.id, event.type, event.delta, event.cut, 1); }'
    )
    flags = [
        "-std=gnu++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover",
    ]
    compiler = [
        part_path("g++"),
        *flags,
        "-I",
        str(EXAMPLES / "esp32"),
        str(program),
        "-o",
        str(tmp_path / "reader"),
    ]
    subprocess.run(compiler, check=True)
    read = subprocess.run(
        [tmp_path / "reader"],
        input="".join(f"{line}\n" for line in lines).encode(),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout.decode()
    told = [one.split("|") for one in read.split("\x01")[:-1]]

    assert [one[2] for one in told if one[1] == "response.output_text.delta"] == texts + texts
    assert told[1] == ["", "gateway.ping", "", "0"]
    assert told[-1] == ["k3f9-99", "response.done", "", "1"]


@pytest.mark.slow
@pytest.mark.needs("curl", "node", "php")
async def test_each_example_says_that_no_gateway_answers() -> None:
    """Each fails with one line that names the address, without a traceback. They run together, because each retries
    for a while."""
    commands = {
        **STREAMS,
        "loop": ["./loop.sh"],
        "tools": ["./tools.sh"],
        "attach": ["./attach.sh", "rtc_1"],
        "apps-script": [*APPS_SCRIPT, "ASK('Hello')"],
    }
    for command in commands.values():
        require_packages_of(command)
    address = f"http://127.0.0.1:{free_port()}"
    outcomes = await asyncio.gather(*(ended(*command, gateway=address) for command in commands.values()))
    told = {
        name: (status, [line for line in said.splitlines() if not line.startswith(("curl:", "Warning:"))])
        for name, (status, _, said) in zip(commands, outcomes, strict=True)
    }

    assert {name: status for name, (status, _) in told.items()} == dict.fromkeys(commands, 1), told
    assert [name for name, (_, lines) in told.items() if len(lines) != 1 or address not in lines[0]] == [], (
        told
    )


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.needs("chromium")
async def test_the_page_talks_from_another_origin(serve: Serve, far_end: FarEnd, chromium: Chromium) -> None:
    """Served from another, listed origin, the page runs a turn through relay.js without an error in the console."""
    async with site(EXAMPLES) as origin:
        gateway = await serve(far_end, access={"cors_origins": [origin]})
        async with chromium.page(f"{origin}/page.html#gateway={gateway.url}") as page:
            await page.until("!document.querySelector('button').disabled")
            await page.type("What is 6 times 7?")
            await page.press("Enter")
            text = await page.until("document.querySelector('[data-done=completed]')?.textContent")
            complaints = list(page.complaints)

    assert text == "That is 42."
    assert [one for one in complaints if "favicon" not in one] == []


@pytest.mark.slow
@pytest.mark.needs("chromium", "node")
async def test_the_site_gives_its_page_a_session(serve: Serve, far_end: FarEnd, chromium: Chromium) -> None:
    """Its backend has the key and opens the session; its page reads and sends with credentials for that session
    only, and closes it when the page is left."""
    port = free_port()
    # The address that the program prints.
    origin = f"http://127.0.0.1:{port}"
    key = "a-key-for-this-test-and-no-other"
    keys = [{"name": "site", "sha256": [hashlib.sha256(key.encode()).hexdigest()]}]
    gateway = await serve(far_end, access={"cors_origins": [origin], "keys": keys})
    async with (
        serving("node", "server.mjs", folder=EXAMPLES / "site", GATEWAY=gateway.url, KEY=key, PORT=str(port)),
        aiohttp.ClientSession() as http,
        Caller(gateway.url) as caller,
    ):
        await first_answer(http, f"{origin}/")
        async with chromium.page(f"{origin}/") as page:
            await page.until("!document.querySelector('button').disabled")
            await page.type("What is 6 times 7?")
            await page.press("Enter")
            text = await page.until("document.querySelector('[data-done=completed]')?.textContent")
            complaints = list(page.complaints)
            await page.go("about:blank")

            async def is_closed() -> bool:
                _, listed = await caller.ask(
                    "GET", "/v1/sessions", headers={"Authorization": f"Bearer {key}"}
                )
                return [one["state"] for one in listed["data"]] == ["closed"]

            await until(is_closed)

    assert text == "That is 42."
    assert [one for one in complaints if "favicon" not in one] == []

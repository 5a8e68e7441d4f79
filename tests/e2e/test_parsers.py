"""Five parsers without common code read the same stream: Chromium, npm `eventsource-parser`, httpx-sse, one on
aiohttp, and curl with a shell's line reader. They must agree on every id, name and text, however the bytes are
split.

The stream is recorded once from a real gateway, with all that JSON allows in a text: CR, LF and CRLF, a byte order
mark and NUL as escapes, a byte order mark and line separators raw where JSON allows them, and raw line ends as white
space. A small server then replays it byte by byte, also as other servers may write it: with each kind of line end,
and with a byte order mark before it.
"""

import asyncio
import base64
import json
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import httpx
import pytest
import pytest_asyncio
from aiohttp import web
from httpx_sse import aconnect_sse

from gateway.client import BlockParser
from tests.conftest import require_packages
from tests.e2e.browser import Chromium
from tests.e2e.caller import Caller, Json, Serve
from tests.farend import FarEnd
from tests.serving import serving

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"
SECONDS = 60.0

Event = tuple[str, str, str]
"""Id, name and data."""

TEXTS = [
    '{"type":"plain","text":"hello"}',
    r'{"type":"escaped","text":"cr\r lf\n crlf\r\n nul\u0000 bom\ufeff ls\u2028"}',
    '{"type":"raw","text":"bom\ufeff ls\u2028 ps\u2029 nel\u0085 grüß 漢字 \U0001f600 \x7f"}',
    '{\r\n\t"type" :\n"white",\r"n": [1,\n\n 2] }',
    '{"type":"colons","text":": data: x","id":"7"}',
    ' {"type":"leading space"}',
    '{"type":"empty","text":""}',
    '{"type":"long","text":"' + "0123456789" * 700 + '"}',
]
LAST = '{"type":"last"}'


async def record(serve: Serve, far_end: FarEnd) -> tuple[bytes, list[str]]:
    """Return a stream as a gateway writes it, and the data that its events must have according to the contract."""
    gateway = await serve(far_end)
    async with Caller(gateway.url) as caller:
        session = await caller.open()
        await far_end.send(session["call_id"], *TEXTS, LAST)
        url = f"{gateway.url}{session['events_url']}?after={session['head']}"
        raw = b""
        async with caller.http.get(url) as answer, asyncio.timeout(20):
            while LAST.encode() not in raw:
                raw += await answer.content.readany()
    return raw, list(map(as_data, (*TEXTS, LAST)))


def as_data(text: str) -> str:
    """Return an event's text as a reader must get it: line ends are LF, and other characters at which line readers
    split are escaped."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\x85", r"\u0085").replace("\u2028", r"\u2028").replace("\u2029", r"\u2029")


def written(stream: bytes, line_end: bytes, mark: bytes) -> bytes:
    """Return a stream with other line ends and a byte order mark: the format allows both (WHATWG HTML 9.2.5).

    A comment is added at the end: a CR that is the very last byte may be half of a CRLF, and some parsers wait for
    the next byte.
    """
    return mark + stream.replace(b"\n", line_end) + b":" + line_end


@asynccontextmanager
async def giving(stream: bytes, step: int) -> AsyncIterator[str]:
    """Serve a stream in pieces of `step` bytes, each sent separately, then end; 0 sends it in one piece."""

    async def give(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream", "Access-Control-Allow-Origin": "*"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        assert request.transport is not None
        for start in range(0, len(stream), step or len(stream)):
            await response.write(stream[start : start + (step or len(stream))])
            # Lets the reader receive it before the next piece: otherwise the kernel would join the pieces.
            await asyncio.sleep(0)
        return response

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>parsers</title>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/stream", give)
    app.router.add_get("/", page)
    async with serving(app, shutdown_timeout=0) as url:
        yield f"{url}/stream"


# --- the five parsers -------------------------------------------------------------------------------------------------


async def by_aiohttp(url: str) -> list[Event]:
    """Read with aiohttp and the client's own parser."""
    parser, events, last_id = BlockParser(), list[Event](), ""
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        async for chunk in answer.content.iter_any():
            for block in parser.feed(chunk):
                last_id = last_id if block.id is None else block.id
                if block.data is not None:
                    events.append((last_id, block.name, block.data))
    return events


async def by_httpx(url: str) -> list[Event]:
    """Read with httpx-sse."""
    async with httpx.AsyncClient(trust_env=False) as http, aconnect_sse(http, "GET", url) as source:
        return [(block.id, block.event, block.data) async for block in source.aiter_sse() if block.data]


NODE = """
import { createParser } from "eventsource-parser";
const events = []; let id = "";
const parser = createParser({ onEvent: (event) => {
  id = event.id ?? id; events.push([id, event.event ?? "message", event.data]); } });
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
const answer = await fetch(process.argv[1]);
for await (const chunk of answer.body) parser.feed(decoder.decode(chunk, { stream: true }));
process.stdout.write(JSON.stringify(events));
"""


async def by_node(url: str) -> list[Event]:
    """Read with the parser that most npm clients use."""
    output = await output_of("node", "--input-type=module", "-e", NODE, url)
    return [tuple(event) for event in json.loads(output)]


# A line reader such as people write around curl; it knows only LF, so other line ends are converted first.
SHELL = r"""
curl -q -sS -N --noproxy '*' "$1" | sed 's/\r$//' | {
    id= name= data= first=yes
    while IFS= read -r line; do
        case $line in
        '') [ -z "$first" ] && printf '%s %s %s\n' "$id" "${name:-message}" "$(printf '%s' "$data" | base64 -w 0)"
            name= data= first=yes ;;
        'id: '*) id=${line#id: } ;;
        'event: '*) name=${line#event: } ;;
        'data: '*) [ -n "$first" ] || data="$data
"; data="$data${line#data: }"; first= ;;
        esac
    done
}
"""


async def by_curl(url: str) -> list[Event]:
    """Read with curl and a shell."""
    output = await output_of("sh", "-c", SHELL, "sh", url)
    lines = (line.split(" ") for line in output.splitlines())
    return [(id_, name, base64.b64decode(data).decode()) for id_, name, data in lines]


async def output_of(*command: str) -> str:
    """Run a program to its end and return its output."""
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, cwd=EXAMPLES)
    try:
        async with asyncio.timeout(SECONDS):
            output, complaints = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, complaints.decode()
    return output.decode()


BROWSER = """
new Promise((resolve) => {
  const events = [], source = new EventSource(URL_HERE);
  const note = (event) => events.push([event.lastEventId, event.type, event.data]);
  source.onmessage = note;
  source.addEventListener("gateway.open", note);
  source.onerror = () => { source.close(); resolve(events); };
})
"""


async def by_chromium(browser: Chromium, url: str) -> list[Event]:
    """Read with a browser's own EventSource."""
    async with browser.page(url.removesuffix("stream")) as page:
        events: list[Json] = await page.evaluate(BROWSER.replace("URL_HERE", json.dumps(url)))
    return [tuple(event) for event in events]  # type: ignore[misc]  # three strings each, by the script above


# --- they agree -------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def stream(serve: Serve, far_end: FarEnd) -> tuple[bytes, list[str]]:
    """Record a stream."""
    return await record(serve, far_end)


@pytest.mark.slow
@pytest.mark.needs("chromium", "node", "curl")
@pytest.mark.parametrize("step", [0, 1, 2, 3, 7, 1000], ids="in-{}".format)
async def test_five_parsers_agree_on_a_gateways_stream(
    stream: tuple[bytes, list[str]], chromium: Chromium, step: int
) -> None:
    """For the whole stream and for pieces of any size, even single bytes, all five have the same events, which are
    those of the contract."""
    require_packages(EXAMPLES)
    raw, texts = stream
    async with giving(raw, step) as url:
        read = {
            "aiohttp": await by_aiohttp(url),
            "httpx-sse": await by_httpx(url),
            "eventsource-parser": await by_node(url),
            "curl": await by_curl(url),
            "chromium": await by_chromium(chromium, url),
        }

    expected = read["chromium"]
    assert [name for _, name, _ in expected] == ["gateway.open"] + ["message"] * len(texts)
    assert [data for _, _, data in expected[1:]] == texts
    assert [json.loads(data) for _, _, data in expected[1:]] == [json.loads(text) for text in (*TEXTS, LAST)]
    for name, events in read.items():
        assert events == expected, name


@pytest.mark.slow
@pytest.mark.needs("chromium", "node")
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no-mark", "mark"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
async def test_the_clients_parser_reads_what_other_servers_may_write(
    stream: tuple[bytes, list[str]], chromium: Chromium, line_end: bytes, mark: bytes
) -> None:
    """With any line end, with or without a byte order mark, byte by byte: the client's parser has the same events as
    Chromium."""
    require_packages(EXAMPLES)
    raw, texts = stream
    async with giving(written(raw, line_end, mark), 1) as url:
        browser, own, node = await by_chromium(chromium, url), await by_aiohttp(url), await by_node(url)

    assert [data for _, _, data in browser[1:]] == texts
    assert own == browser
    assert node == browser


async def test_the_clients_parser_takes_a_split_anywhere(stream: tuple[bytes, list[str]]) -> None:
    """A stream split in two at every byte, with each kind of line end, gives the same blocks."""
    raw, texts = stream
    short = raw[: raw.index(b'"type":"long"')].rpartition(b"\n\n")[0] + b"\n\n"
    for line_end in (b"\n", b"\r", b"\r\n"):
        text = written(short, line_end, b"\xef\xbb\xbf")
        whole = [(block.id, block.data) for block in BlockParser().feed(text)]
        assert [data for _, data in whole[1:]] == texts[: len(whole) - 1]
        for place in range(len(text)):
            parser = BlockParser()
            parts = [*parser.feed(text[:place]), *parser.feed(text[place:])]
            assert [(block.id, block.data) for block in parts] == whole

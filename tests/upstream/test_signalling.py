"""Creating a call over HTTP, with a service that answers as the test says."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import BodyPartReader, web

from gateway.errors import UpstreamError
from gateway.relay.clock import Clock
from gateway.relay.ports import CallRequest
from gateway.upstream import signalling
from gateway.upstream.config import UpstreamConfig
from gateway.upstream.signalling import Signaller
from tests.serving import serving

KEY = "sk-proj-abcDEF0123456789"
OFFER = "v=0\r\na=fingerprint:sha-256 AA\r\n"
SESSION = {"type": "realtime", "model": "gpt-realtime", "instructions": "Sé breve."}
REQUEST = CallRequest(session=SESSION)
HALF = {**SESSION, "instructions": "half of a pair: \ud83d"}
"""JSON can name a lone surrogate, and UTF-8 cannot hold one."""

Handler = Callable[[web.Request], Awaitable[web.Response]]


@asynccontextmanager
async def signaller(handler: Handler, **options: Any) -> AsyncIterator[Signaller]:
    """Return a signaller whose service is one handler for both routes."""
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handler)
    async with serving(app) as url:
        config = UpstreamConfig(**{"base_url": f"{url}/v1/", "api_key": KEY} | options)
        one = Signaller(config, Clock())
        await one.open()
        try:
            yield one
        finally:
            await one.close()


def saying(status: int, body: object = "", headers: dict[str, str] | None = None) -> Handler:
    """Make a handler that always gives the same answer."""

    async def answer(_: web.Request) -> web.Response:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, text=text, headers=headers)

    return answer


def problem(code: str | None, message: str = "No.") -> dict[str, Any]:
    """Return an error body in the service's form."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


@pytest.mark.parametrize("session", [SESSION, HALF], ids=["text", "lone surrogate"])
async def test_create_sends_offer_and_session_as_the_service_reads_them(session: dict[str, str]) -> None:
    """The offer is one part byte for byte, and the session object another; the answer and the call's id are
    returned."""
    seen: dict[str, Any] = {}

    async def handler(request: web.Request) -> web.Response:
        seen["path"], seen["headers"] = request.path_qs, request.headers
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            seen[str(part.name)] = (part.headers["Content-Type"], bytes(await part.read()))
        return web.Response(
            status=201, text="v=0\r\n", headers={"Location": "/v1/realtime/calls/rtc_u1_X?a=b"}
        )

    async with signaller(handler, organization="org-1", project="proj-1") as one:
        created = await one.create(OFFER, replace(REQUEST, session=session, safety_identifier="somebody"), 5)

    assert created == signalling.CreatedCall("v=0\r\n", "rtc_u1_X", 201)
    assert seen["path"] == "/v1/realtime/calls"
    assert seen["sdp"] == ("application/sdp", OFFER.encode())
    assert seen["session"][0] == "application/json"
    assert json.loads(seen["session"][1]) == session
    assert seen["headers"]["Authorization"] == f"Bearer {KEY}"
    assert seen["headers"]["OpenAI-Organization"] == "org-1"
    assert seen["headers"]["OpenAI-Project"] == "proj-1"
    assert seen["headers"]["OpenAI-Safety-Identifier"] == hashlib.sha256(b"somebody").hexdigest()
    assert "OpenAI-Beta" not in seen["headers"]


def test_session_update_of_an_ephemeral_key_can_be_encoded() -> None:
    """It holds the session without its model, and a lone surrogate as an escape."""
    update = signalling.session_update(HALF)

    assert update is not None
    assert json.loads(update.encode())["session"] == {
        "type": "realtime",
        "instructions": HALF["instructions"],
    }


async def test_create_with_an_ephemeral_key_sends_the_bare_offer() -> None:
    """A client secret brings its own session: the body is only the offer, and the gateway's key is not sent."""
    seen: dict[str, Any] = {}

    async def handler(request: web.Request) -> web.Response:
        seen["type"], seen["body"] = request.content_type, await request.read()
        seen["key"] = request.headers["Authorization"]
        return web.Response(status=201, text="v=0\r\n")

    async with signaller(handler, auth="client") as one:
        created = await one.create(OFFER, replace(REQUEST, bearer="ek_1234567890"), 5)

    assert seen == {"type": "application/sdp", "body": OFFER.encode(), "key": "Bearer ek_1234567890"}
    assert created.call_id is None


@pytest.mark.parametrize(
    ("auth", "missing"),
    [("client", "X-Upstream-Authorization"), ("gateway", "OPENAI_API_KEY or upstream.api_key_file")],
)
async def test_create_without_a_credential_is_refused_here(auth: str, missing: str) -> None:
    """Without a credential nothing is sent, and the error says whose credential is missing."""
    async with signaller(saying(201), auth=auth, api_key=None if auth == "gateway" else KEY) as one:
        with pytest.raises(UpstreamError, match=missing) as caught:
            await one.create(OFFER, REQUEST, 5)

    assert caught.value.code == "upstream-rejected"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "invalid_offer", "upstream-rejected"),
        (400, "beta_api_shape_disabled", "upstream-rejected"),
        (401, "invalid_api_key", "upstream-rejected"),
        (401, "missing_scope", "upstream-rejected"),
        (403, None, "upstream-rejected"),
        (404, None, "upstream-rejected"),
        (408, None, "upstream-failed"),
        (429, "rate_limit_exceeded", "upstream-rate-limited"),
        (429, "insufficient_quota", "upstream-rejected"),
        (500, "server_error", "upstream-failed"),
        (503, None, "upstream-failed"),
        (302, None, "upstream-failed"),
    ],
)
async def test_refusal_becomes_the_code_of_the_table(status: int, code: str | None, expected: str) -> None:
    """Each status and code of the service has one gateway code, and the error contains the service's message."""
    async with signaller(saying(status, problem(code), {"Location": "http://127.0.0.1:9/"})) as one:
        with pytest.raises(UpstreamError) as caught:
            await one.create(OFFER, REQUEST, 5)

    told = caught.value.members["upstream"]
    assert caught.value.code == expected
    assert isinstance(told, dict)
    assert told["status"] == status
    assert told.get("code") == code
    assert told["message"] == "No."


@pytest.mark.parametrize(
    "body", ["<html>Bad gateway</html>", "", "[]", '{"error": 7}', "[" * 100_000, "x" * 600_000]
)
async def test_refusal_in_any_form_is_an_error_with_its_status(body: str) -> None:
    """For a proxy's page, an empty body or an endless one, the status is still reported."""
    async with signaller(saying(502, body)) as one:
        with pytest.raises(UpstreamError) as caught:
            await one.create(OFFER, REQUEST, 5)

    assert caught.value.code == "upstream-failed"
    assert caught.value.members["upstream"] == {"status": 502}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"", "closed the connection without an answer"),
        (b"no answer\r\n\r\n", "its answer is not HTTP"),
        (b"HTTP/1.1 201 Created\r\nContent-Length: 99\r\n\r\nv=0\r\n", "was cut short"),
        (
            b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nContent-Encoding: gzip\r\n\r\nno",
            "cannot be decoded",
        ),
    ],
)
async def test_answer_that_is_no_answer_is_told_in_words(said: bytes, told: str) -> None:
    """If something else than the service answers, the error is an upstream failure that describes the answer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    one = Signaller(UpstreamConfig(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY), Clock())
    await one.open()
    try:
        with pytest.raises(UpstreamError, match=told) as caught:
            await one.create(OFFER, REQUEST, 5)
    finally:
        await one.close()
        server.close()

    assert caught.value.code == "upstream-failed"


async def test_refusal_never_shows_a_key() -> None:
    """The service quotes keys in its messages; neither the gateway's key nor a part of it is passed on."""
    message = f"Incorrect API key provided: {KEY}, or sk-xx**********9876, or ek_abcdefgh. " + "z" * 1000
    async with signaller(saying(401, problem("invalid_api_key", message))) as one:
        with pytest.raises(UpstreamError) as caught:
            await one.create(OFFER, REQUEST, 5)

    shown = f"{caught.value.detail} {caught.value.members} {one._config!r} {REQUEST!r}"
    assert "sk-" not in shown
    assert "ek_" not in shown
    assert "9876" not in shown
    assert len(caught.value.detail) < 600


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("7", 7.0),
        ("-3", 0.0),
        ("1e300", 86_400.0),
        ("soon", None),
        ("nan", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Fri, 21 Oct 9999 07:28:00 GMT", 86_400.0),
        ("Fri, 21 Oct 99999999999 07:28:00 GMT", None),
    ],
)
async def test_rate_limit_tells_how_long_to_wait(given: str, expected: float | None) -> None:
    """Retry-After is parsed in both forms, up to a day; any other value is ignored."""
    async with signaller(saying(429, problem("rate_limit_exceeded"), {"Retry-After": given})) as one:
        with pytest.raises(UpstreamError) as caught:
            await one.create(OFFER, REQUEST, 3)  # no time is left for a second try

    assert caught.value.retry_after == expected


@pytest.mark.parametrize("status", [429, 503])
async def test_create_is_tried_again_when_the_service_says_when(status: int) -> None:
    """If Retry-After fits the deadline the create is repeated after it, and the second answer is used."""
    tries: list[float] = []

    async def handler(_: web.Request) -> web.Response:
        tries.append(asyncio.get_running_loop().time())
        if len(tries) == 1:
            return web.Response(status=status, text="{}", headers={"Retry-After": "0.2"})
        return web.Response(status=201, text="v=0\r\n")

    async with signaller(handler) as one:
        await one.create(OFFER, REQUEST, 10)

    assert len(tries) == 2
    assert tries[1] - tries[0] >= 0.2


@pytest.mark.parametrize(
    ("status", "headers", "seconds", "expected"),
    [
        (500, {}, 10, 1),  # it may have created a call
        (401, {"Retry-After": "0"}, 10, 1),  # repeating does not make a key valid
        (429, {"Retry-After": "60"}, 100, 1),  # the caller has to wait
        (429, {"Retry-After": "1"}, 3.5, 1),  # does not fit the deadline
        (429, {"Retry-After": "0"}, 10, 3),  # limited
    ],
)
async def test_create_is_tried_again_only_where_it_helps(
    status: int, headers: dict[str, str], seconds: float, expected: int
) -> None:
    """There is no second try without Retry-After, beyond the deadline, or without end."""
    tries: list[int] = []

    async def handler(_: web.Request) -> web.Response:
        tries.append(1)
        return web.Response(status=status, text="{}", headers=headers)

    async with signaller(handler) as one:
        with pytest.raises(UpstreamError):
            await one.create(OFFER, REQUEST, seconds)

    assert len(tries) == expected


async def test_refused_connection_is_tried_again_and_told() -> None:
    """If nothing listens there are three tries with growing pauses, and then a retryable error."""
    one = Signaller(UpstreamConfig(base_url="http://127.0.0.1:9/v1", api_key=KEY), Clock())
    await one.open()
    began = asyncio.get_running_loop().time()
    try:
        with pytest.raises(UpstreamError, match="the connection was refused") as caught:
            await one.create(OFFER, REQUEST, 10)
    finally:
        await one.close()

    assert caught.value.code == "upstream-failed"
    assert caught.value.retryable
    assert asyncio.get_running_loop().time() - began >= 0.75


async def test_service_that_comes_back_is_reached_by_the_second_try(unused_tcp_port: int) -> None:
    """A restart of the upstream server costs a pause, not the session."""
    one = Signaller(UpstreamConfig(base_url=f"http://127.0.0.1:{unused_tcp_port}/v1", api_key=KEY), Clock())
    await one.open()
    creating = asyncio.create_task(one.create(OFFER, REQUEST, 10))
    await asyncio.sleep(0.05)
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", saying(201, "v=0\r\n"))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    try:
        created = await creating
    finally:
        await one.close()
        await runner.cleanup()

    assert created.sdp == "v=0\r\n"


async def test_connection_cut_before_the_answer_is_not_tried_again() -> None:
    """If the connection is cut before the answer the service may have made a call, so there is no second try."""
    tries: list[int] = []

    async def handler(request: web.Request) -> web.Response:
        tries.append(1)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with signaller(handler) as one:
        with pytest.raises(UpstreamError, match="closed the connection") as caught:
            await one.create(OFFER, REQUEST, 10)

    assert caught.value.code == "upstream-failed"
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("status", "body"), [(200, ""), (404, problem("call_id_not_found")), (400, problem("call_id_not_found"))]
)
async def test_hang_up_of_a_call_that_is_over_is_as_good(status: int, body: object) -> None:
    """Both statuses of a hang-up mean that the call has ended."""
    async with signaller(saying(status, body)) as one:
        await one.hang_up("rtc_u1_X", None)


async def test_hang_up_names_the_call_and_the_caller() -> None:
    """The path has the call's id, and the credential is the one that created it."""
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.extend([request.method, request.path, request.headers["Authorization"]])
        return web.Response()

    async with signaller(handler, auth="client") as one:
        await one.hang_up("rtc_u1_X", "ek_1")

    assert seen == ["POST", "/v1/realtime/calls/rtc_u1_X/hangup", "Bearer ek_1"]


async def test_hang_up_that_is_not_answered_ends() -> None:
    """A hang-up without an answer ends at its own deadline."""
    release = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    async with signaller(handler, hang_up_timeout_seconds=0.1) as one:
        with pytest.raises(TimeoutError):
            await one.hang_up("rtc_u1_X", None)
        release.set()


async def test_more_than_a_hundred_calls_are_created_at_once() -> None:
    """The HTTP client's own limit of 100 connections does not make the next one wait."""
    waiting = 0
    full = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        nonlocal waiting
        waiting += 1
        if waiting == 120:
            full.set()
        await full.wait()
        return web.Response(status=201, text="v=0\r\n")

    async with signaller(handler) as one, asyncio.timeout(20), asyncio.TaskGroup() as group:
        for _ in range(120):
            group.create_task(one.create(OFFER, REQUEST, 20))

    assert waiting == 120


async def test_proxy_of_the_environment_is_used_except_towards_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """HTTPS_PROXY is used for the service; NO_PROXY and a service on this machine are reached directly; a configured
    proxy has priority."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:3128")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:3129")
    monkeypatch.setenv("no_proxy", "inner.example")

    assert signalling.proxy_for(UpstreamConfig()) == "http://127.0.0.1:3128"
    assert signalling.proxy_for(UpstreamConfig(base_url="http://other.example/v1")) == "http://127.0.0.1:3129"
    assert signalling.proxy_for(UpstreamConfig(base_url="https://inner.example/v1")) is None
    assert signalling.proxy_for(UpstreamConfig(base_url="http://127.0.0.1:9/v1")) is None
    assert signalling.proxy_for(UpstreamConfig(proxy="http://127.0.0.1:1")) == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("given", "told"), [("127.0.0.1:9", "the proxy cannot be reached"), ("http://[half", "is not a URL")]
)
async def test_proxy_of_the_environment_is_read_as_others_read_it(
    given: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy without a scheme is an HTTP proxy, as for curl; an invalid URL is reported."""
    monkeypatch.setenv("http_proxy", given)
    monkeypatch.setenv("no_proxy", "")
    one = Signaller(UpstreamConfig(base_url="http://service.invalid/v1", api_key=KEY), Clock())
    await one.open()
    try:
        with pytest.raises(UpstreamError, match=told) as caught:
            await one.create(OFFER, REQUEST, 3)  # no time is left for a second try
    finally:
        await one.close()

    assert caught.value.code == "upstream-failed"


async def test_requests_go_through_the_proxy() -> None:
    """With a proxy configured, requests go to the proxy with the complete URL."""
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.raw_path)
        return web.Response(status=201, text="v=0\r\n")

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handler)
    async with serving(app) as url:
        one = Signaller(UpstreamConfig(base_url="http://service.example/v1", api_key=KEY, proxy=url), Clock())
        await one.open()
        await one.create(OFFER, REQUEST, 5)
        await one.close()

    assert seen == ["http://service.example/v1/realtime/calls"]


async def test_netrc_does_not_disturb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ~/.netrc with the host's name neither replaces the key nor breaks the request."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))

    async with signaller(saying(201, "v=0\r\n")) as one:
        assert (await one.create(OFFER, REQUEST, 5)).status == 201


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("localhost", True),
        ("a.localhost", True),
        ("::1", True),
        ("api.openai.com", False),
        ("127.0.0.1.example", False),
        ("192.0.2.2", False),
    ],
)
def test_loopback_is_known_by_its_names(host: str, expected: bool) -> None:
    """A service on this machine is recognized without a DNS query."""
    assert signalling.is_loopback(host) is expected

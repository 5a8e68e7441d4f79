"""What applies to every request: IDs, headers, errors, deadlines, the log."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from gateway.downstream.http.connections import ConnectionLimits, Connections
from gateway.downstream.http.limits import ServerLimits
from gateway.downstream.http.listener import Binding, Listener
from gateway.downstream.server import Server, client_application
from gateway.errors import GatewayError
from tests.certificate import write_certificate
from tests.downstream.harness import Build, Harness
from tests.downstream.raw import connect, read_all

BARE_400 = (b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")


async def raw(harness: Harness, sent: bytes, *, url: str | None = None) -> bytes:
    """Send bytes on a separate connection and return everything received until the server closes it."""
    port = int((url or harness.url).rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        return await asyncio.wait_for(read_all(reader), 10)
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)  # The request may have been cut.


# --- errors


async def test_unknown_path_is_a_problem(harness: Harness) -> None:
    """The router's own 404 has the form of every other error, on both listeners."""
    for url in (harness.url, harness.server.admin_url):
        answer = await harness.call("GET", f"{url}/v1/nothing?ticket=x")
        assert (answer.status, answer.code) == (404, "not-found")
        assert answer.json["instance"] == "/v1/nothing"


async def test_instance_is_a_uri_reference(harness: Harness) -> None:
    """RFC 9457 3.1.5: percent-encoded characters of the path stay encoded."""
    answer = await harness.call("GET", URL(f"{harness.url}/v1/sessions/%C2%B5%0A?ticket=x", encoded=True))

    assert answer.json["instance"] == "/v1/sessions/%C2%B5%0A"


async def test_wrong_method_is_a_problem_with_allow(harness: Harness) -> None:
    """The router's 405 lists the allowed methods."""
    answer = await harness.call("PUT", "/v1/sessions")

    assert (answer.status, answer.code) == (405, "method-not-allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "POST"}


async def test_bytes_that_are_no_http_get_a_bare_400(harness: Harness) -> None:
    """Bytes that are not HTTP are answered without a body, and the connection ends."""
    answer = await raw(harness, b"\x16\x03\x01 hello\r\n\r\n")

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(BARE_400)
    assert body == b""
    assert b"Server: realtime-gateway\r\n" in head


async def test_broken_chunks_get_a_bare_400(harness: Harness) -> None:
    """A body whose chunked encoding becomes invalid half way is answered in the same way."""
    session = await harness.open()
    answer = await raw(
        harness,
        f"POST /v1/sessions/{session['id']}/events HTTP/1.1\r\nHost: localhost\r\n"
        'Transfer-Encoding: chunked\r\n\r\n5\r\n{"typ\r\nnonsense\r\n'.encode(),
    )

    assert answer.startswith(BARE_400)
    assert harness.far_end.sent == []


@pytest.mark.parametrize(
    ("path", "status", "said"), [("/v1/turns", 400, b"invalid-parameter"), ("/v1/no", 404, b"not-found")]
)
async def test_chunks_that_break_after_the_head_are_refused_at_once(
    harness: Harness, path: str, status: int, said: bytes
) -> None:
    """A body with an invalid chunk that comes after its head is not waited for, and the connection ends."""
    reader, writer = await connect(harness.url)
    head = "Host: localhost\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n"
    writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode())
    async with asyncio.timeout(4):
        begun = await reader.readuntil(b"\r\n\r\n")  # `100 Continue`, or the head of the 404.
        writer.write(b"2\r\nab\r\nnonsense\r\n")
        answer = (begun + await read_all(reader)).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    writer.close()

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert said in answer
    assert harness.facts.of("http_failed") == []


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 26\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 26\r\nContent-Length: 27\r\n",
        b"Content-Length: +26\r\n",
        b"Content-Length : 26\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"X-Folded: a\r\n b\r\nContent-Length: 26\r\n",
        b"X-Null: a\x00b\r\nContent-Length: 26\r\n",
    ],
)
async def test_request_that_two_servers_could_read_differently_is_refused(
    harness: Harness, head: bytes
) -> None:
    """A request whose end a proxy could see elsewhere (RFC 9112 11.2) is refused with 400, and the connection ends."""
    answer = await raw(
        harness,
        b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\n" + head + b'\r\n{"metadata":{"a":"bcdef"}}',
    )

    assert answer.startswith(BARE_400)
    assert answer.count(b"HTTP/1.") == 1
    assert answer.endswith(b"\r\n\r\n")
    assert harness.far_end.requests == []


async def test_mistake_of_the_gateway_shows_only_its_request_id(harness: Harness, monkeypatch: Any) -> None:
    """A 500 contains no details; the log has the exception with the same request ID."""

    async def fail(*_: object) -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr(harness.hub, "open", fail)
    answer = await harness.call("POST", "/v1/sessions", headers={"X-Request-Id": "req-7"})

    assert (answer.status, answer.code) == (500, "internal")
    assert b"secret inside" not in answer.body
    assert "req-7" in answer.json["detail"]
    ((request_id, error),) = harness.facts.of("http_failed")
    assert (request_id, str(error)) == ("req-7", "secret inside")


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("error", [RuntimeError("late"), GatewayError("upstream-failed", "late")])
async def test_failure_in_a_begun_answer_cuts_it(harness: Harness, error: Exception, version: str) -> None:
    """If the gateway fails within an answer, the client sees a cut instead of a problem object in the middle: an incomplete
    chunked body, or a reset in HTTP/1.0. The log has the reason."""

    async def fail_late(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        raise error

    app = client_application(harness.parts)
    app.router.add_get("/late", fail_late)
    connections = Connections(ConnectionLimits(), harness.parts.telemetry, harness.hub.budget, lambda: 0.0)
    listener = Listener(app, harness.parts.limits, connections)
    await listener.start(Binding())
    reader, writer = await connect(listener.url)
    writer.write(f"GET /late HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
    reset = False
    answer = bytearray()
    try:
        async with asyncio.timeout(10):
            while chunk := await reader.read(100):
                answer += chunk
    except ConnectionResetError:
        reset = True
    finally:
        writer.close()
        await listener.close()

    assert answer.count(b"HTTP/1.") == 1
    assert answer.endswith(b"half\r\n" if version == "1.1" else b"half")
    assert reset == (version == "1.0")
    assert [told for _, told in harness.facts.of("http_failed")] == [error]


# --- headers


async def test_sane_request_id_is_taken(harness: Harness) -> None:
    """A client's own id is returned, so that both sides' logs can be joined."""
    answer = await harness.call("GET", "/v1/sessions/x", headers={"X-Request-Id": "a-1_b.C"})

    assert answer.headers["X-Request-Id"] == "a-1_b.C"


@pytest.mark.parametrize("wanted", [None, "", "a b", "x" * 129, "a;b"])
async def test_other_request_ids_are_made(harness: Harness, wanted: str | None) -> None:
    """A missing id, or one that could break a log line, is replaced; each request has its own."""
    headers = {} if wanted is None else {"X-Request-Id": wanted}
    made = {(await harness.call("GET", "/livez", headers=headers)).headers["X-Request-Id"] for _ in range(2)}

    assert len(made) == 2
    assert wanted not in made


@pytest.mark.parametrize("path", ["/", "/relay.js", "/openapi.json", "/livez", "/nothing"])
async def test_answers_outside_the_api_vary_by_origin(harness: Harness, path: str) -> None:
    """They carry CORS headers for listed origins, so a cache must not give one origin's answer to another."""
    answer = await harness.call("GET", path)

    assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/sessions"), ("GET", "/v1/sessions/x"), ("GET", "/v1/x")]
)
async def test_every_answer_of_the_api_carries_its_headers(harness: Harness, method: str, path: str) -> None:
    """The headers forbid storing, content sniffing and referrers, also on errors and unknown paths."""
    answer = await harness.call(method, path)

    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Vary"] == "Accept, Origin"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Server"] == "realtime-gateway"


async def test_head_works_where_get_does(harness: Harness) -> None:
    """HEAD returns only the headers."""
    session = await harness.open()
    answer = await harness.call("HEAD", f"/v1/sessions/{session['id']}")

    assert answer.status == 200
    assert answer.body == b""


# --- deadlines


async def test_half_sent_head_is_cut(build: Build) -> None:
    """A client that sends its headers too slowly is disconnected with 408."""
    harness = await build(limits=ServerLimits(header_seconds=0.2))
    port = int(harness.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def drip() -> None:
        for byte in b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 500:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    try:
        answer = await asyncio.wait_for(read_all(reader), 10)
    finally:
        dripping.cancel()
        await asyncio.wait({dripping})
        writer.close()

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request-timeout"' in answer


async def test_head_deadline_is_for_one_head(build: Build) -> None:
    """Complete requests on one connection continue beyond the deadline, also when one arrived in two pieces."""
    harness = await build(limits=ServerLimits(header_seconds=1.0))
    port = int(harness.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(5):
        writer.write(b"GET /livez HTTP/1.1\r\n")
        await asyncio.sleep(0.25)
        writer.write(b"Host: localhost\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"ok\n"), 10)).startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()


async def test_body_that_does_not_come_is_cut(build: Build) -> None:
    """A body that does not arrive is answered with 408, and the connection is closed."""
    harness = await build(limits=ServerLimits(body_seconds=0.1, linger_seconds=0.1))
    session = await harness.open()
    answer = await raw(
        harness,
        f"POST /v1/sessions/{session['id']}/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{{".encode(),
    )

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"Connection: close" in answer


async def test_refused_client_is_not_asked_for_its_body(build: Build) -> None:
    """`100 Continue` is sent when the body is read, after the caller was authorized."""
    harness = await build(limits=ServerLimits(linger_seconds=0.1))
    session = await harness.open()
    head = "Host: localhost\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 12\r\n\r\n"
    refused = await raw(harness, f"POST /v1/sessions/gws_no/events HTTP/1.1\r\n{head}".encode())
    wanted = await raw(
        harness, f'POST /v1/sessions/{session["id"]}/events HTTP/1.1\r\n{head}{{"type":"a"}}'.encode()
    )

    assert refused.startswith(b"HTTP/1.1 404 ")
    assert wanted.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 ")


@pytest.mark.parametrize("expected", ["100-continue", "a-pony"])
@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/no", 404), ("PUT", "/livez", 405)])
@pytest.mark.parametrize("operator", [False, True])
async def test_expectation_does_not_replace_the_answer(
    harness: Harness, *, operator: bool, method: str, path: str, status: int, expected: str
) -> None:
    """On both listeners a request with `Expect` that has no handler gets its problem object, and nothing before."""
    url = harness.server.admin_url if operator else harness.url
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: {expected}\r\n\r\n"
    answer = await raw(harness, head.encode(), url=url)

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Content-Type: application/problem+json" in answer


async def test_too_large_body_is_refused_by_its_length(build: Build) -> None:
    """A client that announces a body that is too large is not asked to send it."""
    harness = await build(limits=ServerLimits(max_body_bytes=10, linger_seconds=0.1))
    answer = await raw(
        harness,
        b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n",
    )

    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_client_that_leaves_in_its_body_is_no_failure(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """If a client leaves while it sends its body nothing is sent, and only the disconnect is logged."""
    session = await harness.open()
    port = int(harness.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "Host: localhost\r\nContent-Length: 100\r\n\r\n{"
    writer.write(f"POST /v1/sessions/{session['id']}/events HTTP/1.1\r\n{head}".encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(10):
        while harness.facts.of("http_request")[-1][0] != "/v1/sessions/{id}/events":
            await asyncio.sleep(0.01)

    assert harness.facts.of("http_request")[-1][2] == 499
    assert harness.facts.of("http_failed") == []
    assert caplog.records == []
    assert harness.far_end.sent == []


# --- what is reported


async def test_request_is_told_by_its_template(harness: Harness) -> None:
    """Metrics and log name the route instead of the path; the log also names caller and session."""
    session = await harness.open()
    await harness.call("GET", f"/v1/sessions/{session['id']}", headers={"X-Request-Id": "r1"})

    route, method, status, seconds = harness.facts.of("http_request")[-1]
    assert (route, method, status) == ("/v1/sessions/{id}", "GET", 200)
    assert 0 <= seconds < 1
    request_id, fields = harness.facts.of("http_answered")[-1]
    assert request_id == "r1"
    assert fields["session"] == session["id"]
    assert fields["principal"] == "anonymous"
    assert fields["client"] == "127.0.0.1"
    assert "code" not in fields


async def test_unmatched_requests_are_told_as_other(harness: Harness) -> None:
    """A path or method that a client invented is not used as a label."""
    await harness.call("PROPFIND", "/made/up")

    assert harness.facts.of("http_request")[-1][:3] == ("other", "other", 404)
    assert harness.facts.of("http_answered")[-1][1]["code"] == "not-found"


# --- listening


async def test_taken_port_leaves_nothing_listening(harness: Harness, build: Build) -> None:
    """A failed start raises and releases its resources."""
    other = await build()
    taken, operators = (int(url.rpartition(":")[2]) for url in (harness.url, other.server.admin_url))
    await other.server.close()
    server = Server(other.parts)
    with pytest.raises(OSError, match="in use"):
        await server.start(Binding(port=taken), Binding(port=operators))

    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", operators)


def tls_contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server on 127.0.0.1 and of a client that trusts it."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    write_certificate(certificate, key)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=str(certificate))


async def test_client_side_speaks_tls_where_it_is_given(build: Build, tmp_path: Path) -> None:
    """With TLS the client listener's address and own origin are https; the admin listener does not change."""
    harness = await build()
    await harness.server.close()
    server_tls, client_tls = tls_contexts(tmp_path)
    server = Server(harness.parts)
    await server.start(Binding(tls=server_tls), Binding())
    try:
        url = server.url
        answer = await harness.call("POST", f"{url}/v1/sessions", headers={"Origin": url}, ssl=client_tls)
        foreign = await harness.call(
            "POST", f"{url}/v1/sessions", headers={"Origin": url.replace("https", "http")}, ssl=client_tls
        )
        admin_url = server.admin_url
    finally:
        await harness.http.close()
        await server.close()

    assert (answer.status, foreign.status) == (201, 403)
    assert url.startswith("https://127.0.0.1:")
    assert admin_url.startswith("http://127.0.0.1:")


async def test_close_may_be_repeated(harness: Harness) -> None:
    """Closing twice is not a mistake."""
    await harness.server.close()
    await harness.server.close()

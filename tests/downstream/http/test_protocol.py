"""gateway/downstream/http/protocol.py and parser.py: one connection, from its first byte to its end."""

import asyncio
import hashlib
import json
import re
import socket
import time
from typing import Any

import pytest

from gateway.downstream.auth.access import AccessRules, KeyRule
from gateway.downstream.http.connections import Connections
from gateway.downstream.http.limits import ServerLimits
from gateway.errors import OverloadError
from tests.downstream.harness import Build, Harness
from tests.downstream.raw import ask, connect, parsed, read_all, reset
from tests.downstream.streams import Session, event, opened
from tests.waiting import until

ADA = {"Authorization": "Bearer ada-key"}
KEYED = AccessRules(keys=(KeyRule("ada", (hashlib.sha256(b"ada-key").digest(),)),))

EVENT = b'{"type":"session.update"}'


def post(path: str, body: bytes, *headers: str, version: str = "1.1") -> bytes:
    """Return a POST request as bytes."""
    lines = [f"POST {path} HTTP/{version}", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str, *headers: str, version: str = "1.1") -> bytes:
    """Return a GET request as bytes."""
    return "\r\n".join([f"GET {path} HTTP/{version}", "Host: localhost", *headers, "", ""]).encode()


@pytest.fixture
async def patient(build: Build) -> Harness:
    """Return an HTTP side that treats a FIN right after a request as a half-closed connection, which is the default."""
    return await build(limits=ServerLimits())


# --- half-closed connections ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [(), ("Connection: close",), ("Connection: keep-alive",)])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_half_closing_client_gets_its_answer(
    patient: Harness, headers: tuple[str, ...], version: str
) -> None:
    """A client that closes its sending side, as `socat` and `nc -N` do, gets its answer, and then the connection
    ends."""
    session = await opened(patient)
    answer = await ask(patient.url, post(session.path, EVENT, *headers, version=version), half_close=True)

    assert (answer.status, answer.json["accepted"]) == (202, 1)
    assert patient.far_end.sent == [EVENT.decode()]


async def test_half_closing_client_may_have_to_wait_for_its_answer(patient: Harness) -> None:
    """A half-closing client can wait for an answer that takes long, such as a create's."""
    patient.far_end.gate = lambda: asyncio.sleep(0.2)
    answer = await ask(patient.url, post("/v1/sessions", b""), half_close=True)

    assert answer.status == 201


async def test_half_closing_client_gets_every_pipelined_answer(patient: Harness) -> None:
    """A half-closing client gets the answers to all its pipelined requests, and then the connection ends."""
    answer = await ask(patient.url, get("/livez") + get("/readyz") + get("/livez"), half_close=True)

    assert answer.all.count(b"HTTP/1.1 200") == 3


async def test_fin_after_connection_close_is_no_leaving(build: Build) -> None:
    """After `Connection: close` a client may close its side at any time without counting as gone."""
    harness = await build(limits=ServerLimits(half_close_seconds=0))
    release = asyncio.Event()
    harness.far_end.gate = release.wait
    reader, writer = await connect(harness.url)
    writer.write(post("/v1/sessions", b"", "Connection: close"))
    await until(lambda: len(harness.far_end.requests) == 1)
    writer.write_eof()
    await harness.call("GET", "/livez")  # The server has seen the FIN once this is answered.
    release.set()
    answer = parsed(await asyncio.wait_for(read_all(reader), 10))
    writer.close()

    assert answer.status == 201


async def test_half_closing_client_reads_a_stream(patient: Harness) -> None:
    """A half-closing client receives events that come after its FIN, and the end of the stream ends the connection."""
    session = await opened(patient)
    reader, writer = await connect(patient.url)
    writer.write(get(f"{session.path}?max_age=1", "Accept: text/event-stream"))
    writer.write_eof()
    await until(lambda: session.handle.view().receivers == 1)
    session.say(*[event("session.updated")] * 3)
    said = await asyncio.wait_for(read_all(reader), 10)
    writer.close()

    assert said.count(b'"session.updated"') == 3
    assert b"gateway.rotating" in said


async def test_half_closed_client_that_resets_has_left(patient: Harness) -> None:
    """A half-closed client that resets has left, even if nothing is being written to it."""
    session = await opened(patient)
    _, writer = await connect(patient.url)
    writer.write(get(session.path))
    writer.write_eof()
    await until(lambda: session.handle.view().receivers == 1)
    reset(writer)

    await until(lambda: session.handle.view().receivers == 0)


LARGE_CREATE = json.dumps({"metadata": {"notes": "n" * 16_000}}).encode()
"""Its answer is charged to the memory budget."""


@pytest.mark.parametrize("body", [b"", LARGE_CREATE], ids=["small", "large"])
async def test_create_of_a_client_that_closed_leaves_no_session(patient: Harness, body: bytes) -> None:
    """The FIN of a closed client looks like that of a half-closing one; the reset after the 201 shows that the
    client left, and the session is closed."""
    release = asyncio.Event()
    patient.far_end.gate = release.wait
    _, writer = await connect(patient.url)
    writer.write(post("/v1/sessions", body))
    await until(lambda: len(patient.far_end.requests) == 1)
    writer.close()
    await writer.wait_closed()
    await patient.call("GET", "/livez")  # The server has seen the FIN once this is answered.
    release.set()

    await until(lambda: [view.state for view in patient.hub.all_sessions()] == ["closed"])


async def test_create_whose_answer_is_refused_leaves_no_session(
    patient: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there is no memory for the answer, the client does not learn the session's ID, and the session is closed."""

    def refuse(self: Connections, principal: str, size: int) -> None:
        raise OverloadError("capacity", "Too many answers wait.", retry_after=5)

    monkeypatch.setattr(Connections, "answering", refuse)
    answer = await ask(patient.url, post("/v1/sessions", LARGE_CREATE), half_close=True)

    assert answer.status == 503
    assert [view.state for view in patient.hub.all_sessions()] == ["closed"]


async def test_create_of_a_half_closing_client_stays_open(patient: Harness) -> None:
    """After a 201 was read, closing the connection does not close the session."""
    answer = await ask(patient.url, post("/v1/sessions", b""), half_close=True)

    assert answer.status == 201
    assert [view.state for view in patient.hub.all_sessions()] == ["connected"]


async def test_fin_in_the_middle_of_a_body_is_leaving(patient: Harness) -> None:
    """A request whose body is cut off by a FIN has no effect."""
    session = await opened(patient)
    whole = post(session.path, EVENT)
    answer = await ask(patient.url, whole[:-3], half_close=True)

    assert answer.all == b""
    assert patient.far_end.sent == []


async def test_idle_connection_ends_with_its_client(patient: Harness) -> None:
    """A FIN between two requests ends the connection at once."""
    reader, writer = await connect(patient.url)
    writer.write(get("/livez"))
    await reader.readuntil(b"ok\n")
    writer.write_eof()

    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


# --- the end of a stream ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "headers"),
    [
        ("1.1", ()),
        ("1.1", ("Connection: keep-alive",)),
        ("1.0", ()),
        ("1.0", ("Connection: keep-alive",)),
    ],
)
@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
@pytest.mark.slow
async def test_end_of_a_stream_ends_its_connection(
    session: Session, version: str, headers: tuple[str, ...], accept: str
) -> None:
    """The end of a stream closes its connection, because some readers see no other end."""
    request = get(f"{session.path}?max_age=1", f"Accept: {accept}", *headers, version=version)
    answer = await ask(session.harness.url, request)

    assert answer.status == 200
    assert answer.headers["connection"] == "close"


async def test_other_answers_keep_the_connection(harness: Harness) -> None:
    """After an answer that is not a stream the connection stays open."""
    reader, writer = await connect(harness.url)
    for _ in range(2):
        writer.write(get("/livez"))
        assert (await asyncio.wait_for(reader.readuntil(b"ok\n"), 10)).startswith(b"HTTP/1.1 200")
    writer.close()


@pytest.mark.parametrize(("version", "asked"), [("1.1", True), ("1.0", False)])
async def test_only_http_1_1_is_told_to_continue(harness: Harness, version: str, asked: bool) -> None:
    """An HTTP/1.0 client gets no `100 Continue`, because it does not know interim answers (RFC 9110 10.1.1)."""
    session = await opened(harness)
    request = post(session.path, EVENT, "Expect: 100-continue", "Connection: close", version=version)
    answer = await ask(harness.url, request)

    assert answer.all.startswith(b"HTTP/1.1 100 Continue") is asked
    assert b" 202 Accepted" in answer.all


# --- heads ------------------------------------------------------------------------------------------------------------

LONG = "x" * 20_000


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (get(f"/v1/sessions/x?a={LONG}"), 414, "uri-too-long"),
        (get(f"/{LONG}"), 414, "uri-too-long"),
        (get("/livez", f"Cookie: a={LONG}"), 431, "header-too-large"),
        (post("/v1/turns", b"hi", f"X-Token: {LONG}"), 431, "header-too-large"),
        (get("/livez", *(f"X-{number}: y" for number in range(200))), 431, "header-too-large"),
        (get("/livez", *(f"X-{number}: {'y' * 9000}" for number in range(12))), 431, "header-too-large"),
        (b"GET /livez HTTP/1.1\r\n\r\n", 400, "invalid-parameter"),
        (get("/livez", "Host: localhost"), 400, "invalid-parameter"),
        (get("/livez", "User-Agent: a", "User-Agent: b"), 400, "invalid-parameter"),
        (post("/v1/turns", b"hi", "Content-Type: a/b", "Content-Type: a/b"), 400, "invalid-parameter"),
        (get("/livez", version="2.0"), 505, "http-version-not-supported"),
        (get("/livez", version="0.9"), 505, "http-version-not-supported"),
        (get("/livez", version="3.7"), 505, "http-version-not-supported"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http-version-not-supported"),
        (get("/v1/sessions/x/events?types=\u00e9"), 400, "invalid-parameter"),
        (get("http://localhost:99999/livez"), 400, "invalid-parameter"),
        (b"BREW /v1/sessions HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, "method-not-allowed"),
        (b"BREW /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "not-found"),
        (
            b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            501,
            "not-implemented",
        ),
        (post("/v1/sessions", b"{}", "Content-Encoding: gzip"), 415, "unsupported-media-type"),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else None,
)
async def test_refused_head_gets_a_problem_object(
    harness: Harness, request_: bytes, status: int, code: str
) -> None:
    """A refused head gets a problem object with a request id and a log line, and then the connection ends."""
    answer = await ask(harness.url, request_)

    assert answer.all.startswith(b"HTTP/1.1 ")
    assert (answer.status, answer.json["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    ((request_id, fields),) = harness.facts.of("http_answered")
    assert answer.headers["x-request-id"] == request_id
    assert (fields["status"], fields["code"]) == (status, code)
    assert harness.far_end.requests == []


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (post("/v1/turns", b"", "Connection: close") + b"more", [400]),
        (get("/livez", version="1.0") + get("/livez"), [200]),
        (get("/livez") + b"\x00\x01\r\n\r\n", [200]),
        (get("/livez") + post("/v1/turns", b"") + get("/livez", "Host: b"), [200, 400, 400]),
        (
            get("/livez") + post("/v1/turns", b"") + b"\r\n" + get("/livez", "Connection: close"),
            [200, 400, 200],
        ),
        (
            get("/livez", "Connection: Upgrade", "Upgrade: h2c") + get("/livez", "Connection: close"),
            [200, 200],
        ),
        (get("/livez") * 40 + get("/livez", "Connection: close"), [200] * 41),
    ],
)
async def test_complete_requests_are_answered_whatever_follows_them(
    harness: Harness, sent: bytes, statuses: list[int]
) -> None:
    """Requests that arrive together are answered in order, and then the connection ends at the first invalid one, or after
    one that asks for it."""
    answer = await ask(harness.url, sent)

    assert [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d+)", answer.all)] == statuses


@pytest.mark.parametrize("size", [1000, 8190, 8300, 19_000])
async def test_long_url_is_told_however_it_is_cut(harness: Harness, size: int) -> None:
    """A head may arrive in pieces, also after it was refused; its answer is not lost in a reset."""
    request = get(f"/v1/turns?a={LONG}")
    reader, writer = await connect(harness.url)
    for start in range(0, len(request), size):
        writer.write(request[start : start + size])
        await harness.call("GET", "/livez")  # It has been read once this is answered.
    answer = parsed(await asyncio.wait_for(reader.read(), 10))
    writer.close()

    assert (answer.status, answer.json["code"]) == (414, "uri-too-long")


async def test_refused_head_keeps_the_rules_on_origins(build: Build) -> None:
    """A listed page can read the error; another page's request is refused for its origin."""
    harness = await build(AccessRules(cors_origins=frozenset({"https://page.example"})))
    listed, other = [
        await ask(harness.url, get("/v1/sessions", f"Origin: https://{name}", f"Cookie: {LONG}"))
        for name in ("page.example", "other.example")
    ]

    assert (listed.status, listed.headers["access-control-allow-origin"]) == (431, "https://page.example")
    assert other.json["code"] == "origin-not-allowed"


@pytest.mark.parametrize("name", ["Content-Length", "Transfer-Encoding"])
async def test_doubled_framing_header_gets_a_bare_400(harness: Harness, name: str) -> None:
    """Where a message ends is ambiguous if a framing header is repeated, so the answer is a bare 400."""
    value = {"Content-Length": "2", "Transfer-Encoding": "chunked"}[name]
    answer = await ask(harness.url, get("/livez", f"{name}: {value}", f"{name}: {value}"))

    assert (answer.status, answer.all.partition(b"\r\n\r\n")[2]) == (400, b"")


async def test_unfinished_heads_have_a_size(harness: Harness) -> None:
    """The limit applies to all headers together, not only to each of them."""
    lines = b"".join(b"X-%d: %b\r\n" % (number, b"y" * 15_000) for number in range(6))
    answer = await ask(harness.url, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + lines)

    assert (answer.status, answer.json["code"]) == (431, "header-too-large")


async def test_connection_without_a_request_is_closed(build: Build) -> None:
    """A connection without a first byte is closed after the same time as one without a complete head."""
    harness = await build(limits=ServerLimits(header_seconds=0.1))
    reader, writer = await connect(harness.url)

    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_partial_pipelined_head_is_cut(build: Build) -> None:
    """The deadline counts from the head's first byte, also if it was pipelined after a request that was answered
    meanwhile."""
    harness = await build(limits=ServerLimits(header_seconds=0.2))
    reader, writer = await connect(harness.url)
    writer.write(get("/livez") + b"GET /livez HTTP/1.1\r\nHost: lo")
    said = await asyncio.wait_for(read_all(reader), 10)
    writer.close()

    assert said.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in said


async def test_partial_pipelined_head_does_not_cut_the_answer_before_it(build: Build) -> None:
    """The answer before a partial pipelined head is sent, and then the connection ends."""
    harness = await build(limits=ServerLimits(header_seconds=0.1))
    session = await opened(harness)
    reader, writer = await connect(harness.url)
    writer.write(get(f"{session.path}?wait=1&after=now&format=json") + b"GET /livez HT")
    said = await asyncio.wait_for(read_all(reader), 10)
    writer.close()

    assert said.startswith(b"HTTP/1.1 200")
    assert b'"events":[]' in said


@pytest.mark.parametrize(
    "requests",
    [
        [post("/v1/sessions", b'{"metadata":{"a":"\\r\\n\\r\\n"}}')],
        [post("/v1/sessions", b"{}\r\n\r\n{}"), get("/livez")],
        [
            b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        ],
        [get("/livez"), b"\r\n", get("/livez")],
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_whole_requests_leave_no_unfinished_head(
    build: Build, requests: list[bytes], size: int
) -> None:
    """Complete requests, however they are split, keep the connection open beyond the head's deadline."""
    harness = await build(limits=ServerLimits(header_seconds=0.3))
    reader, writer = await connect(harness.url)
    sent = b"".join(requests)
    for start in range(0, len(sent), size):
        writer.write(sent[start : start + size])
        await asyncio.sleep(0)
    await asyncio.sleep(0.4)
    writer.write(get("/readyz", "Connection: close"))
    said = await asyncio.wait_for(read_all(reader), 10)
    writer.close()

    assert said.endswith(b"ok\n")
    assert b"HTTP/1.1 408" not in said


# --- writing ----------------------------------------------------------------------------------------------------------


async def test_client_that_takes_nothing_loses_its_connection(build: Build) -> None:
    """The memory limit for unread answers applies to every kind of answer, not only to streams. The connection is reset, so
    that half an answer without chunks is not taken for a whole one."""
    harness = await build(limits=ServerLimits(write_seconds=0.2))
    connections = harness.server._client_side._connections
    connection = socket.create_connection(("127.0.0.1", int(harness.url.rpartition(":")[2])))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.to_thread(connection.sendall, get("/openapi.json") * 30)
    await until(lambda: harness.facts.of("http_answered") != [])
    await until(lambda: len(connections) == 0)

    def read_on() -> None:
        while connection.recv(65536):
            pass

    with pytest.raises(ConnectionResetError):
        await asyncio.to_thread(read_on)
    connection.close()
    assert len(harness.facts.of("http_answered")) < 30


@pytest.mark.slow
async def test_slow_client_keeps_its_connection(build: Build) -> None:
    """A client that reads something within each deadline keeps its connection, however long the whole answer takes."""
    harness = await build(limits=ServerLimits(write_seconds=1))
    connection = socket.create_connection(("127.0.0.1", int(harness.url.rpartition(":")[2])))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(get("/openapi.json") * 8 + get("/livez", "Connection: close"))

    def read_slowly() -> bytes:
        said = bytearray()
        connection.settimeout(5)
        while chunk := connection.recv(48 * 1024):
            said += chunk
            time.sleep(0.05)
        return bytes(said)

    said = await asyncio.to_thread(read_slowly)
    connection.close()

    assert said.count(b"HTTP/1.1 200") == 9


async def test_answer_beyond_the_memory_budget_is_refused(build: Build) -> None:
    """An answer that exceeds the memory budget is not sent."""
    harness = await build(KEYED)
    for _ in range(20):
        await harness.open({"metadata": {"a": "x" * 1000}}, headers=ADA)
    harness.hub.budget.total_bytes = harness.hub.budget.held + 10_000
    answer = await harness.call("GET", "/v1/sessions", headers=ADA)

    assert (answer.status, answer.code) == (503, "capacity")
    assert answer.headers["Retry-After"] == "5"


# --- losing -----------------------------------------------------------------------------------------------------------


async def test_connections_lost_at_odd_moments_leave_no_failed_task(harness: Harness) -> None:
    """A reset between any two steps of a request is not logged as a failed task."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    for _ in range(50):
        writers = [(await connect(harness.url))[1] for _ in range(4)]
        for number, writer in enumerate(writers):
            if number:
                writer.write(get("/livez") * number)
            reset(writer)
        await harness.call("GET", "/livez")
    await asyncio.sleep(0)

    assert json.dumps(failures, default=str) == "[]"

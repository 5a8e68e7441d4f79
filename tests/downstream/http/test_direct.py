"""gateway/downstream/http/direct.py: requests that are handled in the call that received them."""

import asyncio
import json
from typing import Any

import pytest

from gateway.downstream.http import direct
from gateway.downstream.http.direct import DirectConnection
from gateway.downstream.http.limits import ServerLimits
from gateway.downstream.http.protocol import CHARGED_BODY_BYTES
from gateway.relay.session import Session as RelaySession
from tests.downstream.harness import Build, Harness
from tests.downstream.raw import RawAnswer, ask, connect, parsed, read_all
from tests.downstream.streams import Session, event, opened
from tests.waiting import until

EVENT = b'{"type":"response.create"}'

LEFT = "Expect: nothing"
"""A header with which a request is left to aiohttp's task."""

VARYING = {"date", "x-request-id", "content-length"}


def post(path: str, body: bytes = EVENT, *headers: str, version: str = "1.1") -> bytes:
    """Return a POST request as bytes."""
    lines = [f"POST {path} HTTP/{version}", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def exchange(harness: Harness, *requests: bytes) -> list[RawAnswer]:
    """Send requests on one connection, each after the answer to the one before."""
    reader, writer = await connect(harness.url)
    answers = []
    async with asyncio.timeout(10):
        for request in requests:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(parsed(head).headers["content-length"])
            answers.append(parsed(head + await reader.readexactly(size)))
    writer.close()
    return answers


@pytest.fixture
def tasked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the paths of the requests that aiohttp's task handles."""
    paths: list[str] = []
    handle = DirectConnection._handle_request

    async def noted(self: DirectConnection, request: Any, *rest: Any) -> Any:
        paths.append(request.path)
        return await handle(self, request, *rest)

    monkeypatch.setattr(DirectConnection, "_handle_request", noted)
    return paths


def protocol_of(harness: Harness, writer: asyncio.StreamWriter) -> DirectConnection:
    """Return the server's side of a connection."""
    server, port = harness.server._client_side._runner.server, writer.get_extra_info("sockname")[1]
    assert server is not None
    (found,) = (one for one in server.connections if one.peername is not None and one.peername[1] == port)
    assert isinstance(found, DirectConnection)
    return found


# --- which requests ---------------------------------------------------------------------------------------------------


async def test_post_of_events_needs_no_task(session: Session, tasked: list[str]) -> None:
    """Complete POSTs on one connection are answered at once, and their events are sent in order."""
    first, second = await exchange(session.harness, post(session.path), post(session.path, b'{"type":"b"}'))

    assert (first.status, second.status, second.json["first"]) == (202, 202, 2)
    assert session.harness.far_end.sent == [EVENT.decode(), '{"type":"b"}']
    assert tasked == []


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        (("Connection: close",), "1.1"),
        (("Expect: 100-continue",), "1.1"),
        (("Connection: keep-alive",), "1.0"),
    ],
)
async def test_request_with_other_wishes_is_left_to_aiohttp(
    session: Session, tasked: list[str], headers: tuple[str, ...], version: str
) -> None:
    """An expectation, the end of the connection or HTTP/1.0 is handled as on all other routes."""
    reader, writer = await connect(session.harness.url)
    writer.write(post(session.path, EVENT, *headers, version=version))
    said = await asyncio.wait_for(reader.readuntil(b"}"), 10)
    writer.close()

    assert b" 202 Accepted" in said
    assert tasked == [session.path]


async def test_path_that_must_be_decoded_is_left_to_the_router(session: Session, tasked: list[str]) -> None:
    """An escape in a path names the same session."""
    path = session.path.replace("gws_", "gws%5F")
    (answer,) = await exchange(session.harness, post(path))

    assert (answer.status, len(tasked)) == (202, 1)


async def in_pieces(harness: Harness, *pieces: bytes) -> RawAnswer:
    """Send pieces that the server reads one after the other, and return the answer."""
    reader, writer = await connect(harness.url)
    for piece in pieces:
        writer.write(piece)
        await harness.call("GET", "/livez")  # The piece has been received once this is answered.
    answer = parsed(await asyncio.wait_for(reader.readuntil(b"}"), 10))
    writer.close()
    return answer


@pytest.fixture
def patient_for_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a connection wait for a body as long as a busy machine may take."""
    monkeypatch.setattr(direct, "BODY_SECONDS", 10)


@pytest.mark.usefixtures("patient_for_bodies")
@pytest.mark.parametrize("cuts", [(0,), (3,), (0, 5), (-1,)])
async def test_body_that_comes_after_its_head_needs_no_task(
    session: Session, tasked: list[str], cuts: tuple[int, ...]
) -> None:
    """Python's http.client sends head and body separately. The request is handled as if they had come together."""
    whole = post(session.path)
    ends = [len(whole) - len(EVENT) + cut if cut >= 0 else len(whole) + cut for cut in cuts]
    pieces = [whole[begin:end] for begin, end in zip([0, *ends], [*ends, len(whole)], strict=True)]
    answer = await in_pieces(session.harness, *pieces)

    assert answer.status == 202
    assert session.harness.far_end.sent == [EVENT.decode()]
    assert session.path not in tasked


@pytest.mark.usefixtures("patient_for_bodies")
async def test_request_behind_a_late_body_is_answered_after_it(session: Session) -> None:
    """What comes together with the rest of a body is the next request."""
    first, second = post(session.path), post(session.path, b'{"type":"b"}', "Connection: close")
    reader, writer = await connect(session.harness.url)
    writer.write(first[: -len(EVENT)])
    await session.harness.call("GET", "/livez")
    writer.write(EVENT + second)
    said = await asyncio.wait_for(read_all(reader), 10)
    writer.close()

    assert said.count(b"HTTP/1.1 202") == 2
    assert session.harness.far_end.sent == [EVENT.decode(), '{"type":"b"}']


@pytest.mark.usefixtures("patient_for_bodies")
@pytest.mark.parametrize(
    ("size", "headers"),
    [
        (CHARGED_BODY_BYTES + 1, ()),
        (9, (f"X-Large: {'x' * direct.MAX_HEAD_BYTES}",)),
        (9, ("Expect: 100-continue",)),
    ],
)
async def test_head_of_another_request_is_not_kept(
    session: Session, tasked: list[str], size: int, headers: tuple[str, ...]
) -> None:
    """Only a request that is then handled at once waits for its body before it is handled."""
    _, writer = await connect(session.harness.url)
    writer.write(post(session.path, b"x" * size, *headers)[:-size])
    await until(lambda: tasked == [session.path])
    writer.close()


@pytest.mark.usefixtures("patient_for_bodies")
async def test_client_that_ends_before_its_body_is_not_waited_for(session: Session) -> None:
    """The connection is closed at once, as if the head had been handled when it came."""
    reader, writer = await connect(session.harness.url)
    writer.write(post(session.path)[: -len(EVENT)])
    await session.harness.call("GET", "/livez")
    protocol = protocol_of(session.harness, writer)
    assert protocol._early
    writer.write_eof()

    assert await asyncio.wait_for(reader.read(), 5) == b""
    assert protocol._early == b""
    assert session.harness.far_end.sent == []
    writer.close()


async def test_body_that_does_not_come_is_waited_for_as_elsewhere(build: Build) -> None:
    """After a moment the head is handled without its body, whose time limit then counts."""
    harness = await build(limits=ServerLimits(body_seconds=0.05, linger_seconds=0.05))
    session = await opened(harness)
    answer = await ask(harness.url, post(session.path)[:-5])

    assert (answer.status, answer.json["code"]) == (408, "request-timeout")


async def test_request_in_pieces_is_left_to_aiohttp(session: Session, tasked: list[str]) -> None:
    """A body that comes long after its head is waited for in a task."""
    reader, writer = await connect(session.harness.url)
    whole = post(session.path, EVENT, "X-Request-Id: mine")
    writer.write(whole[:-5])
    await until(lambda: tasked != [])
    writer.write(whole[-5:])
    answer = parsed(await asyncio.wait_for(reader.readuntil(b"}"), 10))
    writer.close()

    assert (answer.status, answer.headers["x-request-id"]) == (202, "mine")


async def test_chunked_body_that_is_complete_is_answered_at_once(session: Session, tasked: list[str]) -> None:
    """It does not matter how the body is framed."""
    head = f"POST {session.path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    (answer,) = await exchange(session.harness, head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENT), EVENT))

    assert (answer.status, session.harness.far_end.sent, tasked) == (202, [EVENT.decode()], [])


# --- what is answered -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (EVENT, (), 202),
        (b"{", (), 400),
        (b"", (), 400),
        (EVENT, ("Content-Type: application/xml",), 415),
        (EVENT, ("Origin: https://other.example",), 403),
        (EVENT, ("Authorization: Bearer gwt_x",), 401),
    ],
)
async def test_answer_is_that_of_the_other_path(
    session: Session, tasked: list[str], body: bytes, headers: tuple[str, ...], status: int
) -> None:
    """Status, headers, their order and members are the same as for a request that aiohttp's task handles."""
    path, facts = session.path, session.harness.facts
    (straight,) = await exchange(session.harness, post(path, body, *headers))
    at_once = list(tasked)
    (other,) = await exchange(session.harness, post(path, body, *headers, LEFT))

    assert straight.status == other.status == status
    assert {name: value for name, value in straight.headers.items() if name not in VARYING} == {
        name: value for name, value in other.headers.items() if name not in VARYING
    }
    assert list(straight.headers) == list(other.headers)
    assert straight.json.keys() == other.json.keys()
    assert at_once == []
    lines = [fields for _, fields in facts.of("http_answered")][-2:]
    assert lines[0].keys() == lines[1].keys()
    assert lines[0]["route"] == lines[1]["route"]


async def test_error_that_closes_ends_the_connection(session: Session) -> None:
    """After an error that ends the connection nothing more is read from it."""
    refused = post(session.path, EVENT, "Content-Type: application/xml")
    answer = await ask(session.harness.url, refused)

    assert (answer.status, answer.headers["connection"]) == (415, "close")


async def test_bug_in_the_handler_is_answered_and_logged(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception becomes a problem object, as elsewhere, and the connection stays."""
    monkeypatch.setattr(RelaySession, "_check", lambda *_: 1 / 0)
    first, second = await exchange(session.harness, post(session.path), post(session.path))

    assert (first.status, first.json["code"], second.status) == (500, "internal", 500)
    ((request_id, error), _) = session.harness.facts.of("http_failed")
    assert request_id == first.headers["x-request-id"]
    assert isinstance(error, ZeroDivisionError)


async def test_bug_outside_of_the_middlewares_is_answered(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that no middleware catches is answered by aiohttp's task, which ends the connection."""
    monkeypatch.setattr(session.harness.facts, "http_answered", lambda *_: 1 / 0, raising=False)
    answer = await ask(session.harness.url, post(session.path))

    assert (answer.status, answer.headers["connection"]) == (500, "close")


async def test_long_answer_is_written_by_aiohttp(session: Session, tasked: list[str]) -> None:
    """An answer that counts against the memory budget is not written at once."""
    secret = session.created["client_secret"]["value"]
    body = json.dumps([{"type": "session.update" + "x" * 100}] * 250).encode()
    (answer,) = await exchange(session.harness, post(session.path, body, f"Authorization: Bearer {secret}"))

    assert (answer.status, len(answer.json["errors"])) == (403, 250)
    assert tasked == [session.path]
    assert len(session.harness.facts.of("http_answered")) == 2  # with the create's


# --- handlers that wait -----------------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Return what sending events waits for, as it does for a journal."""
    release, submit = asyncio.Event(), RelaySession.submit

    async def waiting(self: RelaySession, *args: Any) -> Any:
        await release.wait()
        async with asyncio.timeout(10):
            await asyncio.sleep(0)
        return await submit(self, *args)

    monkeypatch.setattr(RelaySession, "submit", waiting)
    return release


async def test_handler_that_waits_is_continued(
    session: Session, patient: asyncio.Event, tasked: list[str]
) -> None:
    """Its request is handled once, and answered when the handler is done."""
    reader, writer = await connect(session.harness.url)
    writer.write(post(session.path) + post(session.path))
    await until(lambda: tasked != [])
    patient.set()
    said = b"".join([await asyncio.wait_for(reader.readuntil(b"}"), 10) for _ in range(2)])
    writer.close()

    assert said.count(b"HTTP/1.1 202") == 2
    assert session.harness.far_end.sent == [EVENT.decode()] * 2


async def test_stream_begins_at_once_and_goes_on(session: Session, tasked: list[str]) -> None:
    """The first bytes of a stream are written before aiohttp's task continues it."""
    reader, writer = await connect(session.harness.url)
    writer.write(f"GET {session.path}?after=now HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    begun = await asyncio.wait_for(reader.readuntil(b"gateway.open\n"), 10)
    session.say(event("response.created"))
    await asyncio.wait_for(reader.readuntil(b"response.created"), 10)
    writer.close()
    await until(lambda: session.handle.view().receivers == 0)

    assert parsed(begun).headers["content-type"].startswith("text/event-stream")
    assert tasked == [session.path]


async def test_error_after_a_wait_is_answered(
    session: Session, patient: asyncio.Event, tasked: list[str]
) -> None:
    """An exception passes through the middlewares in the task as well."""
    asking = asyncio.create_task(exchange(session.harness, post(session.path)))
    await until(lambda: tasked != [])
    await session.harness.call("DELETE", session.path.removesuffix("/events"))
    patient.set()
    (answer,) = await asking

    assert (answer.status, answer.json["code"]) == (410, "session-closed")


async def test_cancelled_handler_ends(build: Build, patient: asyncio.Event, tasked: list[str]) -> None:
    """A server that closes cancels the handler where it waits."""
    harness = await build(limits=ServerLimits(shutdown_seconds=0.05))
    session = await opened(harness)
    tasked.clear()
    asking = asyncio.create_task(ask(harness.url, post(session.path)))
    await until(lambda: tasked != [])
    await harness.server.close()
    await asking

    assert not patient.is_set()
    assert [fields["status"] for _, fields in harness.facts.of("http_answered")][-1] == 499
    assert harness.far_end.sent == []


async def test_handler_whose_task_is_cancelled_first_ends(session: Session, patient: asyncio.Event) -> None:
    """The request is logged as one whose client left."""
    reader, writer = await connect(session.harness.url)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"ok\n")
    protocol = protocol_of(session.harness, writer)
    protocol.data_received(post(session.path))
    assert protocol._task_handler is not None
    protocol._task_handler.cancel()
    protocol.force_close()
    await until(lambda: len(session.harness.facts.of("http_answered")) == 3)
    writer.close()

    assert session.harness.facts.of("http_answered")[-1][1]["status"] == 499
    assert not patient.is_set()


# --- order, and clients that do not read ------------------------------------------------------------------------------


async def test_pipelined_requests_are_answered_in_order(session: Session) -> None:
    """A POST behind a request that waits is answered after it."""
    poll = f"GET {session.path}?wait=5&after=now&format=json HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    reader, writer = await connect(session.harness.url)
    writer.write(poll)
    await until(lambda: session.handle.view().receivers == 1)
    writer.write(post(session.path, EVENT, "Connection: close"))
    await session.harness.call("GET", "/livez")  # The POST has been received once this is answered.
    assert session.harness.far_end.sent == []
    session.say(event())
    said = await asyncio.wait_for(read_all(reader), 10)
    writer.close()

    assert said.index(b"200 OK") < said.index(b"202 Accepted")


async def test_answered_connection_is_idle(session: Session) -> None:
    """A connection whose request was answered at once makes room for a new one."""
    reader, writer = await connect(session.harness.url)
    writer.write(post(session.path))
    await asyncio.wait_for(reader.readuntil(b"}"), 10)
    connections = session.harness.server._client_side._connections
    while connections._close_longest_idle():
        pass

    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_client_that_reads_no_answers_is_not_served_further(
    session: Session, tasked: list[str]
) -> None:
    """While an answer waits for its client, the next request goes to the task, which waits as well."""
    reader, writer = await connect(session.harness.url)
    writer.write(post(session.path))
    await asyncio.wait_for(reader.readuntil(b"}"), 10)
    protocol = protocol_of(session.harness, writer)
    protocol.pause_writing()
    writer.write(post(session.path))
    await until(lambda: tasked != [])
    protocol.resume_writing()
    said = await asyncio.wait_for(reader.readuntil(b"}"), 10)
    writer.close()

    assert parsed(said).status == 202

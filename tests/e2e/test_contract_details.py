"""What sections 1 and 2 of the contract promise and only a complete gateway can show: limits, endings, connections."""

import asyncio
import json
import re
import time
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.app import Gateway
from tests.e2e.caller import Caller, Json, Serve, say
from tests.farend import FarEnd
from tests.waiting import until

pytestmark = pytest.mark.slow

# A far end or a reader that does not read is detected by sending more than the buffers hold.
LARGE = "x" * 200_000


def server_event(kind: str, **members: Any) -> str:
    """Return a server event as the service would write it."""
    return json.dumps({"type": kind, **members})


# --- frames that are not events ----------------------------------------------------------------------------------------


async def test_frames_that_are_no_objects_are_not_relayed(
    gateway: Gateway, caller: Caller, far_end: FarEnd
) -> None:
    """A frame that is not a JSON object is dropped, valid events around it are relayed, and the session continues."""
    session = await caller.open()
    bad: list[Any] = ["no json", "[1]", '"text"', "", '{"a":NaN}', {"base64": "//4="}]
    good = [server_event("one"), server_event("two")]
    await far_end.send(session["call_id"], good[0], *bad, good[1])
    read = await caller.take(session["id"], 2, after=session["head"])

    assert [block.text for block in read] == good
    _, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")
    assert now["state"] == "connected"


async def test_raw_line_ends_become_what_the_rendering_can_say(
    gateway: Gateway, caller: Caller, far_end: FarEnd
) -> None:
    """Line ends between JSON's tokens are LF in an event stream and a space elsewhere; everything else stays byte
    for byte."""
    session = await caller.open()
    await far_end.send(session["call_id"], '{\r\n\t"type" :\n"x",\r"n": [1,  2] }')
    streamed = await caller.take(session["id"], 1, after=session["head"])
    path = f"{session['events_url']}?after={session['head']}&format=json"
    async with caller.http.get(caller.url + path) as answer:
        polled = await answer.text()

    assert streamed[0].text == '{\n\t"type" :\n"x",\n"n": [1,  2] }'
    assert re.search(r'\{ {1,2}\t"type" : "x", "n": \[1,  2\] \}', polled)


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_a_full_gateway_is_503_and_still_ready(serve: Serve, far_end: FarEnd) -> None:
    """At `max_sessions` a create gets 503 with `Retry-After`. Readiness does not change, because a balancer would
    move the whole load."""
    gateway = await serve(far_end, relay={"max_sessions": 1})
    async with caller_of(gateway) as caller:
        session = await caller.open()
        answer, problem = await caller.ask("POST", "/v1/sessions")
        ready, _ = await caller.ask("GET", "/readyz")
        await caller.ask("DELETE", f"/v1/sessions/{session['id']}")
        again, _ = await caller.ask("POST", "/v1/sessions")

    assert (answer.status, problem["code"], problem["retryable"]) == (503, "capacity", True)
    assert int(answer.headers["Retry-After"]) > 0
    assert ready.status == 200
    assert again.status == 201


async def test_full_logs_refuse_sessions_and_close_none(serve: Serve, far_end: FarEnd) -> None:
    """At `log_total_bytes` new sessions get 503, the largest log drops its oldest events, and no session ends."""
    gateway = await serve(far_end, relay={"log_total_bytes": 1024 * 1024})
    async with caller_of(gateway) as caller:
        session = await caller.open()
        frames = [server_event("large", n=n, text=LARGE) for n in range(8)]
        await far_end.send(session["call_id"], *frames)
        await until(lambda: head_is(caller, session, 1 + len(frames)))
        answer, problem = await caller.ask("POST", "/v1/sessions")
        _, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")
        read = await caller.until(session["id"], "gateway.gap", after=session["head"])

    assert (answer.status, problem["code"]) == (503, "capacity")
    assert now["state"] == "connected"
    assert now["oldest"] != session["oldest"]
    assert read[-1].value["missed"] > 0


async def head_is(caller: Caller, session: Json, count: int) -> bool:
    """Return whether this many events have arrived."""
    _, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")
    return int(now["head"].rsplit("-", 1)[1]) >= count


async def test_a_far_end_that_does_not_read_is_told_as_back_pressure(serve: Serve, far_end: FarEnd) -> None:
    """A batch that does not fit under the high-water mark gets 503 at once, and nothing of it is sent."""
    gateway = await serve(far_end, relay={"high_water_bytes": 100_000})
    async with caller_of(gateway) as caller:
        session = await caller.open()
        await far_end.fault(session["call_id"], do="vanish")
        event = {"type": "x", "text": LARGE}
        # Nothing is buffered at first, so even a large batch is accepted; SCTP itself takes some of it before it waits.
        answer, _ = await caller.ask("POST", session["events_url"], event)
        taken, took = 0, 0.0
        problem: Json = {}
        while answer.status == 202:
            taken += 1
            assert taken < 5
            began = time.monotonic()
            answer, problem = await caller.ask("POST", session["events_url"], event)
            took = time.monotonic() - began

    assert taken >= 1
    assert (answer.status, problem["code"], problem["retryable"]) == (503, "upstream-backpressure", True)
    assert int(answer.headers["Retry-After"]) > 0
    assert took < 5  # at once, not when the far end reads again


# --- endings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relay", "reason"),
    [({"idle_timeout_seconds": 0.5}, "idle"), ({"max_session_seconds": 0.5}, "expired")],
    ids=["idle", "expired"],
)
async def test_a_session_ends_in_its_time(serve: Serve, far_end: FarEnd, relay: Json, reason: str) -> None:
    """A session that is idle for too long or too old is closed with that reason, and a new session can help."""
    gateway = await serve(far_end, relay=relay)
    async with caller_of(gateway) as caller:
        session = await caller.open()
        closed = (await caller.until(session["id"], "gateway.closed"))[-1].value
        _, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")

    assert (closed["reason"], closed["retryable"]) == (reason, True)
    assert (now["state"], now["close_reason"]) == ("closed", reason)


async def test_an_end_that_is_known_is_told(serve: Serve, far_end: FarEnd) -> None:
    """With `max_session_seconds` the session reports its end, and its credentials do not expire earlier."""
    gateway = await serve(far_end, relay={"max_session_seconds": 1000})
    async with caller_of(gateway) as caller:
        session = await caller.open()

    assert session["expires_at"] == session["created_at"] + 1000
    assert session["client_secret"]["expires_at"] >= session["expires_at"]


async def test_a_session_nobody_reads_is_detached(serve: Serve, far_end: FarEnd) -> None:
    """A session without receivers and requests ends after its grace period; one that is being read does not."""
    gateway = await serve(far_end, relay={"detach_grace_seconds": 10})
    async with caller_of(gateway) as caller:
        left, read = await caller.open(), await caller.open()
        async with aclosing(caller.stream(read["id"], heartbeat="5")) as stream:
            await anext(stream)
            await until(lambda: closed_in_list(gateway, left["id"]), seconds=15)
            _, still = await caller.ask("GET", f"/v1/sessions/{read['id']}")
        closed = (await caller.until(left["id"], "gateway.closed"))[-1].value

    assert closed["reason"] == "detached"
    assert still["state"] == "connected"


async def closed_in_list(gateway: Gateway, session_id: str) -> bool:
    """Ask the admin listener's list, which does not count as a request for the session."""
    async with caller_of(gateway, admin=True) as operator:
        _, listed = await operator.ask("GET", "/sessions")
    return any(one["id"] == session_id and one["state"] == "closed" for one in listed["data"])


async def test_after_its_retention_a_session_never_was(serve: Serve, far_end: FarEnd) -> None:
    """Once the log is dropped every request is 404, including DELETE."""
    gateway = await serve(far_end, relay={"log_retention_seconds": 0})
    async with caller_of(gateway) as caller:
        session = await caller.open()
        path = f"/v1/sessions/{session['id']}"
        await caller.ask("DELETE", path)

        async def gone() -> bool:
            answer, _ = await caller.ask("GET", path)
            return answer.status == 404

        await until(gone)
        answers = [
            await caller.ask("DELETE", path),
            await caller.ask("GET", f"{path}/events"),
            await caller.ask("POST", f"{path}/events", say("Hello")),
            await caller.ask("GET", session["stream_url"], headers={"Accept": "application/json"}),
        ]

    assert [(answer.status, problem["code"]) for answer, problem in answers] == [(404, "session-unknown")] * 4


async def test_a_drain_tells_refuses_and_ends(serve: Serve, far_end: FarEnd) -> None:
    """While draining, the gateway is not ready, opens no session, notifies readers, and ends each session with the
    reason `drained`."""
    gateway = await serve(far_end, drain={"timeout_seconds": 1.5})
    async with caller_of(gateway) as caller:
        session = await caller.open()
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(caller.until(session["id"], "gateway.closed"))
            await until(lambda: receivers(caller, session))
            draining = group.create_task(gateway.drain())
            await until(lambda: not_ready(caller))
            answer, problem = await caller.ask("POST", "/v1/sessions")
            alive, _ = await caller.ask("GET", "/livez")
            await draining
        told = [block.value for block in reading.result() if block.type.startswith("gateway.")]

    assert [value["type"] for value in told] == ["gateway.draining", "gateway.closed"]
    assert (told[-1]["reason"], told[-1]["retryable"]) == ("drained", True)
    assert (answer.status, problem["code"], problem["retryable"]) == (503, "draining", True)
    assert int(answer.headers["Retry-After"]) > 0
    assert alive.status == 200


async def receivers(caller: Caller, session: Json) -> bool:
    """Return whether the session has a receiver."""
    _, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")
    return bool(now["receivers"])


async def not_ready(caller: Caller) -> bool:
    """Return whether a load balancer would choose another gateway."""
    answer, _ = await caller.ask("GET", "/readyz")
    return answer.status == 503


# --- connections ------------------------------------------------------------------------------------------------------


async def test_half_a_head_is_408(serve: Serve, far_end: FarEnd) -> None:
    """A head that arrives more slowly than the deadline is cut off with a problem object."""
    gateway = await serve(far_end, server={"header_timeout_seconds": 0.3})
    head, body = await raw(gateway, b"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")

    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)["code"] == "request-timeout"


@pytest.mark.slow  # the connection stays for some seconds, so that the client has time to read
async def test_half_a_body_is_408(serve: Serve, far_end: FarEnd) -> None:
    """A body that does not arrive in time is refused, and no part of it is used."""
    gateway = await serve(far_end, server={"body_timeout_seconds": 0.3})
    host = urlsplit(gateway.url).netloc.encode()
    request = b"POST /v1/sessions HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 100\r\n\r\n{"
    head, body = await raw(gateway, request)

    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)["code"] == "request-timeout"


async def test_what_is_no_http_is_a_bare_400(gateway: Gateway) -> None:
    """Only bytes that do not parse as HTTP get no problem object."""
    head, _ = await raw(gateway, b"\x16\x03\x01\x00\xa5 this is TLS, say\r\n\r\n")

    assert head.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))


async def raw(gateway: Gateway, request: bytes) -> tuple[bytes, bytes]:
    """Send bytes and return head and body of everything received until the connection ends."""
    parts = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


async def test_a_reader_that_does_not_read_costs_nobody_else(serve: Serve, far_end: FarEnd) -> None:
    """After the write deadline the connection of such a reader ends and the session continues; other readers
    received everything in the meantime."""
    gateway = await serve(far_end, stream={"write_timeout_seconds": 1})
    async with caller_of(gateway) as caller:
        session = await caller.open()
        parts = urlsplit(gateway.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1024)
        request = f"GET {session['stream_url']} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n"
        writer.write(request.encode())
        await reader.readuntil(b"gateway.open")
        assert isinstance(writer.transport, asyncio.ReadTransport)
        writer.transport.pause_reading()
        frames = [server_event("large", n=n, text=LARGE) for n in range(30)]
        await far_end.send(session["call_id"], *frames)
        read = await caller.take(session["id"], len(frames), after=session["head"])
        await until(lambda: slow_readers(gateway))
        _, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")
        writer.transport.abort()

    assert [block.text for block in read] == frames
    assert (now["state"], now["receivers"]) == ("connected", 0)


async def slow_readers(gateway: Gateway) -> bool:
    """Return whether a stream was ended because its reader was too slow."""
    async with caller_of(gateway, admin=True) as operator:
        _, metrics = await operator.ask("GET", "/metrics")
    return b'streams_closed_total{format="sse",reason="slow"} 1.0' in metrics


def caller_of(gateway: Gateway, admin: bool = False) -> Caller:
    """Return a client of a gateway's client or admin listener; a context manager."""
    return Caller(gateway.admin_url if admin else gateway.url)

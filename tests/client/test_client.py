"""The client against a scripted server: resume, back-off, safe retries, and errors that end it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.client import (
    NOW,
    Client,
    Event,
    InvalidRequestError,
    ProblemError,
    RateLimitedError,
    Session,
    SessionGoneError,
    SupersededError,
    UnreachableError,
    retrying,
)

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Script:
    """A server that answers each request to a path with its next answer, and records the requests."""

    def __init__(self) -> None:
        self.asked: list[web.Request] = []
        self.bodies: list[Any] = []
        self.answers: dict[str, list[Answer]] = {}

    def then(self, path: str, *answers: Answer) -> None:
        self.answers.setdefault(path, []).extend(answers)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        body = await request.read()
        self.bodies.append(json.loads(body) if body else None)
        return await self.answers[f"{request.method} {request.path}"].pop(0)(request)


EVENTS = "GET /v1/sessions/gws_a/events"
SEND = "POST /v1/sessions/gws_a/events"
CREATED = {"id": "gws_a", "limits": {"heartbeat_seconds": 0.2}}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off for milliseconds, because only the order of events is tested."""
    monkeypatch.setattr(retrying, "FIRST_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(retrying, "LONGEST_BACKOFF_SECONDS", 0.01)


@pytest.fixture
def script() -> Script:
    """Return a script to write."""
    return Script()


@pytest.fixture
async def client(script: Script) -> AsyncIterator[Client]:
    """Return a client of the scripted server."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", script.handle)
    async with TestServer(app) as server, Client(str(server.make_url("")), key="secret") as client:
        yield client


@pytest.fixture
def session(client: Client) -> Session:
    """Return a session on the scripted server."""
    return Session(client, CREATED)


def problem(status: int, code: str, *, retryable: bool = False, retry_after: str | None = None) -> Answer:
    """Answer with a problem object."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = {
            "type": "about:blank",
            "status": status,
            "code": code,
            "detail": "why",
            "retryable": retryable,
        }
        headers = {"Retry-After": retry_after} if retry_after else {}
        return web.json_response(
            body, status=status, content_type="application/problem+json", headers=headers
        )

    return answer


def data(value: object) -> Answer:
    """Answer with JSON."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(value)

    return answer


def empty(status: int) -> Answer:
    """Answer with a status alone."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    return answer


async def cut(request: web.Request) -> web.StreamResponse:
    """Receive the request and cut the connection, so that the client cannot know whether it was processed."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def mute(request: web.Request) -> web.StreamResponse:
    """Open a stream and send nothing."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await asyncio.sleep(30)
    return response


def stream(*parts: str, broken: bool = False) -> Answer:
    """Answer with an event stream, ended cleanly or cut."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part.encode())
        if broken and request.transport is not None:
            request.transport.abort()
        return response

    return answer


def block(number: int, type_: str, **members: object) -> str:
    """Frame one event of the log."""
    return f"id: k3f9-{number}\ndata: {json.dumps({'type': type_, **members})}\n\n"


CLOSED = block(9, "gateway.closed", reason="client")


async def collect(session: Session, after: str = "earliest") -> list[Event]:
    """Read to the end, within a deadline."""
    async with asyncio.timeout(10):
        return [event async for event in session.events(after)]


async def test_cut_stream_is_resumed_after_the_last_event(script: Script, session: Session) -> None:
    """After a connection breaks between or within events, the client continues after the last complete one."""
    script.then(EVENTS, stream(block(1, "a"), block(2, "b"), block(3, "c")[:-5], broken=True))
    script.then(EVENTS, stream("retry: 1\n\n", block(3, "c"), CLOSED))

    events = await collect(session)

    assert [event.type for event in events] == ["a", "b", "c", "gateway.closed"]
    assert script.asked[0].query["after"] == "earliest"
    assert script.asked[1].headers["Last-Event-ID"] == "k3f9-2"


async def test_rotated_stream_goes_on(script: Script, session: Session) -> None:
    """After a clean end of the connection without `gateway.closed`, the client reconnects."""
    script.then(
        EVENTS, stream(block(1, "a"), 'retry: 1\ndata: {"type":"gateway.rotating"}\n\n'), stream(CLOSED)
    )

    assert [event.type for event in await collect(session)] == ["a", "gateway.closed"]


async def test_gap_is_surfaced(script: Script, session: Session) -> None:
    """A gap is yielded at its place among the events."""
    gap = 'id: k3f9-6\ndata: {"type":"gateway.gap","missed":5}\n\n'
    script.then(EVENTS, stream(gap, block(7, "late"), CLOSED))

    events = await collect(session, "k3f9-1")

    assert [(event.type, event.value.get("missed")) for event in events[:2]] == [
        ("gateway.gap", 5),
        ("late", None),
    ]


async def test_reading_from_now_is_asked_for(script: Script, session: Session) -> None:
    """`now` is sent as a cursor."""
    script.then(EVENTS, stream(CLOSED))
    await collect(session, NOW)

    assert script.asked[0].query["after"] == "now"


async def test_silent_stream_is_taken_for_dead(script: Script, session: Session) -> None:
    """If no byte arrives for some heartbeats, the client reconnects even if TCP reports no error."""
    script.then(EVENTS, mute, stream(CLOSED))

    assert [event.type for event in await collect(session)] == ["gateway.closed"]


async def test_refused_read_is_tried_again_while_it_may_help(script: Script, session: Session) -> None:
    """A read that is refused with 503 is tried again, because the condition may pass."""
    script.then(EVENTS, problem(503, "draining", retryable=True), stream(CLOSED))

    assert len(await collect(session)) == 1


async def test_final_refusal_is_raised(script: Script, session: Session) -> None:
    """A read that is refused with 404 raises an error at once."""
    script.then(EVENTS, problem(404, "session-unknown"))

    with pytest.raises(SessionGoneError, match="404 session-unknown: why"):
        await collect(session)


async def test_answer_that_is_no_stream_is_raised(script: Script, session: Session) -> None:
    """A proxy's page with status 200 is not read as events."""
    script.then(EVENTS, data({"hello": "world"}))

    with pytest.raises(ProblemError, match="expected an event stream, got application/json"):
        await collect(session)


async def test_no_content_ends_the_reading(script: Script, session: Session) -> None:
    """204 ends the reading, because no more events will ever come."""
    script.then(EVENTS, stream(block(1, "a")), empty(204))

    assert [event.type for event in await collect(session)] == ["a"]


async def test_superseded_stream_does_not_fight(script: Script, session: Session) -> None:
    """A superseded client does not reconnect, because that would end another reader."""
    script.then(EVENTS, stream('retry: 2147483647\ndata: {"type":"gateway.superseded"}\n\n'))

    with pytest.raises(SupersededError):
        await collect(session)


async def test_send_is_repeated_with_its_key(script: Script, session: Session) -> None:
    """After a lost answer the client repeats the request with the same Idempotency-Key."""
    script.then(SEND, cut, problem(503, "recovering", retryable=True), data({"accepted": 1}))

    receipt = await session.send({"type": "response.create"})

    keys = {request.headers["Idempotency-Key"] for request in script.asked}
    assert receipt == {"accepted": 1}
    assert (len(script.asked), len(keys)) == (3, 1)
    assert script.bodies == [[{"type": "response.create"}]] * 3


async def test_send_that_can_never_succeed_is_not_repeated(script: Script, session: Session) -> None:
    """A request refused with 400 is not repeated, because the caller must change it."""
    script.then(SEND, problem(400, "invalid-event"))

    with pytest.raises(InvalidRequestError) as refused:
        await session.send({})

    assert (refused.value.status, refused.value.code, len(script.asked)) == (400, "invalid-event", 1)


async def test_send_gives_up_in_the_end(script: Script, session: Session) -> None:
    """A gateway that stays unreachable raises UnreachableError."""
    script.then(SEND, *[problem(503, "draining", retryable=True)] * 5)

    with pytest.raises(ProblemError, match="draining"):
        await session.send({"type": "a"})


async def test_budget_of_a_day_is_not_waited_for(script: Script, session: Session) -> None:
    """A refusal that asks to wait for hours is raised at once, with the time."""
    script.then(SEND, problem(429, "rate-limited", retryable=True, retry_after="40000"))

    async with asyncio.timeout(10):
        with pytest.raises(RateLimitedError) as refused:
            await session.send({"type": "a"})

    assert refused.value.retry_after == 40000


async def test_answer_of_another_server_is_raised(script: Script, session: Session) -> None:
    """A success without JSON, such as the page of a captive portal, is reported as such."""

    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>", content_type="text/html")

    script.then(SEND, page, data([]))

    for kind in ("text/html", "application/json"):
        with pytest.raises(ProblemError, match=f"got {kind}: is this the gateway"):
            await session.send({"type": "a"})


async def test_key_is_sent_as_bearer(script: Script, session: Session) -> None:
    """The key is sent as a bearer token, never in the query."""
    script.then(SEND, data({"accepted": 1}))
    await session.send({"type": "a"})

    assert script.asked[0].headers["Authorization"] == "Bearer secret"
    assert script.asked[0].query_string == ""


async def test_leaving_the_loop_closes_the_connection(script: Script, session: Session) -> None:
    """A reader that leaves the loop early leaves no connection open."""
    left = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            while True:
                await response.write(block(1, "a").encode())
                await asyncio.sleep(0.01)
        finally:
            left.set()

    script.then(EVENTS, endless)
    events = session.events()
    await anext(events)
    await events.aclose()

    await asyncio.wait_for(left.wait(), 10)


TURN = "POST /v1/sessions/gws_a/turns"
DONE = {"id": "resp_1", "status": "completed", "output": [{"type": "message", "content": [{"text": "ab"}]}]}


async def test_streamed_turn_joins_the_same_turn_after_a_cut(script: Script, session: Session) -> None:
    """A turn cut in the middle is requested again with its key and cursor, and events received twice are yielded once."""
    begin = block(1, "response.output_text.delta", delta="a")
    end = block(2, "response.output_text.delta", delta="b") + block(3, "response.done", response=DONE)
    script.then(
        TURN, stream(begin, broken=True), problem(503, "recovering", retryable=True), stream(begin, end)
    )

    turn = session.stream("Hi", max_output_tokens=5)
    pieces = [piece async for piece in turn]

    assert pieces == ["a", "b"]
    assert (turn.answer.text, turn.answer.status) == ("ab", "completed")
    assert {request.headers["Idempotency-Key"] for request in script.asked} == {
        script.asked[0].headers["Idempotency-Key"]
    }
    assert script.asked[2].headers["Last-Event-ID"] == "k3f9-1"
    assert script.bodies == [{"input": "Hi", "max_output_tokens": 5}] * 3


async def test_character_that_two_deltas_share_comes_whole(script: Script, session: Session) -> None:
    """Halves of a surrogate pair are joined, and a half without the other is replaced: every piece can be printed."""
    deltas = ["a\ud83d", "\ude00b", "\ud83d"]
    shown = [block(number, "response.output_text.delta", delta=delta) for number, delta in enumerate(deltas)]
    script.then(TURN, stream(*shown, block(8, "response.done", response=DONE)))

    assert [piece async for piece in session.stream("Hi")] == ["a", "\U0001f600b", "\ufffd"]


async def test_streamed_turn_raises_what_the_gateway_tells_in_it(script: Script, session: Session) -> None:
    """A failure after the first event arrives as `gateway.error` and is raised."""
    told = {"type": "gateway.error", "status": 502, "code": "upstream-rejected", "retryable": False}
    script.then(TURN, stream(f"event: gateway.error\ndata: {json.dumps(told)}\n\n"))

    with pytest.raises(ProblemError) as refused:
        _ = [piece async for piece in session.stream("Hi")]

    assert (refused.value.status, refused.value.code) == (502, "upstream-rejected")


async def test_streamed_turn_gives_up_in_the_end(script: Script, session: Session) -> None:
    """If every connection fails, the error names the gateway."""
    script.then(TURN, *[cut] * 5)

    with pytest.raises(UnreachableError, match="http://127"):
        _ = [piece async for piece in session.stream("Hi")]


async def test_answer_is_not_there_before_its_end(script: Script, session: Session) -> None:
    """The answer is not available before the turn has ended."""
    script.then(TURN, stream(block(1, "response.output_text.delta", delta="a"), block(2, "x"), block(3, "y")))
    async with session.stream("Hi") as turn:
        await anext(turn.__aiter__())

        with pytest.raises(RuntimeError, match="to its end"):
            _ = turn.answer


async def test_attached_session_uses_its_own_credential(script: Script, client: Client) -> None:
    """A client secret is sent for that session, in place of the client's key."""
    script.then(SEND, data({"accepted": 1}))
    script.then(EVENTS, stream(CLOSED))
    attached = client.attach("gws_a", "gwk_secret")
    await attached.send({"type": "a"})
    await collect(attached)

    assert {request.headers["Authorization"] for request in script.asked} == {"Bearer gwk_secret"}


async def test_filters_are_the_gateways(script: Script, session: Session) -> None:
    """Filters are passed on to the gateway, which selects the events."""
    script.then(EVENTS, stream(CLOSED))
    _ = [event async for event in session.events(types=["response.*", "error"], exclude=["x"])]

    assert script.asked[0].query["types"] == "response.*,error"
    assert script.asked[0].query["exclude"] == "x"


async def test_sessions_are_listed_over_all_pages(script: Script, client: Client) -> None:
    """The gateway returns one page at a time; the list has all sessions, in order."""
    pages = [
        {"data": [{"id": "gws_c"}, {"id": "gws_b"}], "has_more": True},
        {"data": [{"id": "gws_a"}], "has_more": False},
    ]
    script.then("GET /v1/sessions", *map(data, pages))

    assert [one["id"] for one in await client.sessions()] == ["gws_c", "gws_b", "gws_a"]
    assert [request.query.get("after") for request in script.asked] == [None, "gws_b"]


@pytest.mark.parametrize("url", ["ftp://gateway", "http://", "http://[::1", ""])
def test_address_of_no_gateway_is_refused_at_once(url: str) -> None:
    """It is an error of the program. A reader would try again for ever."""
    with pytest.raises(ValueError, match=r"URL"):
        Client(url)


def test_address_without_a_scheme_is_http() -> None:
    """As on the command line."""
    assert Client("localhost:8080/").url == "http://localhost:8080"


async def test_gateway_that_is_not_there_is_named() -> None:
    """The error says which address does not answer."""
    async with Client("http://127.0.0.1:1") as client:
        with pytest.raises(UnreachableError, match=r"^http://127\.0\.0\.1:1 does not answer"):
            await client.ask("Hi")

"""Section 1.3: reading the log by event stream, NDJSON and long-poll."""

import asyncio
import json
import re
import time
from typing import Any

import pytest

from tests.conformance.wire import (
    EVENT_STREAM,
    JSON,
    LONG_QUESTION,
    NDJSON,
    RESPONSE,
    Block,
    Json,
    Session,
    item,
)

CLEAR: Json = {"type": "input_audio_buffer.clear"}
UNKNOWN: Json = {"type": "nobody.knows"}
FOREIGN = "zzzzz-3"
ID = re.compile(r"[0-9a-z-]+")
NEVER = 2147483647


async def fill(session: Session, count: int = 5) -> list[Json]:
    """Make the upstream send at least this many events, and return the log afterwards."""
    receipt = await session.send(*([UNKNOWN] * count))
    cursor, seen = receipt["head"], 0
    while seen < count:
        page = await session.until("error", after=cursor)
        cursor, seen = page[-1]["id"], seen + 1
    page = (await session.poll(wait=0, limit=1000)).json["events"]
    assert [entry["id"] for entry in page if entry["event"]["type"] == "error"]
    found: list[Json] = page
    return found


# --- the stream's head ------------------------------------------------------------------------------------------------


async def test_a_stream_has_the_headers_of_the_contract(session: Session) -> None:
    """The headers forbid proxies to store, change or delay an event stream."""
    async with session.stream() as stream:
        headers = stream.headers

    assert stream.status == 200
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["Cache-Control"] == "no-store, no-transform"
    # The header is meant for nginx, which obeys it and does not forward it.
    if not headers["Server"].startswith("nginx"):
        assert headers["X-Accel-Buffering"] == "no"


async def test_a_stream_opens_with_retry_and_gateway_open(session: Session) -> None:
    """The first bytes arrive at once: the delay before a reconnect, and the position of the read."""
    async with session.stream(after=session.head, heartbeat=20) as stream:
        async with asyncio.timeout(10):
            first = await stream.block()
            opening = first if first.data is not None else await stream.next()

    value = opening.value
    assert first.retry is not None
    assert 1000 <= first.retry <= 3000
    assert (opening.event, opening.id) == ("gateway.open", session.head)
    assert value.keys() >= {
        "type", "session_id", "requested", "resumed", "missed", "oldest", "head", "heartbeat_seconds", "max_age_seconds",
    }  # fmt: skip
    assert value["type"] == "gateway.open"
    assert value["session_id"] == session.id
    assert (value["requested"], value["resumed"], value["missed"]) == (session.head, True, 0)
    assert value["heartbeat_seconds"] == 20


async def test_max_age_is_drawn_from_a_fifth_below_the_limit(session: Session) -> None:
    """`gateway.open` has the age at which the connection ends, between 0.8 and 1 of the limit."""
    limit = session.created["limits"]["stream_max_age_seconds"]
    async with session.stream() as stream:
        told = (await stream.next()).value["max_age_seconds"]

    assert 0.8 * limit - 1 <= told <= limit


# --- events -----------------------------------------------------------------------------------------------------------


async def test_server_events_are_default_messages(session: Session) -> None:
    """A `message` listener with `JSON.parse(event.data)` is all a page needs."""
    async with session.stream() as stream:
        blocks = await stream.until("session.created")

    assert blocks[-1].event == "message"
    assert blocks[-1].value["session"]["type"] == "realtime"


async def test_own_events_carry_their_name_twice(session: Session) -> None:
    """A `gateway.*` event has the same name in `event:` and in its JSON."""
    async with session.stream() as stream:
        await session.wire.call("DELETE", session.path)
        blocks = await stream.until("gateway.closed")

    assert {block.event: block.type for block in blocks if block.event != "message"} == {
        "gateway.open": "gateway.open",
        "gateway.closed": "gateway.closed",
    }


async def test_ids_are_opaque_ascending_and_stable(session: Session) -> None:
    """Two connections read the same ids, each once, in the characters that the contract allows."""
    await fill(session)
    read: list[list[str | None]] = []
    for _ in range(2):
        async with session.stream() as stream:
            blocks = [block for block in await stream.until("error") if block.event == "message"]
            read.append([block.id for block in blocks])

    assert read[0] == read[1]
    assert len(set(read[0])) == len(read[0]) > 0
    assert all(id and ID.fullmatch(id) for id in read[0])


async def test_all_renderings_are_one_read(session: Session) -> None:
    """Event stream, NDJSON and long-poll show the same ids and events."""
    polled = [(entry["id"], entry["event"]) for entry in await fill(session)]
    async with session.stream() as stream:
        await stream.next()
        streamed = [await stream.next() for _ in polled]
    await session.wire.call("DELETE", session.path)
    lines = (await session.wire.call("GET", session.events, headers={"Accept": NDJSON})).lines

    assert [(block.id, block.value) for block in streamed] == polled
    assert [(line["id"], line["event"]) for line in lines if line["id"]][: len(polled)] == polled


@pytest.mark.parametrize(
    ("accept", "query", "media_type"),
    [
        ("text/event-stream", {}, EVENT_STREAM),
        ("*/*", {}, EVENT_STREAM),
        (None, {}, EVENT_STREAM),
        ("text/html, */*;q=0.1", {}, EVENT_STREAM),
        ("application/x-ndjson", {}, NDJSON),
        ("application/json", {}, JSON),
        ("application/json;q=0.5, application/x-ndjson", {}, NDJSON),
        ("application/json", {"format": "sse"}, EVENT_STREAM),
        ("text/event-stream", {"format": "ndjson"}, NDJSON),
        ("text/event-stream", {"format": "json"}, JSON),
    ],
)
async def test_the_rendering_is_chosen_by_accept_or_format(
    session: Session, accept: str | None, query: Json, media_type: str
) -> None:
    """`Accept` chooses, and `?format=` overrides it."""
    headers = {"Accept": accept} if accept else {}
    await session.wire.call("DELETE", session.path)  # so that every read ends
    answer = await session.wire.call("GET", session.events, headers=headers, query={"wait": 0} | query)

    assert (answer.status, answer.media_type) == (200, media_type)


async def test_another_media_type_is_406(session: Session) -> None:
    """A read with an unsupported media type is refused."""
    answer = await session.wire.call("GET", session.events, headers={"Accept": "image/png"})

    answer.problem(406, "not-acceptable")


@pytest.mark.parametrize("in_body", [True, False], ids=["body", "query"])
async def test_a_post_reads_like_the_get(session: Session, in_body: bool) -> None:
    """Clients that cannot stream a GET can send the same read as a POST, with parameters in the query or as a JSON
    body."""
    parameters = {"after": session.head, "heartbeat": 33}
    path = f"{session.events}/stream"
    body, query = (parameters, None) if in_body else (None, parameters)
    async with session.wire.stream(path, body, method="POST", query=query) as stream:
        opening = await stream.next()

    assert stream.status == 200
    assert (opening.value["requested"], opening.value["heartbeat_seconds"]) == (session.head, 33)


async def test_head_gives_the_headers_and_opens_nothing(session: Session) -> None:
    """HEAD on a stream is answered like GET, without a body and without a receiver."""
    answer = await session.wire.call("HEAD", session.events, headers={"Accept": EVENT_STREAM})

    assert (answer.status, answer.media_type, answer.body) == (200, EVENT_STREAM, b"")
    assert (await session.look())["receivers"] == 0


# --- cursors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameter", ["after", "lastEventId", "lastEventID", "last_event_id", "Last-Event-ID"]
)
async def test_a_read_goes_on_after_its_cursor(session: Session, parameter: str) -> None:
    """`?after=` and the parameters that polyfills add to the URL start the read after the event they name."""
    log = await fill(session)
    async with session.stream(**{parameter: log[1]["id"]}) as stream:
        await stream.next()

        assert (await stream.next()).id == log[2]["id"]


async def test_the_header_goes_before_the_query(session: Session) -> None:
    """A reconnecting EventSource repeats its URL and adds the header, which is newer and overrides the query."""
    log = await fill(session)
    async with session.stream(log[2]["id"], after=log[0]["id"]) as stream:
        opening = await stream.next()

        assert opening.value["requested"] == log[2]["id"]
        assert (await stream.next()).id == log[3]["id"]


async def test_a_read_begins_with_the_earliest(session: Session) -> None:
    """Without a cursor, and with `earliest`, a read starts with the oldest event that is kept."""
    log = await fill(session)
    for query in ({}, {"after": "earliest"}):
        async with session.stream(**query) as stream:
            opening = await stream.next()

            assert opening.value["resumed"] is False
            assert (await stream.next()).id == log[0]["id"] == opening.value["oldest"]


async def test_now_skips_what_was(session: Session) -> None:
    """`after=now` starts with the next event."""
    await fill(session)
    async with session.stream(after="now") as stream:
        await stream.next()
        await session.send({**UNKNOWN, "event_id": "later"})

        assert (await stream.next()).value["error"]["event_id"] == "later"


async def test_the_head_of_the_session_is_a_cursor(session: Session) -> None:
    """Reading after the head that the session object names skips nothing and repeats nothing."""
    await fill(session)
    head = (await session.look())["head"]
    await session.send({**UNKNOWN, "event_id": "later"})

    assert (await session.until("error", after=head))[0]["event"]["error"]["event_id"] == "later"


async def test_a_foreign_cursor_is_told_as_a_gap(session: Session) -> None:
    """A cursor of another log is answered by `gateway.gap`, with null for what is unknown, and then by the log from
    its oldest event."""
    log = await fill(session)
    async with session.stream(FOREIGN) as stream:
        opening, gap, first = await stream.next(), await stream.next(), await stream.next()

    assert opening.event == "gateway.open"
    assert gap.event == "gateway.gap"
    assert gap.value.keys() >= {"type", "requested", "oldest", "missed", "reason"}
    assert (gap.value["requested"], gap.value["missed"]) == (FOREIGN, None)
    assert gap.value["oldest"] == first.id == log[0]["id"]


async def test_the_id_of_a_gap_lies_before_the_oldest(session: Session) -> None:
    """A reader that is cut off right after a gap continues at the beginning of the log."""
    log = await fill(session)
    async with session.stream(FOREIGN) as stream:
        await stream.next()
        gap = await stream.next()
    async with session.stream(gap.id) as stream:
        await stream.next()

        assert (await stream.next()).id == log[0]["id"]


async def test_a_long_poll_with_a_foreign_cursor_is_410(session: Session) -> None:
    """A long-poll cannot report a gap in a stream, so it gets a problem with the same numbers."""
    problem = (await session.poll(after=FOREIGN)).problem(410, "cursor-expired")

    assert (problem["requested"], problem["missed"]) == (FOREIGN, None)
    assert ID.fullmatch(problem["oldest"])


async def test_on_gap_fail_is_410(session: Session) -> None:
    """A client that cannot handle a gap can ask for the read to be refused instead."""
    async with session.stream(FOREIGN, on_gap="fail") as stream:
        await stream.problem(410, "cursor-expired")


@pytest.mark.parametrize("cursor", ["nonsense!", "KEY-1", "a b", "x" * 200])
async def test_what_is_no_id_is_400(session: Session, cursor: str) -> None:
    """A cursor that cannot be an id is refused."""
    (await session.poll(after=cursor)).problem(400, "invalid-cursor")


# --- while it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_silent_stream_has_a_heartbeat(session: Session) -> None:
    """A comment is sent after the given number of seconds without a byte."""
    async with session.stream(after="now", heartbeat=5) as stream:
        await stream.next()
        began = time.monotonic()
        beat = await stream.block()

    assert (beat.data, beat.id) == (None, None)
    assert 4 <= time.monotonic() - began <= 20


@pytest.mark.slow
async def test_a_heartbeat_may_be_an_event(session: Session) -> None:
    """A client that cannot see comments can ask for `gateway.ping` events."""
    async with session.stream(after="now", heartbeat=5, heartbeat_as="event") as stream:
        await stream.next()

        assert (await stream.block()).event == "gateway.ping"


@pytest.mark.slow
async def test_the_heartbeat_of_a_filtered_stream_carries_how_far_it_read(session: Session) -> None:
    """While a filter excludes events, the heartbeat carries the position that was read, so the cursor stays current."""
    async with session.stream(types="no.such.type", heartbeat=5) as stream:
        await stream.next()
        log = await fill(session)
        beat = await stream.next()

    assert (beat.event, beat.id) == ("gateway.ping", log[-1]["id"])


@pytest.mark.slow
async def test_the_heartbeat_of_ndjson_is_an_empty_line(session: Session) -> None:
    """The heartbeat of NDJSON is an empty line, which its readers skip."""
    wire = session.wire
    headers = wire._headers({"Accept": NDJSON})
    params = {"after": "now", "heartbeat": "5"}
    async with (
        asyncio.timeout(10),
        wire.http.get(wire.url + session.events, headers=headers, params=params) as answer,
    ):
        opening = json.loads(await answer.content.readline())

        assert await answer.content.readline() == b"\n"
    assert (opening["id"], opening["event"]["type"]) == (None, "gateway.open")


@pytest.mark.parametrize(
    "query",
    [
        {"heartbeat": 4}, {"heartbeat": 61}, {"heartbeat": "often"}, {"heartbeat_as": "sound"}, {"pad": 4097},
        {"pad": -1}, {"max_age": 0}, {"max_age": 3601}, {"format": "xml"}, {"on_gap": "ignore"},
    ],
    ids=str,
)  # fmt: skip
async def test_a_parameter_out_of_bounds_is_400(session: Session, query: Json) -> None:
    """A stream parameter that is out of bounds is refused and named."""
    async with session.stream(**query) as stream:
        problem = await stream.problem(400, "invalid-parameter")

    assert next(iter(query)) in problem["detail"]


@pytest.mark.parametrize(
    "query", [{"wait": 56}, {"wait": -1}, {"limit": 0}, {"limit": 1001}, {"max_bytes": 0}], ids=str
)
async def test_a_long_polls_parameter_out_of_bounds_is_400(session: Session, query: Json) -> None:
    """A long-poll parameter that is out of bounds is refused and named."""
    assert next(iter(query)) in (await session.poll(**query)).problem(400, "invalid-parameter")["detail"]


async def test_padding_makes_the_prelude_large(session: Session) -> None:
    """Padding enlarges the first bytes, for proxies that hold back small writes."""
    sizes = []
    for pad in (0, 4096):
        wire = session.wire
        headers = wire._headers({"Accept": EVENT_STREAM})
        params = {"after": "now", "pad": str(pad)}
        async with wire.http.get(wire.url + session.events, headers=headers, params=params) as answer:
            sizes.append(len(await answer.content.readuntil(b"}\n\n")))

    assert sizes[1] - sizes[0] >= 4096


@pytest.mark.parametrize(
    ("query", "passes"),
    [
        ({"types": "error"}, ["error"]),
        ({"types": "session.created,error"}, ["session.created", "error"]),
        ({"types": "session.*"}, ["session.created"]),
        ({"exclude": "error"}, ["session.created"]),
        ({"exclude": "session.*"}, ["error"]),
        ({"types": "session.*,error", "exclude": "error"}, ["session.created"]),
    ],
    ids=str,
)
async def test_types_and_exclude_filter(session: Session, query: Json, passes: list[str]) -> None:
    """A read can include and exclude event types; `gateway.*` events always pass."""
    await fill(session, 1)
    await session.wire.call("DELETE", session.path)
    async with session.stream(**query) as stream:
        blocks = [block for block in await stream.rest() if block.data is not None]
    polled = (await session.poll(wait=0, **query)).json["events"]

    assert [block.type for block in blocks if block.event == "message"] == passes
    assert [block.event for block in blocks if block.event != "message"] == ["gateway.open", "gateway.closed"]
    assert [entry["event"]["type"] for entry in polled] == [*passes, "gateway.closed"]


async def test_a_connection_rotates_at_its_age(session: Session) -> None:
    """At its maximum age a connection ends cleanly, and its last block has a short `retry`."""
    async with session.stream(max_age=1) as stream:
        began = time.monotonic()
        blocks = await stream.rest()

    retries = [block.retry for block in blocks if block.retry is not None]
    assert blocks[-1].event == "gateway.rotating"
    assert retries[-1] < 1000
    assert 0.5 <= time.monotonic() - began <= 20
    assert (await session.look())["state"] == "connected"


async def test_a_rotation_waits_for_the_end_of_a_response(session: Session) -> None:
    """A connection that reaches its maximum age during a response ends after the response."""
    await session.send(item(LONG_QUESTION), RESPONSE)
    async with session.stream(max_age=1) as stream:
        types = [block.type for block in await stream.rest() if block.data is not None]

    assert types[-1] == "gateway.rotating"
    assert "response.done" in types


async def test_a_ninth_receiver_ends_the_longest_silent_one(session: Session) -> None:
    """Eight receivers can read at once. A ninth ends the one that was silent for longest, which gets a `retry` of 24
    days."""
    streams: list[Any] = [session.stream() for _ in range(9)]
    opened = [await stream.__aenter__() for stream in streams]
    try:
        for stream in opened:
            await stream.next()
        superseded: list[Block] = await opened[0].rest()

        assert superseded[-1].event == "gateway.superseded"
        assert max(block.retry or 0 for block in superseded) == NEVER
        assert (await session.look())["receivers"] == 8
    finally:
        for stream in streams:
            await stream.__aexit__(None, None, None)


# --- long-poll --------------------------------------------------------------------------------------------------------


async def test_a_long_poll_waits_for_an_event(session: Session) -> None:
    """A long-poll at the head is answered as soon as an event arrives."""
    head = (await session.look())["head"]
    poll = asyncio.create_task(session.poll(after=head, wait=20))
    await asyncio.sleep(0.2)
    waited = not poll.done()
    await session.send(UNKNOWN)
    answer = await poll

    assert waited
    assert [entry["event"]["type"] for entry in answer.json["events"]] == ["error"]
    assert answer.json["cursor"] == answer.json["events"][-1]["id"]


async def test_a_long_poll_lingers_for_more_events(session: Session) -> None:
    """After the first event, the poll collects events for the time in `linger`."""
    head = (await session.look())["head"]
    poll = asyncio.create_task(session.poll(after=head, wait=20, linger=2000))
    await asyncio.sleep(0.1)
    for _ in range(3):
        await session.send(UNKNOWN)
    answer = await poll

    assert [entry["event"]["type"] for entry in answer.json["events"]] == ["error"] * 3


async def test_a_long_poll_runs_out_empty(session: Session) -> None:
    """When the wait is over, the list is empty and the cursor is unchanged."""
    head = (await session.look())["head"]
    answer = await session.poll(after=head, wait=1)

    assert (answer.status, answer.json) == (200, {"events": [], "cursor": head})


async def test_a_long_poll_takes_so_many(session: Session) -> None:
    """`limit` bounds a page, and the cursor leads to the next one."""
    log = await fill(session)
    pages = []
    cursor = "earliest"
    for _ in range(2):
        pages.append((await session.poll(after=cursor, limit=2)).json)
        cursor = pages[-1]["cursor"]

    assert [entry["id"] for page in pages for entry in page["events"]] == [entry["id"] for entry in log[:4]]


async def test_a_long_poll_gives_at_least_one_event(session: Session) -> None:
    """`max_bytes` bounds a page, but a page has at least one event, so that a reader always advances."""
    log = await fill(session)

    assert [entry["id"] for entry in (await session.poll(max_bytes=1)).json["events"]] == [log[0]["id"]]


async def test_the_cursor_passes_filtered_events(session: Session) -> None:
    """The cursor of a poll moves past events that its filter excludes."""
    log = await fill(session)
    answer = await session.poll(types="no.such.type", wait=0)

    assert answer.json == {"events": [], "cursor": log[-1]["id"]}


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_a_stream_ends_after_gateway_closed(session: Session) -> None:
    """The last event says why the session ended, and whether a new session can help."""
    async with session.stream() as stream:
        await stream.next()
        await session.wire.call("DELETE", session.path)
        blocks = await stream.rest()

    assert blocks[-1].event == "gateway.closed"
    assert blocks[-1].value.keys() >= {"type", "reason", "retryable", "upstream"}
    assert (blocks[-1].value["reason"], blocks[-1].value["retryable"]) == ("client", False)


async def test_what_is_unread_is_read_after_the_end(session: Session) -> None:
    """As long as the log is kept, a late reader gets all of it."""
    log = await fill(session)
    await session.wire.call("DELETE", session.path)
    async with session.stream(log[0]["id"]) as stream:
        blocks = [block for block in await stream.rest() if block.data is not None]

    assert [block.id for block in blocks[1:-1]] == [entry["id"] for entry in log[1:]]
    assert blocks[-1].event == "gateway.closed"


async def test_a_reader_that_has_read_the_end_is_told_to_stop(session: Session) -> None:
    """After `gateway.closed`, an event stream is answered with 204, which stops an EventSource, and the other reads
    with 410."""
    await session.wire.call("DELETE", session.path)
    end = (await session.until("gateway.closed"))[-1]["id"]
    async with session.stream(end) as stream:
        assert stream.status == 204
    ndjson = await session.wire.call("GET", session.events, headers={"Accept": NDJSON}, query={"after": end})

    (await session.poll(after=end)).problem(410, "session-closed")
    ndjson.problem(410, "session-closed")


# --- tickets ----------------------------------------------------------------------------------------------------------


async def test_an_event_source_with_a_ticket_meets_a_bad_cursor_with_200(session: Session) -> None:
    """EventSource stops at any status other than 200, so it gets the problem as an event with a `retry`."""
    page = session.wire.with_key(None)
    query = {"ticket": await session.ticket(), "after": "nonsense!"}
    async with page.stream(session.events, query=query) as stream:
        blocks = await stream.rest()

    assert stream.status == 200
    assert blocks[-1].event == "gateway.error"
    # The event's own `type` replaces the problem's.
    assert blocks[-1].value.keys() >= {"type", "title", "status", "detail", "instance", "code", "retryable"}
    assert (blocks[-1].value["status"], blocks[-1].value["code"]) == (400, "invalid-cursor")
    assert any(block.retry for block in blocks)


async def test_errors_status_turns_that_off(session: Session) -> None:
    """A client that can read a status can ask for the problem as an error response."""
    page = session.wire.with_key(None)
    query = {"ticket": await session.ticket(), "after": "nonsense!", "errors": "status"}
    async with page.stream(session.events, query=query) as stream:
        await stream.problem(400, "invalid-cursor")


# --- every answer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", [EVENT_STREAM, NDJSON, JSON])
async def test_every_answer_protects_itself(session: Session, accept: str) -> None:
    """Every answer has headers against caching, referrers and content sniffing."""
    await session.wire.call("DELETE", session.path)
    answers = [
        await session.wire.call("GET", session.events, headers={"Accept": accept}),
        await session.wire.call("GET", session.path),
        await session.wire.call("GET", "/v1/nothing"),
    ]

    for answer in answers:
        assert "no-store" in answer.headers["Cache-Control"]
        assert {"Accept", "Origin"} <= {word.strip() for word in answer.headers["Vary"].split(",")}
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"

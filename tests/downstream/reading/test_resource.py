"""Reading a session's log over real sockets: cursors, gaps, forms, filters, ends (docs/api.md, 3 Receiving)."""

import asyncio
import json
import re
import socket
from dataclasses import replace
from typing import Any
from unittest.mock import AsyncMock
from urllib.parse import quote

import aiohttp
import pytest

from gateway.client import BlockParser
from gateway.downstream.http.limits import ServerLimits
from gateway.downstream.http.listener import Binding
from gateway.downstream.reading import longpoll
from gateway.downstream.reading.cursor import PAGE_BYTES
from gateway.downstream.reading.rendering import EventStream
from gateway.downstream.reading.resource import READS
from gateway.downstream.reading.stream import StreamLimits
from gateway.downstream.server import Server
from gateway.relay.limits import RelayLimits
from gateway.relay.states import CloseReason
from tests.downstream.harness import Build, Harness
from tests.downstream.streams import DELTA, Session, deltas, event, opened, reading, said
from tests.waiting import until


@pytest.fixture
async def session(harness: Harness) -> Session:
    """Return a session whose log holds only `session.created`."""
    return await opened(harness)


# --- the beginning ----------------------------------------------------------------------------------------------------


async def test_stream_opens_with_its_terms(session: Session) -> None:
    """The response has headers against buffering, and starts with `gateway.open` and a random `retry`."""
    async with session.read() as stream:
        first = await stream.next()

        assert stream.answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert stream.answer.headers["Cache-Control"] == "no-store, no-transform"
        assert stream.answer.headers["X-Accel-Buffering"] == "no"
        assert first.name == "gateway.open"
        assert first.retry is not None
        assert 1000 <= first.retry <= 3000
        opening = said(first)
        assert 240 <= opening.pop("max_age_seconds") <= 300
        assert opening == {
            "type": "gateway.open",
            "session_id": session.id,
            "requested": "earliest",
            "resumed": False,
            "missed": 0,
            "oldest": session.id_after(1),
            "head": session.id_after(1),
            "heartbeat_seconds": 15,
        }


async def test_history_and_live_are_one_stream(session: Session) -> None:
    """Older and new events arrive in one order, each with its own id."""
    session.count(range(3))
    async with session.read() as stream:
        before = await stream.take(5)
        session.count(range(3, 6))
        after = await stream.take(3)

    assert deltas(before + after) == [0, 1, 2, 3, 4, 5]
    assert [block.id for block in (before + after)[1:]] == [
        session.id_after(number) for number in range(1, 8)
    ]


async def test_bug_in_a_live_page_ends_the_stream(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream whose page cannot be rendered ends at once, so that its client reconnects."""

    def entries(*_: object) -> bytes:
        raise ValueError("a bug")

    async with session.read() as stream:
        await stream.take(2)
        monkeypatch.setattr(EventStream, "entries", entries)
        session.count(range(1))
        async with asyncio.timeout(5):  # less than a heartbeat
            with pytest.raises(aiohttp.ClientError):
                await stream.rest()


async def test_data_is_the_text_that_came(session: Session) -> None:
    """The data is byte for byte the received text, as a default `message` event; a raw line end becomes LF, and
    other line separators are escaped."""
    odd = '{ "type" :"x.y",\r\n "text":"grüß \\n \u2028 \\ud83d\\ude00" }'
    async with session.read(after="now") as stream:
        await stream.next()
        session.say(odd)
        block = await stream.next()

    assert (block.name, block.data) == ("message", odd.replace("\r\n", "\n").replace("\u2028", "\\u2028"))


async def test_frame_that_is_no_object_is_not_relayed(session: Session) -> None:
    """A frame that is not an object gets no number, so clients do not mistake it for a loss."""
    async with session.read(after="now") as stream:
        await stream.next()
        session.say("[1]", "nonsense", event(delta="1"))
        block = await stream.next()

    assert block.id == session.id_after(2)


# --- cursors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "by", ["header", "after", "lastEventId", "lastEventID", "last_event_id", "Last-Event-ID"]
)
@pytest.mark.parametrize("stale", [{}, {"after": "earliest"}])
async def test_cursor_resumes_after_what_was_seen(session: Session, by: str, stale: dict[str, str]) -> None:
    """The header that a browser sets, or the parameter that a polyfill adds, overrides the URL's own `after`."""
    session.count(range(5))
    seen = session.id_after(3)
    headers = {"Last-Event-ID": seen} if by == "header" else {}
    query = stale if by == "header" else {**stale, by: seen}
    async with session.read(headers=headers, **query) as stream:
        opening, *rest = await stream.take(4)

    assert said(opening)["requested"] == seen
    assert (said(opening)["resumed"], said(opening)["missed"], opening.id) == (True, 0, seen)
    assert deltas(rest) == [2, 3, 4]


async def test_killed_reader_loses_and_repeats_nothing(session: Session) -> None:
    """A reader that is cut off at any event and resumes with its id gets every event once and in order."""
    cursor = "earliest"
    got: list[int] = []
    for start in range(0, 60, 3):
        session.count(range(start, start + 3))
        async with session.read(after=cursor) as stream:
            await stream.next()
            if not got:
                await stream.next()  # session.created
            blocks = await stream.take(2 if start % 2 else 3)
        got += deltas(blocks)
        cursor = str(blocks[-1].id)
    async with session.read(after=cursor) as stream:
        await stream.next()
        got += deltas(await stream.take(60 - len(got)))

    assert got == list(range(60))


async def test_now_begins_with_what_comes(session: Session) -> None:
    """With `now` older events are skipped, and the id of the opening is the position of the reader."""
    session.count(range(3))
    async with session.read(after="now") as stream:
        opening = await stream.next()
        session.count(range(3, 4))
        block = await stream.next()

    assert opening.id == session.id_after(4)
    assert deltas([block]) == [3]


async def test_overrun_is_told_with_its_numbers(build: Build) -> None:
    """A gap says exactly how many events are lost; then everything from the oldest on follows."""
    session = await opened(await build(relay=RelayLimits(log_max_events=5)))
    session.count(range(20))  # 2 to 21 exist; 17 to 21 are kept
    async with session.read(after=session.id_after(4)) as stream:
        opening, gap, *rest = await stream.take(7)

    told = {"requested": session.id_after(4), "oldest": session.id_after(17), "missed": 12}
    assert said(gap) == {"type": "gateway.gap", **told, "reason": "overrun"}
    assert (gap.name, gap.id) == ("gateway.gap", session.id_after(16))
    assert (said(opening)["missed"], said(opening)["resumed"]) == (12, False)
    assert deltas(rest) == [15, 16, 17, 18, 19]
    assert session.harness.facts.of("gap") == [("overrun", 12)]


@pytest.mark.parametrize(
    ("cursor", "reason"), [("zzzz-3", "foreign"), ("nonsense", "foreign"), ("", "unknown")]
)
async def test_strange_cursor_is_told_and_reads_from_the_oldest(
    session: Session, cursor: str, reason: str
) -> None:
    """For an ID of another epoch, a malformed one or one ahead of the log, the size of the gap is unknown."""
    session.count(range(2))
    async with session.read(after=cursor or session.id_after(99)) as stream:
        opening, gap, *rest = await stream.take(5)

    assert (said(gap)["missed"], said(gap)["reason"]) == (None, reason)
    assert (said(opening)["missed"], said(opening)["resumed"]) == (None, False)
    assert said(rest[0])["type"] == "session.created"
    assert deltas(rest) == [0, 1]


@pytest.mark.parametrize("cursor", ["zzzz-3", ""], ids=["of another epoch", "ahead of the log"])
@pytest.mark.parametrize("sure", [False, True])
async def test_unsure_node_does_not_call_a_cursor_strange(session: Session, cursor: str, sure: bool) -> None:
    """Another node may have taken the session over, and the cursor may be an ID of that one's epoch. So the client tries
    again, at another node; cursors that are known here can be read."""
    session.count(range(2))
    session.handle.journal.sure = sure  # False: as while Redis does not answer
    session.handle.journal.owned = AsyncMock(return_value=False)  # True: as right after a pause of this node
    wanted = cursor or session.id_after(99)
    answers = [
        await session.harness.call("GET", f"{session.path}?after={wanted}&format={form}")
        for form in ("sse", "ndjson", "json")
    ]
    told = await session.harness.call("GET", f"{session.path}?ticket={session.ticket}&after={wanted}")
    known = await session.harness.call("GET", f"{session.path}?after={session.id_after(1)}&format=json")

    assert [(answer.status, answer.code) for answer in answers] == [(503, "recovering")] * 3
    assert answers[0].headers["Retry-After"] == "1"
    assert (told.status, b'"code":"recovering"' in told.body) == (200, True)
    assert (known.status, len(known.json["events"])) == (200, 2)


async def test_opening_before_a_gap_keeps_the_clients_cursor(session: Session) -> None:
    """A connection that breaks right after the opening must not make the client forget that it missed something."""
    async with session.read(after="zzzz-3") as stream:
        opening, gap = await stream.take(2)

    assert opening.id in (None, "zzzz-3")
    assert gap.id == session.id_after(0)


@pytest.mark.parametrize("query", ["format=json&wait=0", "on_gap=fail", "format=ndjson&on_gap=fail"])
async def test_gap_can_be_an_error(build: Build, query: str) -> None:
    """A long-poll, and a stream that asks for no gaps, is refused with the same numbers."""
    session = await opened(await build(relay=RelayLimits(log_max_events=5)))
    session.count(range(20))
    answer = await session.harness.call("GET", f"{session.path}?after={session.id_after(4)}&{query}")

    assert (answer.status, answer.code) == (410, "cursor-expired")
    numbers = {name: answer.json[name] for name in ("requested", "oldest", "missed", "reason")}
    assert numbers == {
        "requested": session.id_after(4),
        "oldest": session.id_after(17),
        "missed": 12,
        "reason": "overrun",
    }


@pytest.mark.parametrize("cursor", ["K3F9-1", "a b", "k3f9_1", "x" * 65, "ü-1"])
async def test_cursor_of_other_characters_is_refused(session: Session, cursor: str) -> None:
    """A cursor with characters that no id has is refused."""
    answer = await session.harness.call("GET", session.path, params={"after": cursor})

    assert (answer.status, answer.code) == (400, "invalid-cursor")


# --- parameters and forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        *(
            "heartbeat=4",
            "heartbeat=61",
            "heartbeat=x",
            "heartbeat=nan",
            "heartbeat_as=noise",
            "pad=-1",
            "pad=4097",
        ),
        *("pad=1.5", "max_age=0", "max_age=3601", "on_gap=ignore", "errors=maybe", "wait=56", "wait=-1"),
        *("limit=0", "limit=1001", "limit=2.5", "max_bytes=0", "format=xml"),
    ],
)
async def test_wrong_parameter_is_named(session: Session, query: str) -> None:
    """The problem names a wrong parameter and points to it, for every form of the read."""
    answer = await session.harness.call("GET", f"{session.path}?{query}")

    assert (answer.status, answer.code) == (400, "invalid-parameter")
    assert f"'{query.partition('=')[0]}'" in answer.json["detail"]


async def test_bound_of_a_parameter_is_told_in_digits(session: Session) -> None:
    """A limit is written with all its digits, and every cursor that a client was given is accepted."""
    answer = await session.harness.call("GET", f"{session.path}?format=json&max_bytes=9000000")

    assert re.search(r"from 1 to [0-9]{6,}\.", answer.json["detail"])


@pytest.mark.parametrize(
    ("accept", "type_"),
    [
        (None, "text/event-stream"),
        ("*/*", "text/event-stream"),
        ("text/*", "text/event-stream"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/json;q=0.5, application/x-ndjson;q=0.9", "application/x-ndjson"),
        ("application/json, */*;q=0.1", "application/json"),
        ("text/html, text/event-stream;q=0.2", "text/event-stream"),
    ],
)
async def test_accept_chooses_the_form(session: Session, accept: str | None, type_: str) -> None:
    """`Accept` chooses by weight; without a preference the answer is an event stream."""
    headers = {"Accept": accept} if accept else {}
    async with session.read(headers=headers, wait=0) as stream:
        assert stream.answer.headers["Content-Type"].startswith(type_)


async def test_form_that_there_is_not_is_refused(session: Session) -> None:
    """The problem lists the available forms."""
    answer = await session.harness.call("GET", session.path, headers={"Accept": "image/png"})

    assert (answer.status, answer.code) == (406, "not-acceptable")


async def test_format_overrides_accept(session: Session) -> None:
    """`?format=` overrides Accept, because the URL is often all that a client can choose."""
    answer = await session.harness.call(
        "GET", f"{session.path}?format=json&wait=0", headers={"Accept": "text/event-stream"}
    )

    assert answer.headers["Content-Type"].startswith("application/json")


async def test_lines_hold_the_same_events(session: Session) -> None:
    """Each line is an object with an event and its id; the stream's own events have no id."""
    session.say('{"type":"a",\n"b":1}')
    url = f"{session.harness.url}{session.path}"
    async with session.harness.http.get(url, params={"format": "ndjson"}) as answer:
        lines = [await answer.content.readline() for _ in range(3)]

    opening, _, last = (json.loads(line) for line in lines)
    assert (opening["id"], opening["event"]["type"]) == (None, "gateway.open")
    assert lines[2] == b'{"id":"%b","event":{"type":"a", "b":1}}\n' % session.id_after(2).encode()
    assert last["event"] == {"type": "a", "b": 1}


async def test_head_gives_headers_and_opens_nothing(session: Session) -> None:
    """HEAD returns the headers and opens nothing."""
    answer = await session.harness.call("HEAD", session.path)

    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store, no-transform"
    assert session.handle.view().receivers == 0
    assert session.harness.facts.of("stream_opened") == []


@pytest.mark.parametrize(
    ("query", "status"),
    [("after=A", 400), ("after=zz-1&on_gap=fail", 410), ("after=zz-1&format=json", 410), ("pad=-1", 400)],
)
async def test_head_has_the_status_of_a_get(session: Session, query: str, status: int) -> None:
    """HEAD has the status of the GET (RFC 9110 9.3.2)."""
    answer = await session.harness.call("HEAD", f"{session.path}?{query}")

    assert answer.status == status


@pytest.mark.parametrize(("format_", "status"), [("sse", 204), ("ndjson", 410), ("json", 410)])
async def test_head_of_a_session_read_to_its_end_has_the_status_of_a_get(
    session: Session, format_: str, status: int
) -> None:
    """The status of HEAD is 204 for an event stream and an error for the others, as for GET."""
    await session.handle.close(CloseReason.CLIENT)
    answer = await session.harness.call("HEAD", f"{session.path}?after=now&format={format_}")

    assert answer.status == status


@pytest.mark.parametrize("heartbeat", ["5", "5.0"])
async def test_whole_heartbeat_is_told_as_a_whole_number(session: Session, heartbeat: str) -> None:
    """A heartbeat of whole seconds is an integer, because some JSON parsers distinguish 5 from 5.0."""
    async with session.read(heartbeat=heartbeat) as stream:
        opening = await stream.next()

    assert '"heartbeat_seconds":5,' in opening.data


@pytest.mark.parametrize("number", ["\u0661", "1_0", "1e1", "+1", " 1"])
async def test_number_is_written_in_ascii_digits(session: Session, number: str) -> None:
    """A number must be in ASCII digits; Python's `float` accepts more."""
    answer = await session.harness.call("GET", f"{session.path}?pad={quote(number)}")

    assert (answer.status, answer.code) == (400, "invalid-parameter")


@pytest.mark.parametrize("name", ["after", "lastEventId"])
async def test_cursor_in_a_body_is_a_string(session: Session, name: str) -> None:
    """A number would be read as an ID of another log, and cause a gap."""
    answer = await session.harness.call("POST", f"{session.path}/stream", json={name: 5})

    assert (answer.status, answer.code) == (400, "invalid-parameter")


@pytest.mark.parametrize("where", ["query", "body"])
async def test_posted_read_is_the_same(session: Session, where: str) -> None:
    """A read by POST takes its parameters from the query or from a JSON body."""
    session.count(range(3))
    wanted = {"after": session.id_after(2), "types": "session.*,response.*", "format": "ndjson"}
    body = {**wanted, "types": ["session.*", "response.*"], "heartbeat": 20}
    options: Any = {"params": wanted} if where == "query" else {"json": body}
    async with session.harness.http.post(f"{session.harness.url}{session.path}/stream", **options) as answer:
        lines = [json.loads(await answer.content.readline()) for _ in range(3)]

    assert [line["event"].get("delta") for line in lines] == [None, "1", "2"]
    assert lines[0]["event"]["heartbeat_seconds"] == (15 if where == "query" else 20)


@pytest.mark.parametrize("body", [{"aftr": "now"}, {"pad": True}, {"types": [1]}, {"heartbeat": 1}])
async def test_posted_parameter_that_is_wrong_is_named(session: Session, body: dict[str, object]) -> None:
    """Invalid and unknown members of a body are reported with their pointer."""
    answer = await session.harness.call("POST", f"{session.path}/stream", json=body)

    assert (answer.status, answer.code) == (400, "invalid-parameter")
    assert answer.json["errors"][0]["pointer"] == f"/{next(iter(body))}"


# --- filters ----------------------------------------------------------------------------------------------------------


async def test_types_and_exclude_choose(session: Session) -> None:
    """`types` selects by name or by prefix, and `exclude` removes from that."""
    session.say(
        event("response.created"), event(DELTA, delta="1"), event("rate_limits.updated"), event("error")
    )
    async with session.read(types="response.*,error", exclude=DELTA) as stream:
        _, *blocks = await stream.take(3)

    assert [said(block)["type"] for block in blocks] == ["response.created", "error"]


async def test_own_events_pass_every_filter(session: Session) -> None:
    """The gateway's own events pass every filter, because a reader must see the end."""
    async with session.read(types="nothing", exclude="gateway.*") as stream:
        await stream.next()
        await session.handle.close(CloseReason.CLIENT)
        (block,) = await stream.rest()

    assert said(block)["type"] == "gateway.closed"


# --- long-poll --------------------------------------------------------------------------------------------------------


async def test_poll_gives_what_there_is(session: Session) -> None:
    """A poll is answered at once with the existing events and the cursor for the next poll."""
    session.say(event(delta="1"))
    answer = await session.harness.call("GET", f"{session.path}?format=json&after={session.id_after(1)}")

    assert answer.json == {
        "events": [{"id": session.id_after(2), "event": {"type": DELTA, "delta": "1"}}],
        "cursor": session.id_after(2),
    }


async def test_poll_waits_for_the_next(session: Session) -> None:
    """A waiting poll counts as a receiver."""
    asked = asyncio.create_task(session.harness.call("GET", f"{session.path}?format=json&after=now"))
    await until(lambda: session.handle.view().receivers == 1)
    session.count(range(1))
    answer = await asked

    assert [one["event"]["delta"] for one in answer.json["events"]] == ["0"]
    assert session.handle.view().receivers == 0


@pytest.mark.parametrize("wait", ["0", "0.2"])
async def test_poll_gives_nothing_when_nothing_comes(session: Session, wait: str) -> None:
    """A poll without new events is answered empty after the requested wait."""
    answer = await session.harness.call("GET", f"{session.path}?format=json&after=now&wait={wait}")

    assert answer.json == {"events": [], "cursor": session.id_after(1)}


async def test_poll_is_bounded_by_events_and_bytes(session: Session) -> None:
    """A poll is limited by events and bytes but returns at least one event."""
    session.count(range(10))
    by_events = await session.harness.call("GET", f"{session.path}?format=json&limit=3")
    by_bytes = await session.harness.call("GET", f"{session.path}?format=json&max_bytes=1")

    assert (len(by_events.json["events"]), by_events.json["cursor"]) == (3, session.id_after(3))
    assert (len(by_bytes.json["events"]), by_bytes.json["cursor"]) == (1, session.id_after(1))


@pytest.mark.parametrize("bound", ["limit=1", "max_bytes=1"])
async def test_poll_goes_on_past_what_is_filtered(session: Session, bound: str) -> None:
    """A page without events for this client does not make it wait if more pages follow."""
    session.count(range(5))
    session.say(event("response.done"))
    async with asyncio.timeout(10):
        answer = await session.harness.call(
            "GET", f"{session.path}?format=json&types=response.done&{bound}&wait=10"
        )

    assert [one["event"]["type"] for one in answer.json["events"]] == ["response.done"]


async def test_poll_cursor_passes_what_is_filtered(session: Session) -> None:
    """The cursor of a poll moves past filtered events, so that it does not become too old."""
    session.count(range(5))
    answer = await session.harness.call("GET", f"{session.path}?format=json&types=x&wait=0")

    assert answer.json == {"events": [], "cursor": session.id_after(6)}


async def test_poll_lingers_for_more(session: Session) -> None:
    """After the first event it collects events for the time in `linger` and returns all of them."""
    asked = asyncio.create_task(
        session.harness.call("GET", f"{session.path}?format=json&after=now&linger=300&wait=10")
    )
    await until(lambda: session.handle.view().receivers == 1)
    began = asyncio.get_running_loop().time()
    for number in range(5):
        session.count(range(number, number + 1))
        await asyncio.sleep(0.01)
    answer = await asked

    assert [one["event"]["delta"] for one in answer.json["events"]] == ["0", "1", "2", "3", "4"]
    assert answer.json["cursor"] == session.id_after(6)
    assert 0.25 <= asyncio.get_running_loop().time() - began < 2


async def test_poll_does_not_linger_before_the_first_event(session: Session) -> None:
    """`linger` does not extend a wait in which no event arrives."""
    async with asyncio.timeout(10):
        answer = await session.harness.call("GET", f"{session.path}?format=json&after=now&linger=2000&wait=0")

    assert answer.json["events"] == []


@pytest.mark.parametrize(
    ("bound", "count"), [("limit=3", 3), ("max_bytes=250", 3), ("max_bytes=1", 1), ("limit=3&types=x,*", 3)]
)
async def test_full_poll_does_not_linger(session: Session, bound: str, count: int) -> None:
    """A full page is answered at once, and the next poll continues after it."""
    session.count(range(2))
    path = f"{session.path}?format=json&wait=10&linger=2000&{bound}"
    async with asyncio.timeout(1.5):
        asked = asyncio.create_task(session.harness.call("GET", f"{path}&after={session.id_after(1)}"))
        await until(lambda: session.handle.view().receivers == 1 or asked.done())
        session.count(range(2, 5))
        first = (await asked).json
        second = (
            await session.harness.call("GET", f"{session.path}?format=json&after={first['cursor']}")
        ).json
    counted = [int(one["event"]["delta"]) for one in first["events"] + second["events"]]

    assert len(first["events"]) == count
    assert counted == list(range(5))


async def test_lingering_poll_keeps_what_it_has_before_a_gap(build: Build) -> None:
    """If the log overruns during `linger`, the next poll gets the gap, and the events already read are returned."""
    session = await opened(await build(relay=RelayLimits(log_max_events=3)))
    asked = asyncio.create_task(
        session.harness.call("GET", f"{session.path}?format=json&after=now&linger=2000&limit=5")
    )
    await until(lambda: session.handle.view().receivers == 1)
    session.count(range(1))
    await until(lambda: session.harness.facts.of("relayed_down") != [])
    session.count(range(1, 9))
    async with asyncio.timeout(10):
        answer = await asked
    following = await session.harness.call("GET", f"{session.path}?format=json&after={answer.json['cursor']}")

    assert [one["event"]["delta"] for one in answer.json["events"]] == ["0"]
    assert (following.status, following.json["missed"]) == (410, 5)


@pytest.mark.parametrize("linger", ["-1", "2001", "0.5", "x"])
async def test_linger_is_milliseconds(session: Session, linger: str) -> None:
    """`linger` is given in milliseconds, up to 2,000."""
    answer = await session.harness.call("GET", f"{session.path}?format=json&linger={linger}")

    assert (answer.status, answer.code) == (400, "invalid-parameter")


async def test_large_poll_arrives_whole(session: Session) -> None:
    """It is written in pieces, with a Content-Length."""
    large(session, 20)
    answer = await session.harness.call("GET", f"{session.path}?format=json&max_bytes=4000000&limit=1000")

    assert len(answer.json["events"]) == 21
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert answer.headers["Cache-Control"] == "no-store"


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_stream_ends_after_closed(session: Session) -> None:
    """`gateway.closed` is the last event, and the connection ends cleanly."""
    async with session.read() as stream:
        await stream.take(2)
        await session.handle.close(CloseReason.CLIENT)
        blocks = await stream.rest()

    assert [said(block)["type"] for block in blocks] == ["gateway.closed"]
    assert session.harness.facts.of("stream_closed") == [("sse", "closed")]


@pytest.mark.parametrize("format_", ["sse", "ndjson", "json"])
async def test_closed_session_is_read_to_its_end(session: Session, format_: str) -> None:
    """While the log of a closed session is kept, a reader gets the unread events and then a clear end."""
    await session.handle.close(CloseReason.CLIENT)
    unread = await session.harness.call("GET", f"{session.path}?format={format_}")
    read = await session.harness.call("GET", f"{session.path}?format={format_}&after={session.id_after(2)}")

    assert b"gateway.closed" in unread.body
    if format_ == "sse":
        assert (read.status, read.body) == (204, b"")
    else:
        assert (read.status, read.code) == (410, "session-closed")


async def test_rotation_ends_the_connection_cleanly(session: Session) -> None:
    """A rotation sends a last event, a short retry, and a cursor to resume with."""
    async with session.read(max_age=1) as stream:
        *_, last = await stream.rest()

    assert last.name == "gateway.rotating"
    assert last.retry is not None
    assert last.retry < 1000
    assert session.harness.facts.of("stream_closed") == [("sse", "rotated")]
    async with session.read(after=session.id_after(1)) as stream:
        assert (await stream.value())["resumed"] is True


@pytest.mark.parametrize("format_", ["sse", "ndjson"])
async def test_stream_of_a_session_that_moves_is_rotated(session: Session, format_: str) -> None:
    """If another node took the session over, the client gets a short `retry` and its cursor."""
    async with session.harness.http.get(f"{session.harness.url}{session.path}?format={format_}") as answer:
        await until(lambda: session.handle.view().receivers == 1)
        for receiver in session.handle._receivers:
            receiver.rotate()
        async with asyncio.timeout(10):
            body = await answer.read()

    assert f'{{"type":"gateway.rotating","cursor":"{session.id_after(1)}"}}'.encode() in body
    assert session.harness.facts.of("stream_closed") == [(format_, "rotated")]


@pytest.mark.slow
async def test_rotation_waits_for_a_pause_between_responses(session: Session) -> None:
    """A connection that is due for rotation stays open until the response is done."""
    session.say(event("response.created", response={"id": "resp_1"}))
    async with session.read(max_age=1) as stream:
        await stream.take(3)
        await asyncio.sleep(1.6)
        session.say(event(delta="1"), event("response.done", response={"id": "resp_1"}))
        blocks = await stream.rest()

    assert [said(block)["type"] for block in blocks] == [DELTA, "response.done", "gateway.rotating"]


async def test_ninth_reader_supersedes_the_first(session: Session) -> None:
    """The reader that was silent for longest gets a `retry` of 24 days; the others continue."""
    async with asyncio.timeout(20):
        streams = [session.read() for _ in range(9)]
        entered = []
        for stream in streams:
            entered.append(await stream.__aenter__())
            await entered[-1].take(2)
        (last,) = await entered[0].rest()
        session.count(range(1))
        others = [deltas(await stream.take(1)) for stream in entered[1:]]
        for stream in streams:
            await stream.__aexit__(None, None, None)

    assert (last.name, last.retry) == ("gateway.superseded", 2147483647)
    assert others == [[0]] * 8
    assert ("sse", "superseded") in session.harness.facts.of("stream_closed")


async def test_superseded_poll_is_not_answered_at_once(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client polls again and supersedes another one. Clients that are one too many do not poll in a circle without a
    pause."""
    monkeypatch.setattr(longpoll, "SUPERSEDED_SECONDS", 0.3)
    session = await opened(await build(relay=RelayLimits(max_receivers=1)))
    path = f"{session.path}?format=json&after=now"

    async def seconds(wait: float) -> float:
        began = asyncio.get_running_loop().time()
        answer = await session.harness.call("GET", f"{path}&wait={wait}")
        assert answer.json["events"] == []
        return asyncio.get_running_loop().time() - began

    first = asyncio.create_task(seconds(20))
    await until(lambda: session.handle.view().receivers == 1)
    await seconds(0.01)

    assert 0.3 <= await first < 20


async def test_client_that_leaves_is_noticed(session: Session) -> None:
    """A client that leaves is noticed at once, not at the next write."""
    async with session.read() as stream:
        await stream.take(2)
        assert session.handle.view().receivers == 1
    await until(lambda: session.handle.view().receivers == 0)

    await until(lambda: session.harness.facts.of("stream_closed") == [("sse", "client")])


async def test_closing_server_ends_streams(session: Session) -> None:
    """A closing server ends its streams without waiting for a time limit."""
    async with session.read() as stream:
        await stream.take(2)
        async with asyncio.timeout(10):
            await session.harness.server.close()

    assert session.harness.facts.of("stream_closed") == [("sse", "shutdown")]


# --- errors that an EventSource survives ------------------------------------------------------------------------------


async def test_ticket_reader_is_told_of_a_bad_cursor(session: Session) -> None:
    """The error arrives in the reader's own stream, because any status but 200 would stop an `EventSource` for good."""
    answer = await session.harness.call("GET", f"{session.path}?ticket={session.ticket}&after=NONE")

    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    (block,) = BlockParser().feed(answer.body)
    assert block.name == "gateway.error"
    assert block.retry is not None
    assert block.id == session.id_after(0)
    told = said(block)
    assert (told["type"], told["code"], told["status"]) == ("gateway.error", "invalid-cursor", 400)


async def test_ticket_reader_is_told_of_a_shutdown(session: Session) -> None:
    """The reader is told when to reconnect, and its cursor does not change."""
    runner = session.harness.server._client_side._runner
    await runner.app[READS].ticker.close()
    told = await session.harness.call("GET", f"{session.path}?ticket={session.ticket}")
    refused = await session.harness.call("GET", session.path)

    (block,) = BlockParser().feed(told.body)
    assert (block.name, block.id, said(block)["code"]) == ("gateway.error", None, "draining")
    assert block.retry is not None
    assert 3000 <= block.retry <= 5000
    assert (refused.status, refused.code) == (503, "draining")
    assert "Retry-After" in refused.headers


@pytest.mark.parametrize("query", ["ticket={ticket}&errors=status", "", "ticket={ticket}&format=ndjson"])
async def test_others_get_the_status(session: Session, query: str) -> None:
    """A client that asks for the status, has no ticket or reads another form gets the error as a status."""
    query = query.format(ticket=session.ticket)
    answer = await session.harness.call("GET", f"{session.path}?after=NONE&{query}")

    assert (answer.status, answer.code) == (400, "invalid-cursor")


# --- time -------------------------------------------------------------------------------------------------------------


class Second:
    """A second client listener over the same hub, with other stream limits."""

    def __init__(self, harness: Harness, *limits: StreamLimits | ServerLimits) -> None:
        parts = harness.parts
        for one in limits:
            parts = (
                replace(parts, stream=one) if isinstance(one, StreamLimits) else replace(parts, limits=one)
            )
        self._server = Server(parts)

    async def __aenter__(self) -> str:
        await self._server.start(Binding(), Binding())
        return self._server.url

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    @property
    def reads(self) -> list[Any]:
        """Return the streams and long-polls that are open here."""
        return list(self._server._client_side._runner.app[READS].ticker._open)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "beat"),
    [
        ({}, b":\n\n"),
        ({"pad": 40}, b":" + b" " * 38 + b"\n"),
        ({"format": "ndjson"}, b"\n\n"),
        ({"heartbeat_as": "event"}, b"event: gateway.ping\n"),
    ],
)
async def test_silence_is_broken_by_heartbeats(session: Session, query: dict[str, Any], beat: bytes) -> None:
    """A heartbeat carries no event, but keeps proxies from closing a silent connection."""
    async with (
        Second(session.harness, StreamLimits(heartbeat_seconds=0.2, max_age_seconds=300)) as url,
        reading(session.harness.http, f"{url}{session.path}", after="now", **query) as stream,
    ):
        seen = b""
        async with asyncio.timeout(10):
            while seen.count(beat) < 2:
                seen += await stream.answer.content.readany()


async def test_filtered_heartbeat_carries_the_cursor(session: Session) -> None:
    """The heartbeat of a filtered stream carries the cursor, so that filtered events are not read again."""
    async with (
        Second(session.harness, StreamLimits(heartbeat_seconds=0.2, max_age_seconds=300)) as url,
        reading(session.harness.http, f"{url}{session.path}", after="now", types="response.done") as stream,
    ):
        await stream.next()
        session.count(range(5))
        ping = await stream.next()

    assert (ping.name, ping.id) == ("gateway.ping", session.id_after(6))


class Deaf:
    """A client that sends a request and then reads only on demand."""

    def __init__(self, url: str, path: str, buffer: int = 4096) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._socket.connect((host, int(port)))
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        self._socket.setblocking(False)

    async def take(self, size: int) -> bytes:
        async with asyncio.timeout(10):
            return await asyncio.get_running_loop().sock_recv(self._socket, size)

    def close(self) -> None:
        self._socket.close()


def large(session: Session, count: int = 1) -> None:
    """Let the far end send much at once."""
    session.say(*[event(delta="x" * 100_000)] * count)


@pytest.mark.slow
async def test_reader_that_never_reads_is_cut_off(session: Session) -> None:
    """It delays no other reader, and the session continues."""
    async with Second(session.harness, ServerLimits(write_seconds=1)) as url:
        deaf = Deaf(url, session.path)
        await until(lambda: session.handle.view().receivers == 1)
        async with reading(session.harness.http, f"{url}{session.path}", after="now") as stream:
            await stream.next()
            for _ in range(60):
                large(session)
                await stream.next()
            await until(lambda: ("sse", "slow") in session.harness.facts.of("stream_closed"))
            assert session.handle.view().receivers == 1
        deaf.close()

    assert session.handle.view().state == "connected"


@pytest.mark.slow
async def test_reader_that_never_reads_holds_little(session: Session) -> None:
    """A reader that never reads uses one page and the small buffers of its socket, however large the log is."""
    async with Second(session.harness, ServerLimits(write_seconds=30)) as url:
        deaf = Deaf(url, session.path)
        await until(lambda: session.handle.view().receivers == 1)
        (stream,) = session.handle._receivers
        large(session, 60)
        await until(lambda: stream._writer.waiting)

        assert stream._request.transport.get_write_buffer_size() <= PAGE_BYTES + 200_000
        deaf.close()


@pytest.mark.slow
async def test_poll_that_is_never_read_is_cut_off(session: Session) -> None:
    """A poll that is never read is cut off at the write deadline; until then it holds a piece, not its page."""
    large(session, 40)
    second = Second(session.harness, ServerLimits(write_seconds=1))
    async with second as url:
        deaf = Deaf(url, f"{session.path}?format=json&max_bytes=4194304&limit=1000")
        await until(lambda: any(one._request.protocol.writing_paused for one in second.reads))
        held = second.reads[0]._request.transport.get_write_buffer_size()
        await until(lambda: not second.reads)
        deaf.close()

    assert held <= 300_000


@pytest.mark.slow
async def test_slow_reader_is_not_a_dead_one(session: Session) -> None:
    """A client that reads a little before each deadline is not cut off, even if one write takes longer than that."""
    large(session, 10)
    async with Second(session.harness, ServerLimits(write_seconds=1)) as url:
        # A window of more than one read: with a smaller one TCP itself waits until it opens.
        slow = Deaf(url, session.path, buffer=32768)
        await until(lambda: session.handle.view().receivers == 1)
        (stream,) = session.handle._receivers
        for _ in range(10):
            await slow.take(16384)
            await asyncio.sleep(0.25)

        assert stream._writer.waiting
        assert session.harness.facts.of("stream_closed") == []
        slow.close()


async def test_superseded_reader_that_takes_nothing_is_let_go_at_once(build: Build) -> None:
    """A superseded reader that reads nothing is closed at once, not only at the write deadline."""
    session = await opened(await build(relay=RelayLimits(max_receivers=1)))
    deaf = Deaf(session.harness.url, session.path)
    await until(lambda: session.handle.view().receivers == 1)
    (stuck,) = session.handle._receivers
    large(session, 20)
    await until(lambda: stuck._writer.waiting)
    async with session.read(after="now") as stream:
        await stream.next()
        await until(lambda: session.harness.facts.of("stream_closed") == [("sse", "superseded")])
        assert session.handle.view().receivers == 1
    deaf.close()


async def test_reader_that_wants_no_holes_ends_at_one(build: Build) -> None:
    """A stream that asked for no gaps gets the gap as its last event and ends."""
    session = await opened(await build(relay=RelayLimits(log_max_events=5)))
    async with session.read(on_gap="fail") as stream:
        await stream.take(2)
        session.count(range(20))
        blocks = await stream.rest()

    assert [said(block)["type"] for block in blocks] == ["gateway.gap"]
    assert said(blocks[0])["missed"] == 15
    assert session.harness.facts.of("stream_closed") == [("sse", "error")]


# --- what is counted --------------------------------------------------------------------------------------------------


async def test_live_events_are_timed_once(session: Session) -> None:
    """The first reader that writes an event reports its latency; replayed events are only counted."""
    session.count(range(3))
    async with session.read() as one, session.read() as two:
        await one.take(5)
        await two.take(5)
        session.count(range(3, 7))
        await one.take(4)
        await two.take(4)
    facts = session.harness.facts

    assert sum(count for _, count in facts.of("relayed_down")) == 4
    assert all(0 <= seconds < 1 for seconds, _ in facts.of("relayed_down"))
    assert sum(count for (count,) in facts.of("replayed")) == 8


async def test_http_1_0_reads_as_well(session: Session) -> None:
    """An HTTP/1.0 client, such as nginx by default, gets the stream without chunks until the connection ends."""
    host, port = session.harness.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {session.path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
    await until(lambda: session.handle.view().receivers == 1)
    await session.handle.close(CloseReason.CLIENT)
    async with asyncio.timeout(10):
        body = (await reader.read()).partition(b"\r\n\r\n")[2]
    writer.close()

    assert body.startswith(b"retry: ")
    assert body.endswith(b"}\n\n")

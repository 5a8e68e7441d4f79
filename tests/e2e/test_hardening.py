"""Attacks from outside: none gets access, and none stops the gateway."""

import hashlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gateway.app import Gateway
from gateway.client import BlockParser
from tests.e2e import rawhttp
from tests.e2e.caller import Caller, Json, Serve, say
from tests.e2e.rawhttp import RawAnswer
from tests.farend import FarEnd
from tests.waiting import until

pytestmark = pytest.mark.slow

ANN, BOB = "gw-key-of-ann", "gw-key-of-bob"
KEYS = [
    {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
    for name, key in (("ann", ANN), ("bob", BOB))
]
UNKNOWN = "gws_AAAAAAAAAAAAAAAAAAAAAAAA"

# Every call on a session. Reads come first, so that a leak shows before anything is changed.
ON_A_SESSION = [
    ("GET", "", None),
    ("GET", "/events?format=sse", None),
    ("GET", "/events?format=json&wait=0", None),
    ("POST", "/events/stream?format=ndjson", b"{}"),
    ("POST", "/events", b'{"type":"response.create"}'),
    ("POST", "/turns", b'{"input":"Hello"}'),
    ("POST", "/tickets", b""),
    ("POST", "/close", b""),
    ("DELETE", "", None),
]


def bearer(word: str) -> dict[str, str]:
    """Return the headers that carry a credential."""
    return {"Authorization": f"Bearer {word}"}


@pytest_asyncio.fixture
async def keyed(serve: Serve, far_end: FarEnd) -> Gateway:
    """Return a gateway with two callers who do not know each other."""
    return await serve(far_end, access={"keys": KEYS})


@pytest_asyncio.fixture
async def ann(keyed: Gateway) -> AsyncIterator[Caller]:
    """Return the caller whose sessions the others try to use."""
    async with Caller(keyed.url) as caller:
        caller.http.headers.update(bearer(ANN))
        yield caller


@pytest_asyncio.fixture
async def stranger(keyed: Gateway) -> AsyncIterator[Caller]:
    """Return a caller without a credential."""
    async with Caller(keyed.url) as caller:
        yield caller


async def tried(caller: Caller, session_id: str, **options: Any) -> list[tuple[int, str]]:
    """Try every call on a session and return each one's status and code."""
    results = []
    for method, tail, body in ON_A_SESSION:
        answer, problem = await caller.ask(method, f"/v1/sessions/{session_id}{tail}", body, **options)
        assert answer.content_type == "application/problem+json", (method, tail, problem)
        results.append((answer.status, problem["code"]))
    return results


async def unharmed(ann: Caller, session: Json) -> None:
    """Check that a session is unchanged: open, and without a conversation."""
    _, now = await ann.ask("GET", f"/v1/sessions/{session['id']}")

    assert (now["state"], now["head"]) == ("connected", session["head"])


# --- other people's sessions ------------------------------------------------------------------------------------------


async def test_another_callers_session_is_not_there(ann: Caller, stranger: Caller) -> None:
    """Every call on another caller's session is answered like one on a session that never existed, and changes
    nothing."""
    session = await ann.open()
    theirs = await tried(stranger, session["id"], headers=bearer(BOB))
    nobodys = await tried(stranger, UNKNOWN, headers=bearer(BOB))

    assert theirs == nobodys == [(404, "session-unknown")] * len(ON_A_SESSION)
    await unharmed(ann, session)


async def test_a_secret_opens_no_other_session(ann: Caller, stranger: Caller) -> None:
    """A secret opens no other session, not even one of the same caller."""
    session, other = await ann.open(), await ann.open()
    for word in (other["client_secret"]["value"], other["stream_url"].partition("ticket=")[2]):
        assert await tried(stranger, session["id"], headers=bearer(word)) == [(404, "session-unknown")] * len(
            ON_A_SESSION
        )
    await unharmed(ann, session)


async def test_a_caller_lists_only_its_own(ann: Caller, stranger: Caller) -> None:
    """The list of a caller without sessions is empty, even if others have sessions."""
    await ann.open()
    answer, listed = await stranger.ask("GET", "/v1/sessions", headers=bearer(BOB))

    assert (answer.status, listed["data"]) == (200, [])


# --- forged, expired and foreign credentials --------------------------------------------------------------------------


async def test_no_forged_secret_is_taken(ann: Caller, stranger: Caller) -> None:
    """A secret with one character changed, removed or added is invalid, and so is one with another secret's body."""
    session, other = await ann.open(), await ann.open()
    word, second = session["client_secret"]["value"], other["client_secret"]["value"]
    forged = [
        word[:place] + ("A" if word[place] != "A" else "B") + word[place + 1 :] for place in range(len(word))
    ]
    forged += [word[:-1], word[:20], word + "A", word[:4], "gwk_" + "A" * len(word), word.swapcase()]
    forged += [
        word[: len(word) // 2] + second[len(word) // 2 :],
        "gwt_" + word[4:],
        word.replace("gwk_", "gwk_gwk_"),
    ]
    path = f"/v1/sessions/{session['id']}"
    statuses = {
        candidate: (await stranger.ask("GET", path, headers=bearer(candidate)))[0].status
        for candidate in forged
        if candidate != word
    }

    assert {candidate: status for candidate, status in statuses.items() if status not in (401, 404)} == {}


async def test_a_ticket_is_no_secret(ann: Caller, stranger: Caller) -> None:
    """A ticket is only for reading; with a secret's prefix it is invalid."""
    session = await ann.open()
    ticket = session["stream_url"].partition("ticket=")[2]
    path = f"/v1/sessions/{session['id']}/events"
    sent, _ = await stranger.ask("POST", path, say("Hi"), headers=bearer(ticket))
    disguised, _ = await stranger.ask("POST", path, say("Hi"), headers=bearer("gwk_" + ticket[4:]))

    assert (sent.status, disguised.status) == (403, 401)
    await unharmed(ann, session)


async def test_another_gateways_secret_is_foreign(
    serve: Serve, far_end: FarEnd, ann: Caller, stranger: Caller
) -> None:
    """A credential that another gateway signed is invalid for every session."""
    session = await ann.open()
    elsewhere = await serve(far_end)
    async with Caller(elsewhere.url) as other:
        foreign = await other.open()
    for word in (foreign["client_secret"]["value"], foreign["stream_url"].partition("ticket=")[2]):
        for session_id in (session["id"], foreign["id"]):
            assert (await tried(stranger, session_id, headers=bearer(word)))[0] == (401, "unauthorized")


async def test_credentials_end_with_the_log(serve: Serve, far_end: FarEnd) -> None:
    """When the retention of a closed session is over, its secret and its ticket are useless."""
    gateway = await serve(far_end, access={"keys": KEYS}, relay={"log_retention_seconds": 0})
    async with Caller(gateway.url) as caller:
        answer, session = await caller.ask("POST", "/v1/sessions", headers=bearer(ANN))
        secret = bearer(session["client_secret"]["value"])
        path = f"/v1/sessions/{session['id']}"
        closed, _ = await caller.ask("DELETE", path, headers=secret)

        async def gone() -> bool:
            return (await caller.ask("GET", path, headers=secret))[0].status == 404

        await until(gone)
        read, _ = await caller.ask("GET", session["stream_url"], headers={"Accept": "application/json"})

    assert (answer.status, closed.status, read.status) == (201, 204, 404)


@pytest.mark.parametrize(
    "name", ["key", "api_key", "apikey", "access_token", "token", "authorization", "ticket", "secret"]
)
async def test_no_key_or_secret_is_taken_from_a_query(ann: Caller, stranger: Caller, name: str) -> None:
    """Proxies and histories store queries, so only a ticket is accepted there."""
    session = await ann.open()
    for word in (ANN, session["client_secret"]["value"]):
        for method, path in (("POST", "/v1/sessions"), ("GET", f"/v1/sessions/{session['id']}")):
            answer, problem = await stranger.ask(method, path, params={name: word})
            assert answer.status in (401, 403), problem


# --- injection --------------------------------------------------------------------------------------------------------

LINES = "x\r\n\r\nid: evil-1\r\nevent: gateway.closed\r\ndata: {}\n\n\0\u2028\u0085"
EVIL = LINES + "\ud800"


async def test_no_event_breaks_out_of_its_block(caller: Caller, far_end: FarEnd) -> None:
    """Line ends between an event's tokens, or as escapes in its strings, create no block, no id and no event name."""
    session = await caller.open()
    inside = json.dumps({"type": EVIL, "event_id": EVIL, "text": EVIL})
    around = '\r\n{\r\n\r\n"type"\r:\n\n"x"\n,"id: evil-2\\r\\n" : 1 \r\n\r\n}\n\n'
    await far_end.send(session["call_id"], inside, around)
    raw = b""
    async with caller.http.get(caller.url + session["events_url"] + "?max_age=1") as answer:
        raw = await answer.content.read()
    blocks = [block for block in BlockParser().feed(raw) if block.data]
    said = [json.loads(str(block.data)) for block in blocks]

    assert [block.name for block in blocks] == [
        "gateway.open",
        "message",
        "message",
        "message",
        "gateway.rotating",
    ]
    assert said[2] == json.loads(inside)
    assert said[3] == json.loads(around)
    assert not [line for line in raw.splitlines() if line.startswith((b"id: evil", b"event: gateway.closed"))]


async def test_what_a_client_sends_stays_a_string(caller: Caller, far_end: FarEnd) -> None:
    """Line ends and NUL in ids, types and metadata are returned unchanged."""
    answer, session = await caller.ask("POST", "/v1/sessions", {"metadata": {LINES: LINES}})
    events = [{"type": "conversation.item.create", "event_id": EVIL, EVIL: EVIL}, {"type": EVIL}]
    sent, _ = await caller.ask("POST", session["events_url"], json.dumps(events))
    received = await far_end.received(session["call_id"])
    _, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")

    assert (answer.status, session["metadata"]) == (201, {LINES: LINES})
    assert (answer.headers["Location"], sent.status) == (f"/v1/sessions/{session['id']}", 202)
    assert [json.loads(frame) for frame in received] == events
    assert (now["state"], now["metadata"]) == ("connected", {LINES: LINES})


async def test_half_a_surrogate_pair_is_no_text(caller: Caller, far_end: FarEnd) -> None:
    """Where the gateway would have to encode half a surrogate pair, it refuses it before anything is done."""
    opened = (await far_end.about())["opened"]
    for body in ({"metadata": {EVIL: 1}}, {"session": {"instructions": EVIL}}, {EVIL: 1}):
        answer, problem = await caller.ask("POST", "/v1/sessions", json.dumps(body))
        assert (answer.status, problem["code"]) == (400, "invalid-json")

    assert (await far_end.about())["opened"] == opened


@pytest.mark.parametrize(
    "target",
    [
        "/v1/sessions/%0d%0aSet-Cookie:%20a=b",
        "/v1/sessions/%00",
        "/v1/sessions/{id}/events?format=%0d%0aSet-Cookie:%20a=b",
        "/v1/sessions/{id}/events?after=%0d%0adata:%20x",
        "/v1/sessions/{id}/events?format=sse&types=%0d%0a%0d%0adata:x&heartbeat=%0d%0a",
        "/v1/sessions/{id}?ticket=%0d%0aSet-Cookie:%20a=b",
        "/%0d%0aLocation:%20http://evil.example/",
    ],
)
async def test_a_target_becomes_no_header(gateway: Gateway, caller: Caller, target: str) -> None:
    """Line ends in a path or a query appear only within JSON, where they are harmless."""
    session = await caller.open()
    answer = await rawhttp.ask(gateway.url, "GET", target.replace("{id}", session["id"]))

    assert 400 <= answer.status < 500
    assert answer.code
    assert not {"set-cookie", "location"} & {name for name, _ in answer.headers}


@pytest.mark.parametrize(
    "name", ["X-Request-Id", "Last-Event-ID", "Idempotency-Key", "Accept", "Content-Type", "Origin"]
)
@pytest.mark.parametrize(
    "value", [b"a\rb", b"a\0b", b"\xff\xfe", b"a" * 9000, b"a\x0bSet-Cookie: x", b"\xe2\x80\xa8"]
)
async def test_a_strange_header_is_refused_or_passed_over(
    gateway: Gateway, caller: Caller, name: str, value: bytes
) -> None:
    """Control characters, invalid text and very long values have no effect and are not echoed."""
    session = await caller.open()
    header = name.encode() + b": " + value
    read = await rawhttp.ask(gateway.url, "GET", f"{session['events_url']}?wait=0&format=json", header)
    made = await rawhttp.ask(gateway.url, "POST", session["events_url"], header, body=b'{"type":"x"}')

    assert {read.status, made.status} <= {200, 202, 400, 403, 410, 415, 431}
    for answer in (read, made):
        assert value not in b"".join(line.encode("latin-1") for _, line in answer.headers)


# --- giant and deep ---------------------------------------------------------------------------------------------------

DEEP = 200_000
GIANT = {
    "deep arrays": b"[" * DEEP,
    "deep closed arrays": b'{"type":"x","a":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"type":"x","a":' + b'{"a":' * DEEP,
    "depth 65": b'{"type":"x","a":' + b"[" * 64 + b"]" * 64 + b"}",
    "a number of 100,000 digits": b'{"type":"x","a":' + b"9" * 100_000 + b"}",
    "a negative exponent of 100,000 digits": b'{"type":"x","a":1e-' + b"9" * 100_000 + b"}",
    "a hundred thousand members": b"{" + b",".join(b'"%d":1' % n for n in range(90_000)) + b"}",
    "one member a hundred thousand times": b'{"type":"x"' + b',"a":1' * 100_000 + b"}",
    "members of a member": b'{"client_secret":{' + b",".join(b'"%d":1' % n for n in range(90_000)) + b"}}",
    "a list of nothing": b'{"input":[' + b",".join([b"{}"] * 300_000) + b"]}",
    "a list of no items": b'{"input":[' + b",".join([b"1"] * 400_000) + b"]}",
    "an open string": b'{"type":"' + b"x" * 900_000,
    "backslashes": b'{"type":"' + b"\\" * 900_001 + b'"}',
    "NUL": b"\0" * 900_000,
    "spaces": b" " * 900_000,
    "line ends": b"\n" * 900_000,
    "more than the limit": b'{"type":"' + b"x" * (1 << 20) + b'"}',
    "half a character": b'{"type":"\xe2\x82"}',
    "an overlong slash": b'{"type":"\xc0\xaf"}',
    "UTF-16": '{"type":"x"}'.encode("utf-16"),
}


@pytest.mark.parametrize("tail", ["/events", "/turns", "/events/stream", ""])
@pytest.mark.parametrize("body", GIANT.values(), ids=GIANT.keys())
async def test_giant_and_deep_json_is_the_callers_mistake(
    gateway: Gateway, caller: Caller, body: bytes, tail: str
) -> None:
    """On every route, giant or deep JSON is accepted as data or quickly refused, never with 500."""
    session = await caller.open()
    path = f"/v1/sessions/{session['id']}{tail}" if tail else "/v1/sessions"
    began = time.process_time()  # not wall-clock time, which other work on the machine changes
    answer, said = await caller.ask(
        "POST", path, body, headers={"Content-Type": "application/json", "Accept": "application/json"}
    )
    took = time.process_time() - began
    alive, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")

    assert answer.status < 500 or said["code"] == "upstream-rejected", said
    assert took < 3  # the worst of them took 7 s before it was bounded
    assert (alive.status, now["state"]) == (200, "connected")


# --- many tiny events -------------------------------------------------------------------------------------------------

TINY = {
    "an array": (b"[" + b",".join([b'{"type":"x"}'] * 80_000) + b"]", "application/json"),
    "an array of nothing": (b"[" + b",".join([b"{}"] * 300_000) + b"]", "application/json"),
    "lines": (b'{"type":"x"}\n' * 80_000, "application/x-ndjson"),
    "lines of nothing": (b"{}\n" * 300_000, "application/x-ndjson"),
}


@pytest.mark.parametrize(("body", "kind"), TINY.values(), ids=TINY.keys())
async def test_many_tiny_events_are_too_many(caller: Caller, body: bytes, kind: str) -> None:
    """A megabyte of the smallest events is refused at once: 413, or 400 if none of them is an event."""
    session = await caller.open()
    began = time.process_time()
    answer, _ = await caller.ask("POST", session["events_url"], body, headers={"Content-Type": kind})
    took = time.process_time() - began

    assert answer.status in (400, 413)
    assert took < 1
    await unharmed(caller, session)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip"])
async def test_no_packed_body_is_unpacked(caller: Caller, coding: str) -> None:
    """A compressed body is not unpacked, because a small one could become very large."""
    session = await caller.open()
    answer, problem = await caller.ask(
        "POST", session["events_url"], b"\x1f\x8b\x08\0" * 10, headers={"Content-Encoding": coding}
    )

    assert (answer.status, problem["code"]) == (415, "unsupported-media-type")


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/v1/../v1/sessions/{id}",
        "/v1/sessions/../sessions/{id}",
        "/v1/sessions/%2e%2e/sessions/{id}",
        "/v1/sessions/{other}/../{id}",
        "/v1/sessions/{other}%2f..%2f{id}",
        "/v1/sessions/{other}/%2e%2e/{id}",
        "//v1/sessions/{id}",
        "/v1//sessions/{id}",
        "/v1/sessions/{id}/",
        "/V1/sessions/{id}",
        "/v1/sessions/{id};a=b",
        "/v1/sessions/{id}%00",
        "/v1/sessions/{id}%20",
        "/v1%2fsessions%2f{id}",
        "/v1\\sessions\\{id}",
        "/relay.js/../../config/gateway.toml",
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/%c0%ae%c0%ae/etc/passwd",
        "/relay.js%00.html",
        "/metrics",
        "/sessions",
        "/sessions/{id}",
        "/drain",
        "http://evil.example/v1/sessions/{id}",
        "file:///etc/passwd",
        "evil.example:443",
        "*",
        "",
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE", "CONNECT"])
async def test_no_path_leads_around_the_lock(keyed: Gateway, ann: Caller, target: str, method: str) -> None:
    """Whatever form the path has, without a credential nothing is shown and nothing is done."""
    session, other = await ann.open(), await ann.open()
    asked = target.replace("{id}", session["id"]).replace("{other}", other["id"])
    answer = await rawhttp.ask(keyed.url, method, asked)

    assert 400 <= answer.status < 500 or answer.status == 505  # a line without a target reads as HTTP/0.9
    assert b"root:" not in answer.body
    assert b'"rtc_' not in answer.body
    await unharmed(ann, session)


# --- origins and hosts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://evil.example",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://evil.example#{authority}",
        "http://evil.example/{authority}",
        "http://{authority}@evil.example",
        "http://{authority}.evil.example",
        "https://{authority}",
        "http://127.0.0.1",
        "http://127.0.0.1:1",
        "http://{authority}\t",
        "http://{authority} http://evil.example",
        "http://{authority},http://evil.example",
        "file://",
        "chrome-extension://abcdefghijklmnop",
    ],
)
async def test_no_page_spends_the_operators_money(
    gateway: Gateway, caller: Caller, far_end: FarEnd, origin: str
) -> None:
    """A page of any other origin is refused on both listeners before its request has an effect."""
    line = f"Origin: {origin.replace('{authority}', rawhttp.authority(gateway.url))}"
    if line.endswith("\t"):
        line = line.replace("Origin: ", "Origin: x")  # White space at the end is not part of a value.
    opened = (await far_end.about())["opened"]
    answers = [
        await rawhttp.ask(gateway.url, "POST", "/v1/turns", line, "Content-Type: text/plain", body=b"Hello"),
        await rawhttp.ask(gateway.url, "POST", "/v1/sessions", line),
        await rawhttp.ask(gateway.admin_url, "POST", "/drain", line),
        await rawhttp.ask(gateway.admin_url, "GET", "/sessions", line),
    ]

    assert [(answer.status, answer.code) for answer in answers] == [(403, "origin-not-allowed")] * 4
    assert (await far_end.about())["opened"] == opened
    assert not gateway.asked_to_drain.is_set()


async def test_a_second_origin_does_not_hide_the_first(gateway: Gateway) -> None:
    """With two Origin headers a page is refused, whatever their order."""
    own, evil = f"Origin: {gateway.url}", "Origin: https://evil.example"
    for lines in ((own, evil), (evil, own)):
        answer = await rawhttp.ask(gateway.url, "POST", "/v1/sessions", *lines)
        assert answer.status in (400, 403)


@pytest.mark.parametrize(
    "host", [b"evil.example", b"evil.example:80", b"127.0.0.1.evil.example", b"", b"localhost@evil.example"]
)
async def test_a_name_that_was_rebound_is_not_served(gateway: Gateway, host: bytes) -> None:
    """Without keys only loopback host names are accepted, so DNS rebinding does not work."""
    request = (
        b"POST /v1/sessions HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    (answer,) = await rawhttp.send(gateway.url, request)

    assert answer.status in (400, 403)


# --- request smuggling ------------------------------------------------------------------------------------------------

CHUNKED = b"Transfer-Encoding: chunked\r\n"
END = b"0\r\n\r\n"
# What precedes the smuggled request: header lines, and the body that they frame or seem to frame.
SMUGGLING = {
    "both lengths": (b"Content-Length: 5\r\n" + CHUNKED, END),
    "both lengths, the other way": (CHUNKED + b"Content-Length: 5\r\n", END),
    "two lengths": (b"Content-Length: 0\r\nContent-Length: 400\r\n", b""),
    "a list of lengths": (b"Content-Length: 0, 400\r\n", b""),
    "a length with a plus": (b"Content-Length: +0\r\n", b""),
    "a negative length": (b"Content-Length: -1\r\n", b""),
    "a length in hexadecimal": (b"Content-Length: 0x0\r\n", b""),
    "a length with an underscore": (b"Content-Length: 0_0\r\n", b""),
    "a length in other digits": (b"Content-Length: \xd9\xa0\r\n", b""),
    "an empty length": (b"Content-Length: \r\n", b""),
    "a space before the colon": (b"Content-Length : 0\r\n", b""),
    "a folded length": (b"Content-Length:\r\n 0\r\n", b""),
    "a folded coding": (b"Transfer-Encoding:\r\n chunked\r\n", END),
    "chunked twice": (CHUNKED + CHUNKED, END),
    "chunked is not last": (b"Transfer-Encoding: chunked, identity\r\n", END),
    "an unknown coding": (b"Transfer-Encoding: xchunked\r\n", END),
    "a coding in quotes": (b'Transfer-Encoding: "chunked"\r\n', END),
    "a coding with a control character": (b"Transfer-Encoding: \x0bchunked\r\n", END),
    "a chunk size with a sign": (CHUNKED, b"+0\r\n\r\n"),
    "a chunk size in 0x": (CHUNKED, b"0x0\r\n\r\n"),
    "a negative chunk size": (CHUNKED, b"-1\r\n\r\n"),
    "a chunk size with an underscore": (CHUNKED, b"0_0\r\n\r\n"),
    "a chunk size of 100 digits": (CHUNKED, b"f" * 100 + b"\r\n\r\n"),
    "a line feed in a chunk extension": (CHUNKED, b"0;a\nb\r\n\r\n"),
    "a chunk without its end": (CHUNKED, b"1\r\nab0\r\n\r\n"),
    "line feeds alone": (b"Content-Length: 0\nX: y\n", b""),
    "a carriage return alone": (b"X: y\rContent-Length: 0\r\n", b""),
    "NUL in a header": (b"X: a\0b\r\nContent-Length: 0\r\n", b""),
    "a header without a name": (b": x\r\nContent-Length: 0\r\n", b""),
    "a length hidden by its name": (b"Content-Length\0: 400\r\nContent-Length: 0\r\n", b""),
}


@pytest.mark.parametrize(("lines", "body"), SMUGGLING.values(), ids=SMUGGLING.keys())
async def test_an_ambiguous_request_is_the_last_of_its_connection(
    keyed: Gateway, ann: Caller, lines: bytes, body: bytes
) -> None:
    """A request whose end two parsers could see at different places is refused, and what follows it is not treated
    as a request."""
    session = await ann.open()
    host = b"Host: " + rawhttp.authority(keyed.url).encode() + b"\r\n"
    who = b"Authorization: Bearer " + ANN.encode() + b"\r\n"
    hidden = b"DELETE /v1/sessions/" + session["id"].encode() + b" HTTP/1.1\r\n" + host + who + b"\r\n"
    outer = (
        b"POST /v1/sessions/"
        + UNKNOWN.encode()
        + b"/close HTTP/1.1\r\n"
        + host
        + who
        + lines
        + b"\r\n"
        + body
    )
    answers: list[RawAnswer] = await rawhttp.send(keyed.url, outer + hidden)

    assert [answer.status for answer in answers] in ([], [400]), answers
    await unharmed(ann, session)

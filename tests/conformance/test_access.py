"""Section 3: who may do what."""

import json
from typing import Any

import pytest

from tests.conformance.wire import JSON, NDJSON, RESPONSE, Json, Session, Wire, item

FOREIGN_ORIGIN = "https://evil.example"
UPDATE: Json = {"type": "session.update", "session": {"type": "realtime", "instructions": "Be brief."}}
EXPOSED = {"Location", "Link", "Retry-After", "X-Request-Id", "Idempotency-Replayed"}
ASKED_HEADERS = {
    "authorization", "content-type", "last-event-id", "idempotency-key", "x-upstream-authorization", "traceparent",
}  # fmt: skip


def words(value: str) -> set[str]:
    """Return the elements of a header that is a list."""
    return {word.strip() for word in value.split(",") if word.strip()}


# --- API keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/sessions"),
        ("GET", "/v1/sessions"),
        ("POST", "/v1/turns"),
        ("GET", "/v1/sessions/gws_0"),
        ("GET", "/v1/sessions/gws_0/events"),
        ("DELETE", "/v1/sessions/gws_0"),
    ],
)
async def test_without_a_key_everything_is_401(stranger: Wire, method: str, path: str) -> None:
    """A caller without a credential is told only how to authenticate."""
    answer = await stranger.call(method, path)

    answer.problem(401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("key", ["wrong", "gw-" + "0" * 40, "", "ü", "gwk_forged", "gwt_forged.forged"])
async def test_a_wrong_key_is_401(stranger: Wire, key: str) -> None:
    """An unknown credential is treated as none."""
    headers = {"Authorization": f"Bearer {key}"}

    (await stranger.call("POST", "/v1/sessions", headers=headers)).problem(401, "unauthorized")


async def test_another_scheme_is_401(wire: Wire, stranger: Wire) -> None:
    """Keys are sent as Bearer."""
    headers = {"Authorization": f"Basic {wire.key}"}

    (await stranger.call("POST", "/v1/sessions", headers=headers)).problem(401, "unauthorized")


@pytest.mark.parametrize("name", ["key", "api_key", "access_token", "authorization", "ticket"])
async def test_a_key_in_a_query_is_not_taken(wire: Wire, stranger: Wire, name: str) -> None:
    """A key in a URL is refused, because URLs are stored in logs and histories."""
    answer = await stranger.call("GET", "/v1/sessions", query={name: wire.key or ""})

    assert answer.status == 401


async def test_a_caller_sees_its_own_sessions_only(session: Session, other: Wire) -> None:
    """For another caller, a session does not exist."""
    answers = [
        await other.call("GET", session.path),
        await other.call("GET", session.events),
        await other.call("DELETE", session.path),
        await other.call("POST", session.events, RESPONSE),
        await other.call("POST", f"{session.path}/tickets"),
        await other.call("POST", f"{session.path}/turns", "Hello"),
    ]
    listed = (await other.call("GET", "/v1/sessions")).json["data"]

    for answer in answers:
        answer.problem(404, "session-unknown")
    assert session.id not in [one["id"] for one in listed]
    assert (await session.look())["state"] == "connected"


# --- callers without a key --------------------------------------------------------------------------------------------


async def test_to_an_anonymous_caller_the_id_is_the_capability(anonymous: Wire) -> None:
    """Anonymous callers can use any session whose ID they know, but cannot list sessions."""
    async with anonymous.session() as session:
        assert (await session.look())["state"] == "connected"
    (await anonymous.call("GET", "/v1/sessions")).problem(403, "forbidden")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example"]
)
async def test_an_anonymous_caller_names_a_host_of_ours(anonymous: Wire, host: str) -> None:
    """Without a key the Host must be allowed, so that a page whose name was pointed to loopback is refused."""
    answer = await anonymous.call("POST", "/v1/sessions", headers={"Host": host})

    assert answer.status == 403
    assert answer.json["code"] in ("forbidden", "origin-not-allowed")


# --- origins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [FOREIGN_ORIGIN, "null", "http://localhost:1", "file://"])
async def test_a_foreign_origin_is_403(wire: Wire, origin: str) -> None:
    """A web page on another site is refused, because it could spend the operator's money."""
    answer = await wire.call("POST", "/v1/sessions", headers={"Origin": origin})

    answer.problem(403, "origin-not-allowed")
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_foreign_origin_is_refused_before_anything_is_done(wire: Wire, session: Session) -> None:
    """A foreign origin is refused before its request has any effect."""
    answer = await wire.call("DELETE", session.path, headers={"Origin": FOREIGN_ORIGIN})

    answer.problem(403, "origin-not-allowed")
    assert (await session.look())["state"] == "connected"


async def test_its_own_origin_is_taken(wire: Wire) -> None:
    """A page that the gateway itself serves may call it."""
    answer = await wire.call("POST", "/v1/sessions", headers={"Origin": wire.url})

    assert answer.status == 201
    await wire.call("DELETE", answer.headers["Location"])


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/sessions/gws_0/events", "/v1/turns"])
async def test_a_preflight_is_answered_before_authentication(stranger: Wire, origin: str, path: str) -> None:
    """A preflight needs no credential, because a browser sends none with it."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": ", ".join(sorted(ASKED_HEADERS)),
    }
    answer = await stranger.call("OPTIONS", path, headers=headers)

    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] in (origin, "*")
    assert words(answer.headers["Access-Control-Allow-Methods"]) >= {"GET", "POST", "DELETE"}
    assert words(answer.headers["Access-Control-Allow-Headers"].lower()) >= ASKED_HEADERS
    assert answer.headers["Access-Control-Max-Age"] == "7200"
    assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_a_preflight_of_a_foreign_origin_is_refused(stranger: Wire) -> None:
    """The preflight of an unlisted origin is refused, so that the browser does not send the request."""
    headers = {"Origin": FOREIGN_ORIGIN, "Access-Control-Request-Method": "POST"}
    answer = await stranger.call("OPTIONS", "/v1/sessions", headers=headers)

    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/sessions/gws_0", "/v1/nothing"])
async def test_every_answer_to_a_listed_origin_can_be_read(
    wire: Wire, stranger: Wire, origin: str, path: str
) -> None:
    """A page on a listed origin can read status, body and the headers it needs, also those of errors."""
    for caller in (wire, stranger):
        answer = await caller.call("GET", path, headers={"Origin": origin})

        assert answer.headers["Access-Control-Allow-Origin"] in (origin, "*")
        assert words(answer.headers["Access-Control-Expose-Headers"]) >= EXPOSED
        assert "Access-Control-Allow-Credentials" not in answer.headers


# --- client secrets ---------------------------------------------------------------------------------------------------


@pytest.fixture
def page(session: Session) -> Session:
    """Return the session as a page uses it that has only the client secret."""
    return Session(session.wire.with_key(session.secret), session.answer)


@pytest.mark.parametrize(
    "event",
    [
        item("Hello"),
        {"type": "conversation.item.delete", "item_id": "item_0"},
        RESPONSE,
        {"type": "response.cancel"},
        {"type": "input_audio_buffer.clear"},
    ],
    ids=lambda event: str(event["type"]),
)
async def test_a_secret_may_send_what_a_conversation_needs(page: Session, event: Json) -> None:
    """With a secret a page may send items, responses and audio buffers."""
    assert (await page.post(event)).status == 202


@pytest.mark.parametrize("event", [UPDATE, {"type": "session.anything"}, {"type": "unknown"}], ids=str)
async def test_a_secret_may_send_no_more(page: Session, event: Json) -> None:
    """With a secret the session's configuration cannot be changed, and a batch that contains such an event is not
    sent at all."""
    (await page.post([item("Hello"), event])).problem(403, "event-not-allowed")

    assert (await page.send(item("Hello")))["first"] == 1


async def test_a_secret_reads_turns_and_closes(page: Session) -> None:
    """With a secret a page can read its session, hold turns, and close it."""
    turn = await page.wire.call("POST", f"{page.path}/turns", "Say hello.", headers={"Accept": JSON})
    read = await page.poll(wait=0)
    closed = await page.wire.call("DELETE", page.path)

    assert (turn.status, read.status, closed.status) == (200, 200, 204)


async def test_a_secret_opens_no_session(page: Session) -> None:
    """A secret belongs to one session and cannot open another."""
    assert (await page.wire.call("POST", "/v1/sessions")).status in (401, 403)
    assert (await page.wire.call("GET", "/v1/sessions")).status in (401, 403)
    assert (await page.wire.call("POST", "/v1/turns", "Hello")).status in (401, 403)


async def test_a_secret_is_for_its_own_session(page: Session, wire: Wire) -> None:
    """With the secret of one session, another session is unknown or forbidden."""
    async with wire.session() as second:
        assert (await page.wire.call("GET", second.path)).status in (403, 404)
        assert (await page.wire.call("POST", second.events, RESPONSE)).status in (403, 404)


async def test_a_secret_in_a_query_is_not_taken(page: Session, stranger: Wire) -> None:
    """A secret is accepted only as a bearer token."""
    for name in ("ticket", "client_secret"):
        answer = await stranger.call("GET", page.events, query={name: page.secret, "format": "json"})

        assert answer.status in (401, 403)


async def test_a_secret_may_be_allowed_everything(wire: Wire) -> None:
    """A creator that trusts its page can allow its secret every event type."""
    async with wire.session(client_secret={"allow": ["*"]}) as session:
        page = Session(wire.with_key(session.secret), session.answer)
        await page.send(UPDATE)
        updated = (await session.until("session.updated"))[-1]["event"]["session"]

    assert updated["instructions"] == "Be brief."


@pytest.mark.parametrize(
    "body",
    [
        '{"type":"response.create","type":"session.update","session":{}}',
        '{"type":"response.create","Type":"session.update"}',
        '{"type":"conversation.item.create","item":{"type":"message","TYPE":"x"}}',
    ],
)
async def test_a_restricted_event_is_unambiguous(page: Session, body: str) -> None:
    """An event is refused if its members repeat or differ only in case, because the gateway and OpenAI could read it
    differently."""
    json.loads(body)

    assert (await page.post(body)).status == 400


# --- tickets ----------------------------------------------------------------------------------------------------------


async def test_a_ticket_in_the_url_reads(session: Session) -> None:
    """The standard EventSource constructor, which cannot set headers, can open `stream_url`."""
    page = session.wire.with_key(None)
    async with page.stream(session.created["stream_url"]) as stream:
        blocks = await stream.until("session.created")

    assert stream.status == 200
    assert blocks[0].event == "gateway.open"


async def test_a_ticket_reads_in_every_form(session: Session) -> None:
    """A ticket also works for NDJSON and long-poll, and as a bearer token."""
    await session.wire.call("DELETE", session.path)
    ticket, page = session_ticket(session), session.wire.with_key(None)
    by_query: list[Any] = [
        await page.call("GET", session.events, headers={"Accept": accept}, query={"ticket": ticket})
        for accept in (JSON, NDJSON)
    ]
    by_bearer = await page.with_key(ticket).call("GET", session.events, headers={"Accept": JSON})

    assert [answer.status for answer in [*by_query, by_bearer]] == [200, 200, 200]


def session_ticket(session: Session) -> str:
    """Return the ticket that came with the create."""
    return str(session.created["stream_url"]).partition("ticket=")[2]


@pytest.mark.parametrize("in_query", [True, False], ids=["query", "bearer"])
async def test_a_ticket_sends_nothing(session: Session, in_query: bool) -> None:
    """A request to send or close with a ticket is refused with 403 and has no effect."""
    ticket = await session.ticket()
    page = session.wire.with_key(None if in_query else ticket)
    query = {"ticket": ticket} if in_query else {}
    answers = [
        await page.call("POST", session.events, RESPONSE, query=query),
        await page.call("POST", f"{session.path}/turns", "Hello", query=query),
        await page.call("POST", f"{session.path}/tickets", query=query),
        await page.call("POST", f"{session.path}/close", query=query),
        await page.call("DELETE", session.path, query=query),
    ]

    for answer in answers:
        answer.problem(403, "forbidden")
    assert (await session.look())["state"] == "connected"
    assert (await session.send(RESPONSE))["first"] == 1


async def test_a_ticket_is_for_its_own_session(session: Session) -> None:
    """One session's ticket does not read another."""
    ticket = await session.ticket()
    page = session.wire.with_key(None)
    async with session.wire.session() as second:
        answer = await page.call("GET", second.events, query={"ticket": ticket, "format": "json"})

    assert answer.status in (401, 403, 404)


@pytest.mark.parametrize("change", ["cut", "turned", "longer"])
async def test_a_changed_ticket_is_worth_nothing(session: Session, change: str) -> None:
    """A ticket that was changed is refused, because tickets are signed."""
    ticket = await session.ticket()
    forged = {
        "cut": ticket[:-1],
        "turned": ticket[:-2] + ("A" if ticket[-2] != "A" else "B") + ticket[-1],
        "longer": ticket + "A",
    }[change]
    page = session.wire.with_key(None)
    answer = await page.call("GET", session.events, query={"ticket": forged, "format": "json", "wait": 0})

    answer.problem(401, "unauthorized")

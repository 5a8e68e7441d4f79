"""Authorization: which caller may do what."""

import asyncio
import hashlib
from ipaddress import ip_network
from typing import Any

import pytest

from gateway.downstream.auth.access import Access, AccessRules, KeyRule
from gateway.downstream.auth.buckets import Bucket
from gateway.downstream.auth.credentials import Signatures
from gateway.relay.session import Session
from tests.downstream.harness import SIGNING_KEY, Build, Harness


def key_rule(name: str, *keys: str, **limits: float) -> KeyRule:
    """Make a key's rule from its settings."""
    return KeyRule(name, tuple(hashlib.sha256(k.encode()).digest() for k in keys), **limits)  # type: ignore[arg-type]


KEYS = AccessRules(keys=(key_rule("ann", "key-ann", "key-ann-2"), key_rule("bob", "key-bob")))


def bearer(word: str) -> dict[str, str]:
    """Return the headers that carry a credential."""
    return {"Authorization": f"Bearer {word}"}


@pytest.fixture
async def keyed(build: Build) -> Harness:
    """Return an HTTP side that requires keys."""
    return await build(KEYS)


# --- API keys


async def test_without_key_is_unauthorized(keyed: Harness) -> None:
    """If keys are configured, a request without one is refused, and the answer says how to send it."""
    answer = await keyed.call("POST", "/v1/sessions")

    assert (answer.status, answer.code) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "header",
    ["Bearer wrong", "Bearer ", "Basic a2V5LWFubg==", "key-ann", "Bearer key-ann x", "Bearer \u00e9"],
)
async def test_wrong_key_is_unauthorized(keyed: Harness, header: str) -> None:
    """A wrong key is refused, and so is a right one in the wrong form."""
    answer = await keyed.call("POST", "/v1/sessions", headers={"Authorization": header})

    assert (answer.status, answer.code) == (401, "unauthorized")
    assert keyed.far_end.requests == []


async def test_each_key_of_a_name_lets_in(keyed: Harness) -> None:
    """While a key is rotated, the old and the new one belong to the same caller, who sees the same sessions."""
    session = await keyed.open(headers=bearer("key-ann"))
    answer = await keyed.call("GET", "/v1/sessions", headers=bearer("key-ann-2"))

    assert [one["id"] for one in answer.json["data"]] == [session["id"]]


async def test_key_in_a_query_is_never_taken(keyed: Harness) -> None:
    """A key in the query is refused under every parameter name, because proxies and histories store queries."""
    session = await keyed.open(headers=bearer("key-ann"))
    for name in ("key", "api_key", "access_token", "token", "ticket"):
        answer = await keyed.call("GET", f"/v1/sessions/{session['id']}?{name}=key-ann")
        assert (answer.status, answer.code) == (401, "unauthorized")


async def test_others_sessions_are_unknown(keyed: Harness) -> None:
    """Another caller's session gives the same answer as one that does not exist."""
    session = await keyed.open(headers=bearer("key-ann"))
    for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/events"), ("POST", "/tickets")):
        answer = await keyed.call(method, f"/v1/sessions/{session['id']}{tail}", headers=bearer("key-bob"))
        assert (answer.status, answer.code) == (404, "session-unknown")

    assert (await keyed.call("GET", "/v1/sessions", headers=bearer("key-bob"))).json["data"] == []


async def test_list_has_the_newest_first(keyed: Harness) -> None:
    """The list holds the caller's own sessions, the newest first, without credentials."""
    ids = [(await keyed.open(headers=bearer("key-ann")))["id"] for _ in range(3)]
    listed = (await keyed.call("GET", "/v1/sessions", headers=bearer("key-ann"))).json

    assert listed["object"] == "list"
    assert [one["id"] for one in listed["data"]] == ids[::-1]
    assert "client_secret" not in listed["data"][0]


async def test_anonymous_beside_keys_is_let_in_when_allowed(build: Build) -> None:
    """With `anonymous` a caller may send no key but not a wrong one, and sees no sessions that were opened with a
    key."""
    harness = await build(AccessRules(keys=KEYS.keys, anonymous=KeyRule("anonymous")))
    session = await harness.open(headers=bearer("key-ann"))

    assert (await harness.call("POST", "/v1/sessions")).status == 201
    assert (await harness.call("POST", "/v1/sessions", headers=bearer("wrong"))).status == 401
    assert (await harness.call("GET", f"/v1/sessions/{session['id']}")).status == 404


async def test_keyless_gateway_ignores_a_key(harness: Harness) -> None:
    """A gateway without keys ignores the key that some libraries always send."""
    assert (await harness.call("POST", "/v1/sessions", headers=bearer("sk-anything"))).status == 201


async def test_new_rules_hold_at_once(keyed: Harness) -> None:
    """After a reload a removed key is refused, and running sessions keep their owner."""
    session = await keyed.open(headers=bearer("key-ann"))
    keyed.access.replace(AccessRules(keys=(key_rule("ann", "key-new"),)))

    path = f"/v1/sessions/{session['id']}"
    assert (await keyed.call("GET", path, headers=bearer("key-ann"))).status == 401
    assert (await keyed.call("GET", path, headers=bearer("key-new"))).status == 200


async def test_what_a_removed_key_handed_out_opens_nothing(keyed: Harness) -> None:
    """Secrets and tickets that a removed key created are refused, because its limits no longer exist."""
    session = await keyed.open(headers=bearer("key-ann"))
    keyed.access.replace(AccessRules(keys=(key_rule("bob", "key-bob"),)))

    secret = bearer(session["client_secret"]["value"])
    sent = await keyed.call("POST", session["events_url"], json={"type": "a"}, headers=secret)
    read = await keyed.call("GET", f"{session['stream_url']}&format=json&wait=0")
    assert (sent.status, read.status) == (401, 401)
    assert keyed.far_end.sent == []


async def test_anonymous_sessions_end_with_anonymous_access(harness: Harness) -> None:
    """Once a key is configured, requests without one are refused."""
    session = await harness.open()
    secret = bearer(session["client_secret"]["value"])
    before = await harness.call("GET", f"/v1/sessions/{session['id']}", headers=secret)
    harness.access.replace(AccessRules(keys=(key_rule("bob", "key-bob"),)))

    assert before.status == 200
    assert (await harness.call("GET", f"/v1/sessions/{session['id']}", headers=secret)).status == 401


async def test_new_rules_bring_new_limits(build: Build) -> None:
    """A raised limit applies at once and is not reduced by what was counted under the old one."""
    harness = await build(AccessRules(keys=(key_rule("ann", "k", sessions_per_minute=1),)))
    await harness.open(headers=bearer("k"))
    refused = await harness.call("POST", "/v1/sessions", headers=bearer("k"))
    harness.access.replace(AccessRules(keys=(key_rule("ann", "k", sessions_per_minute=100),)))

    assert refused.status == 429
    assert (await harness.call("POST", "/v1/sessions", headers=bearer("k"))).status == 201


@pytest.mark.parametrize("shown", ["key", "secret", "ticket"])
async def test_authenticated_call_keeps_the_session_from_detaching(
    keyed: Harness, monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    """An accepted request with any credential resets the detach deadline; a refused one does not."""
    session = await keyed.open(headers=bearer("key-ann"))
    handle = keyed.hub.find(session["id"], None)
    touched: list[bool] = []
    monkeypatch.setattr(type(handle), "touch", lambda self: touched.append(True))
    ticket = session["stream_url"].rpartition("=")[2]
    word = {"key": "key-ann", "secret": session["client_secret"]["value"], "ticket": ticket}[shown]
    await keyed.call("GET", f"/v1/sessions/{session['id']}", headers=bearer("key-bob"))
    assert touched == []
    await keyed.call("GET", f"/v1/sessions/{session['id']}", headers=bearer(word))

    assert touched == [True]


async def test_idempotency_keys_of_two_callers_do_not_meet(keyed: Harness) -> None:
    """Two callers may choose the same Idempotency-Key."""
    ids = {
        (await keyed.open(headers=bearer(key) | {"Idempotency-Key": "same"}))["id"]
        for key in ("key-ann", "key-bob")
    }

    assert len(ids) == 2


# --- client secrets


async def test_secret_opens_its_own_session_only(keyed: Harness) -> None:
    """A secret is for one session: another session is unknown to it, and it cannot create or list sessions."""
    mine = await keyed.open(headers=bearer("key-ann"))
    other = await keyed.open(headers=bearer("key-ann"))
    secret = bearer(mine["client_secret"]["value"])

    assert mine["client_secret"]["value"].startswith("gwk_")
    assert (await keyed.call("GET", f"/v1/sessions/{mine['id']}", headers=secret)).status == 200
    assert (await keyed.call("GET", f"/v1/sessions/{other['id']}", headers=secret)).status == 404
    for method in ("GET", "POST"):
        answer = await keyed.call(method, "/v1/sessions", headers=secret)
        assert (answer.status, answer.code) == (403, "forbidden")


@pytest.mark.parametrize(
    "type_",
    ["conversation.item.create", "conversation.item.delete", "response.create", "response.cancel",
     "input_audio_buffer.append"],
)  # fmt: skip
async def test_secret_may_talk(keyed: Harness, type_: str) -> None:
    """A secret allows the events that a conversation needs."""
    session = await keyed.open(headers=bearer("key-ann"))
    answer = await keyed.call(
        "POST",
        f"/v1/sessions/{session['id']}/events",
        json={"type": type_},
        headers=bearer(session["client_secret"]["value"]),
    )

    assert answer.status == 202


async def test_refusal_can_quote_what_utf8_cannot_carry(keyed: Harness) -> None:
    """JSON can contain half of a surrogate pair; a refusal that quotes it must not fail."""
    session = await keyed.open(headers=bearer("key-ann"))
    answer = await keyed.call(
        "POST",
        f"/v1/sessions/{session['id']}/events",
        data=b'{"type":"\\ud800"}',
        headers=bearer(session["client_secret"]["value"]),
    )

    assert (answer.status, answer.code) == (403, "event-not-allowed")


@pytest.mark.parametrize(
    "type_", ["session.update", "response.creates", "conversation.item", "", "Response.create"]
)
async def test_secret_may_not_send_the_rest(keyed: Harness, type_: str) -> None:
    """A batch with one event that the secret does not allow is not sent at all, and the problem points to that
    event."""
    session = await keyed.open(headers=bearer("key-ann"))
    answer = await keyed.call(
        "POST",
        f"/v1/sessions/{session['id']}/events",
        json=[{"type": "response.create"}, {"type": type_}],
        headers=bearer(session["client_secret"]["value"]),
    )

    assert (answer.status, answer.code) == (403, "event-not-allowed")
    assert [flaw["pointer"] for flaw in answer.json["errors"]] == ["/1"]
    assert keyed.far_end.sent == []


async def test_secret_may_send_more_when_the_create_said_so(keyed: Harness) -> None:
    """`allow` in the create lets the secret send more types."""
    session = await keyed.open({"client_secret": {"allow": ["*"]}}, headers=bearer("key-ann"))
    answer = await keyed.call(
        "POST",
        f"/v1/sessions/{session['id']}/events",
        json={"type": "session.update", "session": {}},
        headers=bearer(session["client_secret"]["value"]),
    )

    assert answer.status == 202


@pytest.mark.parametrize(
    "body",
    [
        '{"type":"response.create","type":"session.update"}',
        '{"type":"response.create","Type":"session.update"}',
        '{"type":"response.create","response":{"a":1,"A":2}}',
    ],
)
async def test_ambiguous_event_is_refused_under_a_restriction(keyed: Harness, body: str) -> None:
    """An event that parsers may interpret differently is refused for restricted callers, but not for a key."""
    session = await keyed.open(headers=bearer("key-ann"))
    path = f"/v1/sessions/{session['id']}/events"
    answer = await keyed.call("POST", path, data=body, headers=bearer(session["client_secret"]["value"]))

    assert (answer.status, answer.code) == (400, "invalid-json")
    assert (await keyed.call("POST", path, data=body, headers=bearer("key-ann"))).status == 202


async def test_ambiguous_event_is_refused_where_members_are_locked(build: Build) -> None:
    """Where members are locked, ambiguous events are refused for every caller."""
    harness = await build(AccessRules(members_locked=True))
    path = f"/v1/sessions/{(await harness.open())['id']}/events"

    assert (await harness.call("POST", path, data='{"type":"a","TYPE":"b"}')).status == 400


async def test_secret_closes_its_session(keyed: Harness) -> None:
    """A page that only has the secret can close its session."""
    session = await keyed.open(headers=bearer("key-ann"))
    secret = bearer(session["client_secret"]["value"])

    assert (await keyed.call("DELETE", f"/v1/sessions/{session['id']}", headers=secret)).status == 204


async def test_secret_in_a_query_is_refused(keyed: Harness) -> None:
    """A secret is accepted only as a bearer token, not in the query, not even in the parameter for a ticket."""
    session = await keyed.open(headers=bearer("key-ann"))
    secret = session["client_secret"]["value"]
    answer = await keyed.call("GET", f"/v1/sessions/{session['id']}?ticket={secret}")

    assert (answer.status, answer.code) == (401, "unauthorized")


async def test_secret_signed_elsewhere_is_refused(keyed: Harness) -> None:
    """A secret that was signed with another key is refused."""
    session = await keyed.open(headers=bearer("key-ann"))
    forged = Signatures([b"x" * 32]).sign("secret", session["id"])
    answer = await keyed.call("GET", f"/v1/sessions/{session['id']}", headers=bearer(forged))

    assert (answer.status, answer.code) == (401, "unauthorized")


async def test_secret_of_a_forgotten_session_is_unknown(keyed: Harness) -> None:
    """A valid secret whose session is gone gets 404."""
    word = Signatures([SIGNING_KEY]).sign("secret", "gws_gone")
    answer = await keyed.call("GET", "/v1/sessions/gws_gone", headers=bearer(word))

    assert (answer.status, answer.code) == (404, "session-unknown")


# --- tickets


async def test_ticket_reads_by_header_and_by_query(keyed: Harness) -> None:
    """A ticket works in the header and in the query, and only for its own session."""
    mine = await keyed.open(headers=bearer("key-ann"))
    other = await keyed.open(headers=bearer("key-ann"))
    ticket = (await keyed.call("POST", f"/v1/sessions/{mine['id']}/tickets", headers=bearer("key-ann"))).json[
        "ticket"
    ]

    assert ticket.startswith("gwt_")
    assert (await keyed.call("GET", f"/v1/sessions/{mine['id']}?ticket={ticket}")).status == 200
    assert (await keyed.call("GET", f"/v1/sessions/{mine['id']}", headers=bearer(ticket))).status == 200
    assert (await keyed.call("GET", f"/v1/sessions/{other['id']}?ticket={ticket}")).status == 404


async def test_ticket_counts_beside_a_proxys_credential(keyed: Harness) -> None:
    """Behind a proxy with Basic authentication a browser adds that header to every request; the gateway ignores it."""
    session = await keyed.open(headers=bearer("key-ann"))
    path = session["stream_url"].replace("/events", "")
    answer = await keyed.call("GET", path, headers={"Authorization": "Basic dTpw"})

    assert answer.status == 200


async def test_ticket_does_nothing_but_read(keyed: Harness) -> None:
    """A ticket that is used to send, to close or to create tickets is refused with 403."""
    session = await keyed.open(headers=bearer("key-ann"))
    query = session["stream_url"].partition("?")[2]
    for method, tail in (("POST", "/events"), ("DELETE", ""), ("POST", "/close"), ("POST", "/tickets")):
        answer = await keyed.call(method, f"/v1/sessions/{session['id']}{tail}?{query}", json={"type": "a"})
        assert (answer.status, answer.code) == (403, "forbidden")
    assert keyed.far_end.sent == []


# --- limits


async def test_sessions_at_once_are_limited(build: Build) -> None:
    """A session above the limit is refused with 429 until another one is closed."""
    harness = await build(AccessRules(keys=(key_rule("ann", "k", max_sessions=1),)))
    session = await harness.open(headers=bearer("k"))
    refused = await harness.call("POST", "/v1/sessions", headers=bearer("k"))
    await harness.call("DELETE", f"/v1/sessions/{session['id']}", headers=bearer("k"))

    assert (refused.status, refused.code) == (429, "session-limit")
    assert int(refused.headers["Retry-After"]) >= 1
    assert (await harness.call("POST", "/v1/sessions", headers=bearer("k"))).status == 201


async def test_sessions_a_minute_are_limited(build: Build) -> None:
    """As many sessions as the limit allows per minute may be opened at once, closed or not; then 429 says how long
    to wait."""
    harness = await build(AccessRules(keys=(key_rule("ann", "k", sessions_per_minute=2),)))
    for _ in range(2):
        await harness.open(headers=bearer("k"))
    refused = await harness.call("POST", "/v1/sessions", headers=bearer("k"))

    assert (refused.status, refused.code) == (429, "rate-limited")
    assert 25 <= int(refused.headers["Retry-After"]) <= 30


@pytest.mark.parametrize("limit", ["events_per_second", "bytes_per_second"])
async def test_events_and_bytes_a_second_are_limited(build: Build, limit: str) -> None:
    """The third of three quick posts exceeds a limit of two, with any credential."""
    event = '{"type":"response.create"}'
    rate = 1 if limit == "events_per_second" else len(event)
    harness = await build(AccessRules(keys=(key_rule("ann", "k", **{limit: rate}),)))
    session = (await harness.call("POST", "/v1/sessions", headers=bearer("k"))).json
    path = f"/v1/sessions/{session['id']}/events"
    words = ("k", session["client_secret"]["value"], "k")
    answers = [await harness.call("POST", path, data=event, headers=bearer(word)) for word in words]

    assert [answer.status for answer in answers] == [202, 202, 429]
    assert answers[2].code == "rate-limited"
    assert answers[2].headers["Retry-After"] == "1"
    assert len(harness.far_end.sent) == 2


async def test_batch_refused_for_its_bytes_costs_no_events(build: Build) -> None:
    """A batch that is refused for its bytes is not counted as events, because it was not parsed."""
    harness = await build(AccessRules(keys=(key_rule("ann", "k", events_per_second=1, bytes_per_second=50),)))
    session = (await harness.call("POST", "/v1/sessions", headers=bearer("k"))).json
    path = session["events_url"]
    long, short = '{"type":"%s"}' % ("x" * 90), '{"type":"x"}'
    answers = [
        await harness.call("POST", path, data=data, headers=bearer("k")) for data in (long, long, short)
    ]
    refill = Bucket.full(1, 2, 0)
    refill.take(1, 0)

    assert [answer.status for answer in answers] == [202, 429, 429]
    assert harness.access._buckets["ann", "events"].level >= refill.level


async def test_a_turn_over_the_limit_leaves_no_session(build: Build) -> None:
    """`POST /v1/turns` that is refused because of its events opens no session."""
    harness = await build(AccessRules(keys=(key_rule("ann", "k", events_per_second=1),)))
    session = (await harness.call("POST", "/v1/sessions", headers=bearer("k"))).json
    event = '{"type":"response.create"}'
    await harness.call("POST", session["events_url"], data=event, headers=bearer("k"))
    refused = await harness.call("POST", "/v1/turns", data="Hello", headers=bearer("k"))

    assert (refused.status, refused.code) == (429, "rate-limited")
    assert [view.id for view in harness.hub.all_sessions()] == [session["id"]]
    assert len(harness.far_end.requests) == 1


@pytest.mark.parametrize("tail", ["/events", "/turns", ""])
async def test_wrong_bodies_cost_their_bytes(build: Build, tail: str) -> None:
    """Invalid bodies count towards the byte limit, because reading them takes as long as reading valid ones."""
    harness = await build(AccessRules(keys=(key_rule("ann", "k", bytes_per_second=1000),)))
    session = (await harness.call("POST", "/v1/sessions", headers=bearer("k"))).json
    path = f"/v1/sessions/{session['id']}{tail}" if tail else "/v1/sessions"
    nonsense = b'{"type":' + b"[" * 50_000
    headers = bearer("k") | {"Content-Type": "application/json"}
    answers = [await harness.call("POST", path, data=nonsense, headers=headers) for _ in range(2)]

    assert [(answer.status, answer.code) for answer in answers] == [
        (400, "invalid-json"),
        (429, "rate-limited"),
    ]


async def test_token_limits_of_a_key_go_with_its_sessions(build: Build) -> None:
    """A key's token budget belongs to its principal and applies whichever credential of the session sends."""
    harness = await build(AccessRules(keys=(key_rule("ann", "k", tokens_per_session=5, tokens_per_day=9),)))
    session = await harness.open(headers=bearer("k"))
    opened = harness.hub.find(session["id"], None)
    assert isinstance(opened, Session)
    principal = opened.state.opening.principal

    assert (principal.tokens_per_session, principal.tokens_per_day) == (5, 9)


@pytest.mark.parametrize("tail", ["events", "turns?format=json"])
@pytest.mark.parametrize("with_secret", [False, True])
@pytest.mark.parametrize(
    "limit", ["tokens_per_session", "tokens_per_day", "dollars_per_session", "dollars_per_day"]
)
async def test_an_event_of_two_types_does_not_pass_a_budget(
    build: Build, limit: str, with_secret: bool, tail: str
) -> None:
    """Parsers differ in which of two `type` members counts, so an event with two could be a response.create for
    OpenAI."""
    limits: dict[str, Any] = {limit: 1000}
    harness = await build(AccessRules(keys=(key_rule("ann", "k", **limits),)))
    session = await harness.open(headers=bearer("k"))
    word = session["client_secret"]["value"] if with_secret else "k"
    answer = await harness.call(
        "POST",
        f"/v1/sessions/{session['id']}/{tail}",
        data=b'{"type":"response.create","type":"conversation.item.create","input":"a","input":"b"}',
        headers=bearer(word) | {"Content-Type": "application/json"},
    )

    assert (answer.status, answer.code) == (400, "invalid-json")


# --- callers' own upstream credential


async def test_own_upstream_credential_is_used_and_renewed(build: Build) -> None:
    """In client mode the caller's credential is used for the call and never appears in an answer."""
    harness = await build(AccessRules(client_upstream=True))
    answer = await harness.call(
        "POST", "/v1/sessions", headers={"X-Upstream-Authorization": "Bearer ek_secret"}
    )

    assert harness.far_end.requests[0].bearer == "ek_secret"
    assert b"ek_secret" not in answer.body


@pytest.mark.parametrize(
    ("tail", "body"), [("events", {"type": "a"}), ("turns?format=json", {"input": "Hi"})]
)
async def test_later_post_brings_a_new_upstream_credential(build: Build, tail: str, body: object) -> None:
    """Any later POST can replace an expired credential; the session's next call uses the new one."""
    harness = await build(AccessRules(client_upstream=True))
    session = await harness.open(headers={"X-Upstream-Authorization": "Bearer ek_old"})
    posting = asyncio.create_task(
        harness.call(
            "POST",
            f"/v1/sessions/{session['id']}/{tail}",
            json=body,
            headers={"X-Upstream-Authorization": "Bearer ek_new"},
        )
    )
    async with asyncio.timeout(10):
        while not harness.far_end.sent:
            await asyncio.sleep(0.01)
    harness.hub.restart(session["id"])
    async with asyncio.timeout(10):
        while len(harness.far_end.requests) < 2:
            await asyncio.sleep(0.01)

    posting.cancel()  # Nothing answers the turn.
    await asyncio.wait({posting})
    assert [request.bearer for request in harness.far_end.requests] == ["ek_old", "ek_new"]


async def test_any_post_but_a_tickets_brings_a_new_upstream_credential(build: Build) -> None:
    """A POST with a ticket does not replace the credential, because tickets are only for reading."""
    harness = await build(AccessRules(client_upstream=True))
    session = await harness.open(headers={"X-Upstream-Authorization": "Bearer ek_old"})
    path = f"/v1/sessions/{session['id']}"
    await harness.call("POST", f"{path}/tickets", headers={"X-Upstream-Authorization": "Bearer ek_new"})
    await harness.call(
        "POST",
        f"{path}/events/stream{session['stream_url'].partition('/events')[2]}&format=json&wait=0",
        headers={"X-Upstream-Authorization": "Bearer ek_readers"},
    )
    harness.hub.restart(session["id"])
    async with asyncio.timeout(10):
        while len(harness.far_end.requests) < 2:
            await asyncio.sleep(0.01)

    assert [request.bearer for request in harness.far_end.requests] == ["ek_old", "ek_new"]


@pytest.mark.parametrize("header", ["ek_x", "Basic ek_x", "Bearer", "Bearer a b"])
async def test_malformed_upstream_credential_is_refused(build: Build, header: str) -> None:
    """The problem names the malformed header but does not show its value."""
    harness = await build(AccessRules(client_upstream=True))
    answer = await harness.call("POST", "/v1/sessions", headers={"X-Upstream-Authorization": header})

    assert (answer.status, answer.code) == (400, "invalid-parameter")
    assert b"ek_x" not in answer.body


async def test_missing_upstream_credential_is_unauthorized(build: Build) -> None:
    """In client mode the gateway's own key is never used instead."""
    harness = await build(AccessRules(client_upstream=True))
    answer = await harness.call("POST", "/v1/sessions")

    assert (answer.status, answer.code) == (401, "unauthorized")


async def test_upstream_credential_is_refused_in_gateway_mode(harness: Harness) -> None:
    """A caller that sends a credential expects to pay with it, so it is refused instead of charging the operator's
    key."""
    answer = await harness.call("POST", "/v1/sessions", headers={"X-Upstream-Authorization": "Bearer ek_x"})

    assert (answer.status, answer.code) == (400, "invalid-parameter")


# --- hosts and origins


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8080", "a.localhost", "gw.example:80"])
async def test_keyless_gateway_answers_to_loopback_and_configured_names(build: Build, host: str) -> None:
    """Without keys the gateway accepts names that DNS rebinding cannot use: loopback and configured ones."""
    harness = await build(AccessRules(hosts=frozenset({"gw.example"})))

    assert (await harness.call("POST", "/v1/sessions", headers={"Host": host})).status == 201


@pytest.mark.parametrize("host", ["evil.example", "10.0.0.1:8080", "localhost.evil.example", "a@localhost"])
async def test_keyless_gateway_refuses_other_names(harness: Harness, host: str) -> None:
    """A page whose name was pointed to this machine is refused on both listeners; the operator's routes do not exist for it."""
    answer = await harness.call("POST", "/v1/sessions", headers={"Host": host})
    operator = await harness.call("GET", f"{harness.server.admin_url}/sessions", headers={"Host": host})

    assert (answer.status, answer.code) == (403, "forbidden")
    assert (operator.status, operator.code) == (404, "not-found")
    assert harness.far_end.requests == []


async def test_keyed_gateway_answers_to_any_name(keyed: Harness) -> None:
    """With keys any Host is accepted, because a foreign page does not have the key."""
    answer = await keyed.call("POST", "/v1/sessions", headers=bearer("key-ann") | {"Host": "any.example"})

    assert answer.status == 201


@pytest.mark.parametrize("origin", [None, "http://evil.example"])
async def test_gateway_of_anonymous_callers_refuses_other_names_beside_keys(
    build: Build, origin: str | None
) -> None:
    """A page under a foreign host name is refused without a key; with a key, the host name does not matter."""
    harness = await build(AccessRules(keys=KEYS.keys, anonymous=KeyRule("anonymous")))
    headers = {"Host": "evil.example", **({"Origin": origin} if origin else {})}
    page = await harness.call("POST", "/v1/sessions", headers=headers)
    guessing = await harness.call("POST", "/v1/sessions", headers=headers | bearer("guessed"))
    known = await harness.call("POST", "/v1/sessions", headers=headers | bearer("key-ann"))

    assert (page.status, page.code) == (403, "forbidden")
    assert (guessing.status, known.status) == (401, 201)


async def test_refused_name_is_told_how_it_is_allowed(harness: Harness) -> None:
    """The problem names both settings that would allow the host."""
    answer = await harness.call("POST", "/v1/sessions", headers={"Host": "gw.example"})

    assert "'gw.example'" in answer.json["detail"]
    assert "server.allowed_hosts" in answer.json["detail"]
    assert "server.public_url" in answer.json["detail"]


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probes_answer_to_any_name(harness: Harness, path: str) -> None:
    """Probes accept any Host, because Kubernetes uses the pod's address."""
    assert (await harness.call("GET", path, headers={"Host": "10.1.2.3"})).status == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "file://", "garbage"]
)
async def test_foreign_origin_is_refused_before_anything_is_done(harness: Harness, origin: str) -> None:
    """A page of another origin has no effect and learns nothing, on both listeners."""
    headers = {"Origin": origin}
    answer = await harness.call("POST", "/v1/sessions", headers=headers)
    operator = await harness.call("POST", f"{harness.server.admin_url}/drain", headers=headers)

    assert (answer.status, answer.code) == (403, "origin-not-allowed")
    assert (operator.status, operator.code) == (403, "origin-not-allowed")
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert harness.far_end.requests == []
    assert harness.drained == []


async def test_own_origin_is_let_in(harness: Harness) -> None:
    """The gateway's own console may call it."""
    assert (await harness.call("POST", "/v1/sessions", headers={"Origin": harness.url})).status == 201


async def test_public_origin_is_own(build: Build) -> None:
    """A page under the address that clients see is of the gateway's own origin."""
    harness = await build(AccessRules(own_origins=frozenset({"https://gw.example"})))

    assert (
        await harness.call("POST", "/v1/sessions", headers={"Origin": "https://gw.example"})
    ).status == 201


async def test_forwarded_scheme_counts_from_trusted_proxies_only(build: Build) -> None:
    """Behind TLS the gateway's own origin is https; only configured proxies can report the scheme."""
    proxied = await build(AccessRules(trusted_proxies=(ip_network("127.0.0.0/8"),)))
    direct = await build()
    for harness, status in ((proxied, 201), (direct, 403)):
        origin = harness.url.replace("http:", "https:")
        headers = {"Origin": origin, "X-Forwarded-Proto": "https"}
        assert (await harness.call("POST", "/v1/sessions", headers=headers)).status == status


CORS = AccessRules(
    keys=KEYS.keys, cors_origins=frozenset({"https://app.example", "https://other.example:8443"})
)

EXPOSED = "Location, Link, Retry-After, X-Request-Id, Idempotency-Replayed"


async def test_preflight_is_answered_before_authentication(build: Build) -> None:
    """The answer is 204 with exactly the methods and headers of the contract, even if a key is required."""
    harness = await build(CORS)
    headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    answer = await harness.call("OPTIONS", "/v1/sessions", headers=headers)

    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST, DELETE"
    assert answer.headers["Access-Control-Allow-Headers"] == (
        "Authorization, Content-Type, Last-Event-ID, Idempotency-Key, X-Request-Id, X-Upstream-Authorization"
    )
    assert answer.headers["Access-Control-Max-Age"] == "7200"
    assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_preflight_allows_what_a_listed_page_asks_for(build: Build) -> None:
    """A listed page may ask for more headers, such as tracing headers, on one line or on several."""
    harness = await build(CORS)
    headers = [
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type,sentry-trace"),
        ("Access-Control-Request-Headers", "traceparent"),
    ]
    answer = await harness.call("OPTIONS", "/v1/sessions", headers=headers)

    assert answer.headers["Access-Control-Allow-Headers"] == "content-type, sentry-trace, traceparent"
    assert answer.headers["Vary"] == "Accept, Origin, Access-Control-Request-Headers"


async def test_preflight_of_another_origin_is_refused(build: Build) -> None:
    """The preflight of an unlisted origin is refused, whatever it asks for."""
    harness = await build(CORS)
    headers = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-a",
    }
    answer = await harness.call("OPTIONS", "/v1/sessions", headers=headers)

    assert answer.status == 403
    assert "Access-Control-Allow-Headers" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["capacitor://localhost", "chrome-extension://abcdefgh", "tauri://localhost"]
)
async def test_apps_and_extensions_can_be_listed(build: Build, origin: str) -> None:
    """Origins of apps and browser extensions, which have their own schemes, can be listed."""
    harness = await build(AccessRules(keys=KEYS.keys, cors_origins=frozenset({origin})))
    answer = await harness.call("POST", "/v1/sessions", headers=bearer("key-ann") | {"Origin": origin})
    other = await harness.call("POST", "/v1/sessions", headers=bearer("key-ann") | {"Origin": f"{origin}x"})

    assert (answer.status, other.status) == (201, 403)
    assert answer.headers["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize(
    ("origin", "said"),
    [("https://evil.example", "access.cors_origins"), ("null", "over HTTP"), ("x" * 999, "over HTTP")],
)
async def test_refused_origin_is_told_how_it_is_allowed(build: Build, origin: str, said: str) -> None:
    """The problem names the setting that allows the origin or, if no setting can allow it, the alternative."""
    harness = await build(CORS)
    answer = await harness.call("POST", "/v1/sessions", headers={"Origin": origin})

    assert origin[:200] in answer.json["detail"]
    assert said in answer.json["detail"]
    assert len(answer.json["detail"]) < 500


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR"])
async def test_schemes_name_is_in_any_case(build: Build, scheme: str) -> None:
    """RFC 9110 11.1: the scheme's name is case-insensitive, for the gateway's keys and for callers' own credentials."""
    harness = await build(AccessRules(keys=KEYS.keys, client_upstream=True))
    headers = {"Authorization": f"{scheme} key-ann", "X-Upstream-Authorization": f"{scheme} ek_mine"}
    answer = await harness.call("POST", "/v1/sessions", headers=headers)

    assert answer.status == 201
    assert harness.far_end.requests[0].bearer == "ek_mine"


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/sessions", 401), ("/v1/nothing", 404), ("/v1/turns/x", 404)]
)
async def test_errors_carry_cors_headers(build: Build, path: str, status: int) -> None:
    """Errors carry CORS headers, because otherwise a page could not read them."""
    harness = await build(CORS)
    answer = await harness.call("GET", path, headers={"Origin": "https://app.example"})

    assert answer.status == status
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert answer.headers["Access-Control-Expose-Headers"] == EXPOSED


async def test_any_origin_can_be_listed(build: Build) -> None:
    """`*` is possible because no cookie is used; it does not allow values that are not an origin."""
    harness = await build(AccessRules(keys=KEYS.keys, cors_origins=frozenset({"*"})))
    answer = await harness.call(
        "POST", "/v1/sessions", headers=bearer("key-ann") | {"Origin": "https://any.example"}
    )
    null = await harness.call("POST", "/v1/sessions", headers=bearer("key-ann") | {"Origin": "null"})

    assert answer.status == 201
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert null.status == 403


async def test_listed_origins_may_not_operate_without_a_token(build: Build) -> None:
    """Listed origins are pages of clients: without an admin token they cannot drain a gateway."""
    harness = await build(AccessRules(keys=KEYS.keys, cors_origins=frozenset({"*"})))
    answer = await harness.call(
        "POST", f"{harness.server.admin_url}/drain", headers={"Origin": "https://any.example"}
    )

    assert (answer.status, answer.code) == (403, "origin-not-allowed")


async def test_rates_of_several_nodes_are_asked_for_with_the_limits_of_the_key(build: Build) -> None:
    """Requests that other nodes allowed count as well, and the answer says how long to wait."""

    class Rates:
        def __init__(self) -> None:
            self.asked: list[tuple[str, str, float, float, float]] = []

        async def take(self, principal: str, what: str, amount: float, rate: float, burst: float) -> float:
            self.asked.append((principal, what, amount, rate, burst))
            return 7.0 if what == "events" else 0.0

    digest = hashlib.sha256(b"key").digest()
    rule = KeyRule("ann", (digest,), sessions_per_minute=6, events_per_second=5, bytes_per_second=1000)
    harness = await build(AccessRules(keys=(rule,)))
    rates = harness.access._shared = Rates()
    key = {"Authorization": "Bearer key"}
    session = await harness.open(headers=key)
    refused = await harness.call(
        "POST", f"/v1/sessions/{session['id']}/events", json={"type": "x"}, headers=key
    )

    assert (refused.status, refused.code, refused.headers["Retry-After"]) == (429, "rate-limited", "7")
    assert [one[1:] for one in rates.asked] == [
        ("bytes", 2.0, 1000, 2000),
        ("sessions", 1.0, 0.1, 6.0),
        ("bytes", 13.0, 1000, 2000),
        ("events", 1.0, 5, 10.0),
    ]


# --- comparison of keys


def test_key_is_found_among_many() -> None:
    """Every digest of every rule is compared, and only the right key matches."""
    access = Access(KEYS, Signatures([SIGNING_KEY]), lambda: 0)

    found = [access.caller_by_key(word) for word in ("key-ann", "key-ann-2", "key-bob", "key-eve")]
    assert [rule.name if rule else None for rule in found] == ["ann", "ann", "bob", None]

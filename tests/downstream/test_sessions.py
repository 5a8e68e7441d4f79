"""Sessions as a resource."""

import asyncio
import hashlib
import json
from ipaddress import ip_network

import pytest

from gateway.downstream.auth.access import AccessRules, KeyRule
from gateway.errors import UpstreamError
from gateway.relay.limits import RelayLimits
from gateway.relay.ports import SessionId
from tests.downstream.harness import Build, Harness

ADA = {"Authorization": "Bearer ada-key"}
KEYED = AccessRules(keys=(KeyRule("ada", (hashlib.sha256(b"ada-key").digest(),)),))


async def test_create_without_a_body_gives_a_connected_session(harness: Harness) -> None:
    """A create with an empty body is answered when the channel is open."""
    answer = await harness.call("POST", "/v1/sessions")

    assert answer.status == 201
    session = answer.json
    assert session["id"].startswith("gws_")
    assert session["object"] == "gateway.session"
    assert session["state"] == "connected"
    assert session["head"].endswith("-1")
    assert session["call_id"] == "rtc_far"


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json", "text/plain"])
async def test_type_of_no_body_does_not_matter(harness: Harness, kind: str) -> None:
    """The type of an empty body is ignored, because some libraries send one; with a body the type counts."""
    empty = await harness.call("POST", "/v1/sessions", headers={"Content-Type": kind})
    xml = await harness.call("POST", "/v1/sessions", data=b"<a/>", headers={"Content-Type": "text/xml"})

    assert empty.status == 201
    assert (xml.status, xml.code) == (415, "unsupported-media-type")


async def test_create_points_to_the_session_and_its_events(harness: Harness) -> None:
    """Location and Link are those of the new session."""
    answer = await harness.call("POST", "/v1/sessions")

    path = f"/v1/sessions/{answer.json['id']}"
    assert answer.headers["Location"] == path
    assert answer.headers["Link"] == f'<{path}/events>; rel="events"'


async def test_session_object_has_the_members_of_the_contract(harness: Harness) -> None:
    """A session object has every member but the credentials, which are only in the create's answer."""
    created = await harness.open()
    seen = (await harness.call("GET", f"/v1/sessions/{created['id']}")).json

    assert set(seen) == {
        "id", "object", "state", "created_at", "expires_at", "call_expires_at", "model", "call_id", "metadata",
        "head", "oldest", "receivers", "close_reason", "events_url", "limits",
        "usage", "attached",
    }  # fmt: skip
    assert set(created) - set(seen) == {"client_secret", "stream_url"}
    assert set(seen["limits"]) == {
        "max_event_bytes", "max_body_bytes", "max_batch_events", "log_max_events", "log_max_bytes",
        "detach_grace_seconds", "heartbeat_seconds", "stream_max_age_seconds",
    }  # fmt: skip


async def test_limits_are_plain_numbers(harness: Harness) -> None:
    """Whole seconds are written as integers, as in the contract."""
    answer = await harness.call("POST", "/v1/sessions")

    assert b'"heartbeat_seconds":15,' in answer.body
    assert b'"stream_max_age_seconds":300}' in answer.body


@pytest.mark.parametrize(("takes", "told"), [(None, 1 << 20), (65536, 65536), (1 << 30, 1 << 20)])
async def test_event_limit_is_that_of_the_call(harness: Harness, takes: int | None, told: int) -> None:
    """The event limit is the smaller one of the gateway's and the far end's."""
    harness.far_end.takes_bytes = takes
    created = await harness.open()

    assert created["limits"]["max_event_bytes"] == told


async def test_create_merges_the_session_over_the_template(build: Build) -> None:
    """The caller's session object is merged over the operator's template."""
    harness = await build(relay=RelayLimits(template={"output_modalities": ["text"], "model": "a"}))
    await harness.open({"session": {"model": "b"}})

    assert harness.far_end.requests[0].session["model"] == "b"
    assert harness.far_end.requests[0].session["output_modalities"] == ["text"]


async def test_create_keeps_metadata_and_grace(harness: Harness) -> None:
    """Metadata and detach grace of the create are in the session object."""
    created = await harness.open({"metadata": {"user": "ü"}, "detach_grace_seconds": 10})

    assert created["metadata"] == {"user": "ü"}
    assert created["limits"]["detach_grace_seconds"] == 10


@pytest.mark.parametrize(
    "name", ["session", "metadata", "detach_grace_seconds", "client_secret", "on_interrupted"]
)
async def test_null_member_of_a_create_counts_as_absent(harness: Harness, name: str) -> None:
    """Clients that build a body from optional values send null for those that are not set."""
    created = await harness.open({name: None})

    assert created["metadata"] == {}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"sesion": {}}, "/sesion"),
        ({"session": []}, "/session"),
        ({"metadata": 1}, "/metadata"),
        ({"detach_grace_seconds": "600"}, "/detach_grace_seconds"),
        ({"detach_grace_seconds": True}, "/detach_grace_seconds"),
        ({"detach_grace_seconds": 9}, "/detach_grace_seconds"),
        ({"client_secret": {"allow": [1]}}, "/client_secret/allow/0"),
        ({"client_secret": {"a/b": 1}}, "/client_secret/a~1b"),
        ({"call_id": "rtc_x/y"}, "/call_id"),
        ({"call_id": None}, "/call_id"),
        ({"call_id": "rtc_x", "session": {}}, "/session"),
    ],
)
async def test_create_names_the_wrong_member(harness: Harness, body: object, pointer: str) -> None:
    """A wrong or unknown member is refused with its JSON pointer, and nothing is opened."""
    answer = await harness.call("POST", "/v1/sessions", json=body)

    assert (answer.status, answer.code) == (400, "invalid-parameter")
    assert [flaw["pointer"] for flaw in answer.json["errors"]] == [pointer]
    assert pointer.split("/")[1] in answer.json["detail"]
    assert ("unknown member" in answer.json["detail"]) == (pointer in {"/sesion", "/client_secret/a~1b"})
    assert harness.far_end.requests == []


@pytest.mark.parametrize("name", ["", "client_secret"])
async def test_very_many_unknown_members_are_one_flaw(harness: Harness, name: str) -> None:
    """If a body has very many unknown members, the answer does not list all of them."""
    many = {str(count): 1 for count in range(19_000)}
    answer = await harness.call("POST", "/v1/sessions", json={name: many} if name else many)

    assert (answer.status, answer.code) == (400, "invalid-parameter")
    assert [flaw["pointer"] for flaw in answer.json["errors"]] == [f"/{name}" if name else ""]


async def test_create_attaches_to_a_call(harness: Harness) -> None:
    """With `call_id` the dialer attaches to that call without sending a session, and the session object says so."""
    attached = await harness.open({"call_id": "rtc_theirs"})
    own = await harness.open()
    requests = harness.far_end.requests

    assert [session["attached"] for session in (attached, own)] == [True, False]
    assert (requests[0].attach_to, requests[0].session) == ("rtc_theirs", {})
    assert requests[1].attach_to is None


@pytest.mark.parametrize(
    ("method", "path", "attach", "query", "hangs_up"),
    [
        ("DELETE", "", True, "", False),
        ("DELETE", "", True, "?hang_up=false", False),
        ("DELETE", "", True, "?hang_up=true", True),
        ("POST", "/close", True, "?hang_up=true", True),
        ("DELETE", "", False, "", True),
        ("DELETE", "", False, "?hang_up=false", True),
    ],
)
async def test_close_hangs_up_as_asked(
    harness: Harness, method: str, path: str, attach: bool, query: str, hangs_up: bool
) -> None:
    """The session's own call always ends with it; an attached call ends only if `hang_up` is true."""
    session = await harness.open({"call_id": "rtc_theirs"} if attach else {})
    answer = await harness.call(method, f"/v1/sessions/{session['id']}{path}{query}")
    async with asyncio.timeout(10):
        while not harness.far_end.hung_up:
            await asyncio.sleep(0.01)

    assert answer.status == 204
    assert harness.far_end.hung_up == [hangs_up]


@pytest.mark.parametrize("value", ["1", "yes", "TRUE", ""])
async def test_hang_up_is_true_or_false(harness: Harness, value: str) -> None:
    """Anything else is refused, and nothing is closed."""
    session = await harness.open()
    answer = await harness.call("DELETE", f"/v1/sessions/{session['id']}?hang_up={value}")

    assert (answer.status, answer.code) == (400, "invalid-parameter")
    assert (await harness.call("GET", f"/v1/sessions/{session['id']}")).json["state"] == "connected"


async def test_create_refuses_large_metadata(harness: Harness) -> None:
    """Metadata is in every list, so its size is limited; the problem names the limit."""
    answer = await harness.call("POST", "/v1/sessions", json={"metadata": {"note": "x" * 16384}})

    assert (answer.status, answer.code) == (413, "too-large")
    assert answer.json["limit"] == 16384


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b"\xff", b'{"a":1}{}', b"NaN", b'{"session":{"temperature":1e999}}']
)
async def test_create_refuses_what_is_no_json_object(harness: Harness, body: bytes) -> None:
    """A create takes one JSON object or nothing."""
    answer = await harness.call("POST", "/v1/sessions", data=body)

    assert (answer.status, answer.code) == (400, "invalid-json")


async def test_create_refuses_a_locked_member(build: Build) -> None:
    """A member that the operator has locked cannot be set."""
    harness = await build(relay=RelayLimits(session_locked=("model",)))
    answer = await harness.call("POST", "/v1/sessions", json={"session": {"model": "x"}})

    assert (answer.status, answer.code) == (403, "member-locked")


async def test_create_tells_why_upstream_refused(harness: Harness) -> None:
    """The problem contains OpenAI's own message."""
    upstream = {"status": 401, "code": "invalid_api_key", "message": "no"}
    harness.far_end.refusal = UpstreamError(
        "upstream-rejected", "OpenAI refused.", members={"upstream": upstream}
    )
    answer = await harness.call("POST", "/v1/sessions")

    assert (answer.status, answer.code) == (502, "upstream-rejected")
    assert answer.json["upstream"] == upstream


async def test_create_of_a_client_that_left_leaves_no_session(harness: Harness) -> None:
    """If the client disconnects while its session opens, no session is left behind."""
    dialled, go = asyncio.Event(), asyncio.Event()

    async def gate() -> None:
        dialled.set()
        await go.wait()

    harness.far_end.gate = gate
    creating = asyncio.create_task(harness.call("POST", "/v1/sessions"))
    await asyncio.wait_for(dialled.wait(), 10)
    creating.cancel()
    await asyncio.wait({creating})
    # The server has seen the end of the connection once a request on a new connection is answered.
    await harness.call("GET", "/livez")
    go.set()
    async with asyncio.timeout(10):
        while harness.far_end.closed == 0:
            await asyncio.sleep(0.01)

    assert [view.state for view in harness.hub.all_sessions()] == ["closed"]


async def test_create_repeated_with_its_key_gives_the_same_session(harness: Harness) -> None:
    """The repeat gets the stored answer, client secret included, marked as a replay."""
    options = {"json": {"metadata": {"n": 1}}, "headers": {"Idempotency-Key": "abc"}}
    first = await harness.call("POST", "/v1/sessions", **options)
    again = await harness.call("POST", "/v1/sessions", **options)

    assert again.body == first.body
    assert again.status == 201
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Location"] == first.headers["Location"]
    assert len(harness.far_end.requests) == 1
    assert len(harness.facts.of("idempotent_replay")) == 1


async def test_create_with_a_used_key_and_another_body_is_refused(harness: Harness) -> None:
    """A key that was used with another body is refused."""
    headers = {"Idempotency-Key": "abc"}
    await harness.call("POST", "/v1/sessions", json={}, headers=headers)
    answer = await harness.call("POST", "/v1/sessions", json={"metadata": {"n": 2}}, headers=headers)

    assert (answer.status, answer.code) == (422, "idempotency-key-reused")


async def test_create_repeated_while_the_first_runs_is_told_to_wait(harness: Harness) -> None:
    """Two simultaneous creates with one key give one session and one 409."""
    dialled, go = asyncio.Event(), asyncio.Event()

    async def gate() -> None:
        dialled.set()
        await go.wait()

    harness.far_end.gate = gate
    headers = {"Idempotency-Key": "abc"}
    first = asyncio.create_task(harness.call("POST", "/v1/sessions", headers=headers))
    await asyncio.wait_for(dialled.wait(), 10)
    second = await harness.call("POST", "/v1/sessions", headers=headers)
    go.set()

    assert (second.status, second.code) == (409, "idempotency-in-progress")
    assert second.headers["Retry-After"] == "1"
    assert (await first).status == 201


async def test_create_that_failed_may_be_tried_again_with_its_key(harness: Harness) -> None:
    """A create that failed is not stored, so it may be repeated with its key."""
    harness.far_end.refusal = UpstreamError("upstream-failed", "no")
    headers = {"Idempotency-Key": "abc"}
    failed = await harness.call("POST", "/v1/sessions", headers=headers)
    harness.far_end.refusal = None
    again = await harness.call("POST", "/v1/sessions", headers=headers)

    assert (failed.status, again.status) == (502, 201)


async def test_create_key_is_forgotten_with_its_session(build: Build) -> None:
    """A repeat after the session is gone opens a new one."""
    harness = await build(relay=RelayLimits(log_retention_seconds=0))
    headers = {"Idempotency-Key": "abc"}
    first = await harness.open(headers=headers)
    await harness.call("DELETE", f"/v1/sessions/{first['id']}")
    closed = await harness.call("POST", "/v1/sessions", json={}, headers=headers)
    session = harness.hub._sessions[SessionId(str(first["id"]))]
    harness.hub._tick(session, harness.hub._clock.monotonic())
    gone = await harness.call("POST", "/v1/sessions", json={}, headers=headers)

    assert closed.json["id"] == first["id"]
    assert gone.json["id"] != first["id"]
    assert "Idempotency-Replayed" not in gone.headers


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "ü"])
async def test_create_refuses_a_malformed_key(harness: Harness, key: str) -> None:
    """A key is 1 to 255 visible ASCII characters."""
    answer = await harness.call("POST", "/v1/sessions", headers={"Idempotency-Key": key})

    assert (answer.status, answer.code) == (400, "invalid-parameter")


async def test_delete_closes_and_may_be_repeated(harness: Harness) -> None:
    """Each DELETE is answered with 204 while the log is kept; the session says why it ended."""
    session = await harness.open()
    path = f"/v1/sessions/{session['id']}"
    first = await harness.call("DELETE", path)
    second = await harness.call("DELETE", path)
    seen = (await harness.call("GET", path)).json

    assert (first.status, second.status) == (204, 204)
    assert first.body == b""
    assert (seen["state"], seen["close_reason"]) == ("closed", "client")
    assert harness.far_end.closed == 1


async def test_close_takes_the_client_secret_as_its_body(build: Build) -> None:
    """A page that is being left can close its session with a beacon, which cannot set headers."""
    harness = await build()
    session = await harness.open()
    path = f"/v1/sessions/{session['id']}/close"
    refused = await harness.call("POST", path, data="gwk_x.y", headers={"Content-Type": "text/plain"})
    answer = await harness.call(
        "POST",
        path,
        data=session["client_secret"]["value"],
        headers={"Content-Type": "text/plain;charset=UTF-8"},
    )

    assert (refused.status, refused.code) == (401, "unauthorized")
    assert answer.status == 204


async def test_close_takes_no_api_key_in_its_body(build: Build) -> None:
    """An API key in the body is refused, because bodies are logged and stored where headers are not."""
    harness = await build(KEYED)
    session = await harness.open(headers=ADA)
    path = f"/v1/sessions/{session['id']}/close"
    answer = await harness.call("POST", path, data="ada-key", headers={"Content-Type": "text/plain"})

    assert (answer.status, answer.code) == (401, "unauthorized")


async def test_a_create_is_repeated_for_its_own_caller_only(build: Build) -> None:
    """The same key of another caller is another request and reveals nothing of the first one's session."""
    rules = AccessRules(
        keys=tuple(
            KeyRule(name, (hashlib.sha256(f"{name}-key".encode()).digest(),)) for name in ("ada", "bob")
        )
    )
    harness = await build(rules)
    first, other = [
        await harness.call(
            "POST", "/v1/sessions", headers={"Authorization": f"Bearer {name}-key", "Idempotency-Key": "k"}
        )
        for name in ("ada", "bob")
    ]

    assert (first.status, other.status) == (201, 201)
    assert first.json["id"] != other.json["id"]
    assert "Idempotency-Replayed" not in other.headers


STRANGERS = [
    AccessRules(anonymous=KeyRule("anonymous")),
    AccessRules(hosts=frozenset({"gateway.example"})),
    AccessRules(trusted_proxies=(ip_network("10.0.0.0/8"),)),
]


@pytest.mark.parametrize("rules", STRANGERS)
@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/turns"])
async def test_strangers_need_a_key_that_nobody_guesses(build: Build, rules: AccessRules, path: str) -> None:
    """Callers without an API key need an Idempotency-Key that cannot be guessed, because a repeat gets the session
    and its credentials."""
    harness = await build(rules)
    short = await harness.call(
        "POST",
        path,
        data=b'{"input":"x"}' if "turns" in path else b"{}",
        headers={"Idempotency-Key": "a" * 21},
    )

    assert (short.status, short.code) == (400, "invalid-parameter")
    assert harness.far_end.requests == []


@pytest.mark.parametrize("rules", [AccessRules(), KEYED, STRANGERS[0]])
async def test_other_keys_may_be_short(build: Build, rules: AccessRules) -> None:
    """Shorter keys are accepted on loopback, with an API key, and for requests that open no session."""
    harness = await build(rules)
    long = {"Idempotency-Key": "k" * 22, **ADA}
    session = await harness.open(headers=long)
    short = {"Idempotency-Key": "k", **ADA}
    sent = await harness.call(
        "POST", f"/v1/sessions/{session['id']}/events", data=b'{"type":"a"}', headers=short
    )

    assert sent.status == 202
    if rules is not STRANGERS[0]:
        await harness.open(headers=short)


async def test_stored_answers_are_charged_to_the_memory_budget(harness: Harness) -> None:
    """Stored answers are charged to the memory budget, and those of a session are removed with it."""
    budget = harness.hub.budget
    await harness.call(
        "POST", "/v1/sessions", json={"metadata": {"a": "x" * 10_000}}, headers={"Idempotency-Key": "k"}
    )

    assert budget.held_by("anonymous") > 10_000


async def test_unknown_session_is_404(harness: Harness) -> None:
    """Every request for an unknown ID gets the same answer."""
    for method, tail in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/close"),
        ("POST", "/events"),
        ("POST", "/tickets"),
    ):
        answer = await harness.call(method, f"/v1/sessions/gws_nobody{tail}")
        assert (answer.status, answer.code) == (404, "session-unknown")


async def test_anonymous_callers_get_no_list(harness: Harness) -> None:
    """An anonymous caller cannot list sessions, because knowing an ID is what gives access to one."""
    await harness.open()
    answer = await harness.call("GET", "/v1/sessions")

    assert (answer.status, answer.code) == (403, "forbidden")


@pytest.mark.parametrize("operator", [False, True])
async def test_lists_are_paged(build: Build, operator: bool) -> None:
    """The newest come first; a page has the cursor of the next one, and the last page has none."""
    harness = await build(KEYED)
    ids = [(await harness.open(headers=ADA))["id"] for _ in range(5)][::-1]
    url = f"{harness.server.admin_url}/sessions" if operator else "/v1/sessions"
    pages, after = [], ""
    for _ in range(3):
        page = (await harness.call("GET", f"{url}?limit=2&after={after}", headers=ADA)).json
        pages.append(([session["id"] for session in page["data"]], page["has_more"]))
        after = pages[-1][0][-1]

    assert pages == [(ids[:2], True), (ids[2:4], True), (ids[4:], False)]


async def test_a_page_is_bounded_where_nothing_is_asked(build: Build) -> None:
    """Without `limit` a page is bounded, so that nobody gets megabytes by mistake."""
    harness = await build(KEYED)
    for _ in range(21):
        await harness.open(headers=ADA)
    page = (await harness.call("GET", "/v1/sessions", headers=ADA)).json

    assert (len(page["data"]), page["has_more"]) == (20, True)


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "1.5", "", "²", "9999999999"])
async def test_limit_of_a_list_is_checked(build: Build, limit: str) -> None:
    """An invalid limit is refused and named."""
    harness = await build(KEYED)
    answer = await harness.call("GET", f"/v1/sessions?limit={limit}", headers=ADA)

    assert (answer.status, answer.code) == (400, "invalid-parameter")
    assert answer.json["errors"][0]["pointer"] == "/limit"


async def test_a_list_begins_behind_a_session_of_its_own(build: Build) -> None:
    """An unknown ID in `after` is an error, not the beginning or the end of the list."""
    harness = await build(KEYED)
    answer = await harness.call("GET", "/v1/sessions?after=gws_other", headers=ADA)

    assert (answer.status, answer.code) == (404, "session-unknown")


async def test_ticket_comes_with_its_url(harness: Harness) -> None:
    """The ticket's URL can be passed to EventSource unchanged and reads this session."""
    session = await harness.open()
    answer = await harness.call("POST", f"/v1/sessions/{session['id']}/tickets")

    assert answer.status == 201
    assert set(answer.json) == {"ticket", "url", "expires_at"}
    assert answer.json["url"] == f"/v1/sessions/{session['id']}/events?ticket={answer.json['ticket']}"
    assert json.dumps(answer.json["expires_at"]) == "null"
    assert session["stream_url"] == answer.json["url"]

"""The admin listener."""

import asyncio
import hashlib
import json

import pytest
from multidict import CIMultiDict

from gateway.downstream.auth.access import AccessRules, KeyRule
from gateway.relay.limits import RelayLimits
from tests.downstream.harness import Answer, Build, Harness

TOKEN = (hashlib.sha256(b"admin-token").digest(),)


async def admin(harness: Harness, method: str, path: str, **options: object) -> Answer:
    """Make a request to the admin listener."""
    return await harness.call(method, harness.server.admin_url + path, **options)


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probes_answer_on_both_listeners(harness: Harness, path: str) -> None:
    """A running gateway is live and ready."""
    assert (await harness.call("GET", path)).status == 200
    assert (await admin(harness, "GET", path)).status == 200


async def test_draining_gateway_is_live_but_not_ready(harness: Harness) -> None:
    """A draining gateway wants no new clients but must not be restarted."""
    await harness.hub.drain(0.1)

    answer = await harness.call("GET", "/readyz")
    assert (answer.status, answer.code) == (503, "draining")
    assert (await harness.call("GET", "/livez")).status == 200


async def test_full_gateway_is_ready(build: Build) -> None:
    """A full gateway stays ready, because its clients are still served."""
    harness = await build(relay=RelayLimits(max_sessions=1))
    await harness.open()
    refused = await harness.call("POST", "/v1/sessions")

    assert (refused.status, refused.code) == (503, "capacity")
    assert (await harness.call("GET", "/readyz")).status == 200


async def test_metrics_come_in_the_form_accepted(build: Build) -> None:
    """Metrics need no credential, and `Accept` decides their form."""
    harness = await build(token=TOKEN)
    plain = await admin(harness, "GET", "/metrics")
    openmetrics = await admin(harness, "GET", "/metrics", headers={"Accept": "application/openmetrics-text"})

    assert (plain.status, plain.headers["Content-Type"]) == (200, "text/plain")
    assert openmetrics.headers["Content-Type"] == "application/openmetrics-text"


async def test_metrics_are_not_on_the_clients_listener(harness: Harness) -> None:
    """The metrics are on the admin listener only."""
    assert (await harness.call("GET", "/metrics")).status == 404


async def test_sessions_are_shown_without_what_is_their_owners(harness: Harness) -> None:
    """The list has all sessions, newest first, without metadata or credentials."""
    ids = [(await harness.open({"metadata": {"name": "private"}}))["id"] for _ in range(2)]
    listed = await admin(harness, "GET", "/sessions")
    one = await admin(harness, "GET", f"/sessions/{ids[0]}")

    assert [session["id"] for session in listed.json["data"]] == ids[::-1]
    assert '"phases": {"total": 0.01}' in json.dumps(one.json["diagnostics"])
    for answer in (listed, one):
        assert b"private" not in answer.body
        assert b"gwk_" not in answer.body


async def test_operator_closes_any_session(build: Build) -> None:
    """An operator can close a session of any owner."""
    harness = await build(AccessRules(keys=(KeyRule("a", (hashlib.sha256(b"k").digest(),)),)))
    session = await harness.open(headers={"Authorization": "Bearer k"})
    answer = await admin(harness, "DELETE", f"/sessions/{session['id']}")

    assert answer.status == 204
    assert harness.far_end.closed == 1


@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("DELETE", ""), ("POST", "/restart")])
async def test_unknown_session_is_404(harness: Harness, method: str, tail: str) -> None:
    """An unknown session is 404, as for clients."""
    answer = await admin(harness, method, f"/sessions/gws_no{tail}")

    assert (answer.status, answer.code) == (404, "session-unknown")


async def test_restart_gives_a_new_call(harness: Harness) -> None:
    """A restart keeps the session and gives it a new call."""
    session = await harness.open()
    answer = await admin(harness, "POST", f"/sessions/{session['id']}/restart")
    async with asyncio.timeout(10):
        while len(harness.far_end.requests) < 2:
            await asyncio.sleep(0.01)

    assert answer.status == 202
    assert answer.json["id"] == session["id"]


async def test_drain_begins_what_sigterm_does(harness: Harness) -> None:
    """`POST /drain` is answered at once and starts what SIGTERM starts."""
    answer = await admin(harness, "POST", "/drain")

    assert answer.status == 202
    assert harness.drained == [True]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/sessions"), ("GET", "/sessions/x"), ("DELETE", "/sessions/x"), ("POST", "/drain"),
     ("POST", "/sessions/x/restart")],
)  # fmt: skip
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic YWRtaW4tdG9rZW4="])
async def test_token_is_needed_where_there_is_one(
    build: Build, method: str, path: str, header: str | None
) -> None:
    """If a token is configured, a request without it or with another one is refused and has no effect."""
    harness = await build(token=TOKEN)
    answer = await admin(harness, method, path, headers={"Authorization": header} if header else {})

    assert (answer.status, answer.code) == (401, "unauthorized")
    assert harness.drained == []


@pytest.mark.parametrize("host", ["localhost", "gw.example"])
async def test_token_lets_in(build: Build, host: str) -> None:
    """With the token, everything works as on loopback, whatever the Host is."""
    harness = await build(token=TOKEN)
    headers = {"Authorization": "Bearer admin-token", "Host": host}
    answer = await admin(harness, "GET", "/sessions", headers=headers)

    assert answer.status == 200


@pytest.mark.parametrize("keys", [(), (KeyRule("a", (hashlib.sha256(b"k").digest(),)),)])
async def test_without_token_it_exists_for_loopback_names_only(
    build: Build, keys: tuple[KeyRule, ...]
) -> None:
    """Without a token the Host must be a loopback name, because behind a proxy on the same machine every peer is
    local."""
    harness = await build(AccessRules(keys=keys))
    answer = await admin(harness, "GET", "/sessions", headers={"Host": "gw.example"})

    assert (answer.status, answer.code) == (404, "not-found")


async def test_without_token_it_exists_for_local_peers_only(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request from another machine gets 404."""
    monkeypatch.setattr("gateway.downstream.admin.loopback_peer", lambda request: False)
    answer = await admin(harness, "POST", "/drain")

    assert (answer.status, answer.code) == (404, "not-found")
    assert harness.drained == []


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ([], "text/plain"),
        (["*/*"], "text/plain"),
        (["application/openmetrics-text"], "application/openmetrics-text"),
        (["application/openmetrics-text;q=0, */*"], "text/plain"),
        (["application/openmetrics-text;q=.1, text/plain;q=.2"], "text/plain"),
        (["text/html", "application/openmetrics-text;version=1.0.0"], "application/openmetrics-text"),
        (["text/html, *; q=.2"], "text/plain"),
    ],
)
async def test_metrics_come_in_the_form_that_is_liked_best(
    harness: Harness, accept: list[str], media_type: str
) -> None:
    """The form is chosen by the weights of all Accept headers, which the metrics library does not evaluate."""
    headers = CIMultiDict([("Accept", line) for line in accept])
    answer = await harness.call("GET", f"{harness.server.admin_url}/metrics", headers=headers)

    assert answer.headers["Content-Type"].startswith(media_type)


async def test_metrics_in_a_form_that_is_not_there_are_refused(harness: Harness) -> None:
    """The error lists the available forms."""
    answer = await harness.call(
        "GET", f"{harness.server.admin_url}/metrics", headers={"Accept": "application/json"}
    )

    assert (answer.status, answer.code) == (406, "not-acceptable")

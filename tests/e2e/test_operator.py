"""Section 2 of the contract as a black box: the admin listener, the metrics, and what the log must not contain."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from gateway.app import Gateway
from tests.e2e.caller import Caller, Json, Serve, say
from tests.farend import FarEnd
from tests.programs import Served
from tests.waiting import until

pytestmark = pytest.mark.slow

PREFIX = "realtime_gateway_"
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
# The table of the contract: metric names without their prefix, and their labels.
METRICS = {
    "sessions": (GAUGE, {"state"}),
    "sessions_created": (COUNTER, {"outcome", "key"}),
    "sessions_closed": (COUNTER, {"reason"}),
    "session_duration_seconds": (HISTOGRAM, set()),
    "connect_seconds": (HISTOGRAM, {"phase"}),
    "events": (COUNTER, {"direction", "type"}),
    "event_bytes": (COUNTER, {"direction"}),
    "unrelayed_frames": (COUNTER, set()),
    "relay_seconds": (HISTOGRAM, {"direction"}),
    "time_to_first_delta_seconds": (HISTOGRAM, set()),
    "response_seconds": (HISTOGRAM, {"status"}),
    "tokens": (COUNTER, {"model", "key", "direction", "kind"}),
    "cached_tokens": (COUNTER, {"model", "key", "kind"}),
    "cost_dollars": (COUNTER, {"model", "key"}),
    "unpriced_tokens": (COUNTER, {"model"}),
    "usage_unrecorded": (COUNTER, set()),
    "upstream_errors": (COUNTER, {"code"}),
    "http_requests": (COUNTER, {"route", "method", "code"}),
    "http_request_seconds": (HISTOGRAM, {"route"}),
    "streams": (GAUGE, {"format"}),
    "streams_opened": (COUNTER, {"format", "replay"}),
    "streams_closed": (COUNTER, {"format", "reason"}),
    "replayed_events": (COUNTER, set()),
    "gaps": (COUNTER, {"reason"}),
    "missed_events": (COUNTER, set()),
    "idempotent_replays": (COUNTER, set()),
    "log_bytes": (GAUGE, set()),
    "log_events": (GAUGE, set()),
    "log_evicted": (COUNTER, set()),
    "recoveries": (COUNTER, {"cause", "outcome"}),
    "recovery_seconds": (HISTOGRAM, {"cause"}),
    "consent_failures": (COUNTER, set()),
    "peer_connections": (GAUGE, set()),
    "limit": (GAUGE, {"kind"}),
    "cluster_nodes": (GAUGE, {"state"}),
    "journal_seconds": (HISTOGRAM, set()),
    "journal_unsettled_bytes": (GAUGE, set()),
    "forwarded_requests": (COUNTER, {"kind", "outcome"}),
    "forward_seconds": (HISTOGRAM, set()),
    "takeovers": (COUNTER, {"outcome"}),
    "takeover_seconds": (HISTOGRAM, set()),
    "handovers": (COUNTER, {"outcome"}),
    "fenced": (COUNTER, set()),
    "journal_repairs": (COUNTER, {"kind"}),
    "redis_up": (GAUGE, set()),
    "log_lines_dropped": (COUNTER, set()),
    "event_loop_lag_seconds": (HISTOGRAM, set()),
    "gc_pause_seconds": (HISTOGRAM, set()),
    "draining": (GAUGE, set()),
    "build_info": (GAUGE, {"version"}),
}
QUESTION = "Please repeat after me: Rhinoceros"


@pytest_asyncio.fixture
async def operator(gateway: Gateway) -> AsyncIterator[Caller]:
    """Return a client of the admin listener."""
    async with Caller(gateway.admin_url) as client:
        yield client


async def scraped(operator: Caller) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Scrape the metrics: name and labels of each sample to its value."""
    answer, body = await operator.ask("GET", "/metrics")
    assert answer.status == 200
    return {
        (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def total(samples: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    """Add up a metric's samples that have these labels."""
    wanted = set(labels.items())
    return sum(value for (found, having), value in samples.items() if found == name and wanted <= having)


async def test_the_metrics_are_those_of_the_contract(
    gateway: Gateway, operator: Caller, caller: Caller, far_end: FarEnd
) -> None:
    """Every metric exists with its kind, and its samples have exactly its labels."""
    session = await caller.open()
    await caller.send(session["id"], *say("Hello"))
    await caller.until(session["id"], "response.done")
    _, body = await operator.ask("GET", "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}

    for name, (kind, labels) in METRICS.items():
        family = families[PREFIX + name]
        assert family.type == kind, name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == labels, sample
    assert {name for name in families if name.startswith(PREFIX)} == {PREFIX + name for name in METRICS}


async def test_openmetrics_is_given_to_who_asks(operator: Caller) -> None:
    """A scraper that accepts OpenMetrics gets it."""
    headers = {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer, body = await operator.ask("GET", "/metrics", headers=headers)
    plain, _ = await operator.ask("GET", "/metrics")

    assert answer.content_type == "application/openmetrics-text"
    assert body.endswith(b"# EOF\n")
    assert plain.content_type == "text/plain"


async def test_tokens_are_counted_as_they_are_billed(
    operator: Caller, caller: Caller, far_end: FarEnd
) -> None:
    """The counters equal the usage of every `response.done`, and no audio is counted."""
    session = await caller.open()
    billed = []
    for question in ("My name is Ada.", "What is my name?", "Write 30 words about rivers"):
        receipt = await caller.send(session["id"], *say(question))
        done = (await caller.until(session["id"], "response.done", after=receipt["head"]))[-1]
        billed.append(done.value["response"]["usage"])
    samples = await scraped(operator)

    assert total(samples, "tokens_total", direction="input") == sum(usage["input_tokens"] for usage in billed)
    assert total(samples, "tokens_total", direction="output") == sum(
        usage["output_tokens"] for usage in billed
    )
    assert total(samples, "cached_tokens_total") == sum(
        usage["input_token_details"]["cached_tokens"] for usage in billed
    )
    assert total(samples, "tokens_total", kind="text") == total(samples, "tokens_total") > 0
    assert total(samples, "tokens_total", kind="audio") == 0


async def test_events_are_counted_both_ways(operator: Caller, caller: Caller, far_end: FarEnd) -> None:
    """Events are counted by type in both directions, and their bytes by direction."""
    before = await scraped(operator)
    session = await caller.open()
    events = say("Hello")
    await caller.send(session["id"], *events)
    read = await caller.until(session["id"], "rate_limits.updated")
    samples = await scraped(operator)

    def grown(name: str, **labels: str) -> float:
        return total(samples, name, **labels) - total(before, name, **labels)

    assert grown("events_total", direction="up") == 2
    assert grown("events_total", direction="up", type="response.create") == 1
    assert grown("events_total", direction="down") == len(read)
    deltas = [block for block in read if block.type == "response.output_text.delta"]
    assert grown("events_total", direction="down", type="response.output_text.delta") == len(deltas)
    assert grown("event_bytes_total", direction="up") == sum(len(json.dumps(event)) for event in events)
    assert grown("event_bytes_total", direction="down") == sum(len(block.text.encode()) for block in read)
    assert grown("relay_seconds_count", direction="up") > 0
    assert grown("relay_seconds_count", direction="down") > 0
    assert grown("time_to_first_delta_seconds_count") == 1
    assert grown("response_seconds_count", status="completed") == 1


async def test_sessions_and_streams_are_gauged(operator: Caller, caller: Caller, far_end: FarEnd) -> None:
    """Gauges show the open sessions and streams, and counters why they ended."""
    session = await caller.open()
    stream = caller.stream(session["id"])
    await anext(stream)
    during = await scraped(operator)
    await caller.ask("DELETE", f"/v1/sessions/{session['id']}")
    async for _ in stream:
        pass
    await stream.aclose()
    gauges = ("sessions", "peer_connections", "streams")

    async def over() -> bool:
        now = await scraped(operator)
        return not any(total(now, name) for name in gauges)

    await until(over)
    after = await scraped(operator)

    assert [total(during, name) for name in gauges] == [1, 1, 1]
    assert total(after, "sessions_closed_total", reason="client") == 1
    assert total(after, "streams_closed_total", format="sse", reason="closed") == 1
    assert total(after, "sessions_created_total", outcome="opened") == 1


async def test_labels_hold_no_id_no_key_and_no_text(serve: Serve, far_end: FarEnd) -> None:
    """Whatever callers and the service send, a label is a word of the contract, a configured name, or `other`."""
    gateway = await serve(far_end, upstream={"api_key": "sk-very-secret"})
    async with Caller(gateway.url) as caller, Caller(gateway.admin_url) as operator:
        session = await caller.open(session={"model": "model-of-mine"}, metadata={"who": "Rhinoceros"})
        await caller.send(session["id"], *say(QUESTION), {"type": "type.of.mine"})
        await caller.ask("GET", "/v1/sessions/gws_of_mine")
        await caller.ask("BREW", "/coffee")
        await far_end.send(session["call_id"], '{"type":"server.type.of.mine"}')
        read = await caller.until(session["id"], "response.done")
        _, body = await operator.ask("GET", "/metrics")

    text = body.decode()
    secrets = [session["client_secret"]["value"], session["stream_url"].partition("=")[2], "sk-very-secret"]
    ids = [session["id"], session["call_id"], read[0].value["session"]["id"]]
    for word in [*secrets, *ids, "of.mine", "of-mine", "of_mine", "Rhinoceros", "BREW", "coffee"]:
        assert word not in text


# --- the operator's sessions ------------------------------------------------------------------------------------------


async def test_an_operator_sees_how_a_session_stands_and_nothing_said(
    gateway: Gateway, operator: Caller, caller: Caller, far_end: FarEnd
) -> None:
    """The diagnostics have timings, kinds of candidates and counters, but no SDP, address, text or key."""
    session = await caller.open(metadata={"who": "Rhinoceros"})
    await caller.send(session["id"], *say(QUESTION))
    await caller.until(session["id"], "response.done")
    listed, all_sessions = await operator.ask("GET", "/sessions")
    looked, one = await operator.ask("GET", f"/sessions/{session['id']}")

    assert (listed.status, looked.status) == (200, 200)
    assert [each["id"] for each in all_sessions["data"]] == [session["id"]]
    text = json.dumps(one)
    call = one["diagnostics"]["line"]["call"]
    assert {"gather", "signalling", "ice", "dtls", "channel"} <= call["phases"].keys()
    assert "host" in text
    for word in ("127.0.0.1", "a=", "candidate:", "fingerprint", "Rhinoceros", "gwk_", "gwt_", "sk-"):
        assert word not in text


async def test_an_operator_closes_a_session(operator: Caller, caller: Caller) -> None:
    """DELETE on the admin listener ends a session of any caller."""
    session = await caller.open()
    answer, _ = await operator.ask("DELETE", f"/sessions/{session['id']}")
    read = await caller.until(session["id"], "gateway.closed")

    assert answer.status == 204
    assert read[-1].value["reason"] == "client"


async def test_an_operator_gives_a_session_another_call(operator: Caller, caller: Caller) -> None:
    """A restart keeps the history, and the client continues to read."""
    session = await caller.open()
    receipt = await caller.send(session["id"], *say("My name is Ada."))
    await caller.until(session["id"], "response.done", after=receipt["head"])
    answer, _ = await operator.ask("POST", f"/sessions/{session['id']}/restart")

    async def replaced() -> bool:
        _, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")
        return bool(now["call_id"] not in (None, session["call_id"]))

    await until(replaced)
    receipt = await caller.send(session["id"], *say("What is my name?"))
    read = await caller.until(session["id"], "response.done", after=receipt["head"])

    assert answer.status in (200, 202)
    assert "Ada" in read[-1].value["response"]["output"][0]["content"][0]["text"]


async def test_a_token_guards_all_but_probes_and_metrics(
    serve: Serve, far_end: FarEnd, tmp_path: Path
) -> None:
    """With `admin.token_file` the sessions and the drain require it as a bearer token."""
    (tmp_path / "token").write_text("a-token-of-some-length\n")
    gateway = await serve(far_end, admin={"token_file": str(tmp_path / "token")})
    closed = [("GET", "/sessions"), ("GET", "/sessions/x"), ("DELETE", "/sessions/x"), ("POST", "/drain")]
    async with Caller(gateway.admin_url) as operator:
        open_to_all = [
            (await operator.ask("GET", path))[0].status for path in ("/livez", "/readyz", "/metrics")
        ]
        refused = [(await operator.ask(method, path))[0].status for method, path in closed]
        wrong = {"Authorization": "Bearer another-token"}
        right = {"Authorization": "Bearer a-token-of-some-length"}
        with_wrong, _ = await operator.ask("GET", "/sessions", headers=wrong)
        with_right, _ = await operator.ask("GET", "/sessions", headers=right)

    assert open_to_all == [200, 200, 200]
    assert refused == [401] * len(closed)
    assert (with_wrong.status, with_right.status) == (401, 200)


async def test_a_web_page_reaches_no_operators_side(operator: Caller) -> None:
    """A foreign origin is refused on the admin listener, too."""
    for method, path in (("GET", "/sessions"), ("GET", "/metrics"), ("POST", "/drain")):
        answer, problem = await operator.ask(method, path, headers={"Origin": "https://evil.example"})

        assert (answer.status, problem["code"]) == (403, "origin-not-allowed")


# --- the log ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["json", "console"])
async def test_the_log_holds_no_secret_and_nothing_said(
    shared_far_end: FarEnd, tmp_path: Path, format_: str
) -> None:
    """Even at its most verbose level the log has neither keys, secrets and tickets, nor SDP, nor conversation text."""
    environ = {
        "GATEWAY_LOG__LEVEL": "debug",
        "GATEWAY_LOG__FORMAT": format_,
        "GATEWAY_UPSTREAM__AUTH": "client",
    }
    with Served(tmp_path / "log", shared_far_end.base_url, environ=environ) as program:
        session = await conversed(program.url)

    text = program.output
    secrets = [session["client_secret"]["value"], session["stream_url"].partition("=")[2]]
    for word in [*secrets, "sk-callers-own", "gw-wrong-key", "Rhinoceros", "a=candidate", "a=fingerprint"]:
        assert word not in text
    assert session["id"] in text
    if format_ == "json":
        lines: list[Json] = [json.loads(line) for line in text.splitlines()]
        assert all(line["event"] for line in lines)


async def conversed(url: str) -> dict[str, Any]:
    """Send secrets to every place that takes one, and hold a conversation."""
    own = {"X-Upstream-Authorization": "Bearer sk-callers-own"}
    async with Caller(url) as caller:
        answer, session = await caller.ask(
            "POST", "/v1/sessions", {"metadata": {"w": "Rhinoceros"}}, headers=own
        )
        assert answer.status == 201, session
        path = f"/v1/sessions/{session['id']}"
        bearer = {"Authorization": f"Bearer {session['client_secret']['value']}"}
        await caller.ask("POST", f"{path}/events", say(QUESTION), headers=bearer | own)
        await caller.until(session["id"], "response.done")
        await caller.ask("GET", f"{session['stream_url']}&format=json")
        await caller.ask("GET", path, headers={"Authorization": "Bearer gw-wrong-key"})
        await caller.ask("GET", f"{path}?key=gw-wrong-key")
        await caller.ask("POST", f"{path}/events", '{"Rhinoceros":', headers=bearer)
        await caller.ask("POST", f"{path}/turns", QUESTION)
        await caller.ask("POST", f"{path}/close", session["client_secret"]["value"])
        given: dict[str, Any] = session
        return given


async def test_the_gateway_says_where_it_listens(served: str) -> None:
    """The log line at start has the address with the actual port."""
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9][0-9]*", served)

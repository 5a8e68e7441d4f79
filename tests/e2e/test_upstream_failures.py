"""Every failure of the service: the client's answer, and that no resources are leaked."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from gateway.app import Gateway
from tests.e2e.caller import Caller, Emulate, Serve, say
from tests.e2e.holdings import back_to, settled
from tests.farend import FarEnd
from tests.waiting import until

pytestmark = pytest.mark.slow

Json = dict[str, Any]
CONNECT_SECONDS = 1.0
# The time that a loaded machine may add to a deadline.
SLACK_SECONDS = 5.0

# The time to notice a far end that is gone: consent has a deadline of 15 s, and a call that owes an answer is probed earlier.
LOST_SECONDS = 20.0
NOTICED_SECONDS = 8.0
RECOVERY_SECONDS = 2.0

# Several simultaneous requests open several connections to the service, which are kept for a while for later ones.
KEPT_SECONDS = 35.0

QUESTION = "Write 50 words about rain"
DYING = {"tokens_per_second": 100, "fail_after_deltas": 5}


@asynccontextmanager
async def nothing_left(
    gateway: Gateway, seconds: float = 30, headers: Mapping[str, str] | None = None
) -> AsyncIterator[Caller]:
    """Return a client. At the end the process must hold no more than before, and the gateway's own count must agree.

    A first session, before anything goes wrong, creates what all sessions share, such as connections to the service.
    """
    async with client(gateway) as caller:
        answer, session = await caller.ask("POST", "/v1/sessions", headers=headers)
        if answer.status == 201:
            await caller.ask("DELETE", f"/v1/sessions/{session['id']}")
    before = await settled()
    async with client(gateway) as caller:
        yield caller
    await back_to(before, seconds)
    assert await peer_connections(gateway) == 0


@asynccontextmanager
async def client(gateway: Gateway) -> AsyncIterator[Caller]:
    """Return a client and close it afterwards."""
    caller = Caller(gateway.url)
    try:
        yield caller
    finally:
        await caller.http.close()


async def peer_connections(gateway: Gateway) -> float:
    """Read the gateway's own count."""
    name = "realtime_gateway_peer_connections "
    async with aiohttp.ClientSession() as http, http.get(f"{gateway.admin_url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


@dataclass(frozen=True, slots=True)
class Refused:
    """How a create fails: the emulator's faults, and the resulting problem."""

    faults: Json
    status: int
    code: str
    upstream: Json | None = None
    members: Json = field(default_factory=dict)


OPENINGS = {
    "401": Refused(
        {"signal_status": 401}, 502, "upstream-rejected", {"status": 401, "code": "invalid_api_key"}
    ),
    "403": Refused(
        {"signal_status": 403}, 502, "upstream-rejected", {"status": 403, "code": "insufficient_permissions"}
    ),
    "404": Refused(
        {"signal_status": 404}, 502, "upstream-rejected", {"status": 404, "code": "model_not_found"}
    ),
    "429": Refused(
        {"signal_status": 429, "signal_retry_after": 7}, 429, "upstream-rate-limited", {"status": 429}
    ),
    "500": Refused({"signal_status": 500}, 502, "upstream-failed"),
    "503": Refused({"signal_status": 503}, 502, "upstream-failed"),
    "broken SDP": Refused({"answer": "broken"}, 502, "upstream-failed"),
    "empty SDP": Refused({"answer": "empty"}, 502, "upstream-failed"),
    "no audio section": Refused({"answer": "no_audio"}, 502, "upstream-failed"),
    "slow signalling": Refused(
        {"signal_delay_seconds": 30}, 504, "upstream-timeout", members={"phase": "signalling"}
    ),
    "deaf to ICE": Refused({"deaf": True}, 504, "upstream-timeout", members={"phase": "ice"}),
}


@pytest.mark.parametrize("refused", OPENINGS.values(), ids=OPENINGS.keys())
async def test_an_opening_that_fails_is_told_and_leaves_nothing(
    serve: Serve, far_end: FarEnd, refused: Refused
) -> None:
    """Each fault during the set-up is answered with the right problem object within the deadline."""
    gateway = await serve(far_end, upstream={"connect_timeout_seconds": CONNECT_SECONDS})
    async with nothing_left(gateway) as caller:
        await far_end.faults(**refused.faults)
        began = time.monotonic()
        answer, problem = await caller.ask("POST", "/v1/sessions")
        took = time.monotonic() - began

        assert (answer.status, problem.get("code")) == (refused.status, refused.code), problem
        assert answer.content_type == "application/problem+json"
        assert problem["status"] == refused.status
        assert took < CONNECT_SECONDS + SLACK_SECONDS
        for name, value in (refused.upstream or {}).items():
            assert problem["upstream"][name] == value
        for name, value in refused.members.items():
            assert problem[name] == value
        if "signal_retry_after" in refused.faults:
            assert int(answer.headers["Retry-After"]) >= refused.faults["signal_retry_after"]
    await until(lambda: no_calls(far_end))


async def no_calls(far_end: FarEnd) -> bool:
    """Return whether the far end has no call."""
    return bool((await far_end.about())["calls"] == 0)


async def test_a_wrong_key_is_the_operators_problem_and_is_not_shown(serve: Serve, emulate: Emulate) -> None:
    """If the service refuses the gateway's key, the answer is 502 with the service's code, without the key."""
    gateway = await serve(emulate("--api-key", "sk-right"), upstream={"api_key": "sk-wrong-and-secret"})
    async with nothing_left(gateway) as caller:
        answer, problem = await caller.ask("POST", "/v1/sessions")

        assert (answer.status, problem["code"], problem["retryable"]) == (502, "upstream-rejected", False)
        assert (problem["upstream"]["status"], problem["upstream"]["code"]) == (401, "invalid_api_key")
        assert "wrong-and-secret" not in json.dumps(problem)


async def test_a_callers_wrong_key_is_told_too(serve: Serve, far_end: FarEnd) -> None:
    """If the service refuses a caller's own expired or unknown credential, the caller is told so."""
    gateway = await serve(far_end, upstream={"auth": "client"})
    headers = {"X-Upstream-Authorization": "Bearer ek_nobody"}
    async with nothing_left(gateway, headers=headers) as caller:
        answer, problem = await caller.ask("POST", "/v1/sessions", headers=headers)

        assert (answer.status, problem["code"]) == (502, "upstream-rejected")
        assert problem["upstream"]["status"] == 401


async def test_a_refused_connection_is_told_at_once(serve: Serve) -> None:
    """If no server listens upstream, a create fails well within its deadline."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and never listening: connections to it are refused
        gateway = await serve(f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
        async with nothing_left(gateway) as caller:
            answer, problem = await caller.ask("POST", "/v1/sessions")

            assert (answer.status, problem["code"], problem["retryable"]) == (502, "upstream-failed", True)
            assert "Retry-After" not in answer.headers or int(answer.headers["Retry-After"]) > 0


async def test_a_client_that_leaves_during_the_set_up_leaves_nothing(serve: Serve, far_end: FarEnd) -> None:
    """If the client leaves during its create, no session is left behind."""
    gateway = await serve(far_end)
    async with nothing_left(gateway) as caller:
        await far_end.faults(signal_delay_seconds=0.5)
        with pytest.raises(TimeoutError):
            await caller.ask("POST", "/v1/sessions", timeout=aiohttp.ClientTimeout(total=0.2))
        await until(lambda: none_open(gateway))
    await until(lambda: no_calls(far_end))


async def none_open(gateway: Gateway) -> bool:
    """Return whether the gateway has no peer connection."""
    return await peer_connections(gateway) == 0


@pytest.mark.parametrize("failure", ["close_channel", "hang_up"])
async def test_a_call_that_ends_in_mid_response_ends_the_turn_and_the_session(
    serve: Serve, far_end: FarEnd, failure: str
) -> None:
    """Without continuity the reader gets the earlier events and then `gateway.closed`, and the turn fails with 502."""
    gateway = await serve(far_end, relay={"continuity": False})
    async with nothing_left(gateway) as caller:
        await far_end.faults(**DYING, fail=failure)
        session = await caller.open()
        async with asyncio.TaskGroup() as group:
            turn = group.create_task(ask(caller, session, QUESTION))
            read = group.create_task(caller.until(session["id"], "gateway.closed"))
        answer, problem = turn.result()
        closed = read.result()[-1].value
        deltas = [block for block in read.result() if block.type == "response.output_text.delta"]

        assert len(deltas) == DYING["fail_after_deltas"]
        assert closed["reason"] in ("upstream_closed", "upstream_lost")
        assert closed["retryable"] is True
        assert (answer.status, problem["code"]) == (502, "upstream-failed")
        answer, problem = await caller.ask(
            "POST", f"/v1/sessions/{session['id']}/events", say("Still there?")
        )
        assert (answer.status, problem["code"]) == (410, "session-closed")


@pytest.mark.parametrize("failure", ["close_channel", "hang_up"])
async def test_a_session_outlives_a_call_that_ends_in_mid_response(
    serve: Serve, far_end: FarEnd, failure: str
) -> None:
    """With continuity the turn fails with an error, the session gets another call, and the next turn is answered."""
    gateway = await serve(far_end)
    async with nothing_left(gateway) as caller:
        session = await caller.open()
        await far_end.fault(session["call_id"], **DYING, fail=failure)
        answer, problem = await ask(caller, session, QUESTION)
        read = await caller.until(session["id"], "gateway.recovered")
        _, after = await ask(caller, session, "What is 6 times 7?")
        _, now = await caller.ask("GET", f"/v1/sessions/{session['id']}")
        await caller.ask("DELETE", f"/v1/sessions/{session['id']}")

        assert (answer.status, problem["code"]) == (502, "upstream-failed")
        assert [block.type for block in read].count("gateway.recovering") == 1
        assert "42" in after["output_text"]
        assert now["state"] == "connected"
        assert now["call_id"] not in (None, session["call_id"])


async def test_a_text_turn_is_cut_short_when_its_call_dies(serve: Serve, far_end: FarEnd) -> None:
    """A `text/plain` answer whose call is lost does not end like a complete one."""
    gateway = await serve(far_end)
    async with nothing_left(gateway) as caller:
        await far_end.faults(**DYING, fail="hang_up")
        headers = {"Accept": "text/plain"}
        with pytest.raises(aiohttp.ClientPayloadError):
            await caller.ask("POST", "/v1/turns", QUESTION, headers=headers)


@pytest.mark.parametrize("how", ["killed", "vanished"])
@pytest.mark.parametrize("continuity", [True, False], ids=["continuity", "no continuity"])
async def test_a_service_that_dies_without_a_word_is_noticed(
    serve: Serve, emulate: Emulate, how: str, continuity: bool
) -> None:
    """A far end that disappears in the middle of a response is noticed, sooner with continuity's probes, and the
    session ends."""
    far_end = emulate("--tokens-per-second", "20")
    gateway = await serve(
        far_end,
        upstream={"connect_timeout_seconds": CONNECT_SECONDS},
        relay={"continuity": continuity, "recovery_timeout_seconds": RECOVERY_SECONDS},
    )
    async with nothing_left(gateway, KEPT_SECONDS) as caller:
        session = await caller.open()
        await caller.send(session["id"], *say("Write 200 words about rain"))
        await caller.until(session["id"], "response.output_text.delta")
        began = time.monotonic()
        if how == "killed":
            far_end.program.kill()
        else:
            await far_end.fault(session["call_id"], do="vanish")
            await far_end.faults(deaf=True)
        async with asyncio.timeout(2 * LOST_SECONDS):
            read = await caller.until(session["id"], "gateway.closed", seconds=2 * LOST_SECONDS)
        took = time.monotonic() - began
        types = [block.type for block in read]

        assert read[-1].value["reason"] == "upstream_lost"
        assert ("gateway.recovering" in types) is continuity
        assert took < (
            NOTICED_SECONDS + RECOVERY_SECONDS + CONNECT_SECONDS + SLACK_SECONDS
            if continuity
            else LOST_SECONDS
        )


async def ask(caller: Caller, session: Json, text: str) -> tuple[aiohttp.ClientResponse, Any]:
    """Run one turn and return the answer as JSON."""
    headers = {"Accept": "application/json"}
    return await caller.ask("POST", f"/v1/sessions/{session['id']}/turns", {"input": text}, headers=headers)

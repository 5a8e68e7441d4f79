"""Unusual requests: every answer is one of the contract's, and the session continues."""

import asyncio
import random
from typing import Any

import pytest

from gateway.app import Gateway
from tests.e2e.caller import Caller
from tests.e2e.holdings import back_to, settled
from tests.farend import FarEnd

REQUESTS = 800
AT_ONCE = 20
SECONDS = 40

METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "TRACE")
PATHS = (
    "/v1/sessions", "{s}", "{s}/events", "{s}/turns", "{s}/tickets", "{s}/nothing", "{s}/events/stream", "{s}/events/",
    "/v1/turns", "/v1/sessions/%00", "/v1/sessions/%ff/events", "/v1/sessions/..%2f..", "/v1/sessions/" + "x" * 3000,
    "//v1/sessions", "/v1/sessions/é", "/relay.js", "/openapi.json", "/livez",
)  # fmt: skip
HEADERS: tuple[dict[str, str], ...] = (
    {"Accept": "text/event-stream;q=0"}, {"Accept": "garbage/;;,"}, {"Accept": "*/*;q=nan"},
    {"Content-Type": "application/json; charset=utf-16"}, {"Content-Type": ";;;"}, {"Content-Encoding": "identity"},
    {"Idempotency-Key": "x" * 5000}, {"Idempotency-Key": ""}, {"Last-Event-ID": "\xff"}, {"Last-Event-ID": ""},
    {"Authorization": "Bearer"}, {"Authorization": "Bearer a b"}, {"Origin": ""}, {"Origin": "http://[::1"},
    {"Host": "["}, {"Host": ""}, {"X-Request-Id": "\t"}, {"Expect": "100-continue"}, {"Range": "bytes=0-"},
)  # fmt: skip
BODIES = (
    b"", b"\xff", b"[]", b"{}", b'{"input":"Hello"}', b'{"input":""}', b'{"input":[]}', b'{"input":"\\ud800"}',
    b'{"session":{"a":1e999}}', b'{"metadata":{"a":"\\ud800"}}', b'{"session":{"\\u0000":1}}', b"9" * 5000,
    b'{"type":"x","event_id":"\\ud800"}', b'{"type":"\\ud800"}', b"[" * 5000,
)  # fmt: skip
# Each ends a read within about a second.
QUERIES = (
    "format=json&wait=0", "wait=0&wait=1&format=json", "after=%ff&format=json", "max_age=1", "types=&max_age=1",
    "types=*&exclude=*&max_age=1", "limit=1e3&format=json", "pad=٣&max_age=1", "heartbeat=５&max_age=1",
    "wait=nan&format=json", "ticket=x&max_age=1",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_odd_requests_are_answered_by_the_contract(
    gateway: Gateway, caller: Caller, far_end: FarEnd, seed: int
) -> None:
    """No answer is a 500, every error is a problem object, none takes too long, and no resources are left."""
    session = await caller.open()
    own = f"/v1/sessions/{session['id']}"
    chance = random.Random(seed)
    gate = asyncio.Semaphore(AT_ONCE)
    wrong: list[Any] = []

    async def ask(method: str, path: str, headers: dict[str, str], body: bytes | None) -> None:
        async with gate, asyncio.timeout(SECONDS):
            url = caller.url + path
            async with odd.http.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                said = await answer.read()
                problem = (
                    answer.status < 400
                    or method == "HEAD"
                    or answer.content_type == "application/problem+json"
                )
                if answer.status == 500 or not problem:
                    wrong.append((method, path, headers, body, answer.status, said))

    before = await settled()
    async with Caller(caller.url) as odd, asyncio.TaskGroup() as group:
        for _ in range(REQUESTS):
            method, path = chance.choice(METHODS), chance.choice(PATHS).format(s=own)
            headers = chance.choice(HEADERS) if chance.random() < 0.5 else {}
            body = chance.choice(BODIES) if method in ("POST", "PUT") else None
            group.create_task(ask(method, f"{path}?{chance.choice(QUERIES)}", headers, body))
    _, now = await caller.ask("GET", own)

    assert not wrong
    # Opened sessions still exist; connections whose body never came are kept for some seconds.
    await close_all_but(caller, gateway, session["id"])
    await back_to(before, seconds=45)
    assert now["state"] == "connected"


async def close_all_but(caller: Caller, gateway: Gateway, session_id: str) -> None:
    """Close every other session."""
    async with Caller(gateway.admin_url) as operator:
        _, listed = await operator.ask("GET", "/sessions")
    for one in listed["data"]:
        if one["id"] != session_id:
            await caller.ask("DELETE", f"/v1/sessions/{one['id']}")

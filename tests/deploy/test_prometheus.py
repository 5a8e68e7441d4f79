"""A real Prometheus scrapes a running gateway: every panel of the dashboard shows something, every alert can be computed."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.cluster.redis_server import RedisServer
from tests.deploy.conftest import StartPrometheus
from tests.e2e.caller import Caller, say
from tests.e2e.nodes import Node, Nodes, ask
from tests.farend import FarEnd
from tests.programs import Served
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.needs("prometheus"), pytest.mark.timeout(180)]

TRAFFIC_SECONDS = 60.0
ROUND_SECONDS = 30.0
# Long enough for the service to cache it as input.
LONG = "Please say Hello. " + "This is a line. " * 100
# More sessions than it takes to trigger a garbage collection, so that the panel has one to show.
REFUSED = 70
# The row of the dashboard that is about several nodes.
NODES_ROW = "Do the nodes work as one?"


def expressions(root: Path, *, of_nodes: bool) -> list[tuple[str, str]]:
    """Return each query of the row about several nodes, or of all other rows, with its panel's title, its variables filled
    in as Grafana would."""
    found, row = [], ""
    for panel in json.loads((root / "deploy/grafana/gateway.json").read_text())["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "30s").replace("$instance", ".*")
            if (row == NODES_ROW) is of_nodes:
                found.append((panel["title"], query))
    return found


@pytest.fixture
def gateway(emulator: FarEnd, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Run `gateway serve` with a locked model and a small log and return both of its URLs."""
    environ = {"GATEWAY_UPSTREAM__SESSION_LOCKED": '["model"]', "GATEWAY_DRAIN__TIMEOUT_SECONDS": "0"}
    with Served(tmp_path / "gateway.log", emulator.base_url, environ=environ) as program:
        yield program.url, program.admin_url


class Asked:
    """Prometheus' HTTP API."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url, self._http = url, http

    async def get(self, path: str, **params: str) -> Any:
        async with self._http.get(f"{self._url}/api/v1/{path}", params=params) as answer:
            body = await answer.json()
            assert body["status"] == "success", body
            return body["data"]

    async def shows(self, expression: str) -> bool:
        """Return whether a query returns at least one number."""
        found = (await self.get("query", query=expression))["result"]
        return any(not math.isnan(float(sample["value"][1])) for sample in found)

    async def scrapes(self) -> None:
        """Wait for a scrape that begins after this call."""
        now = time.time()
        await until(lambda: self.shows(f'timestamp(up{{job="realtime-gateway"}}) > {now}'))


@pytest.fixture
def nodes(emulator: FarEnd, tmp_path: Path) -> Iterator[list[Node]]:
    """Run two gateways on one Redis."""
    with ExitStack() as stack:
        redis = RedisServer().start()
        stack.callback(redis.close)
        several = Nodes(tmp_path, emulator, redis.url)
        stack.callback(several.close)
        yield several.start(2)


@pytest_asyncio.fixture
async def prometheus(gateway: tuple[str, str], start_prometheus: StartPrometheus) -> AsyncIterator[Asked]:
    """Let Prometheus scrape the gateway."""
    url = start_prometheus(gateway[1].removeprefix("http://"))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as http:
        yield Asked(url, http)


async def round_of_traffic(caller: Caller, far_end: FarEnd) -> None:
    """Cause a little traffic of every kind: requests that work, and requests that fail."""
    session = await caller.open()
    path = f"/v1/sessions/{session['id']}"
    once = {"Idempotency-Key": session["id"], "Content-Type": "application/json"}
    for _ in range(2):
        answer, _ = await caller.ask("POST", f"{path}/events", say(LONG), headers=once)
        assert answer.status == 202
    read = await caller.until(session["id"], "response.done")
    receipt = await caller.send(session["id"], *say("And 10 about lakes."))
    await caller.until(session["id"], "response.done", after=receipt["head"])
    await caller.take(session["id"], 1, after=read[0].id)
    async with aclosing(caller.stream(session["id"], "foreign-1")) as stream:
        await anext(stream)
    await caller.ask("GET", f"{path}/events?format=json&wait=0")

    await far_end.fault(session["call_id"], do="hang_up")
    await caller.until(session["id"], "gateway.recovered")
    await far_end.faults(response_error="server_error")
    await caller.ask("POST", "/v1/turns", "Hello")
    await far_end.faults(signal_status=500, response_error=None)
    refused, _ = await caller.ask("POST", "/v1/sessions")
    assert refused.status == 502
    await far_end.well()
    await caller.ask("DELETE", path)
    for _ in range(REFUSED):
        locked, _ = await caller.ask("POST", "/v1/sessions", {"session": {"model": "another"}})
        assert locked.status == 403


async def test_every_panel_shows_something_after_a_little_traffic(
    root: Path, gateway: tuple[str, str], prometheus: Asked, emulator: FarEnd
) -> None:
    """Each query of the dashboard about one gateway returns a number with real scrapes."""
    empty = expressions(root, of_nodes=False)
    deadline = time.monotonic() + TRAFFIC_SECONDS
    async with Caller(gateway[0]) as caller:
        while empty and time.monotonic() < deadline:
            await asyncio.wait_for(round_of_traffic(caller, emulator), ROUND_SECONDS)
            await prometheus.scrapes()
            empty = [(title, query) for title, query in empty if not await prometheus.shows(query)]

    assert empty == []


@pytest.mark.needs("redis-server")
async def test_every_panel_about_several_nodes_shows_something(
    root: Path, nodes: list[Node], start_prometheus: StartPrometheus
) -> None:
    """With two nodes, each query of their row returns a number after a request that one forwarded to the other."""
    empty = expressions(root, of_nodes=True)
    assert empty
    url = start_prometheus(*(node.admin_url.removeprefix("http://") for node in nodes))
    deadline = time.monotonic() + ROUND_SECONDS
    async with (
        Caller(nodes[0].url) as owner,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as http,
    ):
        session = await owner.open()
        prometheus = Asked(url, http)
        while empty and time.monotonic() < deadline:
            await ask(nodes[1].url, session["id"], "Hello")
            await prometheus.scrapes()
            empty = [(title, query) for title, query in empty if not await prometheus.shows(query)]

    assert empty == []


async def test_prometheus_scrapes_the_gateway_and_computes_every_alert(
    root: Path, gateway: tuple[str, str], prometheus: Asked
) -> None:
    """The target is up, each rule evaluates without error, and a healthy gateway raises no alert."""

    async def computed() -> bool:
        targets = (await prometheus.get("targets"))["activeTargets"]
        groups = (await prometheus.get("rules"))["groups"]
        return [one["health"] for one in targets] == ["up"] and all(
            rule["health"] != "unknown" for group in groups for rule in group["rules"]
        )

    await until(computed)
    (target,) = (await prometheus.get("targets"))["activeTargets"]
    rules = [rule for group in (await prometheus.get("rules"))["groups"] for rule in group["rules"]]

    assert target["labels"]["job"] == "realtime-gateway"
    assert target["lastError"] == ""
    assert len(rules) >= 10
    assert {rule["name"]: (rule["health"], rule["state"]) for rule in rules} == {
        rule["name"]: ("ok", "inactive") for rule in rules
    }

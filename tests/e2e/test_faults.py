"""Every fault of the emulator, seen by a client through a gateway: the rows of the table in
`gateway/upstream/failures.md`."""

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import aiohttp
import pytest

from gateway.app import Gateway
from gateway.emulator import faults
from tests.conftest import ROOT
from tests.e2e.caller import Caller, Json, Serve
from tests.e2e.holdings import Holdings, back_to, settled
from tests.farend import FarEnd
from tests.waiting import until

pytestmark = pytest.mark.slow

TABLE = ROOT / "gateway" / "upstream" / "failures.md"
QUESTION = "Write 50 words about rain"
# Heartbeats belong to a stream, not to the log.
PING = "gateway.ping"
# The time to detect a far end that is gone without a sign: 15 s of consent, a last check, and what a loaded machine adds.
NOTICED_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    fault: str
    settings: str
    asked: str
    answer: str
    log: str
    metric: str

    @property
    def faults(self) -> dict[str, str]:
        return dict(pair.split("=") for pair in self.fault.split())

    @property
    def sections(self) -> dict[str, Json]:
        """Return the settings in the form of the configuration."""
        sections: dict[str, Json] = {}
        for setting in self.settings.split():
            path, value = setting.split("=")
            section, key = path.split(".")
            sections.setdefault(section, {})[key] = json.loads(value)
        return sections

    @property
    def slow(self) -> bool:
        """Whether a deadline has to pass."""
        return self.silent or "_timeout_seconds" in self.settings

    @property
    def silent(self) -> bool:
        """Whether the path fails without a sign, which takes longest to notice."""
        return bool({"fail=vanish", "consent=false", "do=stop_consent"} & set(self.fault.split()))


def rows(path: Path) -> Iterator[Row]:
    """Read the table."""
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            yield Row(*cells)


ROWS = tuple(rows(TABLE))
PARAMETERS = [
    pytest.param(row, id=f"{row.fault} {row.settings}".strip(), marks=[pytest.mark.slow] if row.slow else [])
    for row in ROWS
]


async def metric(gateway: Gateway, name: str) -> float:
    """Read one sample."""
    async with aiohttp.ClientSession() as http, http.get(f"{gateway.admin_url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    values = (line.rpartition(" ") for line in lines)
    return next((float(value) for sample, _, value in values if sample == f"realtime_gateway_{name}"), 0.0)


async def run(row: Row, gateway: Gateway, far_end: FarEnd, caller: Caller) -> None:
    """Cause a fault and compare the results with the row."""
    before = await metric(gateway, row.metric)
    session_id: str | None = None
    if row.asked == "create":
        await far_end.faults(**row.faults)
        answer, body = await caller.ask("POST", "/v1/sessions")
        await far_end.well()
        assert told(answer, body) == row.answer
        if answer.status == 201:
            session_id = body["id"]
    else:
        session_id = await in_a_call(row, far_end, caller)

    async def risen() -> bool:
        return await metric(gateway, row.metric) > before

    # Keep the session open until then: some events come after the answer to a turn.
    await until(risen)
    if session_id is not None:
        await caller.ask("DELETE", f"/v1/sessions/{session_id}")


async def in_a_call(row: Row, far_end: FarEnd, caller: Caller) -> str:
    """Do the same for a fault of a running call and return the session's ID."""
    session = await caller.open()
    await far_end.fault(session["call_id"], **row.faults)
    if row.asked == "turn":
        assert told(*await turn(caller, session)) == row.answer
    assert await log(row, caller, session) == row.log
    if row.asked == "later":
        assert told(*await turn(caller, session)) == row.answer
    if row.log.endswith("gateway.recovered"):
        again, spoken = await turn(caller, session, "What is 6 times 7?")
        assert (again.status, "42" in spoken["output_text"]) == (200, True)
    return str(session["id"])


async def turn(caller: Caller, session: Json, text: str = QUESTION) -> tuple[aiohttp.ClientResponse, Any]:
    """Run a turn as JSON."""
    path, headers = f"/v1/sessions/{session['id']}/turns", {"Accept": "application/json"}
    return await caller.ask("POST", path, {"input": text}, headers=headers)


def told(answer: aiohttp.ClientResponse, body: Json) -> str:
    """Return an answer in the form of the table."""
    words = [str(answer.status)]
    if answer.content_type == "application/problem+json":
        words.append(body["code"])
        if "phase" in body:
            words.append(f"at {body['phase']}")
    elif answer.status == 200:
        words.append(body["status"])
    said = " ".join(words)
    asks = answer.headers.get("Retry-After")
    # If the service sends no Retry-After, the gateway chooses one, which the table does not list.
    return f"{said}, Retry-After {asks}" if asks == "7" else said


async def log(row: Row, caller: Caller, session: Json) -> str:
    """Return the gateway's own events of a session in the form of the table, waiting for the last expected one."""
    if row.log:
        last = row.log.split(", ")[-1].split()[0]
        events = [
            block.value
            for block in await caller.until(session["id"], last, seconds=NOTICED_SECONDS, types="gateway.*")
        ]
    else:
        path = f"/v1/sessions/{session['id']}/events?format=json&wait=0&types=gateway.*"
        _, page = await caller.ask("GET", path)
        events = [entry["event"] for entry in page["events"]]
    names = (f"{event['type']} {event.get('reason', '')}" for event in events if event["type"] != PING)
    return ", ".join(name.strip() if name.startswith("gateway.closed") else name.split()[0] for name in names)


@pytest.mark.parametrize("row", PARAMETERS)
async def test_fault_is_met_as_the_table_says(serve: Serve, far_end: FarEnd, row: Row) -> None:
    """Answer, log and metric of each fault are those of its row."""
    gateway = await serve(far_end, **row.sections)
    async with Caller(gateway.url) as caller:
        await run(row, gateway, far_end, caller)


async def test_after_all_faults_nothing_is_left(serve: Serve, far_end: FarEnd) -> None:
    """One process runs every fault except a silent path twice; then no task, thread, socket or connection is left."""
    gateways = {row.settings: await serve(far_end, **row.sections) for row in ROWS}
    held: list[Holdings] = []
    for _ in range(2):
        async with AsyncExitStack() as stack:
            callers = {
                settings: await stack.enter_async_context(Caller(gateway.url))
                for settings, gateway in gateways.items()
            }
            for row in ROWS:
                if not row.silent:
                    await run(row, gateways[row.settings], far_end, callers[row.settings])
        if held:
            await back_to(held[0], seconds=45)
        held.append(await settled())
    assert [await metric(gateway, "peer_connections") for gateway in gateways.values()] == [0] * len(gateways)

    async def no_calls() -> bool:
        return bool((await far_end.about())["calls"] == 0)

    await until(no_calls)


def test_table_has_every_fault_there_is() -> None:
    """Every fault of the emulator and every value of one has a row."""
    told_of = {pair for row in ROWS for pair in row.fault.split()}
    names = {pair.partition("=")[0] for pair in told_of}
    words = {f"{name}={word}" for name, list_ in faults.WORDS.items() for word in list_}
    statuses = {f"signal_status={status}" for status in (401, 403, 404, 429, 500, 503)}

    assert {field.name for field in dataclasses.fields(faults.Faults)} - names == set()
    assert (words | statuses | {"do=stop_consent", "do=expire"}) - told_of == set()
    assert get_args(faults.Failure) == (
        "silence",
        "close_channel",
        "hang_up",
        "vanish",
        "cut_sockets",
    )


def test_table_names_only_metrics_of_the_contract() -> None:
    """Each row names a metric, and no row is a copy of another."""
    assert all(re.fullmatch(r"[a-z_]+(\{.+\})?", row.metric) for row in ROWS)
    assert len({(row.fault, row.settings) for row in ROWS}) == len(ROWS)

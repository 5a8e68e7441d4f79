"""A path that drops, delays and reorders datagrams, with outages: every loss is reported, and no session ends."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.app import Gateway
from tests.e2e.caller import Caller, configured
from tests.farend import FarEnd
from tests.upstream.badpath import Path, bad_path

SESSIONS = 8
# The least that each session has accepted: far fewer than the pace below allows, because a busy machine is slower.
EVENTS = 20


def item(number: int, session: int) -> dict[str, Any]:
    """Return an event whose item carries a number."""
    content = [{"type": "input_text", "text": f"n{number}"}]
    made = {"type": "message", "role": "user", "id": f"s{session}n{number}", "content": content}
    return {"type": "conversation.item.create", "event_id": f"e{number}", "item": made}


async def talk(caller: Caller, session_id: str, session: int, busy: Callable[[], bool]) -> dict[str, Any]:
    """Send numbered items until the end and return the result of each."""
    accepted: list[int] = []
    number = 0
    while busy():
        number += 1
        answer, _ = await caller.ask("POST", f"/v1/sessions/{session_id}/events", item(number, session))
        if answer.status == 202:
            accepted.append(number)
        else:
            assert answer.status == 503, answer.status
            number -= 1
        await asyncio.sleep(0.05)
    told: set[int] = set()
    cursor, state = "earliest", ""
    deadline = asyncio.get_running_loop().time() + 90
    while not told >= set(accepted) and asyncio.get_running_loop().time() < deadline and state != "closed":
        _, page = await caller.ask(
            "GET", f"/v1/sessions/{session_id}/events?format=json&limit=1000&wait=2&after={cursor}"
        )
        cursor = page["cursor"]
        for entry in page["events"]:
            told |= numbers(entry["event"], accepted)
        _, view = await caller.ask("GET", f"/v1/sessions/{session_id}")
        state = view["state"]
    return {"accepted": accepted, "missing": sorted(set(accepted) - told), "state": state}


def numbers(event: dict[str, Any], accepted: list[int]) -> set[int]:
    """Return the numbers of the accepted events that an event of the log accounts for."""
    match event["type"]:
        case "conversation.item.added" | "conversation.item.done":
            name = str(event["item"]["id"])
            return {int(name.rpartition("n")[2])} if name[:1] == "s" and "n" in name else set()
        case "gateway.recovered":
            named = [*event["unknown"], *event["refused"]]
            # The session counts accepted events from 1; the client's numbers are in the order of acceptance.
            return {accepted[one["number"] - 1] for one in named if one["number"]}
        case "error":
            found = str(event["error"].get("event_id") or "")
            return {int(found[1:])} if found[1:].isdecimal() else set()
    return set()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("outage_seconds", [5.0, 22.0])
async def test_lossy_reordering_path_with_outages_loses_nothing(
    outage_seconds: float, far_end: FarEnd
) -> None:
    """At 5 % loss and with two outages, each accepted event is confirmed or reported, and every session continues."""
    path = Path(delay=0.01, jitter=0.03)
    over = False
    async with bad_path(far_end.base_url, path) as url:
        gateway = Gateway(configured(url))
        await gateway.start()
        try:
            async with Caller(gateway.url) as caller:
                # Each set-up has one deadline, which it may miss on such a path; that is not tested here.
                opened = [(await caller.open())["id"] for _ in range(SESSIONS)]
                path.loss = 0.05
                talks = [
                    asyncio.create_task(talk(caller, session_id, number, lambda: not over))
                    for number, session_id in enumerate(opened)
                ]
                for _ in range(2):
                    await asyncio.sleep(8)
                    path.down = True
                    await asyncio.sleep(outage_seconds)
                    path.down = False
                await asyncio.sleep(8)
                over = True
                outcomes = await asyncio.gather(*talks)
        finally:
            await gateway.close()

    assert [outcome["missing"] for outcome in outcomes] == [[]] * SESSIONS, json.dumps(outcomes)
    assert [outcome["state"] for outcome in outcomes] == ["connected"] * SESSIONS
    assert min(len(outcome["accepted"]) for outcome in outcomes) > EVENTS

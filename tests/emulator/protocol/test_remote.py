"""A session's MCP servers: import, listing, approval, calls."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.emulator.faults import Faults
from tests.emulator.talk import Talk

MakeTalk = Callable[..., Talk]
Json = dict[str, Any]


def server(label: str = "demo", **members: Any) -> Json:
    """Return a session's entry for a server."""
    return {"type": "mcp", "server_label": label, "server_url": "https://mcp.example", **members}


async def test_tools_are_imported_once(talk: MakeTalk) -> None:
    """A server's tools are listed when the session begins or first names it, in a separate item."""
    one = talk()
    one.realtime.opened()
    for _ in range(2):
        one.send("session.update", session={"type": "realtime", "tools": [server()]})
    item = one.last("conversation.item.done")["item"]

    assert one.types == [
        "session.created",
        "session.updated",
        "conversation.item.added",
        "mcp_list_tools.in_progress",
        "conversation.item.done",
        "mcp_list_tools.completed",
        "session.updated",
    ]
    assert (item["type"], item["server_label"]) == ("mcp_list_tools", "demo")
    assert item["tools"][0]["name"] == "roll_dice"


@pytest.mark.parametrize(("label", "fault"), [("nowhere", None), ("demo", "list")])
async def test_server_that_cannot_be_reached_fails(label: str, fault: Any, talk: MakeTalk) -> None:
    """An unknown label and the fault both end the import as failed; then no tool can be called."""
    one = talk(session={"tools": [server(label)]}, faults=Faults(mcp_error=fault))
    one.realtime.opened()
    one.user("Roll the dice")
    done = await one.respond()

    assert one.types[3] == "mcp_list_tools.failed"
    assert [item["type"] for item in done["output"]] == ["message"]


@pytest.mark.parametrize("model", ["gpt-realtime", "gpt-realtime-2.1"])
async def test_call_without_approval_runs_in_its_response(model: str, talk: MakeTalk) -> None:
    """The call is an output item with its output, and the next response uses it."""
    one = talk(session={"model": model, "tools": [server(require_approval="never")]})
    one.realtime.opened()
    one.user("Roll the dice with 20 sides")
    call = (await one.respond())["output"][-1]
    answer = (await one.respond())["output"][0]["content"][0]["text"]
    mcp = [
        kind.removeprefix("response.mcp_call") for kind in one.types if kind.startswith("response.mcp_call")
    ]

    assert list(dict.fromkeys(mcp)) == ["_arguments.delta", "_arguments.done", ".in_progress", ".completed"]
    assert call["type"] == "mcp_call"
    assert json.loads(call["arguments"]) == {"sides": 20}
    assert (call["output"], call["error"], call["approval_request_id"]) == ('{"sum":4}', None, None)
    assert answer == "Here is what I found: sum is 4."


async def test_call_fails_by_a_fault(talk: MakeTalk) -> None:
    """A failed call has an error instead of an output, and its response is completed anyway."""
    one = talk(session={"tools": [server(require_approval="never")]}, faults=Faults(mcp_error="call"))
    one.user("Roll the dice")
    done = await one.respond()

    assert done["status"] == "completed"
    assert (done["output"][0]["output"], done["output"][0]["error"]["type"]) == (None, "tool_execution_error")
    assert "response.mcp_call.failed" in one.types
    assert "no result" in (await one.respond())["output"][0]["content"][0]["text"]


@pytest.mark.parametrize("approve", [True, False])
async def test_approval_decides_whether_a_call_runs(approve: bool, talk: MakeTalk) -> None:
    """The response ends with the request for approval; the client's answer runs the call or discards it."""
    one = talk(session={"tools": [server()]})
    one.user("Roll the dice")
    request = (await one.respond())["output"][0]
    before = len(one.said)
    answer = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": approve}
    one.send("conversation.item.create", item=answer)
    after = [e["item"]["type"] for e in one.said[before:] if e["type"] == "conversation.item.done"]
    said = (await one.respond(tool_choice="none"))["output"][0]["content"][0]["text"]
    one.send("conversation.item.create", item=answer)

    assert request["type"] == "mcp_approval_request"
    if approve:
        assert after == ["mcp_approval_response", "mcp_call"]
        call = one.said[before:][-1] and next(i for i in one.realtime.conversation if i["type"] == "mcp_call")
        assert call["approval_request_id"] == request["id"]
        assert said == "Here is what I found: sum is 4."
    else:
        assert after == ["mcp_approval_response"]
        assert said == "All right, I will not do that."
    # It was answered once, so the request no longer exists.
    assert one.last("error")["error"]["code"] == "item_not_found"


async def test_choice_of_a_server_calls_its_tool(talk: MakeTalk) -> None:
    """`tool_choice` may name a server, with or without a tool; a function of the same name has priority."""
    one = talk(session={"tools": [server(require_approval="never")]})
    for choice in (
        {"type": "mcp", "server_label": "demo"},
        {"type": "mcp", "server_label": "demo", "name": "roll_dice"},
    ):
        assert (await one.respond(tool_choice=choice))["output"][0]["type"] == "mcp_call"
    function = {"type": "function", "name": "roll_dice"}
    done = await one.respond(tools=[server(require_approval="never"), function], tool_choice="required")

    assert done["output"][0]["type"] == "function_call"


async def test_history_with_remote_tools_is_seeded(talk: MakeTalk) -> None:
    """The items of a former call's MCP tools can be created again one by one."""
    one = talk()
    items: list[Json] = [
        {"type": "mcp_list_tools", "server_label": "demo", "tools": [{"name": "t", "input_schema": {}}]},
        {"type": "mcp_approval_request", "server_label": "demo", "name": "t", "arguments": "{}"},
        {"type": "mcp_call", "server_label": "demo", "name": "t", "arguments": "{}", "output": "4"},
    ]
    for item in items:
        one.send("conversation.item.create", item=item)

    assert [item["type"] for item in one.realtime.conversation] == [item["type"] for item in items]
    assert (await one.respond())["output"][0]["content"][0]["text"] == "4"

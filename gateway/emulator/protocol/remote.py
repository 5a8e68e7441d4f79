"""The MCP servers of one session: their tools imported, offered to the brain, approved, and called.

It contacts no server: `mcp` holds each server's answers. Importing happens at once, when the session begins and when an
update names a new server. No recording of MCP over Realtime is known, so the order of events is that of the reference: a
call runs within its response, or after its approval; the client then asks for the next response, as with functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.emulator.protocol import mcp
from gateway.emulator.protocol.errors import Refusal
from gateway.emulator.protocol.items import Item
from gateway.emulator.protocol.live import LiveSession
from gateway.emulator.protocol.responses import emit_mcp_call, new_mcp_call

Json = dict[str, Any]
_FAILED = {"type": "tool_execution_error", "message": "The tool could not be executed."}


@dataclass(frozen=True, slots=True)
class RemoteTool:
    """A tool that a session may call, and the server it belongs to."""

    server_label: str
    tool: mcp.McpTool
    needs_approval: bool


class RemoteTools:
    """The tools of a session's MCP entries."""

    def __init__(self, live: LiveSession, servers: mcp.McpServers) -> None:
        self._live = live
        self._servers = servers
        # Labels whose tools were listed, or could not be.
        self._imported: set[str] = set()
        # Approvals requested and not answered yet: ID of the request to its item.
        self._asked: dict[str, Item] = {}

    def load(self, tools: Sequence[Json]) -> None:
        """Import the tools of the servers that `tools` names, each server once."""
        for config in tools:
            if config["type"] == "mcp" and config["server_label"] not in self._imported:
                self._imported.add(config["server_label"])
                self._list(config)

    def offered(self, tools: Sequence[Json]) -> list[Json]:
        """Return the functions that a brain may choose from, remote tools included in the form of functions."""
        offered = [tool for tool in tools if tool["type"] == "function"]
        for remote in self._usable(tools):
            listed = remote.tool.listed
            function = {"type": "function", "name": remote.tool.name, "parameters": listed["input_schema"]}
            offered.append(function | {"description": listed.get("description") or ""})
        return offered

    def choice(self, given: str | Json, tools: Sequence[Json]) -> str | Json:
        """Return a `tool_choice` in terms of functions: a server's first tool if no tool is named."""
        if isinstance(given, str) or given["type"] != "mcp":
            return given
        names = [r.tool.name for r in self._usable(tools) if r.server_label == given["server_label"]]
        name = given.get("name") or (names[0] if names else "")
        return {"type": "function", "name": name}

    def find(self, name: str, tools: Sequence[Json]) -> RemoteTool | None:
        """Return the remote tool of a name; a function with the same name takes precedence."""
        if any(tool["type"] == "function" and tool.get("name") == name for tool in tools):
            return None
        return next((remote for remote in self._usable(tools) if remote.tool.name == name), None)

    def call(self, tool: mcp.McpTool, arguments: str) -> tuple[str | None, Json | None]:
        """Return the output and the error of a call."""
        return (None, _FAILED) if self._live.faults.mcp_error == "call" else tool.call(arguments)

    def await_approval(self, request: Item) -> None:
        """Remember a request, so that its approval can run the call."""
        self._asked[request["id"]] = request

    def check_approval(self, response: Item) -> None:
        """Refuse an approval that answers no open request."""
        if response["approval_request_id"] not in self._asked:
            raise Refusal(
                "item_not_found",
                f"No open approval request has the id '{response['approval_request_id']}'.",
                param="item.approval_request_id",
            )

    def approved(self, response: Item) -> None:
        """Run the call that was approved, or drop it if it was denied."""
        request = self._asked.pop(response["approval_request_id"])
        if not response["approve"]:
            return
        name, label, arguments = request["name"], request["server_label"], request["arguments"]
        item = new_mcp_call(self._live.ids, name, label, arguments, request["id"])
        before = self._live.add(item)
        tool = next(tool for tool in self._servers[label] if tool.name == name)
        emit_mcp_call(self._live.emit, item, 0, self.call(tool, arguments))
        self._live.finish(item, before)

    def _usable(self, tools: Sequence[Json]) -> list[RemoteTool]:
        if self._live.faults.mcp_error == "list":
            return []
        return [
            RemoteTool(config["server_label"], tool, mcp.needs_approval(config, tool))
            for config in tools
            if config["type"] == "mcp"
            for tool in mcp.allowed(config, self._servers.get(config["server_label"], ()))
        ]

    def _list(self, config: Json) -> None:
        label = config["server_label"]
        item: Item = {
            "id": self._live.ids.item(),
            "type": "mcp_list_tools",
            "server_label": label,
            "tools": [],
        }
        before = self._live.add(item)
        self._live.emit({"type": "mcp_list_tools.in_progress", "item_id": item["id"]})
        if label not in self._servers or self._live.faults.mcp_error == "list":
            self._imported.discard(label)
            self._live.emit({"type": "mcp_list_tools.failed", "item_id": item["id"]})
            return
        item["tools"] = [tool.listed for tool in mcp.allowed(config, self._servers[label])]
        self._live.finish(item, before)
        self._live.emit({"type": "mcp_list_tools.completed", "item_id": item["id"]})

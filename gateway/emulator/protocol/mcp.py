"""Tools of MCP servers, without servers: their lists and answers are configured.

It does not speak MCP. A session names servers by `server_label`. A label that is not configured stands for an unreachable
server. A file for `--mcp` holds one server:

    {"server_label": "demo", "tools": [{"name": "roll", "description": "Roll dice.",
      "input_schema": {"type": "object"}, "output": "4"}]}

A tool may have `"error": {…}` (an `mcp_call`'s error object) in place of `output`; with neither, it returns its arguments.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class McpTool:
    """One tool: its entry in the server's list, and the result of a call."""

    listed: Json
    output: str | None = None
    error: Json | None = None

    @property
    def name(self) -> str:
        return str(self.listed["name"])

    def call(self, arguments: str) -> tuple[str | None, Json | None]:
        """Return the output and the error of a call, one of which is None."""
        if self.error is not None:
            return None, self.error
        return (arguments if self.output is None else self.output), None


McpServers = Mapping[str, Sequence[McpTool]]

# Available without a file, so that a client can be tried at once.
DEMO: McpServers = {
    "demo": (
        McpTool(
            {
                "name": "roll_dice",
                "description": "Roll dice and return the sum.",
                "input_schema": {
                    "type": "object",
                    "properties": {"sides": {"type": "integer", "minimum": 2}},
                    "required": ["sides"],
                },
                "annotations": {"read_only": True},
            },
            output='{"sum":4}',
        ),
    )
}


def load(path: Path) -> tuple[str, tuple[McpTool, ...]]:
    """Read one server from a file; raises ValueError or OSError."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        tools = [dict(tool) for tool in given["tools"]]
        read = tuple(
            McpTool({k: v for k, v in t.items() if k not in ("output", "error")}, *_answer(t)) for t in tools
        )
        if not all(isinstance(tool.listed["name"], str) and "input_schema" in tool.listed for tool in read):
            raise ValueError
        return str(given["server_label"]), read
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is not an MCP server: expected server_label and tools, each with name and input_schema"
        ) from None


def _answer(tool: Json) -> tuple[str | None, Json | None]:
    output = tool.get("output")
    if output is not None and not isinstance(output, str):
        output = json.dumps(output, ensure_ascii=False)
    return output, tool.get("error")


def allowed(config: Json, tools: Sequence[McpTool]) -> list[McpTool]:
    """Return the tools that `allowed_tools` of a session's MCP entry lets through."""
    wanted = config.get("allowed_tools")
    return [tool for tool in tools if wanted is None or _matches(wanted, tool)]


def needs_approval(config: Json, tool: McpTool) -> bool:
    """Return whether a call of `tool` waits for the client's approval: `require_approval`, "always" if absent."""
    required = config.get("require_approval") or "always"
    if isinstance(required, str):
        return required == "always"
    if required.get("never") and _matches(required["never"], tool):
        return False
    return not required.get("always") or _matches(required["always"], tool)


def _matches(wanted: Any, tool: McpTool) -> bool:
    """Return whether a list of names, or a filter of names and read-only tools, includes a tool."""
    if isinstance(wanted, list):
        return tool.name in wanted
    names, read_only = wanted.get("tool_names"), wanted.get("read_only")
    annotations = tool.listed.get("annotations")
    reads = isinstance(annotations, dict) and annotations.get("read_only") is True
    return (names is None or tool.name in names) and (read_only is None or read_only == reads)

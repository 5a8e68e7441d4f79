"""MCP servers that are configured: files, filters, approval."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.emulator.protocol.mcp import McpTool, allowed, load, needs_approval

READ = McpTool({"name": "read", "input_schema": {}, "annotations": {"read_only": True}})
WRITE = McpTool({"name": "write", "input_schema": {}})


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (None, ["read", "write"]),
        ([], []),
        (["write"], ["write"]),
        ({"tool_names": ["read"]}, ["read"]),
        ({"read_only": True}, ["read"]),
        ({"read_only": False}, ["write"]),
        ({"read_only": False, "tool_names": ["read"]}, []),
    ],
)
def test_allowed_tools_filters(wanted: Any, names: list[str]) -> None:
    """A list names tools; a filter names them or selects those that only read."""
    assert [tool.name for tool in allowed({"allowed_tools": wanted}, [READ, WRITE])] == names


@pytest.mark.parametrize(
    ("required", "asks"),
    [
        (None, [True, True]),
        ("always", [True, True]),
        ("never", [False, False]),
        ({"never": {"read_only": True}}, [False, True]),
        ({"always": {"tool_names": ["write"]}}, [False, True]),
        ({"always": {"tool_names": ["write"]}, "never": {"tool_names": ["write"]}}, [False, False]),
    ],
)
def test_approval_is_needed_unless_it_is_not(required: Any, asks: list[bool]) -> None:
    """Approval is required by default; filters say for which tools it is always or never required."""
    assert [needs_approval({"require_approval": required}, tool) for tool in (READ, WRITE)] == asks


def test_file_holds_a_server(tmp_path: Path) -> None:
    """Each tool is listed unchanged, and returns its output, its error, or its arguments."""
    error = {"type": "http_error", "code": 503, "message": "Away."}
    tools = [
        {"name": "a", "input_schema": {}, "output": {"x": 1}},
        {"name": "b", "input_schema": {}, "output": "text"},
        {"name": "c", "input_schema": {}, "error": error},
        {"name": "d", "input_schema": {}, "description": "Echoes."},
    ]
    path = tmp_path / "server.json"
    path.write_text(json.dumps({"server_label": "mine", "tools": tools}))
    label, read = load(path)

    assert label == "mine"
    assert [tool.call('{"q":1}') for tool in read] == [
        ('{"x": 1}', None),
        ("text", None),
        (None, error),
        ('{"q":1}', None),
    ]
    assert read[3].listed == tools[3]
    assert read[0].listed == {"name": "a", "input_schema": {}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"server_label":"x","tools":[{"name":"a"}]}',
        '{"tools":[{"name":1,"input_schema":{}}]}',
    ],
)
def test_file_that_is_no_server_is_named(text: str, tmp_path: Path) -> None:
    """A file of another form is refused with its name and what was expected."""
    path = tmp_path / "server.json"
    path.write_text(text)

    with pytest.raises(ValueError, match=r"server\.json is not an MCP server"):
        load(path)

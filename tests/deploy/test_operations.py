"""The operations page, compared with what it describes: every alert, every log line, every figure that a file
repeats."""

import ast
import functools
import re
import tomllib

import pytest
import yaml  # type: ignore[import-untyped]  # it ships no types

from gateway.config import Config
from tests.deploy.conftest import ROOT

PAGE = (ROOT / "docs/operations.md").read_text()
LEVELS = {"debug", "info", "warning", "error"}


def logged() -> set[str]:
    """Return the name of every log line in the sources: the first argument of `log.<level>(…)`, or of `line(…)`, a
    variable that holds one of these methods."""
    names = set()
    for path in (ROOT / "gateway").rglob("*.py"):
        if "emulator" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
                continue
            called = node.func
            by_level = (
                isinstance(called, ast.Attribute)
                and called.attr in LEVELS
                and isinstance(called.value, ast.Name)
                and called.value.id == "log"
            )
            chosen = isinstance(called, ast.Name) and called.id == "line"
            if (by_level or chosen) and isinstance(node.args[0].value, str):
                names.add(node.args[0].value)
    return names


@functools.cache
def table() -> dict[str, tuple[set[str], set[str]]]:
    """Read the page's table of log lines: levels and fields by event."""
    rows = re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \| ([^|]*)\|", PAGE, re.MULTILINE)
    return {
        name: (set(levels.split(", ")), set(re.findall(r"`(\w+)`", fields))) for name, levels, fields in rows
    }


def test_every_log_line_stands_in_the_table_and_no_other() -> None:
    """Every log event has a row in the table, and every row an event."""
    assert logged() == set(table())


def test_each_log_line_has_one_row_with_its_level() -> None:
    """No event has two rows, and a line that is logged at one level in the code has that level in its row."""
    rows = re.findall(r"^\| `(\w+)` \| (?:info|warning|error|debug)", PAGE, re.MULTILINE)
    calls = re.compile(rf"\blog\.({'|'.join(LEVELS)})\(\s*\"(\w+)\"")
    sources = [path.read_text() for path in (ROOT / "gateway").rglob("*.py")]
    logged_at = {name: level for source in sources for level, name in calls.findall(source)}

    assert len(rows) == len(set(rows))
    assert {level for levels, _ in table().values() for level in levels} <= LEVELS
    assert {name for name, level in logged_at.items() if level not in table()[name][0]} == set()


def test_fields_of_log_lines_are_those_in_the_table() -> None:
    """The keywords that a line is logged with are exactly those in its row."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "gateway").rglob("*.py"):
        if "emulator" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = node.args[0].value
                if name in table() and {keyword.arg for keyword in node.keywords} != {None}:
                    called = node.func
                    if getattr(called, "attr", getattr(called, "id", "")) in LEVELS | {"line"}:
                        fields = {keyword.arg for keyword in node.keywords if keyword.arg}
                        found.setdefault(name, set()).update(
                            "exception" if field == "exc_info" else field for field in fields
                        )

    assert found == {name: table()[name][1] for name in found}


def test_every_alert_has_a_section_that_its_runbook_leads_to() -> None:
    """The annotation links to a heading of this page, and no section describes an alert that no longer exists."""
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    sections = re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)

    assert sorted(sections) == sorted(rule["alert"] for rule in rules)
    for rule in rules:
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_links_within_the_page_lead_somewhere() -> None:
    """Each anchor is that of a heading."""
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)}

    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= anchors


@pytest.mark.parametrize("setting", sorted(set(re.findall(r"`((?:relay|drain|upstream|log)\.\w+)", PAGE))))
def test_settings_that_are_named_exist(setting: str) -> None:
    """Every setting that the page names exists."""
    section, key = setting.split(".")

    assert key in type(getattr(Config(), section)).model_fields


def test_files_that_are_named_exist() -> None:
    """Paths in the page are paths in the checkout."""
    named = set(re.findall(r"`((?:deploy|config|tests)/[\w./-]+)`", PAGE)) - {"deploy/secrets/"}

    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_memory_that_is_added_up_is_added_up_right() -> None:
    """The sum in "Sizing" follows from the page's own figures and the production configuration."""
    config = Config.model_validate(tomllib.loads((ROOT / "config/production.toml").read_text()))
    found = re.search(r"an idle session \| (\d+) KiB", PAGE)
    assert found is not None
    needed = (
        100 + config.relay.max_sessions * int(found[1]) / 1024 + config.server.memory_budget_bytes / 2**20
    )

    assert f"sessions × {found[1]} KiB" in PAGE
    assert f"that is {needed:.0f} MiB" in PAGE

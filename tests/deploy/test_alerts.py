"""The alerts and the dashboard as files: promtool accepts them, and every metric in them is one that the gateway
has."""

import json
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml  # type: ignore[import-untyped]  # it ships no types
from prometheus_client import CollectorRegistry

from gateway.app import Gateway
from gateway.config import Config, load
from gateway.telemetry import Metrics
from tests.deploy.conftest import ROOT

ALERTS = ROOT / "deploy/prometheus/alerts.yml"


def rules() -> list[Any]:
    """Return every alerting rule."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def queries() -> Iterator[str]:
    """Return every query of alerts and dashboard."""
    for rule in rules():
        yield rule["expr"]
    for panel in json.loads((ROOT / "deploy/grafana/gateway.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def promtool(part_path: Callable[[str], str], *arguments: str) -> str:
    """Run promtool, which must succeed, and return its output."""
    done = subprocess.run(
        [part_path("promtool"), *arguments],
        cwd=ALERTS.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.needs("promtool")
def test_promtool_takes_rules_and_configuration(part_path: Callable[[str], str], tmp_path: Path) -> None:
    """Prometheus would start with these files."""
    assert f"{len(rules())} rules found" in promtool(part_path, "check", "rules", "alerts.yml")
    promtool(part_path, "check", "config", "--syntax-only", "prometheus.yml")


@pytest.mark.slow
@pytest.mark.needs("promtool")
def test_every_alert_fires_and_resolves(part_path: Callable[[str], str]) -> None:
    """The unit tests pass, and there is one for each alert with a time before, during and after."""
    files = ("alerts_test.yml", "alerts_days_test.yml")
    promtool(part_path, "test", "rules", *files)
    tests = [test for file in files for test in yaml.safe_load((ALERTS.parent / file).read_text())["tests"]]

    for test in tests:
        fires = [bool(moment.get("exp_alerts")) for moment in test["alert_rule_test"]]
        assert fires == [False, True, False], test["name"]
        assert {moment["alertname"] for moment in test["alert_rule_test"]} == {test["name"]}
    assert sorted(test["name"] for test in tests) == sorted(rule["alert"] for rule in rules())


def test_every_metric_and_label_in_a_query_exists() -> None:
    """No alert and no panel waits for a metric, or looks at a label, that the gateway does not have."""
    registry = CollectorRegistry()
    Metrics(registry, version="0")
    known = {sample for family in registry.collect() for sample in _samples(family.name, family.type)}
    labels = {
        *(
            "direction",
            "type",
            "state",
            "outcome",
            "key",
            "reason",
            "phase",
            "status",
            "model",
            "kind",
            "code",
        ),
        *("route", "method", "format", "replay", "cause", "version", "le", "instance", "job"),
    }

    for query in queries():
        for name in re.findall(r"\b((?:realtime_gateway|process)_\w+)", query):
            assert name in known, query
        for inside in re.findall(r"\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside)) <= labels, query


def _samples(name: str, kind: str) -> set[str]:
    if kind == "histogram":
        return {f"{name}_{end}" for end in ("bucket", "sum", "count")}
    return {f"{name}_total"} if kind == "counter" else {name}


async def test_what_is_called_nearly_full_is_what_is_configured() -> None:
    """The alert uses the exported `limit{kind}` and contains no number of its own."""
    (near,) = (rule for rule in rules() if rule["alert"] == "GatewayNearCapacity")
    ports: dict[str, dict[str, object]] = {"server": {"port": 0}, "admin": {"port": 0}}
    gateway = Gateway(load(environ={}, flags={**ports, "relay": {"max_sessions": 7}}))
    await gateway.start()
    try:
        async with aiohttp.ClientSession() as http, http.get(f"{gateway.admin_url}/metrics") as answer:
            exported = await answer.text()
    finally:
        await gateway.close()

    kinds = re.findall(r'realtime_gateway_limit\{kind="(\w+)"\}', near["expr"])
    assert kinds == ["sessions", "log_bytes"]
    assert re.findall(r"\b\d+(?:\.\d+)?\b", near["expr"]) == ["0.8", "0.8"]
    assert all(f'realtime_gateway_limit{{kind="{kind}"}}' in exported for kind in kinds)
    assert 'realtime_gateway_limit{kind="sessions"} 7.0' in exported


def test_a_drain_that_works_raises_no_alert() -> None:
    """The alert waits for longer than a drain may take."""
    (rule,) = (rule for rule in rules() if rule["alert"] == "GatewayDrainingTooLong")

    assert rule["for"] == "1m"
    assert Config.model_validate(_production()).drain.timeout_seconds < 60


def _production() -> Any:
    return tomllib.loads((ROOT / "config/production.toml").read_text())


def test_the_dashboard_is_one_that_grafana_can_draw() -> None:
    """Panels have unique ids and do not overlap, and every query uses the selected data source."""
    dashboard = json.loads((ROOT / "deploy/grafana/gateway.json").read_text())
    panels = dashboard["panels"]
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24
    assert all(panel["targets"] and panel["description"] for panel in panels if panel["type"] != "row")
    sources = {target["datasource"]["uid"] for panel in panels for target in panel.get("targets", ())}
    assert sources == {"${datasource}"}
    assert {one["name"] for one in dashboard["templating"]["list"]} == {"datasource", "instance"}

"""The reference of the HTTP API, compared with the code: error codes, metrics, routes, close reasons, own events."""

import re
from collections.abc import Iterator, Mapping

import pytest
from prometheus_client import CollectorRegistry

from gateway.downstream.auth.access import KeyRule
from gateway.downstream.openapi import document
from gateway.downstream.opening import SessionWanted
from gateway.downstream.reading import parameters as reading
from gateway.downstream.server import client_application, operator_application
from gateway.errors import KINDS
from gateway.relay.states import CloseReason
from gateway.telemetry import Metrics
from gateway.telemetry.registry import PREFIX
from tests.conftest import ROOT
from tests.downstream.harness import Harness

PAGE = (ROOT / "docs/api.md").read_text(encoding="utf-8")

METHODS = {"GET", "POST", "DELETE"}


def rows(*header: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the tables with this header."""
    wanted = " | ".join(header)
    for table in re.findall(rf"^\| {re.escape(wanted)} \|\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE):
        for line in table.splitlines():
            yield [cell.strip() for cell in line.strip("|").split("|")]


def words(cell: str) -> set[str]:
    """Return the words in code spans."""
    return set(re.findall(r"`([^`]+)`", cell))


def exported() -> Mapping[str, tuple[str, set[str]]]:
    """Return each metric's kind and labels."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, version="1")
    metrics.event_up("response.create", 1)
    metrics.http_request("/livez", "GET", 200, 0.0)
    found = {}
    for collector in list(registry._collector_to_names):
        for family in collector.collect():
            if family.name.startswith(PREFIX):
                labels = getattr(collector, "_labelnames", None)
                if labels is None:
                    labels = {name for sample in family.samples for name in sample.labels} - {"le"}
                name = family.name.removeprefix(PREFIX) + ("_total" if family.type == "counter" else "")
                found[name] = (family.type, set(labels))
    return found


def test_errors_are_those_of_the_table() -> None:
    """Each code is in the page once, with its status and whether a retry can help."""
    told = [
        (int(status), code, again) for status, code, again, _ in rows("status", "code", "again", "meaning")
    ]

    assert sorted(told) == sorted(
        (kind.status, f"`{code}`", "yes" if kind.retryable else "no") for code, kind in KINDS.items()
    )


def test_metrics_are_those_exported() -> None:
    """The page has each metric with its kind and labels, and no other."""
    told = {
        name: (kind, words(labels))
        for names, kind, labels, _ in rows("metric", "kind", "labels", "what it counts")
        for name in words(names)
    }

    assert told == exported()


def test_close_reasons_are_those_of_the_state_machine() -> None:
    """The page has each close reason with whether a new session can help."""
    told = {word: again for word, again, _ in rows("close reason", "retryable", "what happened")}

    assert told == {f"`{reason}`": "yes" if reason.retryable else "no" for reason in CloseReason}


async def test_routes_are_the_routers(harness: Harness) -> None:
    """The page has each route of both listeners and no other; the console's files are described with its page."""
    routed = {
        f"{route.method} {route.resource.canonical}"
        for app in (client_application(harness.parts), operator_application(harness.parts))
        for route in app.router.routes()
        if route.resource and route.method in METHODS
    }
    told = {
        word
        for header in ("success", "answer")
        for cell, _ in rows("request", header)
        for word in words(cell)
    }
    console = {f"GET {path}" for path in re.findall(r"`(/[\w-]+\.(?:css|js|svg))`", PAGE)}

    assert told | console == routed


def test_own_events_are_those_of_the_sources() -> None:
    """The page has each event that the gateway makes, and no other."""
    made = {
        name
        for room in ("downstream", "relay")
        for path in (ROOT / "gateway" / room).rglob("*.py")
        for name in re.findall(r'"(gateway\.[a-z]+)"', path.read_text(encoding="utf-8"))
    }
    told = {
        word
        for cell, *_ in rows("event", "in the log", "members beside `type`, and when")
        for word in words(cell)
    }

    assert told == made - {"gateway.session"}


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (("parameter", "values (default)", "meaning"), reading._NAMES),
        (("member", "meaning"), set(SessionWanted.model_fields)),
        (("member", "meaning"), set(document()["components"]["schemas"]["CreatedSession"]["required"])),
    ],
    ids=["read", "create", "session"],
)
def test_table_has_every_name(header: tuple[str, ...], names: set[str]) -> None:
    """Every name that may be sent or is returned is in the table."""
    assert names - {word for cell, *_ in rows(*header) for word in words(cell)} == set()


def test_limits_are_those_of_a_key() -> None:
    """Every limit of a key is documented."""
    limits = set(KeyRule.__dataclass_fields__) - {"name", "sha256"}

    assert {name for name in limits if f"`{name}`" not in PAGE} == set()

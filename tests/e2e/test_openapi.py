"""The description at `/openapi.json`, compared with its gateway by generated requests, valid and invalid ones.

The description must allow each answer and its form, and none may be the gateway's own 5xx.
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import sampled_from
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.downstream.openapi import document
from tests.farend import FarEnd
from tests.programs import Served

pytestmark = pytest.mark.slow

EXAMPLES = 200
SEED = 20261122
SECONDS = 20

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# Statuses that any request may get: OpenAI refused, failed or was slow, or a limit was reached.
UPSTREAMS = {502, 503, 504}

DESCRIPTION = schemathesis.openapi.from_dict(document())
RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
# A request without parameters and body cannot be invalid.
OPERATIONS = [
    pytest.param(path, method.upper(), mode, id=f"{mode.value} {method.upper()} {path}")
    for path, members in document()["paths"].items()
    for method, operation in members.items()
    if method != "parameters"
    for mode in ((RIGHT, WRONG) if {"parameters", "requestBody"} & operation.keys() else (RIGHT,))
]


class Sessions:
    """Provides the id of a session that is currently open."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._id: str | None = None

    def open_one(self) -> str:
        if self._id is None or self._ask("GET", f"/v1/sessions/{self._id}")["state"] != "connected":
            self._id = str(self._ask("POST", "/v1/sessions")["id"])
        return self._id

    def described(self) -> dict[str, Any]:
        return self._ask("GET", "/openapi.json")

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        with urlopen(Request(self.url + path, method=method), timeout=SECONDS) as answer:
            said: dict[str, Any] = json.load(answer)
        return said


@pytest.fixture(scope="module")
def sessions(shared_far_end: FarEnd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    """Run a gateway whose streams end soon and whose closed sessions are dropped soon."""
    log = tmp_path_factory.mktemp("described") / "log"
    environ = {
        "GATEWAY_STREAM__MAX_AGE_SECONDS": "1",
        "GATEWAY_RELAY__DETACH_GRACE_SECONDS": "10",
        "GATEWAY_RELAY__LOG_RETENTION_SECONDS": "2",
        "GATEWAY_RELAY__TURN_TIMEOUT_SECONDS": "3",
        "GATEWAY_LOG__ACCESS": "false",
    }
    with Served(log, shared_far_end.base_url, environ=environ) as program:
        yield Sessions(program.url)
        assert "http_failed" not in program.output
        assert "relay_failed" not in program.output


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("path", "method", "mode"), OPERATIONS)
def test_every_answer_is_as_described(
    sessions: Sessions, path: str, method: str, mode: GenerationMode
) -> None:
    """Every answer has a status, a type and a body that the description allows, and a 5xx is OpenAI's."""
    operation = DESCRIPTION[path][method]

    @given(case=operation.as_strategy(generation_mode=mode), live=sampled_from([True, True, True, False]))
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @seed(SEED)
    def hold(case: Case[Any], live: bool) -> None:
        if live and "{id}" in path:
            case.path_parameters["id"] = sessions.open_one()
        _hurry(case.query, method)

        answer = case.call(base_url=sessions.url, timeout=SECONDS)

        checks = CHECKS if answer.status_code in UPSTREAMS else [not_a_server_error, *CHECKS]
        case.validate_response(answer, checks=checks)

    hold()


def test_the_description_is_served(sessions: Sessions) -> None:
    """Clients get the same description that was tested above."""
    assert sessions.described() == document()


def _hurry(query: dict[str, Any], method: str) -> None:
    """Shorten waits: a valid long-poll could wait for a minute, a valid stream for an hour."""
    for name in {"wait", "max_age"} & query.keys():
        if isinstance(query[name], (int, float)):
            query[name] = 1
    if method == "GET":
        query.setdefault("wait", 0)

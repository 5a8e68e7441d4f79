"""The OpenAPI description."""

from collections.abc import Iterator
from typing import Any

import pytest

from gateway.downstream.openapi import document
from gateway.downstream.openapi_parameters import READING
from gateway.downstream.reading import parameters
from gateway.downstream.server import client_application
from gateway.errors import KINDS, CallerError
from tests.downstream.harness import Harness


def references(value: object) -> Iterator[str]:
    """Yield every `$ref` in a document."""
    if isinstance(value, dict):
        for name, member in value.items():
            if name == "$ref":
                yield member
            yield from references(member)
    elif isinstance(value, list):
        for member in value:
            yield from references(member)


def test_every_reference_leads_somewhere() -> None:
    """Every reference in the description has a target."""
    described = document()
    for reference in references(described):
        part: Any = described
        for step in reference.removeprefix("#/").split("/"):
            assert step in part, reference
            part = part[step]


def test_every_code_is_described() -> None:
    """The problem's schema lists the codes of the table."""
    codes = document()["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]

    assert set(codes) == set(KINDS)


async def test_description_is_served(harness: Harness) -> None:
    """The description is served without a credential, as JSON."""
    answer = await harness.call("GET", "/openapi.json")

    assert answer.status == 200
    assert answer.json["openapi"].startswith("3.1")


@pytest.mark.parametrize("created", [True, False])
async def test_session_has_the_described_members(harness: Harness, created: bool) -> None:
    """The session object that is returned has exactly the described members."""
    answer = await harness.open()
    if not created:
        answer = (await harness.call("GET", f"/v1/sessions/{answer['id']}")).json
    schema = document()["components"]["schemas"]["CreatedSession" if created else "Session"]

    assert set(schema["required"]) == set(answer)


async def test_description_has_the_routers_paths(harness: Harness) -> None:
    """Every route of the API is described, and nothing else."""
    app = client_application(harness.parts)
    methods = {"GET", "POST", "DELETE"}
    routed = {
        (route.resource.canonical, route.method)
        for route in app.router.routes()
        if route.resource and route.method in methods and route.resource.canonical.startswith("/v1/")
    }
    described = {
        (path, method.upper())
        for path, operations in document()["paths"].items()
        for method in operations
        if method.upper() in methods
    }

    assert described == routed


def test_every_parameter_of_a_read_is_described() -> None:
    """The description has all names that a read accepts; other spellings of a cursor share one description."""
    spellings = set(parameters.CURSOR_PARAMETERS) - {"lastEventId", "after"}

    assert set(READING) == parameters._NAMES - spellings - {"format"}
    assert all(spelling in READING["lastEventId"][1] for spelling in spellings)


@pytest.mark.parametrize("name", [name for name, (schema, _) in READING.items() if "minimum" in schema])
def test_described_bounds_are_the_ones_that_hold(name: str) -> None:
    """A number at a described bound is accepted, and one beyond it is refused."""
    schema, _ = READING[name]
    inside = [schema["minimum"], *([schema["maximum"]] if "maximum" in schema else [])]
    outside = [schema["minimum"] - 1, *(bound + 1 for bound in inside[1:])]

    for value in inside:
        parameters.parse({name: str(value)}, None, None)
    for value in outside:
        with pytest.raises(CallerError, match=name):
            parameters.parse({name: str(value)}, None, None)

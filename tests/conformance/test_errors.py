"""Section 1.5: every error has the same form, and every answer a request id."""

import re

import pytest

from tests.conformance.wire import Session, Wire

UNKNOWN = "/v1/sessions/gws_000000000000000000000000"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", UNKNOWN),
        ("DELETE", UNKNOWN),
        ("GET", f"{UNKNOWN}/events"),
        ("POST", f"{UNKNOWN}/events"),
        ("POST", f"{UNKNOWN}/turns"),
        ("POST", f"{UNKNOWN}/tickets"),
        ("POST", f"{UNKNOWN}/close"),
        ("POST", f"{UNKNOWN}/events/stream"),
        ("GET", "/v1/sessions/x"),
    ],
)
async def test_an_unknown_session_is_404_everywhere(wire: Wire, method: str, path: str) -> None:
    """A request to a session that never existed or is over is a problem with its own code."""
    sends = method == "POST" and not path.endswith("/stream")
    answer = await wire.call(method, path, '{"type":"x"}' if sends else None)

    answer.problem(404, "session-unknown")


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/nothing", "/v1/sessions/x/y/z", "/v1/sessions/"])
async def test_an_unknown_path_is_404(wire: Wire, path: str) -> None:
    """The router's own 404 has the form of all errors."""
    (await wire.call("GET", path)).problem(404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/sessions", {"GET", "POST"}),
        ("GET", "/v1/turns", {"POST"}),
        ("PATCH", UNKNOWN, {"GET", "DELETE"}),
        ("DELETE", f"{UNKNOWN}/events", {"GET", "POST"}),
    ],
)
async def test_a_wrong_method_is_405_and_names_the_right_ones(
    wire: Wire, method: str, path: str, allowed: set[str]
) -> None:
    """The router's 405 has the form of all errors, and `Allow`."""
    answer = await wire.call(method, path)

    answer.problem(405, "method-not-allowed")
    assert allowed <= {word.strip() for word in answer.headers["Allow"].split(",")}


async def test_a_problem_says_where_it_happened(wire: Wire) -> None:
    """`instance` identifies the request, and `type` the kind of problem."""
    problem = (await wire.call("GET", UNKNOWN)).problem(404, "session-unknown")

    assert problem["instance"]
    assert isinstance(problem["type"], str)
    assert problem["title"]
    assert problem["retryable"] is False


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/nothing", "/openapi.json", "/livez"])
async def test_every_answer_has_a_request_id(wire: Wire, path: str) -> None:
    """Every answer has an id by which the operator can find the request."""
    first, second = [(await wire.call("GET", path)).headers["X-Request-Id"] for _ in range(2)]

    assert first != second
    assert re.fullmatch(r"[\w.:-]{8,}", first)


async def test_a_sane_request_id_is_taken(wire: Wire) -> None:
    """A client's own request id is returned."""
    answer = await wire.call("GET", "/v1/nothing", headers={"X-Request-Id": "mine-42"})

    assert answer.headers["X-Request-Id"] == "mine-42"


@pytest.mark.parametrize("given", ["a b", "<script>", "x" * 1000, '"', "ü"], ids=lambda given: given[:10])
async def test_an_insane_request_id_is_replaced(wire: Wire, given: str) -> None:
    """A request id that could corrupt a log is replaced."""
    answer = await wire.call("GET", "/v1/nothing", headers={"X-Request-Id": given})

    assert answer.headers["X-Request-Id"] != given
    assert re.fullmatch(r"[\w.:-]{8,}", answer.headers["X-Request-Id"])


async def test_a_request_to_read_does_not_change(session: Session) -> None:
    """GET does not change a session's resources."""
    before = await session.look()
    await session.poll(wait=0)

    assert await session.look() == before

"""Problem objects."""

import pytest

from gateway.downstream.http import problem
from gateway.errors import KINDS, Code, Flaw, GatewayError


@pytest.mark.parametrize("code", KINDS)
def test_every_code_becomes_a_problem(code: Code) -> None:
    """Status, title and whether to retry are those of the table, and the type is the code."""
    shown = problem.document(GatewayError(code, "why"), "/v1/x")

    kind = KINDS[code]
    assert shown == {
        "type": f"urn:realtime-gateway:error:{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": "why",
        "instance": "/v1/x",
        "code": code,
        "retryable": kind.retryable,
    } | ({"retry_after": 10} if kind.status in (429, 503) else {})
    assert problem.response(GatewayError(code, "why"), "/v1/x").status == kind.status


def test_flaws_show_what_they_know() -> None:
    """A flaw has a pointer or a line; an empty pointer means the whole body and is kept."""
    error = GatewayError("invalid-event", "why", flaws=(Flaw("a", pointer=""), Flaw("b", line=2)))

    assert problem.document(error, "/")["errors"] == [
        {"detail": "a", "pointer": ""},
        {"detail": "b", "line": 2},
    ]


def test_members_are_added_but_replace_nothing() -> None:
    """The members of an error are added to the standard's members without replacing any."""
    error = GatewayError("too-large", "why", members={"limit": 5, "status": 200})
    shown = problem.document(error, "/")

    assert (shown["limit"], shown["status"]) == (5, 413)


@pytest.mark.parametrize(("seconds", "told"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.2, "2")])
def test_retry_after_is_whole_and_never_at_once(seconds: float, told: str) -> None:
    """Retry-After is rounded up to at least one second, because a client that is too early would be refused again."""
    answer = problem.response(GatewayError("capacity", "why", retry_after=seconds), "/")

    assert answer.headers["Retry-After"] == told


@pytest.mark.parametrize("code", KINDS)
def test_who_is_to_come_back_later_is_told_when(code: Code) -> None:
    """Each 429 and 503 has Retry-After, even if OpenAI sent none."""
    answer = problem.response(GatewayError(code, "why"), "/")

    assert answer.headers.get("Retry-After") == ("10" if KINDS[code].status in (429, 503) else None)

"""The result of a turn, rendered as answers."""

import pytest

from gateway.downstream.turns import result as turnresult
from gateway.errors import GatewayError, UpstreamError
from gateway.relay.state.turn import Turn, TurnRequest


def done(
    status: str = "completed", output: object = None, error: object = None, reason: str | None = None
) -> Turn:
    """Return a turn whose response is done."""
    turn = Turn(1, "t", TurnRequest([]))
    details: dict[str, object] | None = {"type": status, "error": error} if error is not None else None
    if reason is not None:
        details = {"type": status, "reason": reason}
    response = {
        "id": "resp_1",
        "status": status,
        "status_details": details,
        "output": output or [],
        "usage": {},
    }
    created = {"id": "resp_1", "metadata": {"gateway_turn": turn.id}}
    turn.look("response.created", {"response": created})
    turn.look("response.done", {"response": response})
    turn.finish(None)
    return turn


def failed(error: GatewayError) -> Turn:
    """Return a turn that got no response."""
    turn = Turn(1, "t", TurnRequest([]))
    turn.finish(None, error)
    return turn


def message(*parts: object) -> dict[str, object]:
    """Return an output item."""
    return {"type": "message", "content": list(parts)}


def text(words: str, type_: str = "output_text") -> dict[str, object]:
    """Return a content part of an item."""
    return {"type": type_, "text": words}


def test_text_is_joined_over_parts_and_messages() -> None:
    """The texts of all parts and messages are joined; calls keep their order, also with other items in between."""
    other = {"type": "mcp_call", "name": "f"}
    output = [message(text("a"), text("b", "text")), other, message({"type": "refusal"}, text("c"))]

    assert turnresult.output_text({"output": output}) == "abc"
    assert turnresult.text_of(done(output=output)) == "abc"


@pytest.mark.parametrize(
    "output", [None, "odd", [None], [message(None)], [message({"type": "text", "text": 1})]]
)
def test_odd_output_has_no_text(output: object) -> None:
    """Output of an unexpected form has no text, because upstream's data is not trusted."""
    assert turnresult.output_text({"output": output}) is None


def test_document_of_an_odd_response_keeps_its_form() -> None:
    """An output that is not a list is rendered as an empty one."""
    document = turnresult.document(done(output="odd"), "gws_1", "k-1")

    assert (document["output"], document["output_text"], document["head"]) == ([], None, "k-1")


def test_turn_without_result_has_an_empty_document() -> None:
    """A turn that was withdrawn before any response has an empty document."""
    turn = Turn(1, "t", TurnRequest([]))
    turn.finish(None)

    assert turnresult.document(turn, "gws_1", "k-1")["status"] is None


def test_failure_is_raised_whoever_asks() -> None:
    """A turn without a result raises for every form of answer."""
    turn = failed(UpstreamError("upstream-failed", "Gone."))

    with pytest.raises(UpstreamError, match="Gone"):
        turnresult.document(turn, "gws_1", "k-1")
    assert turnresult.failure_of(turn) is turn.failure


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("Please try again in 1.5s.", 1.5),
        ("Try again in 20ms", 0.02),
        ("try again in 1m3s", 63),
        ("try again in 2m", 120),
        (f"try again in {'9' * 400}s", turnresult.RATE_LIMIT_RETRY_SECONDS),
        (f"try again in {'9' * 5000}m1s", turnresult.RATE_LIMIT_RETRY_SECONDS),
        ("try again in a while", turnresult.RATE_LIMIT_RETRY_SECONDS),
        ("try again in 1.2.3s", turnresult.RATE_LIMIT_RETRY_SECONDS),
        ("Slow down.", turnresult.RATE_LIMIT_RETRY_SECONDS),
    ],
)
def test_rate_limit_says_when_to_come_back(said: str, seconds: float) -> None:
    """The time to wait is taken from OpenAI's message, if it has one."""
    turn = done("failed", error={"code": "rate_limit_exceeded", "message": said})

    failure = turnresult.failure_of(turn)
    assert failure is not None
    assert (failure.code, failure.retry_after) == ("upstream-rate-limited", seconds)


@pytest.mark.parametrize(
    ("turn", "again"),
    [
        (done(output=[message(text("a"))]), False),
        (done(), False),
        (done("failed", error={"code": "server_error"}), False),
        (done("cancelled"), False),
        (done("failed", error={"code": "rate_limit_exceeded"}), True),
        (failed(UpstreamError("upstream-failed", "Gone.")), True),
        (failed(UpstreamError("upstream-timeout", "Late.")), True),
        (failed(UpstreamError("upstream-rejected", "No.")), False),
    ],
)
def test_only_what_left_nothing_behind_is_tried_again(turn: Turn, again: bool) -> None:
    """Only a turn without effects may be repeated; a completed response was billed and is stored."""
    assert turnresult.retryable(turn) is again


@pytest.mark.parametrize(
    ("turn", "code", "words"),
    [
        (done("cancelled", [message(text("a"))]), "upstream-failed", "cancelled"),
        (done("failed", [message(text("a"))]), "upstream-failed", "failed"),
        (
            done("incomplete", [message(text("a"))], reason="content_filter"),
            "upstream-failed",
            "content_filter",
        ),
        (done(output=[message(text("a")), {"type": "function_call", "name": "f"}]), "no-text-output", "'f'"),
    ],
)
def test_a_text_that_is_not_the_whole_answer_is_an_error(turn: Turn, code: str, words: str) -> None:
    """Half an answer, or the text before a function call, is an error instead of the answer."""
    error = turnresult.shortcoming(turn)

    assert error is not None
    assert (error.code, words in error.detail) == (code, True)
    assert turnresult.failure_of(turn) is not None


def test_a_whole_text_falls_short_of_nothing() -> None:
    """A complete response has no missing text, even if it has no text at all."""
    assert turnresult.shortcoming(done(output=[message(text("a"))])) is None
    assert turnresult.shortcoming(done(output=[message()])) is None


def test_an_incomplete_response_tells_its_reason() -> None:
    """An incomplete response has `incomplete_details`, as OpenAI's Responses do; other answers have no such member."""
    incomplete = turnresult.document(done("incomplete", reason="max_output_tokens"), "gws_1", "k-1")

    assert incomplete["incomplete_details"] == {"reason": "max_output_tokens"}
    assert turnresult.document(done("incomplete"), "gws_1", "k-1")["incomplete_details"] == {"reason": None}
    assert "incomplete_details" not in turnresult.document(done(), "gws_1", "k-1")


def test_the_whole_text_is_well_formed() -> None:
    """The whole text contains no half of a surrogate pair, because UTF-8 cannot encode one."""
    assert turnresult.text_of(done(output=[message(text("a\ud83d"), text("\ude00\udc00"))])) == "a😀\ufffd"


def test_text_cannot_tell_of_a_failure() -> None:
    """Text cannot report a failure, so it is an error with OpenAI's own message."""
    error = {"code": "server_error", "message": "Sorry."}
    with pytest.raises(UpstreamError, match="Sorry") as raised:
        turnresult.text_of(done("failed", error=error))

    assert raised.value.members == {"upstream": error}

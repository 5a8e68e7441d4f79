"""Answers as values: text, function calls and usage out of the JSON of a turn or of OpenAI's response object."""

import pytest

from gateway.client import Answer, FunctionCall, Usage

CALL = {"type": "function_call", "name": "f", "call_id": "call_1", "arguments": '{"a": 1}'}
MESSAGE = {"type": "message", "content": [{"type": "output_text", "text": "Hi"}, {"transcript": " there"}]}


def test_response_object_has_its_text_and_calls() -> None:
    """The text is joined from the messages, and the calls are listed."""
    answer = Answer.of(
        {"id": "resp_1", "status": "completed", "output": [MESSAGE, CALL, {"type": "message"}]}
    )

    assert (answer.text, answer.calls) == ("Hi there", [FunctionCall("f", "call_1", '{"a": 1}')])
    assert answer.calls[0].values() == {"a": 1}
    assert answer.calls[0].output("ok") == {
        "type": "function_call_output",
        "call_id": "call_1",
        "output": "ok",
    }


def test_turn_has_its_text_as_it_is() -> None:
    """A turn's `output_text` is used unchanged."""
    assert Answer.of({"output_text": "Hello", "output": [MESSAGE]}).text == "Hello"


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ({"error": {"code": "a"}}, {"code": "a"}),
        ({"status_details": {"error": {"code": "b"}}}, {"code": "b"}),
        ({"status_details": None}, None),
    ],
)
def test_error_is_found_where_either_form_has_it(
    response: dict[str, object], error: dict[str, str] | None
) -> None:
    """An error is found in the gateway's member and in OpenAI's details."""
    assert Answer.of(response).error == error


def test_usage_adds_audio_of_both_directions() -> None:
    """Input and output audio tokens are added; a missing or null figure counts as 0."""
    usage = {
        "input_tokens": 5,
        "output_tokens": 3,
        "input_token_details": {"cached_tokens": 2, "audio_tokens": 1},
        "output_token_details": {"audio_tokens": 2, "text_tokens": None},
    }

    assert Usage.of(usage) == Usage(input=5, output=3, cached=2, audio=3)
    assert Usage.of({"input_tokens": None, "input_token_details": None}) == Usage.of(None) == Usage()


def test_arguments_that_are_no_object_are_told() -> None:
    """Arguments that are not a JSON object raise ValueError, because a model may write anything."""
    with pytest.raises(ValueError, match="not a JSON object"):
        FunctionCall("f", "call_1", "[]").values()

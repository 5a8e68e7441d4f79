"""The one table of what OpenAI's error codes mean."""

import pytest

from gateway.errors import KINDS
from gateway.relay.openai_errors import MEANINGS, RATE_LIMITS, Blame, code_of
from gateway.relay.states import CloseReason


@pytest.mark.parametrize("code", MEANINGS)
def test_meaning_is_of_one_piece(code: str) -> None:
    """A request may be repeated exactly if the error can pass, and a session ends only for errors that its caller
    cannot fix."""
    meaning = MEANINGS[code]

    assert KINDS[meaning.code].retryable is (meaning.blame is Blame.PASSING)
    assert (meaning.reason is None) is (meaning.blame in (Blame.CALLER, Blame.HARMLESS))
    assert meaning.reason is None or meaning.reason.retryable is (meaning.blame is Blame.PASSING)


def test_rate_limits_are_those_of_responses() -> None:
    """Both of the service's codes for a rate limit are known."""
    assert {"rate_limit_exceeded", "inference_rate_limit_exceeded"} == RATE_LIMITS


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "invalid_offer", "upstream-rejected"),
        (401, "invalid_api_key", "upstream-rejected"),
        (404, None, "upstream-rejected"),
        (408, None, "upstream-failed"),
        (429, "rate_limit_exceeded", "upstream-rate-limited"),
        (429, None, "upstream-rate-limited"),
        (429, "insufficient_quota", "upstream-rejected"),
        (500, "server_error", "upstream-failed"),
        (503, "invalid_api_key", "upstream-failed"),
        (302, None, "upstream-failed"),
        (418, 7, "upstream-rejected"),
    ],
)
def test_refused_call_has_a_problem_code(status: int, code: object, expected: str) -> None:
    """An error that waiting cannot fix is decided by its code, any other by the status."""
    assert code_of(status, code) == expected


def test_reason_of_what_an_operator_must_mend_is_final() -> None:
    """A session that ends because of the key or the quota is not retryable, because only an operator can fix that."""
    reasons = {meaning.reason for meaning in MEANINGS.values() if meaning.blame is Blame.OPERATOR}

    assert reasons == {CloseReason.UPSTREAM_REJECTED}

"""The result of a turn, as its answer contains it (api.md, 4 Turns). No I/O.

A failed response is still an answer, as in OpenAI's Responses API. Only a rate limit is an error, because the same request
can succeed later. Plain text cannot represent a failure, so in text every failure is an error.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from gateway.downstream.turns.text import well_formed
from gateway.errors import CallerError, GatewayError, UpstreamError
from gateway.relay.openai_errors import RATE_LIMITS
from gateway.relay.ports import Json
from gateway.relay.state.turn import Turn

RATE_LIMIT_RETRY_SECONDS: Final = 10.0
"""Used if OpenAI does not say when to retry."""

_TRY_AGAIN: Final = re.compile(r"try again in (?:([0-9]{1,6})m(?!s))?(?:([0-9.]{1,12})(ms|s))?", re.I)


def document(turn: Turn, session_id: str, head: str) -> dict[str, object]:
    """Return a finished turn as a JSON answer. Raises the turn's error."""
    result = result_of(turn)
    output = result.get("output")
    document = {
        "id": result.get("id"),
        "status": result.get("status"),
        "output_text": output_text(result),
        "output": output if isinstance(output, list) else [],
        "usage": result.get("usage"),
        "error": response_error(result),
        "session_id": session_id,
        "head": head,
    }
    if result.get("status") == "incomplete":
        document["incomplete_details"] = {"reason": _reason(result)}
    return document


def result_of(turn: Turn) -> Json:
    """Return the `response` of the turn's response.done. Raises the turn's error, or that of a rate limit."""
    if turn.failure is not None:
        raise turn.failure
    result = turn.result or {}
    error = response_error(result)
    if error is not None and error.get("code") in RATE_LIMITS:
        message = str(error.get("message"))
        raise UpstreamError(
            "upstream-rate-limited",
            f"OpenAI's rate limit was reached: {message}",
            retry_after=_told_wait(message),
            members={"upstream": dict(error)},
        )
    return result


def text_of(turn: Turn) -> str:
    """Return the whole text of a finished turn, in characters that UTF-8 can encode. Raises the `shortcoming`, or
    `no-text-output` if there is no text."""
    error = shortcoming(turn)
    if error is not None:
        raise error
    text = output_text(turn.result or {})
    if not text:
        raise CallerError("no-text-output", "The response has no text; request JSON to see its content.")
    return well_formed(text)


def shortcoming(turn: Turn) -> GatewayError | None:
    """Return why the text of a finished turn is not its whole answer, else None. Reasons: the turn or its response failed,
    or the response was cancelled, is incomplete or contains a function call."""
    try:
        result = result_of(turn)
    except GatewayError as error:
        return error
    status = result.get("status")
    if status in ("failed", "cancelled", "incomplete"):
        reason = _reason(result)
        upstream = response_error(result) or {"status": status, "reason": reason}
        detail = f"The response is {status}: {upstream.get('message') or reason or 'OpenAI gave no reason'}"
        return UpstreamError("upstream-failed", detail, members={"upstream": upstream})
    call = next((item for item in _items(result) if item.get("type") == "function_call"), None)
    if call is not None:
        detail = f"The response calls the function '{call.get('name')}'; request JSON to get the call."
        return CallerError("no-text-output", detail)
    return None


def failure_of(turn: Turn) -> GatewayError | None:
    """Return the error of a turn's answer as text, else None."""
    try:
        text_of(turn)
    except GatewayError as error:
        return error
    return None


def output_text(result: Json) -> str | None:
    """Join the texts of a response's messages; None if it has none."""
    texts = list(_texts(result))
    return "".join(texts) if texts else None


def response_error(result: Json) -> Json | None:
    """Return the error of a failed response, else None."""
    details = result.get("status_details")
    error = details.get("error") if isinstance(details, Mapping) else None
    return error if isinstance(error, Mapping) else None


def retryable(turn: Turn) -> bool:
    """Return whether a finished turn has no answer to store, so that a repeat should try again."""
    failure = failure_of(turn)
    return (failure is not None and failure.retryable and turn.result is None) or _rate_limited(failure)


def moved(turn: Turn) -> bool:
    """Return whether the turn goes on at another node, which has its session now."""
    return turn.failure is not None and turn.failure.code == "recovering"


def _rate_limited(failure: GatewayError | None) -> bool:
    return failure is not None and failure.code == "upstream-rate-limited"


def _reason(result: Json) -> object:
    details = result.get("status_details")
    return details.get("reason") if isinstance(details, Mapping) else None


def _items(result: Json) -> Iterator[Json]:
    output = result.get("output")
    return (item for item in (output if isinstance(output, list) else ()) if isinstance(item, Mapping))


def _texts(result: Json) -> Iterator[str]:
    for item in _items(result):
        content = item.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and part.get("type") in ("output_text", "text"):
                text = part.get("text")
                if isinstance(text, str):
                    yield text


def _told_wait(message: str) -> float:
    found = _TRY_AGAIN.search(message)
    if found is None or not (found[1] or found[2]):
        return RATE_LIMIT_RETRY_SECONDS
    try:
        rest = float(found[2] or 0) * (0.001 if found[3] == "ms" else 1)
    except ValueError:
        return RATE_LIMIT_RETRY_SECONDS
    return int(found[1] or 0) * 60 + rest

"""What became of a turn, in the words of its answer (api.md, 4 Turns). No I/O.

A response that failed is an answer all the same, as in OpenAI's Responses; only its rate limit is an error, because
there the same request succeeds later. Whoever wanted text and nothing else cannot be told of a failure but by an error.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from gateway.errors import CallerError, GatewayError, UpstreamError
from gateway.relay.ports import Json
from gateway.relay.refusals import RATE_LIMITS
from gateway.relay.turn import Turn

RATE_LIMIT_RETRY_SECONDS: Final = 10.0
"""Where OpenAI does not say when to come back."""

_TRY_AGAIN: Final = re.compile(r"try again in (?:(\d+)m(?!s))?(?:([\d.]+)(ms|s))?", re.I)


def document(turn: Turn, session_id: str, head: str) -> dict[str, object]:
    """Give a finished turn as a JSON answer. Raises what the turn failed with."""
    result = result_of(turn)
    output = result.get("output")
    return {
        "id": result.get("id"),
        "status": result.get("status"),
        "output_text": output_text(result),
        "output": output if isinstance(output, list) else [],
        "usage": result.get("usage"),
        "error": response_error(result),
        "session_id": session_id,
        "head": head,
    }


def result_of(turn: Turn) -> Json:
    """Give the `response` of the turn's response.done. Raises what came instead, a rate limit included."""
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
    """Give the whole text of a finished turn. Raises `no-text-output` where there is none, `upstream-failed` where the
    response failed or was cancelled, since text alone cannot say so."""
    result = result_of(turn)
    status = result.get("status")
    if status in ("failed", "cancelled"):
        error = response_error(result)
        detail = f"The response was not completed: {(error or {}).get('message') or status}"
        raise UpstreamError("upstream-failed", detail, members={"upstream": error} if error else {})
    text = output_text(result)
    if not text:
        raise CallerError(
            "no-text-output", "The response has no text; ask for it as JSON to see what it has."
        )
    return text


def failure_of(turn: Turn) -> GatewayError | None:
    """Give what a turn's answer as text would have been refused with."""
    try:
        text_of(turn)
    except GatewayError as error:
        return error
    return None


def output_text(result: Json) -> str | None:
    """Join the texts of a response's messages, None where it has none at all."""
    texts = list(_texts(result))
    return "".join(texts) if texts else None


def response_error(result: Json) -> Json | None:
    """Give the error of a failed response."""
    details = result.get("status_details")
    error = details.get("error") if isinstance(details, Mapping) else None
    return error if isinstance(error, Mapping) else None


def retryable(turn: Turn) -> bool:
    """Tell whether a finished turn left nothing worth keeping, so that a repeat should try anew."""
    failure = failure_of(turn)
    return (failure is not None and failure.retryable and turn.result is None) or _rate_limited(failure)


def _rate_limited(failure: GatewayError | None) -> bool:
    return failure is not None and failure.code == "upstream-rate-limited"


def _texts(result: Json) -> Iterator[str]:
    output = result.get("output")
    for item in output if isinstance(output, list) else ():
        content = item.get("content") if isinstance(item, Mapping) else None
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

"""Errors of the HTTP requests to OpenAI, as callers see them. What an error code means is in `relay.openai_errors`.

No error made here contains a key: the service quotes part of a wrong key in its message, so messages are redacted.
"""

import json
import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import aiohttp

from gateway.errors import GatewayError, UpstreamError
from gateway.relay.openai_errors import code_of
from gateway.relay.ports import Json
from gateway.upstream.descriptors import exhausted, no_descriptor

# Maximum shown of an upstream message. The service's own are a sentence or two.
MAX_MESSAGE_CHARACTERS = 500
# Upper bound of the Retry-After passed to callers: one day.
LONGEST_RETRY_AFTER_SECONDS = 24 * 3600.0

_SECRET = re.compile(r"\b(?:sk|ek|rk|sess|gwk|gwt)[-_][A-Za-z0-9_\-*.]{4,}")
# Form of an upstream code that may be used as a metric label and in an answer.
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_DETAILS: Mapping[int, str] = {
    401: "OpenAI does not accept the credential",
    403: "The credential is not allowed to do this at OpenAI",
    404: "OpenAI does not know this address: check upstream.base_url",
    429: "OpenAI's rate limit was reached",
}


def describe(status: int, body: bytes, secrets: tuple[str, ...]) -> Json:
    """Return the service's error without keys: status, code, type and message if known."""
    told: dict[str, object] = {"status": status}
    error: object = None
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, dict):
        error = parsed.get("error", parsed)
    if isinstance(error, str):
        error = {"message": error}
    if isinstance(error, dict):
        for name in ("code", "type", "param"):
            value = error.get(name)
            if isinstance(value, str) and _WORD.fullmatch(value):
                told[name] = value
        message = error.get("message")
        if isinstance(message, str):
            told["message"] = clean(message, secrets)
    return told


def clean(message: str, secrets: tuple[str, ...] = ()) -> str:
    """Return a message without keys and of bounded length."""
    for secret in secrets:
        message = message.replace(secret, "[key]")
    return _SECRET.sub("[key]", message)[:MAX_MESSAGE_CHARACTERS]


def refusal(upstream: Json, retry_after: str | None, unix: float) -> UpstreamError:
    """Return the error for a described answer of OpenAI."""
    status = upstream["status"]
    assert isinstance(status, int)
    code = code_of(status, upstream.get("code"))
    detail = _DETAILS.get(status, f"OpenAI answered with status {status}")
    if status not in range(400, 600):
        detail = f"OpenAI answered with status {status}, expected 201"
    if "message" in upstream:
        detail = f"{detail}: {upstream['message']}"
    wait = _seconds(retry_after, unix) if code != "upstream-rejected" else None
    return UpstreamError(code, detail, retry_after=wait, members={"upstream": upstream})


def _seconds(retry_after: str | None, unix: float) -> float | None:
    """Read Retry-After (RFC 9110 10.2.3): seconds, or a date."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - unix
        except (ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_SECONDS) if math.isfinite(seconds) else None


def unreachable(error: aiohttp.ClientError) -> GatewayError:
    """Return the error for a request that got no answer."""
    if exhausted(error):
        return no_descriptor()
    # The text of a connector error names the operator's host and port; its class is enough for a caller.
    kinds: tuple[tuple[type[aiohttp.ClientError], str], ...] = (
        (aiohttp.ClientConnectorDNSError, "its name cannot be resolved"),
        (aiohttp.ClientConnectorCertificateError, "its certificate is not trusted"),
        (aiohttp.ClientConnectorSSLError, "no TLS connection could be made"),
        (aiohttp.ClientProxyConnectionError, "the proxy cannot be reached"),
        (aiohttp.ClientHttpProxyError, "the proxy refused"),
        (aiohttp.ClientConnectorError, "the connection was refused"),
        (aiohttp.ServerDisconnectedError, "it closed the connection without an answer"),
        (aiohttp.InvalidURL, "its address, or the proxy's, is not a URL"),
        (aiohttp.ClientPayloadError, "its answer was cut short or cannot be decoded"),
        (aiohttp.ClientResponseError, "its answer is not HTTP"),
    )
    why = next((text for kind, text in kinds if isinstance(error, kind)), type(error).__name__)
    return UpstreamError("upstream-failed", f"OpenAI cannot be reached: {why}.")

"""Reads the requests that clients post to the service, and writes its refusals.

It opens no calls; it handles bodies, credentials and headers only. It accepts the forms of the reference and its examples:
multipart with or without content types on its parts, a raw offer, an optional `?dcid=`.
"""

from typing import Any

from aiohttp import BodyPartReader, web

from gateway.emulator.faults import Faults
from gateway.emulator.protocol.catalog import REALTIME_SESSION
from gateway.emulator.protocol.errors import HttpRefusal, Refusal, http_refusal
from gateway.emulator.protocol.events import strict_json
from gateway.emulator.transport.sdp import Offer, OfferError, parse_offer

# SDP and a session with many tools stay far below this.
_MAX_PART = 2 * 1024 * 1024
NO_SUCH_CALL = {
    "message": "No session found for the provided call_id",
    "type": "invalid_request_error",
    "code": "call_id_not_found",
    "param": "",
}
BETA_IS_OVER = {
    "message": "The Realtime Beta API is no longer supported. Please use /v1/realtime for the GA API.",
    "type": "invalid_request_error",
    "code": "beta_api_shape_disabled",
}
_INJECTED = {
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: (
        "invalid_request_error",
        "insufficient_permissions",
        "You have insufficient permissions for this operation.",
    ),
    404: (
        "invalid_request_error",
        "model_not_found",
        "The model does not exist or you do not have access to it.",
    ),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached. Please try again later."),
    503: ("server_error", None, "The server is overloaded or not ready yet."),
}


def injected(faults: Faults) -> HttpRefusal:
    """Write the refusal that `signal_status` asks for."""
    status = faults.signal_status or 500
    kind, code, message = _INJECTED.get(
        status, ("server_error", None, "The server had an error while processing your request.")
    )
    headers = {} if faults.signal_retry_after is None else {"Retry-After": f"{faults.signal_retry_after:g}"}
    return HttpRefusal(status, {"message": message, "type": kind, "param": None, "code": code}, headers)


def asks_for_beta(request: web.Request) -> bool:
    """Return whether a request names the beta that ended in May 2026."""
    return "realtime=v1" in request.headers.get("OpenAI-Beta", "")


def bearer(request: web.Request) -> str:
    """Return the request's key; raises if there is none."""
    if asks_for_beta(request):
        raise HttpRefusal(400, BETA_IS_OVER)
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise http_refusal(401, Refusal(None, "Missing bearer or basic authentication in header"))
    return key.strip()


def wrong_key(key: str) -> HttpRefusal:
    """Refuse a key; the message shows only its first and last characters."""
    shown = f"{key[:3]}***{key[-2:]}" if len(key) > 8 else "***"
    return http_refusal(401, Refusal("invalid_api_key", f"Incorrect API key provided: {shown}."))


def channel_id(request: web.Request) -> int | None:
    """Return the data channel id of `?dcid=`, agreed on outside the connection."""
    given = request.query.get("dcid")
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal()) or len(given) > 5 or int(given) > 65534:
        raise http_refusal(400, Refusal("invalid_value", f"Invalid value: '{given[:20]}'.", param="dcid"))
    return int(given)


async def read_call(request: web.Request) -> tuple[Offer, dict[str, Any] | None]:
    """Read a new call's offer and its session object, None where the request has none."""
    if request.content_type == "multipart/form-data":
        parts = await _parts(request)
        if "sdp" not in parts:
            refusal = Refusal("missing_required_parameter", "Missing required parameter: 'sdp'.", param="sdp")
            raise http_refusal(400, refusal)
        return _offer(parts["sdp"]), _session(parts["session"]) if "session" in parts else None
    if request.content_type == "application/sdp":
        return _offer(await request.read()), None
    message = (
        f"Unsupported content type: '{request.content_type}'. "
        "This API method only accepts 'multipart/form-data' or 'application/sdp' requests."
    )
    raise http_refusal(400, Refusal("unsupported_content_type", message))


async def read_json(request: web.Request) -> dict[str, Any]:
    """Read a JSON object; an empty body is read as `{}`."""
    return _object(await request.read(), None)


def _offer(body: bytes) -> Offer:
    try:
        return parse_offer(body.decode("utf-8", "replace"))
    except OfferError as error:
        raise http_refusal(400, Refusal("invalid_offer", str(error))) from None


def _session(body: bytes) -> dict[str, Any]:
    session = _object(body, "session")
    try:
        REALTIME_SESSION.check(session, "session")
    except Refusal as refusal:
        raise http_refusal(400, refusal) from None
    return session


def _object(body: bytes, param: str | None) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        value = strict_json(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        what = f"part '{param}'" if param else "body"
        raise http_refusal(400, Refusal("invalid_json", f"The {what} is not a JSON object.", param=param))
    return value


async def _parts(request: web.Request) -> dict[str, bytes]:
    parts: dict[str, bytes] = {}
    try:
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader) and part.name:
                body = bytes(await part.read(decode=True))
                if len(body) > _MAX_PART:
                    raise http_refusal(
                        413, Refusal("request_too_large", f"The part '{part.name}' is too large.")
                    )
                parts[part.name] = body
    except (ValueError, RuntimeError, AssertionError):
        # aiohttp reports a broken boundary in these ways.
        raise http_refusal(400, Refusal("invalid_body", "The multipart body could not be read.")) from None
    return parts

"""Reads a request's body within its limits, and determines its media type.

`request.read()` is not used: it has no deadline, does not report which limit was exceeded, and answers `100-continue`
before the caller is authorized.
"""

import asyncio
import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Final, NoReturn

from aiohttp import HttpVersion11, hdrs, web
from multidict import istr

from gateway.downstream.http.app_keys import BODY, BODY_SHA256, HOLDING, LIMITS, PRINCIPAL, SESSIONS
from gateway.errors import CallerError, Flaw
from gateway.relay.memory import UNKNOWN, Holding

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
TEXT: Final = "text/plain"
FORM: Final = "application/x-www-form-urlencoded"
"""curl's default media type for `-d`. The body is usually not a form."""

CHARGED_BODY_BYTES: Final = 16 * 1024
"""Bodies up to this size are not charged to the memory budget: they are short-lived, and charging costs time."""

_IDEMPOTENCY_KEY: Final = istr("Idempotency-Key")
_KEY: Final = re.compile(r'"?([!#-\[\]-~]{1,255})"?\Z')
"""A quoted string as in the draft or, as most clients send it, unquoted: visible ASCII without quotes or backslashes."""


def media_type(request: web.Request, taken: Iterable[str]) -> str:
    """Return the body's media type, JSON by default. Raises `unsupported-media-type` if it is not in `taken`."""
    named = request.headers.get(hdrs.CONTENT_TYPE, JSON)
    if named in taken:
        return named  # as most clients send it, without parameters
    named = request.content_type if names_media_type(request) else JSON
    if named not in taken:
        listed = ", ".join(sorted(taken))
        raise CallerError("unsupported-media-type", f"'{named}' is not supported; supported: {listed}.")
    return named


def names_media_type(request: web.Request) -> bool:
    """Return whether the request says what its body is. An empty Content-Type says nothing."""
    return bool(request.headers.get(hdrs.CONTENT_TYPE, "").strip())


async def read_body(request: web.Request, max_bytes: int | None = None) -> bytes:
    """Read the whole body. Raises `too-large`, `request-timeout`, or `unsupported-media-type` for an encoded one."""
    if BODY in request:
        return request[BODY]  # It was read for forwarding, but the request is handled here.
    limits = request.app[LIMITS]
    limit = limits.max_body_bytes if max_bytes is None else max_bytes
    encoding = request.headers.get(hdrs.CONTENT_ENCODING)
    if encoding is not None:
        # A kilobyte of gzip can expand to a megabyte, so the limit would have to be enforced while decompressing.
        raise CallerError("unsupported-media-type", f"A body with Content-Encoding '{encoding}' is not read.")
    if (request.content_length or 0) > limit:
        _refuse(limit)
    if not request.can_read_body:
        return b""
    try:
        if request.content.is_eof() and hdrs.EXPECT not in request.headers:
            body = _arrived(request, limit)
        else:
            await _continue(request)
            async with asyncio.timeout(limits.body_seconds):
                body = await _collect(request, limit)
    except TimeoutError:
        detail = f"The body did not arrive within {limits.body_seconds:g} seconds."
        raise CallerError("request-timeout", detail) from None
    except web.RequestPayloadError:
        _refuse_chunks()
    if isinstance(request.content.exception(), web.RequestPayloadError):
        _refuse_chunks()
    signed = request.get(BODY_SHA256)
    if signed is not None and not hmac.compare_digest(signed, hashlib.sha256(body).hexdigest()):
        raise CallerError("forbidden", "The body differs from the one that the other node signed.")
    request[BODY] = body
    return body


def idempotency_key(request: web.Request) -> str | None:
    """Return the request's Idempotency-Key, if any. Raises `invalid-parameter`."""
    header = request.headers.get(_IDEMPOTENCY_KEY)
    if header is None:
        return None
    found = _KEY.match(header)
    if found is None:
        raise CallerError("invalid-parameter", "Idempotency-Key must be 1 to 255 visible ASCII characters.")
    return found[1]


async def _continue(request: web.Request) -> None:
    # RFC 9110 10.1.1. Not sent earlier, so that a refused client need not send its body.
    if request.version >= HttpVersion11 and request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _arrived(request: web.Request, limit: int) -> bytes:
    """Return a body that arrived together with its head, as most do, without waiting."""
    body = request.content.read_nowait()
    if len(body) > limit:
        _refuse(limit)
    if len(body) > CHARGED_BODY_BYTES:
        _holding(request).take(len(body))
    return body


async def _collect(request: web.Request, limit: int) -> bytes:
    length = request.content_length
    holding = _holding(request) if length is None or length > CHARGED_BODY_BYTES else None
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit:
            _refuse(limit)
        if holding is not None:
            holding.take(len(chunk))
    return bytes(body)


def _holding(request: web.Request) -> Holding:
    """Open the memory charge of a large body. It lasts until the request is answered."""
    holding = request[HOLDING] = request.app[SESSIONS].budget.open(request.get(PRINCIPAL, UNKNOWN))
    return holding


def _refuse(limit: int) -> NoReturn:
    raise CallerError(
        "too-large",
        f"The body is larger than {limit} bytes, the limit of this request.",
        members={"limit": limit},
    )


def _refuse_chunks() -> NoReturn:
    flaw = Flaw("is not followed by valid chunks", pointer=f"/{hdrs.TRANSFER_ENCODING}")
    detail = "The body does not have the form that Transfer-Encoding: chunked requires."
    raise CallerError("invalid-parameter", detail, flaws=(flaw,))

"""Typed keys of the values that handlers read from their application and store in their request.

There are no globals: `server` sets these values, and tests set others. `ACCESS` and `STREAM` are next to their classes.
"""

import asyncio
from typing import Final

from aiohttp import web

from gateway.downstream.http.limits import ServerLimits
from gateway.relay.clock import Clock
from gateway.relay.memory import Holding
from gateway.relay.ports import Sessions
from gateway.relay.telemetry import DownstreamTelemetry

SESSIONS: Final[web.AppKey[Sessions]] = web.AppKey("sessions")
TELEMETRY: Final[web.AppKey[DownstreamTelemetry]] = web.AppKey("telemetry")
LIMITS: Final = web.AppKey("limits", ServerLimits)
OPEN_TO_PAGES: Final = web.AppKey("open_to_pages", bool)
"""Whether the origins in `access.cors_origins` may call this listener."""
CHECKS_HOST: Final = web.AppKey("checks_host", bool)
"""Whether callers without an API key must use a known `Host`. The operator's routes have a rule of their own."""
CLOCK: Final = web.AppKey("clock", Clock)
STEPS_LOCK: Final = web.AppKey("steps_lock", asyncio.Lock)
"""Held while a body is read in steps, so that only one is read at a time."""

REQUEST_ID: Final = web.RequestKey("request_id", str)
PEER_REQUEST: Final = web.RequestKey("peer_request", str)
"""Set if there are several nodes: an id that stays the same each time the request is forwarded."""
BODY: Final = web.RequestKey("body", bytes)
"""The body, once it has been read, in case the request must be forwarded later."""
BODY_SHA256: Final = web.RequestKey("body_sha256", str)
"""Set if another node forwarded the request: the body's SHA-256 digest that it signed."""
SESSION: Final = web.RequestKey("session", str)
PRINCIPAL: Final = web.RequestKey("principal", str)
ERROR_CODE: Final = web.RequestKey("error_code", str)
ANSWERED_AT: Final = web.RequestKey("answered_at", float)
"""When the response headers were sent, in monotonic seconds."""
HOLDING: Final = web.RequestKey("holding", Holding)
"""The memory charged for the request's body until the request is answered."""

"""What handlers find in their application and leave in their request, by typed key.

Nothing is global: `server` puts these in place, tests put others there. `ACCESS` and `STREAM` lie beside the classes they give.
"""

import asyncio
from typing import Final

from aiohttp import web

from gateway.downstream.http.limits import ServerLimits
from gateway.relay.budget import Holding
from gateway.relay.clock import Clock
from gateway.relay.ports import Sessions
from gateway.relay.telemetry import DownstreamTelemetry

SESSIONS: Final[web.AppKey[Sessions]] = web.AppKey("sessions")
TELEMETRY: Final[web.AppKey[DownstreamTelemetry]] = web.AppKey("telemetry")
LIMITS: Final = web.AppKey("limits", ServerLimits)
OPEN_TO_PAGES: Final = web.AppKey("open_to_pages", bool)
"""Whether the origins in `access.cors_origins` may call this listener."""
CLOCK: Final = web.AppKey("clock", Clock)
STEPS_LOCK: Final = web.AppKey("steps_lock", asyncio.Lock)
"""Held by the one body that is read in steps."""

REQUEST_ID: Final = web.RequestKey("request_id", str)
PEER_REQUEST: Final = web.RequestKey("peer_request", str)
"""Set where there are several nodes: an id that stays the same when the request is passed on, or passed on again."""
BODY: Final = web.RequestKey("body", bytes)
"""The body, once it was read, for a request that has to be passed on after all."""
BODY_SHA256: Final = web.RequestKey("body_sha256", str)
"""Set where another node passed the request on: what it signed of the body."""
SESSION: Final = web.RequestKey("session", str)
PRINCIPAL: Final = web.RequestKey("principal", str)
ERROR_CODE: Final = web.RequestKey("error_code", str)
ANSWERED_AT: Final = web.RequestKey("answered_at", float)
"""When the headers of the answer were sent, in monotonic seconds."""
HOLDING: Final = web.RequestKey("holding", Holding)
"""What the request's body is charged to, until the request is answered."""

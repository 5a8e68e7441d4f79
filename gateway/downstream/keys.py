"""What handlers find in their application and leave in their request, by typed key.

Nothing is global: `server` puts these in place, tests put others there.
"""

from typing import TYPE_CHECKING, Final

from aiohttp import web

from gateway.downstream.limits import ServerLimits
from gateway.relay.clock import Clock
from gateway.relay.hub import Hub
from gateway.relay.ports import Telemetry

if TYPE_CHECKING:
    # These rooms' own files need the keys below.
    from gateway.downstream.access import Access
    from gateway.downstream.stream import StreamLimits

HUB: Final = web.AppKey("hub", Hub)
TELEMETRY: Final[web.AppKey[Telemetry]] = web.AppKey("telemetry")
ACCESS: "Final[web.AppKey[Access]]" = web.AppKey("access")
LIMITS: Final = web.AppKey("limits", ServerLimits)
STREAM: "Final[web.AppKey[StreamLimits]]" = web.AppKey("stream")
OPEN_TO_PAGES: Final = web.AppKey("open_to_pages", bool)
"""Whether the origins in `access.cors_origins` may call this listener."""
CLOCK: Final = web.AppKey("clock", Clock)

REQUEST_ID: Final = web.RequestKey("request_id", str)
SESSION: Final = web.RequestKey("session", str)
PRINCIPAL: Final = web.RequestKey("principal", str)
ERROR_CODE: Final = web.RequestKey("error_code", str)
ANSWERED_AT: Final = web.RequestKey("answered_at", float)
"""When the headers of the answer were sent, in monotonic seconds."""

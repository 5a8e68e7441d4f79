"""`/livez` and `/readyz`, on both listeners (api.md, 7 The operator's listener).

Live means that the loop turns; ready means that new clients are welcome. Neither asks OpenAI or Redis: a restart would
mend nothing there.
"""

from aiohttp import web

from gateway.downstream.http.app_keys import HUB
from gateway.errors import OverloadError


def add_routes(app: web.Application) -> None:
    """Put this file's handlers in place."""
    app.router.add_get("/livez", live)
    app.router.add_get("/readyz", ready)


async def live(request: web.Request) -> web.Response:
    """Say that the process answers."""
    return web.Response(text="ok\n")


async def ready(request: web.Request) -> web.Response:
    """Say that sessions may be opened; 503 while draining. Before start-up is done nothing listens."""
    if request.app[HUB].draining:
        raise OverloadError("draining", "The gateway is shutting down.", retry_after=2)
    return web.Response(text="ok\n")

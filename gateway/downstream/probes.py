"""`/livez` and `/readyz`, on both listeners (api.md, 7 The operator's listener).

Live means that the event loop runs; ready means that new sessions are accepted. Neither checks OpenAI or Redis, since a
restart would not repair those.
"""

from aiohttp import web

from gateway.downstream.http.app_keys import SESSIONS
from gateway.errors import OverloadError


def add_routes(app: web.Application) -> None:
    """Add the routes of this file."""
    app.router.add_get("/livez", live)
    app.router.add_get("/readyz", ready)


async def live(request: web.Request) -> web.Response:
    """Answer 200 while the process runs."""
    return web.Response(text="ok\n")


async def ready(request: web.Request) -> web.Response:
    """Answer 200 if sessions can be opened, 503 while draining. During start-up nothing listens yet."""
    if request.app[SESSIONS].draining:
        raise OverloadError("draining", "The gateway is shutting down.", retry_after=2)
    return web.Response(text="ok\n")

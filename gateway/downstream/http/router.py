"""The router of a listener: aiohttp's, without its answers to `Expect`."""

from aiohttp import web
from aiohttp.web_urldispatcher import UrlMappingMatchInfo


class Router(web.UrlDispatcher):
    """Finds the handler of a request.

    aiohttp answers `Expect` before the handler and its middlewares: with `100 Continue` before the caller is authorized,
    and with a 417 that is not a problem object. `read_body` sends `100 Continue` itself.
    """

    async def resolve(self, request: web.Request) -> UrlMappingMatchInfo:
        found = await super().resolve(request)
        # aiohttp has this setting per route only, and makes a new route for each request without a handler.
        found.route._expect_handler = _expect_later  # noqa: SLF001
        return found


async def _expect_later(request: web.Request) -> None:
    """Send no `100 Continue` yet. Other expectations are ignored, as RFC 9110 10.1.1 allows."""

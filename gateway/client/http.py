"""The HTTP connections to one gateway, and requests with retries."""

import asyncio
import json
import secrets
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp

from gateway.client.answer import Json
from gateway.client.errors import ProblemError, UnreachableError, raise_for_problem
from gateway.client.retrying import passing, waits

CONNECT_SECONDS: Final = 10.0
REQUEST_SECONDS: Final = 60.0


class Connection:
    """Sends requests to one gateway, inside an `async with` block."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """`url` without a scheme is an http:// URL. Raises ValueError if it is not one of HTTP."""
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not the URL of a gateway, such as http://127.0.0.1:8080")
        self._key = key
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # aiohttp's default limit is 100 connections; further requests would wait silently.
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    @property
    def http(self) -> aiohttp.ClientSession:
        """The aiohttp session, for the caller's own requests."""
        if self._http is None:
            raise RuntimeError("use `async with Client(…)`")
        return self._http

    async def reach(self) -> None:
        """Check that a server answers at the URL. Raises aiohttp.ClientError or TimeoutError at once, without retries."""
        async with self.http.get(f"{self.url}/livez", timeout=aiohttp.ClientTimeout(total=CONNECT_SECONDS)):
            pass

    async def request(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool = False,
        seconds: float | None = None,
        **options: Any,  # aiohttp's
    ) -> Json:
        """Send a request and return the JSON of the response, `{}` if it has none.

        A `repeatable` request has an Idempotency-Key, and is sent again if the connection fails or the gateway asks for a
        retry. Raises ProblemError or UnreachableError.
        """
        headers = {"Accept": "application/json", **(options.pop("headers", None) or {})}
        if repeatable:
            headers["Idempotency-Key"] = secrets.token_hex(16)
        if seconds is not None:
            options["timeout"] = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        for wait in waits():
            try:
                async with self.http.request(method, self.url + path, headers=headers, **options) as answer:
                    await raise_for_problem(answer)
                    return _json(answer, await answer.read())
            except ProblemError as error:
                if not repeatable or wait is None or not passing(error):
                    raise
                await asyncio.sleep(max(wait, error.retry_after or 0))
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
                if not repeatable or wait is None:
                    raise UnreachableError(self.url, error) from error
                await asyncio.sleep(wait)
        raise AssertionError("the last try returned or raised")


def _json(answer: aiohttp.ClientResponse, body: bytes) -> Json:
    """Return the JSON object of a response. Raises ProblemError if another server answered."""
    if not body:
        return {}
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        detail = f"expected a JSON object, got {answer.content_type}: is this the gateway?"
        raise ProblemError(answer.status, {"detail": detail})
    return found

"""Creating and ending a call over HTTP.

`POST {base_url}/realtime/calls` takes the offer and the session object and returns the answer; `POST .../hangup` ends the
call. This file knows nothing of WebRTC: offer and answer are text. `refusals` makes errors of what goes wrong.
"""

import asyncio
import hashlib
import re
from dataclasses import dataclass
from secrets import token_hex
from urllib.parse import quote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]  # not in typeshed

import aiohttp

from gateway.errors import UpstreamError
from gateway.relay.clock import Clock
from gateway.relay.events.envelope import compose
from gateway.relay.ports import CallRequest, Json
from gateway.upstream.config import UpstreamConfig
from gateway.upstream.refusals import describe, refusal, unreachable

# A recorded answer has 1.5 kB; a page of HTML from a proxy in between may have any size.
MAX_ANSWER_BYTES = 256 * 1024
# Signalling is retried only if no call can have been created: the connection was refused, or the service said how long
# to wait. Three attempts bridge a restart; more would only delay the caller's error.
MAX_TRIES = 3
CONNECT_RETRY_SECONDS = 0.25
# Longer waits are left to the caller, who gets Retry-After.
LONGEST_WAIT_SECONDS = 5.0
# Time reserved for ICE, DTLS and the channel after a retry: seven round trips.
RESERVE_SECONDS = 3.0

_CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")


@dataclass(frozen=True, slots=True)
class CreatedCall:
    """A call that exists upstream; `call_id` is None if the answer did not name it."""

    sdp: str
    call_id: str | None
    status: int


class Signaller:
    """Speaks HTTP to the service. Owned by the dialer, which opens and closes it."""

    def __init__(self, config: UpstreamConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._base = config.base_url.rstrip("/")
        self._client: aiohttp.ClientSession | None = None
        self._proxy: str | None = None

    async def open(self) -> None:
        """Create the HTTP client; nothing is sent yet."""
        self._proxy = proxy_for(self._config)
        self._client = aiohttp.ClientSession(
            # aiohttp's default limit is 100: call 101 would wait silently. Sessions are limited elsewhere.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15.0),
            # Deadlines are set around every request.
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            # trust_env would also read ~/.netrc, in a thread, for each request, and fail for a host listed in it.
            trust_env=False,
            auto_decompress=True,
            middlewares=(_without_redirects,),
        )

    async def close(self) -> None:
        """Close idle connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def create(self, offer: str, request: CallRequest, seconds: float) -> CreatedCall:
        """Create a call; `seconds` is what is left of the deadline, which the caller enforces.

        Raises UpstreamError.
        """
        ends = self._clock.monotonic() + seconds
        tries = 0
        while True:
            tries += 1
            left = ends - self._clock.monotonic() - RESERVE_SECONDS
            try:
                return await self._create_once(offer, request)
            except aiohttp.ClientConnectorError as error:
                wait = CONNECT_RETRY_SECONDS * 2 ** (tries - 1)
                if (
                    tries >= MAX_TRIES
                    or wait > left
                    or isinstance(error, aiohttp.ClientConnectorCertificateError)
                ):
                    raise unreachable(error) from error
            except aiohttp.ClientError as error:
                raise unreachable(error) from error
            except UpstreamError as error:
                if error.retry_after is None or tries >= MAX_TRIES:
                    raise
                wait = error.retry_after
                if wait > min(left, LONGEST_WAIT_SECONDS):
                    raise
            await asyncio.sleep(wait)

    async def hang_up(self, call_id: str, bearer: str | None) -> None:
        """End a call. A call that has ended already is not an error; raises UpstreamError or TimeoutError."""
        assert self._client is not None
        url = f"{self._base}/realtime/calls/{quote(call_id, safe='')}/hangup"
        try:
            async with (
                asyncio.timeout(self._config.hang_up_timeout_seconds),
                self._client.post(
                    url, headers=self._headers(bearer), proxy=self._proxy, allow_redirects=False
                ) as response,
            ):
                if response.status in range(200, 300):
                    return
                body = await _read(response)
        except aiohttp.ClientError as error:
            raise unreachable(error) from error
        upstream = describe(response.status, body, self._secrets(bearer))
        if upstream.get("code") != "call_id_not_found":
            raise refusal(upstream, response.headers.get("Retry-After"), self._clock.unix())

    async def attach(self, call_id: str, bearer: str | None) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket to a call (Realtime: server controls). The caller enforces a deadline; raises UpstreamError.

        The caller sends and answers pings. A frame larger than the operator allows ends the connection.
        """
        assert self._client is not None
        headers = self._headers(bearer)
        # Signalling accepts SDP; a WebSocket handshake needs no Accept header.
        del headers["Accept"]
        try:
            return await self._client.ws_connect(
                f"{self._base}/realtime",
                params={"call_id": call_id},
                headers=headers,
                proxy=self._proxy,
                autoping=False,
                max_msg_size=self._config.max_server_event_bytes,
                timeout=aiohttp.ClientWSTimeout(ws_close=self._config.close_timeout_seconds),
            )
        except aiohttp.WSServerHandshakeError as error:
            # The body is lost with the handshake, and the service often sends none.
            upstream: Json = {"status": error.status}
            if error.status == 404:
                detail = (
                    "OpenAI does not know the call, the call has ended, or it belongs to another project."
                )
                raise UpstreamError("call-unknown", detail, members={"upstream": upstream}) from error
            retry_after = error.headers.get("Retry-After") if error.headers else None
            raise refusal(upstream, retry_after, self._clock.unix()) from error
        except aiohttp.ClientError as error:
            raise unreachable(error) from error

    async def _create_once(self, offer: str, request: CallRequest) -> CreatedCall:
        assert self._client is not None
        headers = self._headers(request.bearer)
        if request.safety_identifier:
            headers["OpenAI-Safety-Identifier"] = hashed(request.safety_identifier)
        if is_ephemeral(request.bearer):
            # An ephemeral key carries its session, so only the offer is sent (Realtime: create call).
            headers["Content-Type"] = "application/sdp"
            data = offer.encode()
        else:
            session = compose(dict(request.session))
            boundary = token_hex(16)
            headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
            data = _form(boundary, offer, session)
        async with self._client.post(
            f"{self._base}/realtime/calls",
            data=data,
            headers=headers,
            proxy=self._proxy,
            # A redirect would send the key to another host.
            allow_redirects=False,
        ) as response:
            body = await _read(response)
        if response.status not in range(200, 300):
            upstream = describe(response.status, body, self._secrets(request.bearer))
            raise refusal(upstream, response.headers.get("Retry-After"), self._clock.unix())
        call_id = response.headers.get("Location", "").partition("?")[0].rstrip("/").rpartition("/")[2]
        return CreatedCall(
            sdp=body.decode("utf-8", "replace"),
            call_id=call_id if _CALL_ID.fullmatch(call_id) else None,
            status=response.status,
        )

    def _headers(self, bearer: str | None) -> dict[str, str]:
        config = self._config
        credential = bearer if config.auth == "client" else config.api_key
        if not credential:
            detail = (
                "The caller's OpenAI key is missing: send it as 'X-Upstream-Authorization: Bearer'."
                if config.auth == "client"
                else "This gateway has no OpenAI key; its operator must set OPENAI_API_KEY or upstream.api_key_file."
            )
            raise UpstreamError("upstream-rejected", f"{detail} OpenAI was not asked.")
        headers = {"Authorization": f"Bearer {credential}", "Accept": "application/sdp"}
        if config.organization:
            headers["OpenAI-Organization"] = config.organization
        if config.project:
            headers["OpenAI-Project"] = config.project
        return headers

    def _secrets(self, bearer: str | None) -> tuple[str, ...]:
        return tuple(secret for secret in (bearer, self._config.api_key) if secret)


def _form(boundary: str, offer: str, session: str) -> bytes:
    """Return the form of the two fields (RFC 7578). aiohttp's form would use a separate system call for each part."""
    fields = (("sdp", "application/sdp", offer), ("session", "application/json", session))
    parts = (
        f'--{boundary}\r\nContent-Type: {kind}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'
        for name, kind, text in fields
    )
    return f"{''.join(parts)}--{boundary}--\r\n".encode()


def hashed(name: str) -> str:
    """Return a pseudonym that distinguishes callers upstream: the service asks for a hash (Realtime: WebRTC guide)."""
    return hashlib.sha256(name.encode()).hexdigest()


def is_ephemeral(bearer: str | None) -> bool:
    """Return whether a credential is a client secret, which carries its own session."""
    return bearer is not None and bearer.startswith("ek_")


def host_of(base_url: str) -> str:
    """Return the host of a base URL, without port or brackets."""
    return urlsplit(base_url).hostname or ""


def is_loopback(host: str) -> bool:
    """Return whether a host name means this machine."""
    return (
        host in ("localhost", "::1")
        or host.endswith(".localhost")
        or re.fullmatch(r"127(\.\d+){3}", host) is not None
    )


def proxy_for(config: UpstreamConfig) -> str | None:
    """Return the HTTP proxy for signalling, or None. Raises ValueError for an unusable proxy in the environment."""
    if config.proxy:
        return config.proxy
    parts = urlsplit(config.base_url)
    host = parts.hostname or ""
    proxies = getproxies_environment()
    if is_loopback(host) or proxy_bypass_environment(host, proxies):
        return None
    proxy = proxies.get(parts.scheme)
    if not proxy:
        return None
    if "://" not in proxy:
        # Without a scheme it is an HTTP proxy, as for curl.
        return f"http://{proxy}"
    scheme = proxy.partition("://")[0].lower()
    if scheme != "http":
        name = f"{parts.scheme}_proxy".upper()
        raise ValueError(
            f"{name} names a proxy of the kind {scheme}; signalling works only through http:// proxies"
        )
    return proxy


async def _without_redirects(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Refuse to follow a WebSocket's redirect, for which `ws_connect` has no parameter: it could lead to any host."""
    response = await handler(request)
    if request.method == "GET" and response.status in range(300, 400):
        response.close()
        raise aiohttp.WSServerHandshakeError(
            response.request_info,
            response.history,
            status=response.status,
            message="a redirect",
            headers=response.headers,
        )
    return response


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            response.close()
            break
    return b"".join(parts)[:MAX_ANSWER_BYTES]


def session_update(session: Json) -> str | None:
    """Return the client event that applies the requested session; the model is fixed when a call is created."""
    asked = {name: value for name, value in session.items() if name != "model"}
    if not asked.keys() - {"type"}:
        return None
    event = {
        "type": "session.update",
        "event_id": "gateway_session",
        "session": {"type": "realtime", **asked},
    }
    return compose(event)

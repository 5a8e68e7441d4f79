"""The service over HTTP: calls, hangup, client secrets, and refusals.

It does not know the events on a channel. Paths, statuses, headers and bodies are those of the service, as recorded or
reported (Realtime: WebRTC, client secrets); endpoints that the service does not have are under `/_emulator` (`control`).
"""

import time
import uuid
from typing import Any

from aiohttp import web

from gateway.emulator.config import EmulatorConfig
from gateway.emulator.http import control, signalling
from gateway.emulator.http.websocket import WebSockets
from gateway.emulator.protocol import session as session_object
from gateway.emulator.protocol.client_secrets import Identity
from gateway.emulator.protocol.errors import HttpRefusal, Refusal, http_refusal
from gateway.emulator.service import Service

_MAX_BODY = 64 * 1024 * 1024
_WILDCARDS = ("0.0.0.0", "", "::")
# The broken answers of the `answer` fault.
_BAD_ANSWERS = {"broken": "v=0\r\nthis is no session description\r\n", "empty": ""}


class Emulator:
    """The offline service: `start`, use `base_url`, `close`.

    It can run in its client's process, but prefer a separate one: its CPU time is then not counted as the
    client's.
    """

    def __init__(self, config: EmulatorConfig | None = None) -> None:
        self.config = config or EmulatorConfig()
        self.service: Service | None = None
        self._runner: web.AppRunner | None = None
        self._port = 0
        self._ipv6_only = False

    @property
    def base_url(self) -> str:
        """Return `http://host:port/v1`, with the port that was bound."""
        host = self.config.host
        if host in _WILDCARDS:
            host = "::1" if self._ipv6_only else "127.0.0.1"
        return f"http://[{host}]:{self._port}/v1" if ":" in host else f"http://{host}:{self._port}/v1"

    async def start(self) -> None:
        """Listen; raises OSError where the port is taken, ValueError if a recording is malformed."""
        self.service = Service(self.config)
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[_service_answers])
        _Api(self.service).add_routes(app)
        control.add_routes(app, self.service)
        # Sidebands last as long as their calls. End the calls first, or the server waits for the sidebands.
        app.on_shutdown.append(self._end_calls)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=3.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.config.host, self.config.port, backlog=1024).start()
        except BaseException:
            await self.close()
            raise
        self._port = self._runner.addresses[0][1]
        self._ipv6_only = all(":" in address[0] for address in self._runner.addresses)

    async def close(self) -> None:
        """Stop listening, then end every call."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self.service is not None:
            await self.service.close()

    async def _end_calls(self, _: web.Application) -> None:
        if self.service is not None:
            self.service.end_all()


class _Api:
    def __init__(self, service: Service) -> None:
        self.service = service

    def add_routes(self, app: web.Application) -> None:
        router = app.router
        router.add_post("/v1/realtime/calls", self.create)
        router.add_post("/v1/realtime/calls/{call_id}/hangup", self.hangup)
        router.add_post("/v1/realtime/client_secrets", self.client_secret)
        router.add_get("/v1/realtime", WebSockets(self.service, self._identify).connect)
        for retired in ("/v1/realtime", "/v1/realtime/sessions"):
            router.add_post(retired, self.retired)
        router.add_route("OPTIONS", "/{anything:.*}", self.preflight)
        router.add_route("*", "/{anything:.*}", self.unknown)

    async def create(self, request: web.Request) -> web.Response:
        """Realtime: create a call."""
        service, faults = self.service, self.service.faults
        if service.still_signals_badly():
            try:
                await service.hold(faults.signal_delay_seconds)
            except Refusal as refusal:
                raise http_refusal(503, refusal) from None
            if faults.signal_status is not None:
                raise signalling.injected(faults)
        identity = self._identify(signalling.bearer(request))
        offer, given = await signalling.read_call(request)
        if given is None:
            # A secret carries a session configuration, which the request's own overrides. `?model=` does not change it.
            given = identity.session or {}
        elif identity.session:
            given = identity.session | given
        try:
            call, answer = await service.open(offer, given, signalling.channel_id(request))
        except Refusal as refusal:
            raise http_refusal(429, refusal) from None
        call.owner, call.project = identity.key, identity.project
        response = web.Response(status=201, body=_spoilt(answer, faults.answer).encode())
        response.headers["Content-Type"] = "text/plain; charset=utf-8"
        response.headers["Location"] = f"/v1/realtime/calls/{call.id}"
        response.headers["Timing-Allow-Origin"] = "*"
        return response

    async def hangup(self, request: web.Request) -> web.Response:
        """Realtime: hang up. The key that opened a call may end it, even after the key has expired."""
        key = signalling.bearer(request)
        call = self.service.calls.get(request.match_info["call_id"])
        project = call.project if call is not None and call.owner == key else self._identify(key).project
        if call is None or call.project != project:
            raise HttpRefusal(404, signalling.NO_SUCH_CALL)
        call.end("hung up")
        return web.Response(status=200)

    async def client_secret(self, request: web.Request) -> web.Response:
        """Realtime: create a client secret."""
        started = time.perf_counter()
        key = signalling.bearer(request)
        identity = self._identify(key)
        if identity.session is not None:
            raise signalling.wrong_key(key)
        try:
            body = await signalling.read_json(request)
            secret = self.service.secrets.create(body, int(time.time()), identity.project)
        except Refusal as refusal:
            raise http_refusal(400, refusal) from None
        session_id = "sess_" + self.service.ids.draw(21)
        answer = {
            "value": secret.value,
            "expires_at": secret.expires_at,
            "session": session_object.new_session(session_id, 0, secret.session),
        }
        taken = str(max(1, round((time.perf_counter() - started) * 1000)))
        headers = {"openai-processing-ms": taken, "openai-version": "2020-10-01"}
        return web.json_response(answer, headers=headers)

    async def retired(self, request: web.Request) -> web.Response:
        """The beta's addresses, closed in May 2026."""
        raise HttpRefusal(400, signalling.BETA_IS_OVER)

    async def preflight(self, request: web.Request) -> web.Response:
        """Answer a browser's preflight request (Fetch 4.8)."""
        wanted = request.headers.get("Access-Control-Request-Headers", "*")
        headers = {
            "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": wanted,
            "Access-Control-Max-Age": "7200",
        }
        return web.Response(status=204, headers=headers)

    async def unknown(self, request: web.Request) -> web.Response:
        raise http_refusal(404, Refusal(None, f"Invalid URL ({request.method} {request.path})"))

    def _identify(self, key: str) -> Identity:
        """Return the key's identity; raises if the key is not accepted. A key without a project has one to itself."""
        if key.startswith("ek_"):
            secret = self.service.secrets.find(key)
            if secret is None:
                raise signalling.wrong_key(key)
            if secret.expires_at <= time.time():
                raise http_refusal(401, Refusal("invalid_api_key", "Ephemeral token expired"))
            return Identity(key, secret.project, secret.session)
        accepted = dict(_project(entry) for entry in self.service.config.api_keys)
        if accepted and key not in accepted:
            raise signalling.wrong_key(key)
        return Identity(key, accepted.get(key, key), None)


def _project(entry: str) -> tuple[str, str]:
    """Split `KEY@PROJECT` of the configuration."""
    key, _, project = entry.partition("@")
    return key, project or key


def _spoilt(answer: str, fault: str | None) -> str:
    if fault == "no_audio":
        head, _, rest = answer.partition("m=audio ")
        return head + "m=application " + rest.partition("m=application ")[2]
    return answer if fault is None else _BAD_ANSWERS[fault]


@web.middleware
async def _service_answers(request: web.Request, handler: Any) -> web.StreamResponse:
    """Put refusals in the service's envelope, and its headers on every answer."""
    try:
        response: web.StreamResponse = await handler(request)
    except HttpRefusal as refusal:
        response = _refused(refusal)
    except web.RequestPayloadError:
        response = _refused(http_refusal(400, Refusal("invalid_body", "The request body cannot be decoded.")))
    except web.HTTPRequestEntityTooLarge:
        response = _refused(http_refusal(413, Refusal("request_too_large", "The request body is too large.")))
    headers = response.headers
    headers["Access-Control-Allow-Origin"] = "*"
    # The header is sent twice, as recorded. Clients that read only the first one must find the call's address there.
    headers["Access-Control-Expose-Headers"] = "Location, X-Request-Id"
    headers.add("Access-Control-Expose-Headers", "CF-Ray")
    headers["X-Request-Id"] = f"req_{uuid.uuid4().hex}"
    return response


def _refused(refusal: HttpRefusal) -> web.Response:
    return web.json_response({"error": refusal.body}, status=refusal.status, headers=refusal.headers)

"""The service over HTTP: calls, hangup, errors.

Refuses to know what is said on a channel.
"""

import asyncio
import contextlib
import json
import secrets
import time
from typing import Any

import ifaddr
from aiohttp import BodyPartReader, web

from gateway.emulator import session as session_object
from gateway.emulator.brain import RuleBrain
from gateway.emulator.call import Call, CallTimes
from gateway.emulator.config import EmulatorConfig
from gateway.emulator.errors import HttpRefusal, Refusal, http_refusal
from gateway.emulator.ice import LiteAgent
from gateway.emulator.ids import IdSource, session_of
from gateway.emulator.peer import FarPeer, SharedCertificate
from gateway.emulator.realtime import Line, Realtime
from gateway.emulator.sdp import Endpoint, Offer, OfferError, answer_setup, parse_offer, write_answer

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MAX_BODY = 4 * 1024 * 1024


class Emulator:
    """The offline service: `start`, use `base_url`, `close`."""

    def __init__(self, config: EmulatorConfig | None = None) -> None:
        self.config = config or EmulatorConfig()
        self.calls: dict[str, Call] = {}
        self._ids = IdSource()
        self._brain = RuleBrain()
        self._certificate: SharedCertificate | None = None
        self._addresses: list[str] = []
        self._runner: web.AppRunner | None = None
        self._port = 0
        self._endings: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        """Give `http://host:port/v1`, with the port that was bound."""
        host = "127.0.0.1" if self.config.host in ("0.0.0.0", "") else self.config.host
        return f"http://[{host}]:{self._port}/v1" if ":" in host else f"http://{host}:{self._port}/v1"

    async def start(self) -> None:
        """Listen; the port is known afterwards."""
        self._certificate = SharedCertificate.generateCertificate()
        self._addresses = media_addresses(self.config.host)
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[_refusals])
        app.router.add_post("/v1/realtime/calls", self._create)
        app.router.add_post("/v1/realtime/calls/{call_id}/hangup", self._hangup)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.config.host, self.config.port, backlog=1024).start()
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """End every call and stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
        await asyncio.gather(*(call.close() for call in list(self.calls.values())))
        self.calls.clear()
        if self._endings:
            await asyncio.wait(set(self._endings))

    async def _create(self, request: web.Request) -> web.Response:
        self._authorize(request)
        offer_text, given = await _read_offer(request)
        try:
            offer = parse_offer(offer_text)
        except OfferError as error:
            raise http_refusal(400, Refusal("invalid_offer", str(error))) from None
        call, answer = await self._open(offer, given, _dcid(request))
        return web.Response(
            status=201,
            body=answer.encode(),
            headers={
                "Content-Type": "text/plain; charset=utf-8",
                "Location": f"/v1/realtime/calls/{call.id}",
                "Timing-Allow-Origin": "*",
            },
        )

    async def _open(self, offer: Offer, given: dict[str, Any], dcid: int | None) -> tuple[Call, str]:
        assert self._certificate is not None
        created = int(time.time())
        agent = LiteAgent(
            ufrag=f"{self._ids.draw(8)}/u1/3o{self._ids.draw(4)}",
            password=self._ids.draw(32),
            remote_ufrag=offer.ufrag,
            strict_consent=self.config.consent == "strict",
        )
        try:
            addresses = await agent.open(self._addresses)
        except BaseException:
            await agent.close()
            raise
        setup = answer_setup(offer.setup, self.config.setup)
        peer = FarPeer(offer, agent, self._certificate, client=setup == "active")
        times = CallTimes(created, created + self.config.max_session_seconds)
        call_id = self._ids.call()
        realtime = Realtime(
            session=session_object.new_session(session_of(call_id), int(times.expires_at), given),
            ids=self._ids,
            line=Line(peer.send, peer.writable),
            brain=self._brain,
            tokens_per_second=self.config.tokens_per_second,
            quirk=self.config.item_done_quirk,
        )
        call = Call(call_id, peer, realtime, times, self._ended)
        self.calls[call_id] = call
        peer.start(dcid)
        endpoint = Endpoint(
            ufrag=agent.ufrag,
            password=agent.password,
            fingerprint=self._certificate.fingerprint,
            setup=setup,
            addresses=addresses,
            origin=secrets.randbits(63),
            created=created,
        )
        return call, write_answer(offer, endpoint)

    async def _hangup(self, request: web.Request) -> web.Response:
        self._authorize(request)
        call = self.calls.pop(request.match_info["call_id"], None)
        if call is None:
            raise HttpRefusal(
                404,
                {
                    "message": "No session found for the provided call_id",
                    "type": "invalid_request_error",
                    "code": "call_id_not_found",
                    "param": "",
                },
            )
        self._close_later(call)
        return web.Response(status=200)

    def _authorize(self, request: web.Request) -> None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise http_refusal(401, Refusal(None, "Missing bearer or basic authentication in header"))

    def _ended(self, call: Call) -> None:
        if self.calls.pop(call.id, None) is not None:
            self._close_later(call)

    def _close_later(self, call: Call) -> None:
        task = asyncio.create_task(call.close())
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)


def media_addresses(host: str) -> list[str]:
    """Give the addresses media is offered on.

    A listener on one address offers that one, 127.0.0.1 too, which ICE libraries leave out: with only `lo` up there would
    be no candidate at all. A wildcard offers every IPv4 address of the machine.
    """
    if host in _LOOPBACK:
        return ["127.0.0.1"]
    if host not in ("0.0.0.0", "", "::"):
        return [host]
    found = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if isinstance(ip.ip, str)]
    return found or ["127.0.0.1"]


def _dcid(request: web.Request) -> int | None:
    given = request.query.get("dcid")
    if given is None:
        return None
    if not given.isdecimal() or int(given) > 65534:
        raise http_refusal(400, Refusal("invalid_value", f"Invalid 'dcid': '{given}'.", param="dcid"))
    return int(given)


async def _read_offer(request: web.Request) -> tuple[str, dict[str, Any]]:
    """Read the offer and the session object from either form of request."""
    if request.content_type == "multipart/form-data":
        parts: dict[str, str] = {}
        reader = await request.multipart()
        async for part in reader:
            if isinstance(part, BodyPartReader) and part.name:
                parts[part.name] = bytes(await part.read()).decode("utf-8", "replace")
        if "sdp" not in parts:
            raise http_refusal(
                400, Refusal("missing_required_parameter", "Missing required parameter: 'sdp'.", param="sdp")
            )
        return parts["sdp"], _session(parts.get("session"))
    if request.content_type == "application/sdp":
        return (await request.read()).decode("utf-8", "replace"), {}
    raise http_refusal(
        400,
        Refusal(
            "unsupported_content_type",
            f"Unsupported content type '{request.content_type}': use 'multipart/form-data' or 'application/sdp'.",
        ),
    )


def _session(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    session: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        session = json.loads(text)
    if not isinstance(session, dict):
        raise http_refusal(
            400, Refusal("invalid_json", "The 'session' part is not a JSON object.", param="session")
        )
    return session


@web.middleware
async def _refusals(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except HttpRefusal as refusal:
        response = web.json_response({"error": refusal.body}, status=refusal.status, headers=refusal.headers)
    response.headers["Access-Control-Allow-Origin"] = "*"
    response.headers["Access-Control-Expose-Headers"] = "Location, X-Request-Id"
    return response

"""The emulator's own endpoints under `/_emulator`, for tests and demos. The service has no such endpoints.

Callers from other machines are refused. All bodies are JSON.

| call | does |
|---|---|
| `GET /_emulator` | `{"calls":2,"opened":7,"cpu_seconds":1.25}` |
| `GET /_emulator/faults` · `POST` · `DELETE` | show, change (given names only) and clear the faults of later calls (`faults`) |
| `GET /_emulator/calls` · `GET /_emulator/calls/{id}` | running and recently ended calls and WebSocket sessions: times, ICE state, counters, `end_reason` |
| `GET /_emulator/calls/{id}/received` | `{"data":["…"],"dropped":0}`: the client's frames, verbatim; binary ones as `{"base64":"…"}` |
| `POST /_emulator/calls/{id}/send` | `{"frames":["…",{"base64":"…"}]}`: sends each one unchanged as a text message |
| `POST /_emulator/calls/{id}/fault` | fault names and values for this call; `"do"` triggers one now: `silence`, `close_channel`, `hang_up`, `vanish`, `cut_sockets`, `stop_consent`, `expire` |
"""

import base64
import binascii
import dataclasses
import ipaddress
import time
from typing import Any, get_args

from aiohttp import web

from gateway.emulator import faults as faults_of
from gateway.emulator.call import Call
from gateway.emulator.faults import Faults
from gateway.emulator.http.signalling import read_json
from gateway.emulator.protocol.errors import Refusal, http_refusal
from gateway.emulator.service import Service

_NOW = get_args(faults_of.Failure)


def add_routes(app: web.Application, service: Service) -> None:
    """Add the endpoints to an application."""
    control = _Control(service)
    app.router.add_get("/_emulator", control.about)
    app.router.add_get("/_emulator/faults", control.show_faults)
    app.router.add_post("/_emulator/faults", control.change_faults)
    app.router.add_delete("/_emulator/faults", control.clear_faults)
    app.router.add_get("/_emulator/calls", control.calls)
    app.router.add_get("/_emulator/calls/{call_id}", control.call)
    app.router.add_get("/_emulator/calls/{call_id}/received", control.received)
    app.router.add_post("/_emulator/calls/{call_id}/send", control.send)
    app.router.add_post("/_emulator/calls/{call_id}/fault", control.fault)


class _Control:
    def __init__(self, service: Service) -> None:
        self.service = service

    async def about(self, request: web.Request) -> web.Response:
        _local(request)
        service = self.service
        return web.json_response(
            {"calls": len(service.calls), "opened": service.opened, "cpu_seconds": time.process_time()}
        )

    async def show_faults(self, request: web.Request) -> web.Response:
        _local(request)
        return web.json_response(dataclasses.asdict(self.service.faults))

    async def change_faults(self, request: web.Request) -> web.Response:
        _local(request)
        self.service.set_faults(_changed(self.service.faults, await read_json(request)))
        return await self.show_faults(request)

    async def clear_faults(self, request: web.Request) -> web.Response:
        _local(request)
        self.service.set_faults(faults_of.NONE)
        return await self.show_faults(request)

    async def calls(self, request: web.Request) -> web.Response:
        _local(request)
        known = [*self.service.ended.values(), *self.service.calls.values()]
        return web.json_response({"object": "list", "data": [call.describe() for call in known]})

    async def call(self, request: web.Request) -> web.Response:
        return web.json_response(self._find(request).describe())

    async def received(self, request: web.Request) -> web.Response:
        record = self._find(request).received
        frames = [frame if isinstance(frame, str) else _encoded(frame) for frame in record.frames()]
        return web.json_response({"data": frames, "dropped": record.dropped})

    async def send(self, request: web.Request) -> web.Response:
        call = self._find(request)
        frames = (await read_json(request)).get("frames")
        if not isinstance(frames, list):
            raise _bad("'frames' must be an array")
        call.send_frames([_decoded(frame) for frame in frames])
        return web.json_response(call.describe())

    async def fault(self, request: web.Request) -> web.Response:
        call = self._find(request)
        given = await read_json(request)
        what = given.pop("do", None)
        if what is not None and what not in (*_NOW, "stop_consent", "expire"):
            raise _bad(f"'do' is one of {', '.join(_NOW)}, stop_consent, expire, not '{what}'")
        call.set_faults(_changed(call.voice.faults, given))
        if what in _NOW:
            call.fail(what)
        elif what == "stop_consent":
            call.peer.stop_consent()
        elif what == "expire":
            call.expire()
        return web.json_response(call.describe())

    def _find(self, request: web.Request) -> Call:
        _local(request)
        call = self.service.find(request.match_info["call_id"])
        if call is None:
            raise http_refusal(404, Refusal("call_id_not_found", "No such call, running or lately ended."))
        return call


def _local(request: web.Request) -> None:
    try:
        local = ipaddress.ip_address(request.remote or "").is_loopback
    except ValueError:
        local = False
    if not local:
        raise http_refusal(403, Refusal("forbidden", "The control endpoints answer on this machine only."))


def _changed(faults: Faults, given: dict[str, Any]) -> Faults:
    try:
        return faults_of.changed(faults, given)
    except ValueError as error:
        raise _bad(str(error)) from None


def _bad(message: str) -> Exception:
    return http_refusal(400, Refusal("invalid_value", message))


def _encoded(frame: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(frame).decode("ascii")}


def _decoded(frame: Any) -> bytes:
    if isinstance(frame, str):
        return frame.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(frame["base64"], validate=True)
    except (binascii.Error, ValueError, KeyError, TypeError):
        raise _bad('a frame is a string or {"base64": "…"}') from None

"""The two listeners: the client's and the operator's.

`Server` builds an application for each, listens, and closes them again. Tests and the gateway itself use this type.
It takes limits as frozen values, and does not know the configuration.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.downstream import admin, console, events, middleware, openapi, probes, sessions
from gateway.downstream.auth.access import ACCESS, Access
from gateway.downstream.http.app_keys import (
    CHECKS_HOST,
    CLOCK,
    LIMITS,
    OPEN_TO_PAGES,
    SESSIONS,
    STEPS_LOCK,
    TELEMETRY,
)
from gateway.downstream.http.connections import ConnectionLimits, Connections
from gateway.downstream.http.direct import DirectRoutes
from gateway.downstream.http.limits import ServerLimits
from gateway.downstream.http.listener import Binding, Listener
from gateway.downstream.http.router import Router
from gateway.downstream.peers import internal
from gateway.downstream.peers.elsewhere import ELSEWHERE, Elsewhere, elsewhere
from gateway.downstream.peers.internal import PEERS, admit, identify
from gateway.downstream.reading import resource as reads
from gateway.downstream.reading.stream import STREAM, StreamLimits
from gateway.downstream.turns import resource as turns
from gateway.relay.clock import Clock
from gateway.relay.ports import Sessions
from gateway.relay.telemetry import DownstreamTelemetry

OPERATOR_CONNECTIONS: Final = 128
PARTING_SECONDS: Final = 2.0
"""How long a server that closes waits for forwarded streams to be ended by their owners."""


@dataclass(frozen=True, slots=True)
class ServerDependencies:
    """What the HTTP side needs."""

    sessions: Sessions
    telemetry: DownstreamTelemetry
    access: Access
    operator: admin.Operator
    stream: StreamLimits
    limits: ServerLimits = field(default_factory=ServerLimits)
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    """Limits of the client's listener."""
    clock: Clock = field(default_factory=Clock)
    elsewhere: Elsewhere | None = None
    """Forwards requests to other nodes; None without a cluster."""
    hand_over: internal.HandOver | None = None
    """Takes over sessions from other nodes; set if `elsewhere` is."""


class Server:
    """Both listeners, from `start` to `close`."""

    def __init__(self, deps: ServerDependencies) -> None:
        app = client_application(deps)
        self._client_side = Listener(app, deps.limits, _connections(deps), _direct_routes(app, deps))
        # A separate limit, so that clients cannot take the operator's connections.
        operators = replace(deps.connections, max_connections=OPERATOR_CONNECTIONS)
        self._operator_side = Listener(
            operator_application(deps), deps.limits, _connections(replace(deps, connections=operators))
        )
        self._elsewhere = deps.elsewhere
        self._peers_side = (
            None
            if deps.elsewhere is None
            else Listener(internal_application(deps, deps.elsewhere), deps.limits, _connections(deps))
        )

    async def listen_to_peers(self, peers: Binding) -> None:
        """Listen for the other nodes, before this node is announced to them. Raises OSError."""
        assert self._peers_side is not None, "only where there are several nodes"
        await self._peers_side.start(peers)

    async def start(self, client: Binding, operator: Binding) -> None:
        """Listen on both. Raises OSError if an address is not available; then neither listens."""
        try:
            await self._operator_side.start(operator)
            await self._client_side.start(client)
        except BaseException:
            await self.close()
            raise

    async def finish(self, seconds: float) -> None:
        """Accept no more clients, and let the requests that were forwarded to other nodes end, within so many seconds."""
        self._client_side.stop()
        if self._elsewhere is not None:
            await self._elsewhere.finish(seconds)

    async def part(self, seconds: float) -> None:
        """Accept no more clients, and wait for so long until all have used their connection once more: then it was closed with
        a response that said so."""
        self._client_side.stop()
        await self._client_side.wait_for_idle(seconds)

    async def close(self) -> None:
        """Stop listening, end the streams, and wait briefly for running requests. May be called more than once."""
        await self.finish(PARTING_SECONDS)
        await self._client_side.close()
        await self._operator_side.close()
        if self._peers_side is not None:
            await self._peers_side.close()
        if self._elsewhere is not None:
            await self._elsewhere.close()

    @property
    def peers_url(self) -> str:
        """The URL of the listener for other nodes, with its real port."""
        assert self._peers_side is not None, "only where there are several nodes"
        return self._peers_side.url

    @property
    def url(self) -> str:
        """The URL for clients, with its real port."""
        return self._client_side.url

    @property
    def admin_url(self) -> str:
        """The URL for the operator, with its real port."""
        return self._operator_side.url


def _connections(deps: ServerDependencies) -> Connections:
    return Connections(deps.connections, deps.telemetry, deps.sessions.budget, deps.clock.monotonic)


def client_application(deps: ServerDependencies) -> web.Application:
    """Build the application for clients."""
    app = _application(deps, open_to_pages=True, middlewares=_middlewares(deps, elsewhere))
    return _with_client_routes(app, deps)


def internal_application(deps: ServerDependencies, elsewhere: Elsewhere) -> web.Application:
    """Build the application for other nodes."""
    app = _application(deps, open_to_pages=False, middlewares=(identify, middleware.answer_errors, admit))
    app[PEERS] = elsewhere.signatures
    if deps.hand_over is not None:
        app[internal.HAND_OVER] = deps.hand_over
    internal.add_routes(app)
    app[admin.OPERATOR] = deps.operator
    admin.add_internal_routes(app)
    reads.add_internal_routes(app)
    return _with_client_routes(app, deps)


def _with_client_routes(app: web.Application, deps: ServerDependencies) -> web.Application:
    app[STREAM] = deps.stream
    probes.add_routes(app)
    # The router tries the routes in this order, so the most frequent ones come first.
    for resource in (events, reads, turns, sessions, openapi, console):
        resource.add_routes(app)
    return app


def operator_application(deps: ServerDependencies) -> web.Application:
    """Build the application for the operator."""
    # Without a token any page of a listed origin could drain the gateway. The list is about clients, not operators.
    app = _application(
        deps,
        open_to_pages=bool(deps.operator.token_sha256),
        middlewares=_middlewares(deps, admin.of_any_node),
    )
    app[CHECKS_HOST] = False  # With a token the host may be any, else the routes require a loopback name.
    app[admin.OPERATOR] = deps.operator
    admin.add_routes(app)
    return app


def _application(
    deps: ServerDependencies, *, open_to_pages: bool, middlewares: Sequence[Middleware]
) -> web.Application:
    app = web.Application(middlewares=middlewares, client_max_size=deps.limits.max_body_bytes)
    app._router = Router()  # noqa: SLF001  # the parameter for it is deprecated
    if deps.elsewhere is not None:
        app[ELSEWHERE] = deps.elsewhere
    app[SESSIONS], app[TELEMETRY], app[ACCESS] = deps.sessions, deps.telemetry, deps.access
    app[LIMITS], app[CLOCK], app[OPEN_TO_PAGES] = deps.limits, deps.clock, open_to_pages
    app[CHECKS_HOST] = True
    app[STEPS_LOCK] = asyncio.Lock()
    app.on_response_prepare.append(middleware.add_headers)
    return app


def _middlewares(deps: ServerDependencies, of_other_nodes: Middleware) -> Sequence[Middleware]:
    every = (middleware.observe, middleware.answer_errors, middleware.guard)
    return every if deps.elsewhere is None else (*every, of_other_nodes)


def _direct_routes(app: web.Application, deps: ServerDependencies) -> DirectRoutes | None:
    """Return the most frequent routes. With several nodes their handlers wait first, for another node or for Redis."""
    if deps.elsewhere is not None:
        return None
    routes = DirectRoutes(app, middleware.complete)
    for route in app.router.routes():
        if route.handler in (events.post_events, reads.get_events):
            routes.add(route)
    return routes

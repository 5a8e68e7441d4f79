"""The composition root: builds every package from the configuration, starts and closes them in order.

This is the only module that knows all packages. `wiring` maps the configuration to the values that packages take. Tests build
the same type on port 0.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry

from gateway import __version__
from gateway.config import Config, ConfigError
from gateway.config.files import secret, signing_keys
from gateway.downstream.admin import Operator
from gateway.downstream.auth.access import Access, AccessRules
from gateway.downstream.auth.credentials import Signatures
from gateway.downstream.http.listener import Binding
from gateway.downstream.reading.sse import frame, unframe
from gateway.downstream.server import Server, ServerDependencies
from gateway.relay.clock import Clock
from gateway.relay.hub import Hub
from gateway.relay.limits import RelayLimits
from gateway.relay.memory import Budget
from gateway.relay.states import State
from gateway.telemetry import Collector, Metrics, Probes, exposition
from gateway.upstream import tuning
from gateway.upstream.dialer import CallDialer
from gateway.wiring import (
    access_rules,
    connection_limits,
    descriptors,
    relay_limits,
    server_limits,
    stream_limits,
    tls_context,
    upstream_config,
)

if TYPE_CHECKING:
    from gateway.clustering import Clustering

log = structlog.stdlib.get_logger()

IDLE_SECONDS = 1.0
"""From the start of a drain until idle connections are closed. A proxy that keeps connections has used most of them by then."""
ACCEPTED_SECONDS = 0.25
"""How long the connections that were accepted last may take to send their request."""


class Gateway:
    """Serves from `start` to `close`. `drain` lets running conversations finish first."""

    def __init__(self, config: Config, *, shared: bool = False, peer_socket: str = "") -> None:
        """Build everything without using the network.

        With `shared`, other processes listen on the clients' port as well, and `peer_socket` is the path of the unix socket
        on which this one listens for them. Raises ConfigError for a file that cannot be used.
        """
        self._config = config
        self._shared = shared
        self.asked_to_drain = asyncio.Event()
        """Set when an operator asks over HTTP. The caller that runs the gateway then drains it as on SIGTERM."""
        self._clock = clock = Clock()
        registry = CollectorRegistry()
        rules, limits = access_rules(config), relay_limits(config, descriptors())
        self._metrics = _metrics(config, registry, rules, limits)
        self._dialer = CallDialer(upstream_config(config), self._metrics, clock)
        keys = signing_keys(config.access)
        self._clustering = (
            _clustering(config, keys, self._metrics, clock, peer_socket) if config.cluster.url else None
        )
        nodes = self._clustering
        self._hub = Hub(
            self._dialer,
            frame,
            self._metrics,
            limits,
            clock,
            Budget(config.server.memory_budget_bytes),
            unframing=lambda block, start: unframe(block, start).decode(),
            directory=nodes.directory if nodes else None,
            gate=nodes.gate if nodes else None,
        )
        self._metrics.watch(lambda: self._hub.draining)
        self._access = Access(
            rules,
            Signatures(keys or (secrets.token_bytes(32),)),
            clock.monotonic,
            nodes.rates if nodes else None,
        )
        self._server = Server(
            ServerDependencies(
                sessions=self._hub,
                telemetry=self._metrics,
                access=self._access,
                operator=self._operator(exposition(registry)),
                stream=stream_limits(config),
                limits=server_limits(config),
                connections=connection_limits(config, descriptors()),
                clock=clock,
                elsewhere=nodes.elsewhere if nodes else None,
                hand_over=nodes.build(self._hub, self._dialer) if nodes else None,
            )
        )
        self._tls = tls_context(config)
        self._probes = Probes(self._lagged, self._metrics.gc_paused, self.task_failed)
        sessions = self._metrics.sessions
        self.collector = Collector(lambda: sessions.ended, lambda: sessions.live, self.task_failed)
        """Garbage collection concerns the whole process, so the process's owner starts and closes it."""

    def _operator(self, metrics: Callable[[str], tuple[bytes, str]]) -> Operator:
        admin = self._config.admin
        token = secret("admin.token", admin.token, admin.token_file)
        digests = (hashlib.sha256(token.encode()).digest(),) if token else ()
        nodes = self._clustering.shown_nodes if self._clustering is not None else tuple
        return Operator(metrics=metrics, drain=self.asked_to_drain.set, token_sha256=digests, nodes=nodes)

    def _lagged(self, seconds: float) -> None:
        self._metrics.loop_lagged(seconds)
        self._hub.strain.lagged(seconds, self._clock.monotonic())

    def task_failed(self, error: BaseException) -> None:
        """Log an exception of a task that runs beside the sessions."""
        self._metrics.relay_failed("", error)

    @property
    def url(self) -> str:
        """The URL for clients, with the real port."""
        return self._server.url

    @property
    def admin_url(self) -> str:
        """The URL for the operator, with the real port."""
        return self._server.admin_url

    async def start(self) -> None:
        """Listen on both addresses, and join the other nodes.

        Raises OSError if an address is not available or Redis does not answer, ConfigError if Redis is not suitable.
        Everything that was started is closed again then.
        """
        server, admin = self._config.server, self._config.admin
        try:
            await self._dialer.start()
            self._hub.start()
            self._probes.start()
            if self._clustering is not None:
                await self._server.listen_to_peers(self._clustering.binding)
                await self._clustering.start(self._server.peers_url)
            await self._server.start(
                Binding(server.host, server.port, self._tls, self._shared), Binding(admin.host, admin.port)
            )
        except BaseException:
            await self._close()
            raise
        self._warn_of_shortcomings()
        for line in (f"listening on {self.url}", f"admin listening on {self.admin_url}"):
            log.info(line)

    def _warn_of_shortcomings(self) -> None:
        """Log at start what will cause failures later."""
        upstream = self._dialer.config
        if upstream.auth == "gateway" and upstream.api_key is None:
            log.warning("openai_key_missing", remedy="set OPENAI_API_KEY or upstream.api_key_file")
        allowed = self._hub.limits.max_sessions
        if allowed < self._config.relay.max_sessions:
            remedy = "raise the limit on open files (ulimit -n, LimitNOFILE), or lower relay.max_sessions"
            log.warning("max_sessions_lowered", allowed=allowed, remedy=remedy)
        if hooks := tuning.missing():
            log.warning(
                "webrtc_hooks_left_out", hooks=list(hooks), remedy="install the tested versions of aiortc"
            )

    async def reload(self) -> None:
        """Read the keys file again. A file that cannot be used is logged as an error, and the current rules stay."""
        try:
            # In a thread: the file may be on a network file system that does not answer.
            rules = await asyncio.to_thread(access_rules, self._config)
            if self._access.rules.keys and not rules.keys:
                raise ConfigError([f"access.keys_file: {self._config.access.keys_file} contains no keys now"])
        except ConfigError as error:
            remedy = "correct the file and send SIGHUP again; until then the previous keys stay valid"
            log.error("keys_not_reloaded", problems=error.problems, remedy=remedy)
            return
        self._access.replace(rules)
        self._metrics.learn_keys(rule.name for rule in rules.keys)
        log.info("keys_reloaded", count=len(rules.keys))

    async def drain(self) -> None:
        """Refuse new sessions, notify the running ones, and wait for them to end, up to the configured time."""
        log.info(
            "drain_started", sessions=sum(view.state is not State.CLOSED for view in self._hub.all_sessions())
        )
        timeout = self._config.drain.timeout_seconds
        if self._clustering is None:
            await self._hub.drain(timeout)
        else:
            await self._drain_node(self._clustering, timeout)
        log.info("drain_ended")

    async def _drain_node(self, nodes: "Clustering", timeout: float) -> None:
        """Hand the sessions over to other nodes, and drain those that stay here."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        deadline = began + timeout
        self._hub.draining = True
        await nodes.hand_over(timeout)
        left = max(1.0, deadline - loop.time())
        ends = [self._hub.drain(left)]
        if not any(session.returnable for session in self._hub.live_sessions()):
            # Everything else is at other nodes now. Turns whose clients wait here end with their answer, and so does what
            # passes through this node to others.
            ends.append(self._server.finish(left))
        await asyncio.gather(*ends)
        await self._server.part(max(ACCEPTED_SECONDS, began + IDLE_SECONDS - loop.time()))

    async def close(self) -> None:
        """Close everything. May be called more than once."""
        await self._close()
        log.info("gateway_closed")

    async def _close(self) -> None:
        await self._hub.close()
        await self._server.close()
        if self._clustering is not None:
            await self._clustering.close()
        await self._dialer.close()
        await self._probes.close()


def _metrics(config: Config, registry: CollectorRegistry, rules: AccessRules, limits: RelayLimits) -> Metrics:
    metrics = Metrics(
        registry,
        version=__version__,
        keys=[rule.name for rule in rules.keys],
        models=[str(config.upstream.session.get("model"))],
        access_log=config.log.access,
    )
    metrics.limits(
        {
            "sessions": limits.max_sessions,
            "log_bytes": limits.log_total_bytes,
            "memory_bytes": config.server.memory_budget_bytes,
        }
    )
    return metrics


def _clustering(
    config: Config, keys: tuple[bytes, ...], metrics: Metrics, clock: Clock, peer_socket: str
) -> "Clustering":
    """Build what several nodes need. Raises ConfigError, also if the library for Redis is not installed."""
    try:
        from gateway.clustering import Clustering  # noqa: PLC0415  # an optional dependency, needed only here
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise ConfigError(
            ["cluster.url: needs the extra 'redis': pip install 'realtime-gateway[redis]'"]
        ) from error
    return Clustering(config, keys, metrics, clock, peer_socket)

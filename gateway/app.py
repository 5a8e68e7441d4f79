"""The gateway put together: every room built from the configuration, started and ended in order.

The composition root: the one place that knows all rooms, and the only one below the command line that knows the
configuration. Rooms get frozen values of their own. Tests build this same type on port 0.
"""

import asyncio
import hashlib
import resource
import secrets
import ssl
import sys
from collections.abc import Callable
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry

from gateway import __version__
from gateway.config import Config, ConfigError
from gateway.config.files import access_keys, openai_key, secret, signing_keys
from gateway.config.prices import TokenPrices, price_list
from gateway.config.sections import Key
from gateway.downstream.admin import Operator
from gateway.downstream.auth.access import ANONYMOUS, Access, AccessRules, KeyRule
from gateway.downstream.auth.credentials import Signatures
from gateway.downstream.auth.origins import host_name, is_loopback_name, normal_origin, unmatchable
from gateway.downstream.http.connections import ConnectionLimits
from gateway.downstream.http.limits import ServerLimits
from gateway.downstream.http.listener import Binding
from gateway.downstream.reading.sse import frame, unframe
from gateway.downstream.reading.stream import StreamLimits
from gateway.downstream.server import Parts, Server
from gateway.relay.budget import Budget
from gateway.relay.clock import Clock
from gateway.relay.hub import Hub, template
from gateway.relay.limits import RelayLimits
from gateway.relay.state import State
from gateway.relay.usage import PICODOLLARS, Direction, ModelPrices, PriceList
from gateway.telemetry import Collector, Metrics, Probes, exposition
from gateway.upstream import tuning
from gateway.upstream.config import IceServer, UpstreamConfig
from gateway.upstream.dialer import CallDialer
from gateway.upstream.signalling import proxy_for

RESERVED_DESCRIPTORS: Final = 64
"""For the operator's listener, log files, DNS and signalling. Of the rest, clients' connections may take half, so that
sessions always find theirs."""

if TYPE_CHECKING:
    from gateway.clustering import Clustering

log = structlog.stdlib.get_logger()


class Gateway:
    """Serves from `start` to `close`. `drain` in between lets running conversations end well."""

    def __init__(self, config: Config, *, shared: bool = False) -> None:
        """Build everything, touching no network. Raises ConfigError for what only shows when files are read. With `shared`
        other processes listen on the clients' port as well."""
        self._config = config
        self._shared = shared
        self.asked_to_drain = asyncio.Event()
        """Set when an operator asks over HTTP; whoever runs the gateway then drains it as on SIGTERM."""
        clock = Clock()
        rules = access_rules(config)
        registry = CollectorRegistry()
        self._metrics = Metrics(
            registry,
            version=__version__,
            keys=[rule.name for rule in rules.keys],
            models=[str(config.upstream.session.get("model"))],
            access_log=config.log.access,
        )
        self.collector = Collector(lambda: self._metrics.sessions.ended, lambda: self._metrics.sessions.live)
        """Garbage collection is the whole process's: whoever owns the process starts and closes it."""
        upstream = upstream_config(config)
        try:
            proxy_for(upstream)
        except ValueError as error:
            raise ConfigError([str(error)]) from error
        self._dialer = CallDialer(upstream, self._metrics, clock)
        configured = signing_keys(config.access)
        self._clustering = (
            _clustering(config, configured, self._metrics, clock) if config.cluster.url else None
        )
        nodes = self._clustering
        self._hub = Hub(
            self._dialer,
            frame,
            self._metrics,
            relay_limits(config),
            clock,
            Budget(config.server.memory_budget_bytes),
            unframing=lambda block, start: unframe(block, start).decode(),
            directory=nodes.directory if nodes else None,
            gate=nodes.gate if nodes else None,
        )
        self._metrics.watch(lambda: self._hub.draining)
        relay = config.relay
        self._metrics.limits(
            {
                "sessions": relay.max_sessions,
                "log_bytes": relay.log_total_bytes,
                "memory_bytes": config.server.memory_budget_bytes,
            }
        )

        def lagged(seconds: float) -> None:
            self._metrics.loop_lagged(seconds)
            self._hub.strain.lagged(seconds, clock.monotonic())

        self._probes = Probes(lagged, self._metrics.gc_paused)
        self._access = Access(rules, Signatures(configured or (secrets.token_bytes(32),)), clock.monotonic)
        self._server = Server(
            Parts(
                hub=self._hub,
                telemetry=self._metrics,
                access=self._access,
                operator=self._operator(exposition(registry)),
                stream=stream_limits(config),
                limits=server_limits(config),
                connections=connection_limits(config, _descriptors()),
                clock=clock,
                elsewhere=nodes.elsewhere if nodes else None,
                hand_over=nodes.build(self._hub, self._dialer) if nodes else None,
            )
        )
        self._tls = _tls(config)

    def _operator(self, metrics: Callable[[str], tuple[bytes, str]]) -> Operator:
        admin = self._config.admin
        token = secret("admin.token", admin.token, admin.token_file)
        digests = (hashlib.sha256(token.encode()).digest(),) if token else ()
        nodes = self._clustering.shown_nodes if self._clustering is not None else tuple
        return Operator(metrics=metrics, drain=self.asked_to_drain.set, token_sha256=digests, nodes=nodes)

    @property
    def url(self) -> str:
        """Where clients find it, with the real port."""
        return self._server.url

    @property
    def admin_url(self) -> str:
        """Where the operator finds it, with the real port."""
        return self._server.admin_url

    async def start(self) -> None:
        """Listen on both addresses, and join the other nodes. Raises OSError where an address cannot be had or Redis does
        not answer, ConfigError for a Redis that cannot be used; nothing is left behind then."""
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
            await self.close()
            raise
        self._tell_shortcomings()
        for line in (f"listening on {self.url}", f"admin listening on {self.admin_url}"):
            log.info(line)

    def _tell_shortcomings(self) -> None:
        """Say at start what will be missed later."""
        upstream = self._dialer.config
        if upstream.auth == "gateway" and upstream.api_key is None:
            log.warning("openai_key_missing", remedy="set OPENAI_API_KEY or upstream.api_key_file")
        if hooks := tuning.missing():
            log.warning(
                "webrtc_hooks_left_out", hooks=list(hooks), remedy="install the tested versions of aiortc"
            )

    async def reload(self) -> None:
        """Read the keys file again. What is wrong with it is logged as an error, and the rules in force stay."""
        try:
            # In a thread: the file may lie on a network that does not answer.
            rules = await asyncio.to_thread(access_rules, self._config)
            if self._access.rules.keys and not rules.keys:
                raise ConfigError(
                    [f"access.keys_file: {self._config.access.keys_file} holds no key any more"]
                )
        except ConfigError as error:
            remedy = "correct the file and send SIGHUP again; until then the keys that were known are taken"
            log.error("keys_not_reloaded", problems=error.problems, remedy=remedy)
            return
        self._access.replace(rules)
        self._metrics.learn_keys(rule.name for rule in rules.keys)
        log.info("keys_reloaded", count=len(rules.keys))

    async def drain(self) -> None:
        """Refuse new sessions, tell the running ones, and wait for their end as long as is configured."""
        log.info(
            "drain_started", sessions=sum(view.state is not State.CLOSED for view in self._hub.all_sessions())
        )
        timeout = self._config.drain.timeout_seconds
        if self._clustering is not None:
            began = asyncio.get_running_loop().time()
            self._hub.draining = True
            await self._clustering.hand_over(timeout)
            timeout = max(1.0, timeout - (asyncio.get_running_loop().time() - began))
        await self._hub.drain(timeout)
        log.info("drain_ended")

    async def close(self) -> None:
        """End everything. Harmless when repeated."""
        await self._hub.close()
        await self._server.close()
        if self._clustering is not None:
            await self._clustering.close()
        await self._dialer.close()
        await self._probes.close()
        log.info("gateway_closed")


def _clustering(config: Config, keys: tuple[bytes, ...], metrics: Metrics, clock: Clock) -> "Clustering":
    """Build what several nodes need. Raises ConfigError, also where the library for Redis is missing."""
    try:
        from gateway.clustering import Clustering  # noqa: PLC0415  # an extra, needed by nobody else
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise ConfigError(
            ["cluster.url: needs the extra 'redis': pip install 'realtime-gateway[redis]'"]
        ) from error
    return Clustering(config, keys, metrics, clock)


def relay_limits(config: Config) -> RelayLimits:
    """Map the relay's section."""
    relay = config.relay
    return RelayLimits(
        template=template(config.upstream.session),
        session_locked=config.upstream.session_locked,
        max_sessions=relay.max_sessions,
        max_loop_lag_seconds=relay.max_loop_lag_seconds,
        max_event_bytes=config.server.max_event_bytes,
        high_water_bytes=relay.high_water_bytes,
        log_max_events=relay.log_max_events,
        log_max_bytes=relay.log_max_bytes,
        log_total_bytes=relay.log_total_bytes,
        log_retention_seconds=relay.log_retention_seconds,
        detach_grace_seconds=relay.detach_grace_seconds,
        idle_timeout_seconds=relay.idle_timeout_seconds,
        max_session_seconds=relay.max_session_seconds,
        turn_timeout_seconds=relay.turn_timeout_seconds,
        stall_timeout_seconds=relay.stall_timeout_seconds,
        max_waiting_turns=relay.max_waiting_turns,
        max_receivers=config.stream.max_receivers,
        continuity=relay.continuity,
        recovery_timeout_seconds=relay.recovery_timeout_seconds,
        prices=prices(config),
    )


def prices(config: Config) -> PriceList:
    """Read the price list and map it: dollars per million tokens become picodollars per token. Raises ConfigError."""
    found = price_list(config.upstream.prices_file)
    models = {}
    for name, model in found.models.items():
        tokens: dict[tuple[Direction, str], int] = {}
        directions: tuple[tuple[Direction, TokenPrices], ...] = (
            ("input", model.input),
            ("cached", model.cached),
            ("output", model.output),
        )
        for direction, by_kind in directions:
            for kind, dollars in by_kind.model_dump(exclude_none=True).items():
                tokens[direction, kind] = round(dollars * PICODOLLARS / 1_000_000)
        minute = None if model.minute is None else round(model.minute * PICODOLLARS)
        models[name] = ModelPrices(tokens, minute)
    return PriceList(found.date.isoformat(), models)


def upstream_config(config: Config) -> UpstreamConfig:
    """Map the upstream's section, secrets included."""
    upstream = config.upstream
    return UpstreamConfig(
        base_url=upstream.base_url,
        api_key=openai_key(upstream),
        auth=upstream.auth,
        organization=upstream.organization,
        project=upstream.project,
        proxy=upstream.proxy,
        connect_timeout_seconds=upstream.connect_timeout_seconds,
        ice_servers=tuple(
            IceServer(
                server.urls,
                server.username,
                secret(f"upstream.ice_servers.{index}.credential", server.credential, server.credential_file),
            )
            for index, server in enumerate(upstream.ice_servers)
        ),
        ice_transport_policy=upstream.ice_transport_policy,
        max_server_event_bytes=config.relay.max_server_event_bytes,
    )


def server_limits(config: Config) -> ServerLimits:
    """Map the limits of one request and one connection."""
    server = config.server
    return ServerLimits(
        max_body_bytes=server.max_body_bytes,
        max_batch_events=server.max_batch_events,
        header_seconds=server.header_timeout_seconds,
        body_seconds=server.body_timeout_seconds,
        keepalive_seconds=server.keepalive_seconds,
        write_seconds=config.stream.write_timeout_seconds,
        max_header_bytes=server.max_header_bytes,
    )


def connection_limits(config: Config, descriptors: int) -> ConnectionLimits:
    """Map the limits of all connections together, within the process's limit on descriptors."""
    share = (descriptors - RESERVED_DESCRIPTORS) // 2
    return ConnectionLimits(max_connections=max(1, min(config.server.max_connections, share)))


def _descriptors() -> int:
    """Return how many descriptors the process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def stream_limits(config: Config) -> StreamLimits:
    """Map the limits of open reads."""
    stream = config.stream
    return StreamLimits(
        heartbeat_seconds=stream.heartbeat_seconds,
        max_age_seconds=stream.max_age_seconds,
    )


def access_rules(config: Config) -> AccessRules:
    """Map who may do what, reading the keys file. Raises ConfigError, also for a gateway open to strangers unasked."""
    access, server = config.access, config.server
    keys = access_keys(access)
    if access.keys_file is not None and not (keys or access.anonymous):
        # Whoever empties the file means nobody, or made a mistake. Behind a proxy on loopback everybody would be let in.
        remedy = (
            "add one (`gateway keygen NAME` prints it), or set access.anonymous = true to let everybody in"
        )
        raise ConfigError(
            [
                f"access.keys_file: {access.keys_file} holds no key, so nobody could call this gateway; {remedy}"
            ]
        )
    if not (keys or access.anonymous or is_loopback_name(server.host)):
        remedy = (
            "set access.keys (`gateway keygen` makes one), or access.anonymous = true to let everybody in"
        )
        raise ConfigError(
            [f"server.host: {server.host} is reachable from elsewhere and no key is configured; {remedy}"]
        )
    unusable = [
        f"server.allowed_hosts: {name!r} can never match; expected a host name as in the Host header, without a scheme"
        for name in server.allowed_hosts
        if host_name(name) is None or "*" in name
    ]
    unusable += [
        f"access.cors_origins: {origin!r} can never match: {why}"
        for origin in access.cors_origins
        if origin != "*" and (why := unmatchable(origin))
    ]
    if unusable:
        raise ConfigError(unusable)
    hosts = {name for name in map(host_name, server.allowed_hosts) if name}
    own_origins = set()
    if server.public_url:
        hosts.add(urlsplit(server.public_url).hostname or "")
        own_origins.add(normal_origin(_origin(server.public_url)) or "")
    try:
        proxies = tuple(ip_network(proxy, strict=False) for proxy in server.trusted_proxies)
    except ValueError as error:
        raise ConfigError([f"server.trusted_proxies: {error}; expected addresses or networks"]) from error
    return AccessRules(
        keys=tuple(map(_rule, keys)),
        keys_expected=access.keys_file is not None,
        anonymous=KeyRule(ANONYMOUS) if access.anonymous else None,
        hosts=frozenset(hosts),
        own_origins=frozenset(own_origins),
        cors_origins=frozenset(normal_origin(origin) or origin for origin in access.cors_origins),
        trusted_proxies=proxies,
        members_locked=bool(config.upstream.session_locked),
        client_upstream=config.upstream.auth == "client",
    )


def _rule(key: Key) -> KeyRule:
    return KeyRule(
        name=key.name,
        sha256=tuple(map(bytes.fromhex, key.sha256)),
        max_sessions=key.max_sessions,
        sessions_per_minute=key.sessions_per_minute,
        events_per_second=key.events_per_second,
        bytes_per_second=key.bytes_per_second,
        tokens_per_session=key.tokens_per_session,
        tokens_per_day=key.tokens_per_day,
        dollars_per_session=key.dollars_per_session,
        dollars_per_day=key.dollars_per_day,
    )


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _tls(config: Config) -> ssl.SSLContext | None:
    certificate, key = config.server.tls_certificate_file, config.server.tls_key_file
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([f"server.tls_certificate_file: cannot be used with its key: {error}"]) from error
    return context

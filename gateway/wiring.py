"""The mapping from configuration to each package's own values.

Rooms know no configuration: each takes a frozen value with its limits. One function here makes each of these values,
and reads the files that the settings name. Raises ConfigError where a file or a combination of settings cannot be used.
"""

import resource
import ssl
import sys
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Final
from urllib.parse import urlsplit

from gateway.config import Config, ConfigError
from gateway.config.files import access_keys, listener_tls, openai_key, secret
from gateway.config.prices import TokenPrices, price_list
from gateway.config.sections import Key
from gateway.downstream.auth.access import ANONYMOUS, AccessRules, KeyRule
from gateway.downstream.auth.origins import host_name, is_loopback_name, normal_origin, unmatchable
from gateway.downstream.http.connections import ConnectionLimits
from gateway.downstream.http.limits import ServerLimits
from gateway.downstream.reading.stream import StreamLimits
from gateway.relay.limits import RelayLimits
from gateway.relay.sessionobject import template
from gateway.relay.usage import PICODOLLARS, Direction, ModelPrices, PriceList
from gateway.upstream.config import IceServer, UpstreamConfig
from gateway.upstream.signalling import proxy_for

RESERVED_DESCRIPTORS: Final = 64
"""File descriptors kept for the operator's listener, log files, DNS and signalling. Clients' connections may use half of
the others, so that sessions always find enough."""


def relay_limits(config: Config, descriptors: int = sys.maxsize) -> RelayLimits:
    """Return the limits of sessions and their logs, within the process's limit on file descriptors."""
    relay = config.relay
    return RelayLimits(
        template=template(config.upstream.session),
        session_locked=config.upstream.session_locked,
        max_sessions=max(1, min(relay.max_sessions, _descriptors_left(config, descriptors))),
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
    """Read the price list, and convert dollars per million tokens to picodollars per token. Raises ConfigError."""
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
    """Return how OpenAI is reached, secrets included. Raises ConfigError."""
    upstream = config.upstream
    found = UpstreamConfig(
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
    try:
        proxy_for(found)  # It may be in the environment, which `config` does not check.
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    return found


def server_limits(config: Config) -> ServerLimits:
    """Return the limits of one request and one connection."""
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
    """Return the limits of all connections together, within the process's limit on file descriptors."""
    share = (descriptors - RESERVED_DESCRIPTORS) // 2
    return ConnectionLimits(max_connections=max(1, min(config.server.max_connections, share)))


def _descriptors_left(config: Config, descriptors: int) -> int:
    """Return how many descriptors there are for calls, each of which needs one, when all connections are in use."""
    return descriptors - RESERVED_DESCRIPTORS - connection_limits(config, descriptors).max_connections


def descriptors() -> int:
    """Return how many file descriptors the process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def stream_limits(config: Config) -> StreamLimits:
    """Return the limits of open reads."""
    stream = config.stream
    return StreamLimits(
        heartbeat_seconds=stream.heartbeat_seconds,
        max_age_seconds=stream.max_age_seconds,
    )


def access_rules(config: Config) -> AccessRules:
    """Return who may do what. Reads the keys file.

    Raises ConfigError, also if anyone could use the gateway although `access.anonymous` is not set.
    """
    access, server = config.access, config.server
    keys = access_keys(access)
    _require_callers(config, keys)
    _require_matchable(config)
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


def _require_callers(config: Config, keys: Sequence[Key]) -> None:
    """Refuse settings with which nobody could use the gateway, or strangers could."""
    access, server = config.access, config.server
    if keys or access.anonymous:
        return
    if access.keys_file is not None:
        # An empty file is either a mistake or meant to lock everybody out. Behind a proxy on loopback it would let everybody in.
        remedy = "add one (`gateway keygen NAME` prints it), or set access.anonymous = true to allow callers without a key"
        raise ConfigError(
            [
                f"access.keys_file: {access.keys_file} contains no keys, so this gateway would refuse every caller; {remedy}"
            ]
        )
    if not is_loopback_name(server.host):
        remedy = "set access.keys (`gateway keygen` makes one), or access.anonymous = true to allow callers without a key"
        raise ConfigError(
            [
                f"server.host: {server.host} is reachable from other machines, but no key is configured; {remedy}"
            ]
        )


def _require_matchable(config: Config) -> None:
    """Refuse names and origins that no request can have."""
    unusable = [
        f"server.allowed_hosts: {name!r} can never match; expected a host name as in the Host header, without a scheme"
        for name in config.server.allowed_hosts
        if host_name(name) is None or "*" in name
    ]
    unusable += [
        f"access.cors_origins: {origin!r} can never match: {why}"
        for origin in config.access.cors_origins
        if origin != "*" and (why := unmatchable(origin))
    ]
    if unusable:
        raise ConfigError(unusable)


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


def tls_context(config: Config) -> ssl.SSLContext | None:
    """Return the TLS context of the clients' listener, None without a certificate. Raises ConfigError."""
    server = config.server
    return listener_tls("server.tls_certificate_file", server.tls_certificate_file, server.tls_key_file)

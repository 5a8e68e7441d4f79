"""The part of the composition that exists only where several nodes work as one (`cluster.url`).

Imported when it is needed, because the library for Redis is an extra.
"""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import structlog

from gateway import __version__
from gateway.cluster.beat import NodeSeen, Status
from gateway.cluster.budgets import SharedBudgets
from gateway.cluster.connections import AwayError
from gateway.cluster.gate import DialGate
from gateway.cluster.membership import Errand, Membership
from gateway.cluster.node import ClusterNode
from gateway.cluster.rates import RedisRates
from gateway.cluster.redis_requirements import UnfitError, inspect
from gateway.cluster.settings import ClusterSettings, Target
from gateway.config import Config, ConfigError
from gateway.config.files import authority, listener_tls, secret
from gateway.downstream.http.listener import Binding
from gateway.downstream.peers.elsewhere import Elsewhere
from gateway.downstream.peers.internal import PREPARE, TAKE
from gateway.downstream.peers.reach import Reach
from gateway.downstream.peers.signatures import PeerSignatures
from gateway.downstream.peers.splice import BrokenError, UnreachableError
from gateway.relay.clock import Clock
from gateway.relay.events.records import READS
from gateway.relay.hub import Hub
from gateway.relay.journal import Directory, Peer
from gateway.relay.ports import Dialer
from gateway.relay.tasks import Tasks
from gateway.telemetry import Metrics

FIRST_CONTACT_SECONDS: Final = 60.0
"""How long a start waits for Redis, which may be starting as well."""
_RETRY_SECONDS: Final = 0.5

log = structlog.stdlib.get_logger()


class RedisAwayError(OSError):
    """Redis did not answer a node that starts."""

    remedy = "start Redis, or correct cluster.url"


class Clustering:
    """A node's place among the others."""

    def __init__(
        self,
        config: Config,
        signing_keys: Sequence[bytes],
        metrics: Metrics,
        clock: Clock,
        peer_socket: str = "",
    ) -> None:
        """Build everything, touching no network. `peer_socket`: where to listen for the other workers of the same command.
        Raises ConfigError."""
        if not signing_keys:
            what = "must be set with cluster.url, and be the same on every node; `openssl rand -hex 32` makes a key"
            raise ConfigError([f"access.signing_key_file: {what}"])
        self._config = config.cluster
        self.settings = replace(cluster_settings(config), peer_socket=peer_socket)
        self._metrics = metrics
        self._hub: Hub | None = None
        self._url = ""
        self.gate = DialGate()
        self.node = ClusterNode(self.settings, signing_keys, metrics, self._status, clock.epoch)
        self.elsewhere = Elsewhere(
            self.node.directory,
            PeerSignatures(signing_keys),
            metrics,
            self.settings.patience_seconds,
            _client_tls(config),
            turn_seconds=config.relay.turn_timeout_seconds,
        )
        own = self._config
        self._server_tls = listener_tls(
            "cluster.tls_certificate_file", own.tls_certificate_file, own.tls_key_file
        )
        self.membership: Membership | None = None
        self._tasks = Tasks(lambda error: metrics.relay_failed("", error))
        self.rates = RedisRates(
            self.node.connections,
            self.node.keys,
            lambda: 1 + len(self.node.directory.peers),
            lambda error: metrics.relay_failed("", error),
        )
        self._reach = Reach(self.node.directory, self.elsewhere.fetch, metrics)
        self._budgets: SharedBudgets | None = None
        self._joined = False

    @property
    def directory(self) -> Directory:
        """Who owns which session."""
        return self.node.directory

    @property
    def binding(self) -> Binding:
        """Where to listen for the other nodes."""
        own = self._config
        return Binding(own.host, own.port, self._server_tls, unix_path=self.settings.peer_socket)

    @property
    def nodes(self) -> Sequence[NodeSeen]:
        """All nodes, as this one sees them."""
        return self.node.nodes

    def shown_nodes(self) -> Sequence[Mapping[str, object]]:
        """Return the nodes as an operator sees them."""
        up = self.node.connected
        return [
            {
                "id": seen.node,
                "self": seen.node == self.node.id,
                "url": seen.status.url,
                "version": seen.status.version,
                "state": seen.state,
                "sessions": seen.status.sessions,
                "room": seen.status.room,
                "beat_age_seconds": round(seen.age, 3),
                "redis": up if seen.node == self.node.id else None,
            }
            for seen in self.nodes
        ]

    def build(self, hub: Hub, dialer: Dialer) -> Membership:
        """Make what takes sessions over and hands them over."""
        self._hub = hub
        self._budgets = SharedBudgets(self.node.connections, self.node.keys, hub.allowance)
        elsewhere = self.elsewhere
        self.membership = Membership(
            self.node, hub, dialer, self._metrics, self._call, elsewhere.lost, elsewhere.arrived, self.gate
        )
        return self.membership

    async def start(self, peers_url: str) -> None:
        """Join, as soon as Redis answers. Raises ConfigError for a Redis that cannot be used, OSError where it does not
        answer."""
        assert self.membership is not None, "built first"
        self._url = self._config.advertise_url or peers_url
        deadline = asyncio.get_running_loop().time() + FIRST_CONTACT_SECONDS
        told, found = False, None
        while found is None:
            try:
                found = await inspect(self.node.connections, self.settings)
                await self.membership.start()
            except UnfitError as error:
                raise ConfigError([f"cluster.url: {error}"]) from error
            except AwayError as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise RedisAwayError(f"Redis does not answer at cluster.url: {error}") from error
                if not told:
                    log.warning(
                        "redis_awaited", reason=str(error), remedy="start Redis, or correct cluster.url"
                    )
                told, found = True, None
                await asyncio.sleep(_RETRY_SECONDS)
        self._joined = True
        assert self._budgets is not None, "built with the membership"
        _ = self._tasks.repeat(self._budgets.keep, "cluster-budgets")
        _ = self._tasks.repeat(self._reach.keep, "cluster-reach")
        log.info(
            "cluster_joined", node=self.node.id, engine=found.engine, version=found.version, url=self._url
        )
        if found.eviction != "noeviction":
            log.warning("redis_may_evict", policy=found.eviction, remedy="set maxmemory-policy to noeviction")

    async def hand_over(self, timeout: float) -> None:
        """Hand the sessions over to other nodes, as many as they accept."""
        assert self.membership is not None, "built first"
        await self.membership.hand_over_all(timeout)

    async def close(self) -> None:
        """Leave. Harmless when repeated."""
        await self.rates.close()
        await self._tasks.end()
        if self._joined and self._budgets is not None:
            await self._budgets.round()
        self._joined = False
        if self.membership is not None:
            await self.membership.close()

    def _status(self) -> Status:
        hub = self._hub
        assert hub is not None, "built first"
        sessions = len(hub.live_sessions())
        room = 0 if hub.draining else max(0, hub.limits.max_sessions - sessions)
        state = "draining" if hub.draining else "serving"
        return Status(self._url, __version__, state, sessions, room, READS, self.settings.peer_socket)

    async def _call(self, peer: Peer, errand: Errand, body: bytes) -> bool:
        path = PREPARE if errand == "prepare" else TAKE
        try:
            status, _ = await self.elsewhere.fetch(peer, "POST", path, body)
        except (UnreachableError, BrokenError):
            return False
        return status == 204


def cluster_settings(config: Config) -> ClusterSettings:
    """Map the section, secrets included. Raises ConfigError."""
    cluster = config.cluster
    _require_redis_files(config)
    return ClusterSettings(
        target=Target.parse(cluster.url),
        prefix=cluster.prefix,
        username=cluster.username,
        password=secret("cluster.password", cluster.password, cluster.password_file),
        ca_file=str(cluster.redis_ca_file) if cluster.redis_ca_file else None,
        certificate_file=str(cluster.redis_certificate_file) if cluster.redis_certificate_file else None,
        key_file=str(cluster.redis_key_file) if cluster.redis_key_file else None,
        lease_seconds=cluster.lease_seconds,
        patience_seconds=cluster.patience_seconds,
        wait_replicas=cluster.wait_replicas,
        encrypt=cluster.encrypt,
        allow_eviction=cluster.allow_eviction,
        detach_grace_seconds=config.relay.detach_grace_seconds,
        log_max_bytes=config.relay.log_max_bytes,
    )


def _require_redis_files(config: Config) -> None:
    """Raise ConfigError for a file of TLS to Redis that cannot be used."""
    cluster = config.cluster
    authority("cluster.redis_ca_file", cluster.redis_ca_file)
    listener_tls("cluster.redis_certificate_file", cluster.redis_certificate_file, cluster.redis_key_file)


def _client_tls(config: Config) -> ssl.SSLContext | None:
    return authority("cluster.tls_ca_file", config.cluster.tls_ca_file)

"""Redis in its three forms for the cluster's load programs: one server, three Sentinels, and a Cluster of three
primaries and three replicas."""

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.cluster.redis_server import RedisServer
from tests.conftest import require_part
from tests.ports import free_port

READY_SECONDS = 40.0
AOF = ("--appendonly", "yes", "--appendfsync", "always")


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + READY_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


class Single:
    """One server that writes an AOF."""

    def __init__(self) -> None:
        self.server = RedisServer()
        self._old = Path(tempfile.mkdtemp(prefix="rg-aof-"))
        self.url = self.server.url

    def start(self) -> Self:
        """Start it."""
        self.server.start(*AOF)
        return self

    def close(self) -> None:
        """End it."""
        self.server.close()
        shutil.rmtree(self._old, ignore_errors=True)

    def keep(self) -> None:
        """Keep a copy of the current AOF."""
        shutil.rmtree(self._old, ignore_errors=True)
        shutil.copytree(self.server.folder / "appendonlydir", self._old)

    def restart(self, *, old: bool) -> None:
        """Kill it and start it again: empty, or from the copy of its AOF."""
        self.server.kill()
        shutil.rmtree(self.server.folder / "appendonlydir", ignore_errors=True)
        if old:
            shutil.copytree(self._old, self.server.folder / "appendonlydir")
        self.server.start(*AOF)


class Sentinels:
    """A primary with two replicas, watched by three Sentinels."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.servers = [RedisServer() for _ in range(3)]
        self._ports = [free_port() for _ in range(3)]
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        self.url = f"redis+sentinel://{hosts}/main"

    def start(self) -> Self:
        """Start all of it and wait until the Sentinels know the replicas and each other."""
        primary, *replicas = self.servers
        for server in self.servers:
            server.start("--repl-diskless-sync-delay", "0")
            self._stack.callback(server.close)
        for replica in replicas:
            replica.cli("REPLICAOF", "127.0.0.1", str(primary.port))
        for port in self._ports:
            folder = Path(tempfile.mkdtemp(prefix="rg-sentinel-"))
            self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
            file = folder / "sentinel.conf"
            file.write_text(
                f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {primary.port} 2\n"
                "sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 6000\n"
            )
            command = [require_part("redis-server"), str(file), "--sentinel"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)
            self._stack.callback(process.wait)
            self._stack.callback(process.kill)
        for port in self._ports:
            until(lambda port=port: self._knows(port), "the Sentinels did not find each other")  # type: ignore[misc]
        return self

    def close(self) -> None:
        """End all of it."""
        self._stack.close()

    def primary(self) -> RedisServer:
        """Return the current primary."""
        said = self._ask(self._ports[0], "SENTINEL", "get-master-addr-by-name", "main")
        port = int(said.split()[1])
        return next(server for server in self.servers if server.port == port)

    async def fail_over(self, lost_seconds: float) -> None:
        """Stop replication for this long, and then kill the primary."""
        primary = self.primary()
        replicas = [server for server in self.servers if server is not primary]
        for replica in replicas:
            replica.pause()
        # The kernel would keep what is written meanwhile for the replicas.
        primary.cli("CLIENT", "KILL", "TYPE", "replica")
        await asyncio.sleep(lost_seconds)
        primary.kill()
        for replica in replicas:
            replica.go_on()
        await asyncio.to_thread(until, lambda: self.primary() is not primary, "no failover")
        primary.start("--replicaof", f"127.0.0.1 {self.primary().port}", "--repl-diskless-sync-delay", "0")

    async def hang(self) -> None:
        """Stop the primary until it is replaced, and continue it; return once it is a replica. Until then there are two."""
        primary = self.primary()
        primary.pause()
        await asyncio.to_thread(until, lambda: self.primary() is not primary, "no failover")
        primary.go_on()
        demoted = "role:slave"
        await asyncio.to_thread(until, lambda: demoted in primary.cli("INFO", "replication"), "two primaries")

    def _knows(self, port: int) -> bool:
        others = self._ask(port, "SENTINEL", "sentinels", "main").split().count("name")
        replicas = self._ask(port, "SENTINEL", "replicas", "main").split().count("name")
        return others == 2 and replicas == 2

    def _ask(self, port: int, *words: str) -> str:
        command = ["redis-cli", "-p", str(port), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout


class ClusterOfSix:
    """Three primaries with a replica each."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.servers = [RedisServer() for _ in range(6)]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def start(self) -> Self:
        """Start it and wait until every node has its role."""
        for server in self.servers:
            self._start(server)
            self._stack.callback(server.close)
        addresses = [f"127.0.0.1:{server.port}" for server in self.servers]
        command = ["redis-cli", "--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        until(self._well, "the Cluster did not form")
        return self

    def close(self) -> None:
        """End all of it."""
        self._stack.close()

    def primaries(self) -> list[RedisServer]:
        """Return the servers that hold slots."""
        return [server for server in self.servers if "role:master" in server.cli("INFO", "replication")]

    async def fail_over(self, lost_seconds: float) -> None:
        """Stop the replicas for this long, and then kill a primary."""
        primary = self.primaries()[0]
        replicas = [server for server in self.servers if server not in self.primaries()]
        for replica in replicas:
            replica.pause()
        # The kernel would keep what is written meanwhile for the replicas.
        primary.cli("CLIENT", "KILL", "TYPE", "replica")
        await asyncio.sleep(lost_seconds)
        primary.kill()
        for replica in replicas:
            replica.go_on()
        left = [server for server in self.servers if server is not primary]
        await asyncio.to_thread(
            until,
            lambda: sum("role:master" in server.cli("INFO", "replication") for server in left) == 3,
            "no failover",
        )
        self._start(primary)
        await asyncio.to_thread(until, self._well, "the Cluster did not heal")

    async def reshard(self, slots: int) -> None:
        """Move slots with their data from one primary to another."""
        source, target, *_ = self.primaries()
        command = [
            *("redis-cli", "--cluster", "reshard", f"127.0.0.1:{source.port}", "--cluster-from"),
            *(source.cli("CLUSTER", "MYID"), "--cluster-to", target.cli("CLUSTER", "MYID")),
            *("--cluster-slots", str(slots), "--cluster-yes", "--cluster-pipeline", "20"),
        ]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=120)

    def _start(self, server: RedisServer) -> None:
        server.start(
            *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
            *("--cluster-node-timeout", "2000", "--repl-diskless-sync-delay", "0"),
        )

    def _well(self) -> bool:
        infos = [server.cli("CLUSTER", "INFO") for server in self.servers]
        links = [server.cli("INFO", "replication") for server in self.servers]
        replicas = [one for one in links if "role:slave" in one]
        return (
            all("cluster_state:ok" in info for info in infos)
            and len(replicas) == 3
            and all("master_link_status:up" in one for one in replicas)
        )

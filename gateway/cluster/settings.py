"""The cluster's settings, as frozen values. No I/O."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Mode = Literal["single", "sentinel", "cluster"]

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379

_URL: Final = re.compile(r"(redis|rediss)(?:\+(sentinel|cluster))?://([^/]+)(?:/([^/]*))?(?:/([0-9]*))?")


@dataclass(frozen=True, slots=True)
class Target:
    """Where Redis is, read from `cluster.url`."""

    mode: Mode
    hosts: Sequence[tuple[str, int]] = ()
    """Redis, the Sentinels, or some nodes of the Cluster."""
    unix_path: str | None = None
    db: int = 0
    service: str = ""
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> "Target":
        """Read a URL. Raises ValueError for one of another form."""
        if url.startswith("unix://"):
            path, _, query = url.removeprefix("unix://").partition("?db=")
            return cls("single", unix_path=path, db=int(query or 0))
        found = _URL.fullmatch(url)
        if found is None:
            raise ValueError("not a redis://, rediss:// or unix:// URL")
        scheme, kind, hosts, first, second = found.groups()
        mode: Mode = "sentinel" if kind == "sentinel" else "cluster" if kind == "cluster" else "single"
        port = SENTINEL_PORT if mode == "sentinel" else REDIS_PORT
        db = (second if mode == "sentinel" else first) or 0
        return cls(
            mode,
            tuple(_host(word, port) for word in hosts.split(",")),
            db=int(db),
            service=first or "" if mode == "sentinel" else "",
            tls=scheme == "rediss",
        )


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The section `[cluster]`, and the members of other sections that it needs. Times are in seconds."""

    target: Target
    prefix: str = "rg:"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    lease_seconds: float = 4.0
    patience_seconds: float = 10.0
    wait_replicas: int = 0
    encrypt: bool = False
    allow_eviction: bool = False
    detach_grace_seconds: float = 600.0
    log_max_bytes: int = 8 * 1024 * 1024
    peer_socket: str = ""
    """Path of the unix socket for the other workers of the same command, which has a folder of its own for them."""


def _host(word: str, port: int) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[^\]]+\]|[^:]+)(?::([0-9]+))?", word)
    if found is None:
        raise ValueError(f"not HOST or HOST:PORT: {word!r}")
    return found[1].strip("[]"), int(found[2] or port)

"""`[cluster]`: several nodes as one, on Redis or Valkey."""

import re
from ipaddress import ip_address
from typing import Annotated, Final

from pydantic import AfterValidator, Field, SecretStr, model_validator

from gateway.config.values import (
    Host,
    OptionalPath,
    OptionalText,
    OptionalUrl,
    Port,
    Section,
    refusal,
    require_pair,
    secret,
)

_HOST: Final = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_HOSTS: Final = rf"{_HOST}(?:,{_HOST})*"

_REDIS_URL: Final = re.compile(
    rf"rediss?://{_HOST}(?:/[0-9]*)?"
    rf"|rediss?\+sentinel://{_HOSTS}/[A-Za-z0-9._-]+(?:/[0-9]*)?"
    rf"|rediss?\+cluster://{_HOSTS}/?"
    r"|unix:///[^?#\s]+(?:\?db=[0-9]+)?"
)

_PREFIX: Final = re.compile(r"[A-Za-z0-9:._-]{1,32}")

UNSPECIFIED: Final = ("0.0.0.0", "::", "")
"""Addresses to listen on that other nodes cannot connect to."""


def _redis_url(value: str) -> str:
    if value and "@" in value:
        raise ValueError(
            "must not contain a user or password: set cluster.username, and cluster.password_file or "
            "GATEWAY_CLUSTER__PASSWORD"
        )
    if value and not _REDIS_URL.fullmatch(value):
        raise ValueError(
            "must be redis://HOST[:PORT][/DB], rediss://… for TLS, unix:///PATH, "
            "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE[/DB] or redis+cluster://HOST:PORT,HOST:PORT"
        )
    return value


def _prefix(value: str) -> str:
    if not _PREFIX.fullmatch(value):
        raise ValueError("must have 1 to 32 letters, digits or characters of : . _ -")
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Cluster(Section):
    """Several nodes as one. Without a URL the gateway is one process, and the other settings of this section have no effect."""

    url: Annotated[str, AfterValidator(_redis_url)] = ""
    username: OptionalText = None
    password: SecretStr | None = secret()
    password_file: OptionalPath = None
    redis_ca_file: OptionalPath = None
    redis_certificate_file: OptionalPath = None
    redis_key_file: OptionalPath = None
    prefix: Annotated[str, AfterValidator(_prefix)] = "rg:"
    allow_eviction: bool = False
    encrypt: bool = False
    wait_replicas: Annotated[int, Field(ge=0, le=16)] = 0
    host: Host = "127.0.0.1"
    port: Port = 0
    advertise_url: OptionalUrl = None
    tls_certificate_file: OptionalPath = None
    tls_key_file: OptionalPath = None
    tls_ca_file: OptionalPath = None
    trust_network: bool = False
    lease_seconds: Annotated[float, Field(ge=1, le=60)] = 4.0
    patience_seconds: Annotated[float, Field(ge=0, le=60)] = 10.0

    @model_validator(mode="after")
    def _files_are_whole(self) -> "Cluster":
        require_pair(self, "tls_certificate_file", "tls_key_file")
        require_pair(self, "redis_certificate_file", "redis_key_file")
        return self

    @model_validator(mode="after")
    def _files_are_used(self) -> "Cluster":
        if self.url and not self.url.startswith("rediss"):
            for name in ("redis_ca_file", "redis_certificate_file"):
                if getattr(self, name) is not None:
                    raise refusal(name, "has no effect without TLS: set cluster.url to rediss://…")
        return self

    @model_validator(mode="after")
    def _peers_are_protected(self) -> "Cluster":
        open_port = (
            self.tls_certificate_file is None and not self.trust_network and not _is_loopback(self.host)
        )
        if self.url and open_port:
            said = (
                f"{self.host!r} can be reached from other machines: set cluster.tls_certificate_file and "
                "cluster.tls_key_file, or cluster.trust_network = true if no one else can read that network"
            )
            raise refusal("host", said)
        return self

    @model_validator(mode="after")
    def _peers_can_connect(self) -> "Cluster":
        if self.url and self.host in UNSPECIFIED and self.advertise_url is None:
            said = (
                f"{self.host!r} is not an address that other nodes can connect to; set cluster.advertise_url"
            )
            raise refusal("host", said)
        return self

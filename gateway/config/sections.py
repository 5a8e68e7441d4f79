"""Every setting: frozen sections with defaults and bounds. A comment explains a default where the reason is not obvious.

Keys include their unit. `values` defines the types.
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator

from gateway.config.cluster import Cluster
from gateway.config.values import (
    KIB,
    MIB,
    Count,
    Dollars,
    Host,
    OptionalPath,
    OptionalProxy,
    OptionalText,
    OptionalUrl,
    Origin,
    Port,
    Seconds,
    SecondsOrNever,
    Section,
    Sha256,
    http_url,
    refusal,
    require_pair,
    secret,
)


class Server(Section):
    """The client's listener."""

    host: Host = "127.0.0.1"
    port: Port = 8080
    public_url: OptionalUrl = None
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    tls_certificate_file: OptionalPath = None
    tls_key_file: OptionalPath = None
    max_header_bytes: Annotated[int, Field(ge=1024, le=MIB)] = 16 * KIB
    header_timeout_seconds: Seconds = 10.0
    max_body_bytes: Annotated[int, Field(ge=KIB)] = MIB
    body_timeout_seconds: Seconds = 30.0
    keepalive_seconds: Seconds = 75.0
    max_event_bytes: Annotated[int, Field(ge=KIB)] = MIB
    max_batch_events: Count = 256
    max_connections: Count = 10_000
    memory_budget_bytes: Annotated[int, Field(ge=64 * MIB)] = 2048 * MIB

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "Server":
        require_pair(self, "tls_certificate_file", "tls_key_file")
        return self


class Admin(Section):
    """The operator's listener."""

    host: Host = "127.0.0.1"
    port: Port = 8081
    token: SecretStr | None = secret()
    token_file: OptionalPath = None


class Key(Section):
    """One API key. None means no limit."""

    name: str
    sha256: Annotated[tuple[Sha256, ...], Field(min_length=1)]
    max_sessions: Count | None = None
    sessions_per_minute: Annotated[float, Field(gt=0)] | None = None
    events_per_second: Annotated[float, Field(gt=0)] | None = None
    bytes_per_second: Annotated[float, Field(gt=0)] | None = None
    tokens_per_session: Count | None = None
    tokens_per_day: Count | None = None
    dollars_per_session: Dollars | None = None
    dollars_per_day: Dollars | None = None

    @field_validator("name")
    @classmethod
    def _name_is_a_label(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
            raise ValueError('must be 1 to 64 characters: letters, digits, ".", "_" and "-"')
        if value == "anonymous":
            raise ValueError("is reserved for callers without a key; choose another name")
        return value

    @model_validator(mode="before")
    @classmethod
    def _one_hash_is_a_list_of_one(cls, value: object) -> object:
        if isinstance(value, dict) and isinstance(value.get("sha256"), str):
            return {**value, "sha256": [value["sha256"]]}
        return value


class Access(Section):
    """Who may do what."""

    keys: tuple[Key, ...] = ()
    keys_file: OptionalPath = None
    anonymous: bool = False
    cors_origins: tuple[Origin, ...] = ()
    signing_key: SecretStr | None = secret()
    signing_key_file: OptionalPath = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Access":
        names = [key.name for key in self.keys]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            said = f"must have different names; {twice[0]!r} occurs twice (to rotate a key, list two sha256 in one entry)"
            raise refusal("keys", said)
        return self


_ICE_URL = re.compile(r"(stun|turns?):[A-Za-z0-9.-]+(:[0-9]{1,5})?(\?transport=(udp|tcp))?")


def _ice_url(value: str) -> str:
    found = _ICE_URL.fullmatch(value)
    if found is None or (found[1] == "stun" and found[3]):
        raise ValueError(
            "must be stun:HOST[:PORT], or turn: or turns:HOST[:PORT][?transport=udp|tcp] (RFC 7064, RFC 7065)"
        )
    if found[1] == "turns" and found[4] == "udp":
        raise ValueError("turns: uses TCP; TURN over DTLS is not supported")
    return value


class IceServer(Section):
    """A STUN or TURN server (W3C WebRTC RTCIceServer)."""

    urls: Annotated[tuple[Annotated[str, AfterValidator(_ice_url)], ...], Field(min_length=1)]
    username: OptionalText = None
    credential: SecretStr | None = secret()
    credential_file: OptionalPath = None

    @model_validator(mode="before")
    @classmethod
    def _one_url_is_a_list_of_one(cls, value: object) -> object:
        if isinstance(value, dict) and isinstance(value.get("urls"), str):
            return {**value, "urls": [value["urls"]]}
        return value


SESSION_TEMPLATE: dict[str, Any] = {
    "type": "realtime",
    "model": "gpt-realtime-2.1",
    "output_modalities": ["text"],
    # By default OpenAI listens to an audio track, which is silent here, and may respond to noise.
    "audio": {"input": {"turn_detection": None}},
}

NULL = "null"
"""Stands for null in `[upstream.session]`, since TOML has no null. No member of the object has this string as a value."""


def _with_nulls(value: Any) -> Any:  # Any: JSON of any depth
    if isinstance(value, dict):
        return {name: _with_nulls(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_with_nulls(member) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'has the number {value}, which JSON lacks; write "inf" in quotation marks')
    return None if value == NULL else value


class Upstream(Section):
    """How OpenAI is reached."""

    base_url: Annotated[str, AfterValidator(http_url)] = "https://api.openai.com/v1"
    auth: Literal["gateway", "client"] = "gateway"
    api_key: SecretStr | None = secret()
    api_key_file: OptionalPath = None
    organization: OptionalText = None
    project: OptionalText = None
    proxy: OptionalProxy = None
    connect_timeout_seconds: Seconds = 15.0
    ice_servers: tuple[IceServer, ...] = ()
    ice_transport_policy: Literal["all", "relay"] = "all"
    prices_file: OptionalPath = None
    session_locked: tuple[str, ...] = ()
    # OpenAI's object: OpenAI validates it, so any value is accepted here.
    session: Annotated[dict[str, Any], BeforeValidator(_with_nulls)] = SESSION_TEMPLATE

    @model_validator(mode="after")
    def _relay_needs_a_relay(self) -> "Upstream":
        urls = [url for server in self.ice_servers for url in server.urls]
        if self.ice_transport_policy == "relay" and not any(url.startswith("turn") for url in urls):
            raise refusal("ice_transport_policy", "'relay' needs a TURN server in upstream.ice_servers")
        return self


class Relay(Section):
    """Sessions and their logs."""

    max_sessions: Count = 2000
    max_loop_lag_seconds: Annotated[SecondsOrNever, Field(le=60)] = 0.25
    max_server_event_bytes: Annotated[int, Field(ge=64 * KIB, le=64 * MIB)] = 4 * MIB
    high_water_bytes: Annotated[int, Field(ge=KIB)] = MIB
    log_max_events: Count = 10_000
    log_max_bytes: Annotated[int, Field(ge=64 * KIB)] = 8 * MIB
    log_total_bytes: Annotated[int, Field(ge=MIB)] = 1024 * MIB
    log_retention_seconds: SecondsOrNever = 120.0
    detach_grace_seconds: Annotated[int, Field(ge=10, le=3600)] = 600
    idle_timeout_seconds: SecondsOrNever = 0.0
    max_session_seconds: SecondsOrNever = 0.0
    turn_timeout_seconds: Seconds = 300.0
    stall_timeout_seconds: Seconds = 30.0
    max_waiting_turns: Count = 8
    continuity: bool = True
    recovery_timeout_seconds: Seconds = 60.0


class Stream(Section):
    """Reads that stay open."""

    heartbeat_seconds: Annotated[int, Field(ge=5, le=60)] = 15
    max_age_seconds: Annotated[int, Field(ge=1, le=3600)] = 300
    max_receivers: Count = 8
    write_timeout_seconds: Seconds = 10.0


class Drain(Section):
    """How the gateway ends."""

    timeout_seconds: SecondsOrNever = 25.0


class Log(Section):
    """What is written, and how."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"
    access: bool = True


class Config(Section):
    """All of it."""

    server: Server = Server()
    admin: Admin = Admin()
    access: Access = Access()
    upstream: Upstream = Upstream()
    relay: Relay = Relay()
    stream: Stream = Stream()
    cluster: Cluster = Cluster()
    drain: Drain = Drain()
    log: Log = Log()

    @model_validator(mode="after")
    def _nodes_sign_alike(self) -> "Config":
        signed = self.access.signing_key or self.access.signing_key_file
        if self.cluster.url and not signed:
            said = (
                "needs access.signing_key_file with the same content on every node: client secrets and tickets are "
                "made by one node and read by the others"
            )
            raise refusal("cluster.url", said)
        return self

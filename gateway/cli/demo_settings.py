"""The settings of `gateway demo`: the operator's own, without those that would replace the emulator as upstream."""

import hashlib
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from gateway.cli.child import offline_environment
from gateway.cli.keygen import KEY_PREFIX
from gateway.config import Config, load
from gateway.config.files import access_keys

DRAIN_SECONDS: Final = 3.0
"""Short, since the user who ends a demo does not want to wait for its conversations."""

_OPENAI_KEYS: Final = ("OPENAI_API_KEY", "GATEWAY_UPSTREAM__API_KEY", "GATEWAY_UPSTREAM__API_KEY_FILE")


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """The configuration, and the key that the demo's own client sends; None if none is needed."""

    config: Config
    key: str | None = field(default=None, repr=False)


def asked_for(environ: Mapping[str, str]) -> Config:
    """Read the settings from file and environment, without OpenAI's key. Raises ConfigError."""
    return load(environ=_offline(environ))


def settings(environ: Mapping[str, str], port: int, admin_port: int, base_url: str) -> DemoSettings:
    """Return the operator's settings with the demo's changes. Raises ConfigError."""
    asked = asked_for(environ)
    key, keys = None, access_keys(asked.access)
    flags: dict[str, dict[str, object]] = {
        "server": {"port": port},
        "admin": {"port": admin_port},
        "upstream": {
            "base_url": base_url,
            "auth": "gateway",
            "api_key_file": "",
            "proxy": "",
            "ice_servers": [],
            "ice_transport_policy": "all",
        },
        "cluster": {"url": ""},
    }
    if "timeout_seconds" not in asked.drain.model_fields_set:
        flags["drain"] = {"timeout_seconds": DRAIN_SECONDS}
    if keys and not asked.access.anonymous:
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        own = {
            "name": f"demo-{secrets.token_hex(4)}",
            "sha256": [hashlib.sha256(key.encode()).hexdigest()],
        }
        configured = [one.model_dump(exclude_none=True) for one in asked.access.keys]
        flags["access"] = {"keys": [*configured, own]}
    return DemoSettings(load(environ=_offline(environ), flags=flags), key)


def free_port(host: str, port: int) -> int:
    """Return the port if it is available, else a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in (port, 0):
        with socket.socket(family) as probe:
            # As in the gateway's own listener, so that a port in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"no port of {host} is free")


def local_url(url: str) -> str:
    """Return a URL at which this machine can reach a listener, since 0.0.0.0 and :: are not valid destinations."""
    parts = urlsplit(url)
    try:
        if not ip_address(parts.hostname or "").is_unspecified:
            return url
    except ValueError:
        return url
    host = "[::1]" if ":" in (parts.hostname or "") else "127.0.0.1"
    return f"{parts.scheme}://{host}:{parts.port}"


def _offline(environ: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in environ.items() if name not in _OPENAI_KEYS}
    return {**kept, "OPENAI_API_KEY": offline_environment()["OPENAI_API_KEY"]}

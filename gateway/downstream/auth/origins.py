"""Whose pages may call: the rules on Host and Origin, and CORS (api.md, 6 Credentials).

A browser on the operator's own machine is the danger. Any page it shows can post to localhost, and through DNS
rebinding can even be same-origin with it. The `Origin` header betrays the first, the `Host` header the second. Values
only; knows no server.
"""

import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

ALLOWED_METHODS: Final = "GET, POST, DELETE"
ALLOWED_HEADERS: Final = (
    "Authorization, Content-Type, Last-Event-ID, Idempotency-Key, X-Request-Id, X-Upstream-Authorization"
)
EXPOSED_HEADERS: Final = "Location, Link, Retry-After, X-Request-Id, Idempotency-Replayed"
PREFLIGHT_SECONDS: Final = 7200
"""Chromium's own limit; more is cut to it."""

_DEFAULT_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}


def normal_origin(text: str) -> str | None:
    """Give an origin in one spelling (RFC 6454 6.2), None for what is none, such as `null`."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not host or parts.path or parts.query or "@" in parts.netloc:
        return None
    shown = f"[{host}]" if ":" in host else host
    if port is None or port == _DEFAULT_PORTS[parts.scheme]:
        return f"{parts.scheme}://{shown}"
    return f"{parts.scheme}://{shown}:{port}"


def host_name(host: str) -> str | None:
    """Give the name in a Host header, without port and in small letters; None where it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.netloc != host or "@" in host:
        return None
    return parts.hostname.rstrip(".")


def is_loopback_name(name: str) -> bool:
    """Tell whether a name can only mean this machine (RFC 6761 6.3)."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return is_loopback_address(name)


def is_loopback_address(text: str) -> bool:
    """Tell whether a text is a loopback address, an IPv4 one in IPv6 clothes included."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def cors_headers(origin: str, *, any_origin: bool) -> dict[str, str]:
    """Give what every answer to a listed origin carries. Never with credentials: there are no cookies."""
    return {
        "Access-Control-Allow-Origin": "*" if any_origin else origin,
        "Access-Control-Expose-Headers": EXPOSED_HEADERS,
    }


def preflight_headers() -> dict[str, str]:
    """Give what the answer to a preflight adds (WHATWG Fetch 3.2.2)."""
    return {
        "Access-Control-Allow-Methods": ALLOWED_METHODS,
        "Access-Control-Allow-Headers": ALLOWED_HEADERS,
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
    }

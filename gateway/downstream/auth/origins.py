"""Whose pages may call: the rules on Host and Origin, and CORS (api.md, 6 Credentials).

A browser on the operator's own machine is the danger. Any page it shows can post to localhost, and through DNS
rebinding can even be same-origin with it. The `Origin` header betrays the first, the `Host` header the second. Values
only; knows no server.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

ALLOWED_METHODS: Final = "GET, POST, DELETE"
ALLOWED_HEADERS: Final = (
    "Authorization, Content-Type, Last-Event-ID, Idempotency-Key, X-Request-Id, X-Upstream-Authorization"
)
"""Named to a preflight that asks for none."""
EXPOSED_HEADERS: Final = "Location, Link, Retry-After, X-Request-Id, Idempotency-Replayed"
PREFLIGHT_SECONDS: Final = 7200
"""Chromium's own limit; more is cut to it."""

_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*")
_NO_HOST: Final = re.compile(r"[@\s*,\\^|<>\"`{}%]")
"""What no host of an origin holds: it would be of another part of a URL, or of a pattern."""
_NUMERIC_END: Final = re.compile(r"(?:^|\.)(?:[0-9]+|0[xX][0-9A-Fa-f]*)$")
"""A host with such an end is an IPv4 address (WHATWG URL 3.5)."""
_NOT_SENT: Final = frozenset({"about", "blob", "data", "file", "javascript"})

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110 5.6.2."""

_DEFAULT_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}


def normal_origin(text: str) -> str | None:
    """Return an origin in one spelling (RFC 6454 6.2); None for what is no origin, such as `null`.

    Apps and extensions have origins of schemes of their own: `capacitor://localhost`, `chrome-extension://ID`.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    scheme = parts.scheme
    if not _SCHEME.fullmatch(scheme) or not host or parts.path or parts.query or parts.fragment:
        return None
    if parts.netloc.endswith(":") or _NO_HOST.search(parts.netloc):
        return None
    shown = f"[{host}]" if ":" in host else host
    if port is None or port == _DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{shown}"
    return f"{scheme}://{shown}:{port}"


def unmatchable(text: str) -> str | None:
    """Say why no browser ever sends this as an origin, or how it writes it instead; None if it may."""
    normal = normal_origin(text)
    if normal is None:
        return "is no origin; expected scheme://host[:port], as a browser sends it"
    scheme, _, rest = normal.partition("://")
    host = urlsplit(normal).hostname or ""
    if scheme in _NOT_SENT:
        return f"pages of {scheme}: have the origin null, which cannot be let in"
    if scheme not in _DEFAULT_PORTS:
        return None
    if not host.isascii():
        with suppress(UnicodeError):
            return f"a browser writes it {scheme}://{rest.replace(host, host.encode('idna').decode())}"
        return f"{host!r} is no host name"
    if ":" in host or _NUMERIC_END.search(host):
        try:
            address = ip_address(host)
        except ValueError:
            return f"{host!r} is no address"
        if str(address) != host:
            return f"a browser writes the address {address}"
    return None


@lru_cache(maxsize=256)  # the same few names in every request
def host_name(host: str) -> str | None:
    """Return the name in a Host header, without port and in small letters; None where it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.netloc != host or "@" in host:
        return None
    return parts.hostname.rstrip(".")


@lru_cache(maxsize=256)
def is_loopback_name(name: str) -> bool:
    """Whether a name can only mean this machine (RFC 6761 6.3)."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return is_loopback_address(name)


def is_loopback_address(text: str) -> bool:
    """Whether a text is a loopback address, IPv4-mapped IPv6 addresses included."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def cors_headers(origin: str, *, any_origin: bool) -> dict[str, str]:
    """Return what every answer to a listed origin carries. Never with credentials: there are no cookies."""
    return {
        "Access-Control-Allow-Origin": "*" if any_origin else origin,
        "Access-Control-Expose-Headers": EXPOSED_HEADERS,
    }


def preflight_headers(asked: str | None) -> dict[str, str]:
    """Return what the answer to a preflight adds (WHATWG Fetch 3.2.2).

    `asked` is its Access-Control-Request-Headers. All of them are allowed, since pages carry the headers of tracing tools,
    and a header by itself lets nobody in.
    """
    names = [name.strip() for name in (asked or "").split(",") if name.strip()]
    allowed = ", ".join(names) if all(map(_TOKEN.fullmatch, names)) else ""
    return {
        "Access-Control-Allow-Methods": ALLOWED_METHODS,
        "Access-Control-Allow-Headers": allowed or ALLOWED_HEADERS,
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
        "Vary": "Origin, Access-Control-Request-Headers",
    }

"""Which web pages may call: the rules on Host and Origin, and CORS (api.md, 6 Credentials).

The rules protect against pages in a browser on the operator's own machine. Any page can post to localhost, and with DNS
rebinding it can even be same-origin. The `Origin` header reveals the first, the `Host` header the second. Works on values
only and knows no server.
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
"""Headers allowed if a preflight asks for none."""
EXPOSED_HEADERS: Final = "Location, Link, Retry-After, X-Request-Id, Idempotency-Replayed"
PREFLIGHT_SECONDS: Final = 7200
"""Chromium's maximum."""

_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*")
_NO_HOST: Final = re.compile(r"[@\s*,\\^|<>\"`{}%]")
"""Characters that are invalid in the host of an origin. They belong to other parts of a URL, or to a pattern."""
_NUMERIC_END: Final = re.compile(r"(?:^|\.)(?:[0-9]+|0[xX][0-9A-Fa-f]*)$")
"""A host with this ending is an IPv4 address (WHATWG URL 3.5)."""
_NOT_SENT: Final = frozenset({"about", "blob", "data", "file", "javascript"})

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token (RFC 9110 5.6.2)."""

_DEFAULT_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}


def normal_origin(text: str) -> str | None:
    """Return an origin in its normal form (RFC 6454 6.2); None if the text is not an origin, such as `null`.

    Apps and extensions have origins with their own schemes: `capacitor://localhost`, `chrome-extension://ID`.
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
    """Return why no browser sends this origin, or the form that browsers send instead; None if it is valid."""
    normal = normal_origin(text)
    if normal is None:
        return "is not an origin; expected scheme://host[:port], as a browser sends it"
    scheme, _, rest = normal.partition("://")
    host = urlsplit(normal).hostname or ""
    if scheme in _NOT_SENT:
        return f"pages of {scheme}: have the origin null, which cannot be allowed"
    if scheme not in _DEFAULT_PORTS:
        return None
    if not host.isascii():
        with suppress(UnicodeError):
            return f"a browser writes it {scheme}://{rest.replace(host, host.encode('idna').decode())}"
        return f"{host!r} is not a host name"
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
    """Return the name in a Host header, in lower case and without the port; None if it is malformed."""
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
    """Return whether a name always means this machine (RFC 6761 6.3)."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return is_loopback_address(name)


def is_loopback_address(text: str) -> bool:
    """Return whether a text is a loopback address, including IPv4-mapped IPv6 addresses."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def cors_headers(origin: str, *, any_origin: bool) -> dict[str, str]:
    """Return the CORS headers of a response to an allowed origin. Credentials are never allowed: there are no cookies."""
    return {
        "Access-Control-Allow-Origin": "*" if any_origin else origin,
        "Access-Control-Expose-Headers": EXPOSED_HEADERS,
    }


def preflight_headers(asked: str | None) -> dict[str, str]:
    """Return the additional headers of the response to a preflight (WHATWG Fetch 3.2.2).

    `asked` is its Access-Control-Request-Headers. All of them are allowed, since pages send the headers of tracing tools,
    and a header does not grant access.
    """
    names = [name.strip() for name in (asked or "").split(",") if name.strip()]
    allowed = ", ".join(names) if all(map(_TOKEN.fullmatch, names)) else ""
    return {
        "Access-Control-Allow-Methods": ALLOWED_METHODS,
        "Access-Control-Allow-Headers": allowed or ALLOWED_HEADERS,
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
        "Vary": "Accept, Origin, Access-Control-Request-Headers",
    }

"""The client's address, and whether its connection is encrypted.

Behind a proxy the connection comes from the proxy, and a header describes the client's. Any client can send such a header,
so only the elements written by trusted proxies are used (`server.trusted_proxies`). Each proxy appends an element for the
hop that it received. The elements are read from the right, up to the first address that is not a trusted proxy.
`X-Forwarded-For` and `X-Forwarded-Proto` are read if present, else `Forwarded` (RFC 7239): most proxies write the first
two and pass the other on as the client sent it.
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Literal

from aiohttp import web

from gateway.downstream.auth.access import ACCESS
from gateway.downstream.auth.origins import is_loopback_address

Address = IPv4Address | IPv6Address

_NODE: Final = re.compile(r"\[([^\]]+)\](?::\d+)?\Z|([0-9.]+)(?::\d+)?\Z")
"""An address with or without a port: `192.0.2.1:80`, `[2001:db8::1]:80`. IPv6 without brackets has none."""


def loopback_peer(request: web.Request) -> bool:
    """Return whether the connection comes from this machine."""
    address = _peer(request)
    return address is not None and is_loopback_address(str(address))


def scheme(request: web.Request) -> str:
    """Return the scheme that the client used, as trusted proxies report it."""
    _, hops = _walk(request)
    if not hops:
        return request.scheme
    told = _listed(request, "X-Forwarded-Proto")
    if not told:
        told = [element.get("proto", "") for element in request.forwarded]
    if not told:
        return request.scheme
    # One element per hop. A proxy that replaces the list leaves one element, which describes the client.
    word = told[max(0, len(told) - hops)].lower()
    return word if word in ("http", "https") else request.scheme


def client_address(request: web.Request) -> str | None:
    """Return the client's address: that of the connection or, behind trusted proxies, the last one in their headers that
    is not a trusted proxy."""
    if not request.app[ACCESS].rules.trusted_proxies:
        text = _peer_text(request)
        return text.removeprefix("::ffff:") if text is not None else None
    address, _ = _walk(request)
    return None if address is None else str(address)


def _walk(request: web.Request) -> tuple[Address | None, int]:
    """Return the client's address, and the number of trusted proxies in front of the gateway."""
    address = _peer(request)
    networks = request.app[ACCESS].rules.trusted_proxies
    if not networks or address is None or not any(address in network for network in networks):
        return address, 0
    told = _listed(request, "X-Forwarded-For")
    if not told:
        told = [element.get("for", "") for element in request.forwarded]
    hops = 1
    for node in reversed(told):
        found = _address(node)
        if found is None:
            break  # `unknown`, or a name that hides an address (RFC 7239 6.3)
        address = found
        if not any(address in network for network in networks):
            break
        hops += 1
    return address, hops


def _listed(request: web.Request, header: Literal["X-Forwarded-For", "X-Forwarded-Proto"]) -> Sequence[str]:
    """Return the elements of a header that may have several lines."""
    joined = ",".join(request.headers.getall(header, ()))
    return [word.strip() for word in joined.split(",")] if joined else []


def _address(node: str) -> Address | None:
    found = _NODE.match(node)
    try:
        return _unmapped(ip_address((found[1] or found[2]) if found else node))
    except ValueError:
        return None


def _peer(request: web.Request) -> Address | None:
    text = _peer_text(request)
    return None if text is None else _unmapped(ip_address(text))


def _peer_text(request: web.Request) -> str | None:
    return request.remote or None  # A unix socket's peer has an empty name.


def _unmapped(address: Address) -> Address:
    # A listener for both families sees IPv4-mapped IPv6 addresses, which no configured IPv4 network would match.
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address

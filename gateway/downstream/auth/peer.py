"""What a connection tells of the far side: where it comes from, and how it was spoken to there."""

from ipaddress import IPv4Address, IPv6Address, ip_address

from aiohttp import web

from gateway.downstream.auth.access import ACCESS
from gateway.downstream.auth.origins import is_loopback_address


def loopback_peer(request: web.Request) -> bool:
    """Tell whether the connection comes from this machine."""
    address = _peer(request)
    return address is not None and is_loopback_address(str(address))


def scheme(request: web.Request) -> str:
    """Give the scheme the client used, as a trusted proxy tells it."""
    forwarded = request.headers.get("X-Forwarded-Proto", "").lower()
    if forwarded in ("http", "https") and _from_trusted_proxy(request):
        return forwarded
    return request.scheme


def client_address(request: web.Request) -> str | None:
    """Give where the request came from: the connection's far side or, behind trusted proxies, the last address in
    `X-Forwarded-For` that is none of theirs. What stands before it, the client may have made up."""
    address = _peer(request)
    networks = request.app[ACCESS].rules.trusted_proxies
    words = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
    while address is not None and words and any(address in network for network in networks):
        try:
            address = _plain(ip_address(words.pop().strip()))
        except ValueError:
            break
    return None if address is None else str(address)


def _from_trusted_proxy(request: web.Request) -> bool:
    address = _peer(request)
    networks = request.app[ACCESS].rules.trusted_proxies
    return address is not None and any(address in network for network in networks)


def _peer(request: web.Request) -> IPv4Address | IPv6Address | None:
    peer = request.transport.get_extra_info("peername") if request.transport else None
    if not isinstance(peer, tuple):
        return None
    return _plain(ip_address(str(peer[0])))


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    # A listener for both families sees IPv4 peers in IPv6 clothes, which no configured IPv4 network would match.
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address

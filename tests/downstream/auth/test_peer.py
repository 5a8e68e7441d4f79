"""The client's address, scheme and host, from the connection and its headers."""

import asyncio
from ipaddress import ip_network
from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from gateway.downstream.auth.access import ACCESS, Access, AccessRules
from gateway.downstream.auth.credentials import Signatures
from gateway.downstream.auth.peer import client_address, loopback_peer, scheme
from tests.downstream.harness import SIGNING_KEY


def request_from(peer: object, lines: CIMultiDict[str] | None = None, /, **headers: str) -> web.Request:
    """Make a request as it comes from an address; only the 10.0.0.0/8 network's proxies are trusted."""
    transport = Mock(spec=asyncio.Transport)
    transport.get_extra_info.side_effect = {"peername": peer}.get
    app = web.Application()
    rules = AccessRules(trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("fe80::/10")))
    app[ACCESS] = Access(rules, Signatures([SIGNING_KEY]), lambda: 0)
    return make_mocked_request("GET", "/", headers=lines or headers, transport=transport, app=app)


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        (("127.0.0.1", 5000), True),
        (("::1", 5000, 0, 0), True),
        (("::ffff:127.0.0.1", 5000, 0, 0), True),
        (("fe80::1%eth0", 5000, 0, 2), False),
        (("10.0.0.9", 5000), False),
        (None, False),
    ],
)
def test_peer_is_local_by_its_address(peer: object, local: bool) -> None:
    """Whether a peer is local depends on its connection, not on its headers."""
    assert loopback_peer(request_from(peer, Host="localhost")) is local


@pytest.mark.parametrize(
    ("peer", "seen"),
    [
        (("10.0.0.9", 5000), "https"),
        (("::ffff:10.0.0.9", 5000, 0, 0), "https"),
        (("fe80::1%eth0", 5000, 0, 2), "https"),
        (("192.0.2.1", 5000), "http"),
        (None, "http"),
    ],
)
def test_forwarded_scheme_is_believed_by_address(peer: object, seen: str) -> None:
    """A trusted proxy is also recognised by its IPv4-mapped IPv6 address; other peers' headers are ignored."""
    assert scheme(request_from(peer, **{"X-Forwarded-Proto": "https"})) == seen


def test_strange_scheme_is_not_believed() -> None:
    """An unknown scheme in the header of a trusted proxy is ignored."""
    assert scheme(request_from(("10.0.0.9", 5000), **{"X-Forwarded-Proto": "gopher"})) == "http"


@pytest.mark.parametrize(
    ("peer", "forwarded", "seen"),
    [
        (("192.0.2.1", 5000), None, "192.0.2.1"),
        (("::ffff:192.0.2.1", 5000, 0, 0), None, "192.0.2.1"),
        (("192.0.2.1", 5000), "198.51.100.7", "192.0.2.1"),
        (("10.0.0.9", 5000), None, "10.0.0.9"),
        (("10.0.0.9", 5000), "198.51.100.7", "198.51.100.7"),
        (("10.0.0.9", 5000), "made.up, 203.0.113.5,198.51.100.7 , 10.1.1.1", "198.51.100.7"),
        (("10.0.0.9", 5000), "2001:db8::7", "2001:db8::7"),
        (("10.0.0.9", 5000), "198.51.100.7, unknown", "10.0.0.9"),
        (("10.0.0.9", 5000), "10.2.2.2", "10.2.2.2"),
        (("10.0.0.9", 5000), "198.51.100.7:4711", "198.51.100.7"),
        (("10.0.0.9", 5000), "[2001:db8::7]:4711, 10.1.1.1:80", "2001:db8::7"),
        (("10.0.0.9", 5000), "[2001:db8::7]", "2001:db8::7"),
        (("10.0.0.9", 5000), "::ffff:198.51.100.7", "198.51.100.7"),
        (("10.0.0.9", 5000), "198.51.100.7:x", "10.0.0.9"),
        (("10.0.0.9", 5000), ", ,", "10.0.0.9"),
        (None, "198.51.100.7", None),
    ],
)
def test_client_is_the_last_that_no_trusted_proxy_is(
    peer: object, forwarded: str | None, seen: str | None
) -> None:
    """The client is the last address that does not belong to a trusted proxy; only addresses added by trusted
    proxies are used."""
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    assert client_address(request_from(peer, **headers)) == seen


@pytest.mark.parametrize(
    ("headers", "seen"),
    [
        ({"X-Forwarded-Proto": "https"}, "https"),
        ({"X-Forwarded-Proto": "HTTPS"}, "https"),
        # One proxy: the client wrote everything before the proxy's own entry.
        ({"X-Forwarded-Proto": "http, https"}, "https"),
        ({"X-Forwarded-Proto": "https,http", "X-Forwarded-For": "192.0.2.7"}, "http"),
        # Two proxies of ours: the outer one knows the client's address.
        ({"X-Forwarded-Proto": "https, http", "X-Forwarded-For": "192.0.2.7, 10.1.1.1"}, "https"),
        ({"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7, 10.1.1.1"}, "https"),
        ({"Forwarded": "for=192.0.2.7;proto=https"}, "https"),
        ({"Forwarded": 'proto=http;for=192.0.2.8, for="[2001:db8::7]:4711";proto=https'}, "https"),
        ({"Forwarded": "for=192.0.2.7;proto=https, for=10.1.1.1;proto=http"}, "https"),
        ({"Forwarded": "for=192.0.2.7;proto=https", "X-Forwarded-Proto": "http"}, "http"),
        ({"Forwarded": "for=192.0.2.7"}, "http"),
        ({}, "http"),
    ],
)
def test_scheme_is_that_of_the_client(headers: dict[str, str], seen: str) -> None:
    """Each trusted proxy adds one element; the one for the client's own connection is used."""
    assert scheme(request_from(("10.0.0.9", 5000), **headers)) == seen


@pytest.mark.parametrize("peer", [("192.0.2.1", 5000), None])
def test_forwarded_is_believed_of_trusted_proxies_only(peer: object) -> None:
    """`Forwarded` is used only from trusted proxies, because anybody can send it."""
    request = request_from(peer, Forwarded="for=198.51.100.7;proto=https")

    assert scheme(request) == "http"
    assert client_address(request) != "198.51.100.7"


@pytest.mark.parametrize(
    ("forwarded", "seen"),
    [
        ("for=198.51.100.7", "198.51.100.7"),
        ('For="198.51.100.7:4711"', "198.51.100.7"),
        ('for="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        ("for=made.up, for=198.51.100.7;by=203.0.113.43, for=10.1.1.1", "198.51.100.7"),
        ("for=198.51.100.7, for=unknown", "10.0.0.9"),
        ("for=_hidden", "10.0.0.9"),
        ("nonsense", "10.0.0.9"),
    ],
)
def test_client_is_told_by_forwarded(forwarded: str, seen: str) -> None:
    """Without X-Forwarded-For, the client is taken from Forwarded (RFC 7239)."""
    assert client_address(request_from(("10.0.0.9", 5000), Forwarded=forwarded)) == seen


def test_several_lines_are_one_list() -> None:
    """Several header lines are one list, because a proxy may add a line instead of an element."""
    headers = CIMultiDict([("X-Forwarded-For", "198.51.100.7"), ("X-Forwarded-For", "10.1.1.1")])

    assert client_address(request_from(("10.0.0.9", 5000), headers)) == "198.51.100.7"
